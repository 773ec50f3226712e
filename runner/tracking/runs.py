"""Sweeps and trials as MLflow runs. Every method returns at once; the writer thread does the work, in order."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from runner.config import TrackingConfig, TrialConfig
from runner.records import Columns, LoadSample, RoundRecord, TrialResult, TrialStarted
from runner.tracking import describe
from runner.tracking.past import FINAL, ROUND, PastRun, reopen
from runner.tracking.store import open_store, redact
from runner.tracking.writer import Writer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BATCH = 1000  # metrics that one log_batch may hold
_VALUE = 6000  # characters of a param
_TAG = 8000  # characters of a tag


class Tracker:
    """The driver's one way to MLflow.

    ::

        with Tracker(cfg.tracking) as tracker:
            sweep = tracker.start_sweep(...)
            trial = sweep.start_trial(...)  # or tracker.start_trial(...) for a trial on its own
            trial.started(first)
            trial.round(record)
            trial.finish(result)
            sweep.finish(...)

    A run that is still open when the tracker closes becomes KILLED: nothing is left RUNNING. What goes wrong in the
    writer thread is raised by the next call, and by :meth:`close`.

    Parameters
    ----------
    cfg : TrackingConfig
        Store, experiment and output folder.
    clock : Callable[[], float]
        Unix time in seconds.

    Raises
    ------
    TrackingError
        The store can't be reached or written.
    """

    def __init__(self, cfg: TrackingConfig, clock: Callable[[], float] = time.time) -> None:
        self.cfg = cfg
        self.store = open_store(cfg)
        self.writer = Writer()
        self.clock = clock
        self.tags = describe.environment()
        """Tags of every run opened from now on; the driver adds ``cluster`` once Ray is up."""
        self.open_runs: list[_Run] = []

    @property
    def uri(self) -> str:
        """The tracking URI, fit to be shown."""
        return redact(self.store.uri)

    def start_sweep(
        self,
        name: str,
        key: str,
        description: str = "",
        params: Mapping[str, str] | None = None,
        command: str = "",
        past: PastRun | None = None,
    ) -> "SweepRun":
        """Open the parent run of a sweep, or go on with a past one; ``params`` are its axes, ``command`` runs it."""
        return SweepRun(self, name, dict(params or {}), describe.sweep_tags(name, key, description, command), past)

    def start_trial(
        self,
        trial: TrialConfig,
        axes: Mapping[str, str] | None = None,
        command: str = "",
        parent: "SweepRun | None" = None,
        past: PastRun | None = None,
    ) -> "TrialRun":
        """Open the run of one trial, or go on with a past one; ``axes`` is its place in the sweep, by short names."""
        return TrialRun(self, trial, dict(axes or {}), command, parent, past)

    def close(self) -> None:
        """Close what is open, write what is queued, end the thread. Raises the TrackingError of a lost write."""
        for run in list(self.open_runs):
            run.killed()
        self.writer.stop()
        self.writer.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.close()
        except Exception:
            if error is None:  # else what went wrong first is what the user must see
                raise


class _Run:
    """A run of MLflow: opened by the constructor (a past one anew), closed once."""

    def __init__(
        self,
        tracker: Tracker,
        name: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        files: Mapping[str, str],
        past: PastRun | None = None,
    ) -> None:
        self.name = name
        self._tracker = tracker
        self._client = tracker.store.client
        self._id: Future[str] = Future()
        tags = {key: redact(value)[:_TAG] for key, value in {**tracker.tags, **tags}.items()}
        start = self._now_ms()
        if past is not None:
            tracker.writer.put(f"the start of '{name}'", lambda: self._reopen(past, tags))
        else:
            tracker.writer.put(f"the start of '{name}'", lambda: self._open(start, dict(params), tags, dict(files)))
        tracker.open_runs.append(self)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; waits until it is open. Raises the TrackingError of a store that failed meanwhile."""
        if not self._id.done():
            self._tracker.writer.flush()
        return self._id.result()

    def fail(self, reason: str, traceback: str = "") -> None:
        """Close the run as FAILED, its reason in a tag, the traceback and what its rounds gave as artifacts."""

        def job() -> None:
            self._client.set_tag(self.run_id, "reason", redact(reason)[:_TAG])
            if traceback:
                self._client.log_text(self.run_id, redact(traceback), "traceback.txt")
            self._leave()

        self._close("FAILED", job)

    def killed(self) -> None:
        """Close the run as KILLED: it was interrupted; what its rounds gave is kept."""
        self._close("KILLED", self._leave)

    def _leave(self) -> None:
        """Log what a run has gathered when it ends early."""

    def _put(self, what: str, job: Callable[[], None], closing: bool = False) -> None:
        self._tracker.writer.put(f"{what} of '{self.name}'", job, closing)

    def _close(self, status: str, job: Callable[[], None]) -> None:
        """Do a last job and close the run, once. A run of which something was not written ends as FAILED."""
        if self not in self._tracker.open_runs:
            return
        if status == "FINISHED":
            self._tracker.writer.check()
        end = self._now_ms()

        def last() -> None:
            if not self._id.done():
                return  # it never came to be
            reached = "FAILED"
            try:
                if status != "FINISHED" or not self._tracker.writer.failed:
                    job()
                    reached = status
            finally:
                self._client.set_terminated(self.run_id, reached, end)

        self._put("the end", last, closing=True)
        self._tracker.open_runs.remove(self)

    def _open(self, start: int, params: Mapping[str, str], tags: Mapping[str, str], files: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        store = self._tracker.store
        run_id = self._client.create_run(store.experiment_id, start, tags=dict(tags), run_name=self.name).info.run_id
        self._id.set_result(run_id)
        entries = [Param(key, str(value)[:_VALUE]) for key, value in params.items()]
        for first in range(0, len(entries), 100):
            self._client.log_batch(run_id, params=entries[first : first + 100])
        for name, text in files.items():
            self._client.log_text(run_id, text, name)

    def _reopen(self, past: PastRun, tags: Mapping[str, str]) -> None:
        reopen(self._tracker.store, past.run_id, tags)
        self._id.set_result(past.run_id)

    def _now_ms(self) -> int:
        return int(self._tracker.clock() * 1000)


class SweepRun(_Run):
    """The parent run of a sweep."""

    def __init__(
        self,
        tracker: Tracker,
        name: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        past: PastRun | None = None,
    ) -> None:
        super().__init__(tracker, name, params, tags, {}, past)
        self._note = tags["mlflow.note.content"]

    def start_trial(self, trial: TrialConfig, axes: Mapping[str, str], command: str = "") -> "TrialRun":
        """Open the run of a trial, nested in this one."""
        return self._tracker.start_trial(trial, axes, command, self)

    def finish(self, summary: str = "", files: "Mapping[str, str | Figure] | None" = None, failed: int = 0) -> None:
        """Close the run: FINISHED, or FAILED where so many trials failed.

        Parameters
        ----------
        summary : str
            Markdown, added to the run's note; the table of results.
        files : Mapping[str, str | Figure]
            Artifacts by path, as made by :func:`runner.report.sweep_files`.
        failed : int
            Trials that failed.
        """

        def job() -> None:
            from runner.tracking.artifacts import log_files

            log_files(self._client, self.run_id, dict(files or {}))
            self._client.set_tag(self.run_id, "mlflow.note.content", redact(f"{self._note}\n\n{summary}")[:_TAG])
            if failed:
                self._client.set_tag(self.run_id, "reason", f"{failed} trials failed")

        self._close("FAILED" if failed else "FINISHED", job)


class TrialRun(_Run):
    """The run of one trial. Rows for the Parquet artifacts are kept until its end, and are then given back."""

    def __init__(
        self,
        tracker: Tracker,
        trial: TrialConfig,
        axes: dict[str, str],
        command: str,
        parent: SweepRun | None,
        past: PastRun | None = None,
    ) -> None:
        tags = describe.trial_tags(trial, axes, command)
        if parent is not None:
            # Waits for the parent's row where it is not written yet: milliseconds, before the first trial only.
            tags |= {"mlflow.parentRunId": parent.run_id, "sweep": parent.name}
        files = {"config.yaml": describe.config_yaml(trial)}
        super().__init__(tracker, describe.run_name(trial, axes), describe.trial_params(trial, axes), tags, files, past)
        self._trial = trial
        self._taken = -1  # last round that was given
        self._logged = past.round if past else -1  # last round that the store had when the run was opened
        self._has_final = bool(past and past.summary)
        self._first: TrialStarted | None = None
        self._rounds: list[dict[str, float]] = []
        self._clients: list[Columns] = []
        self._assignments: list[Columns] = []
        self._load: list[LoadSample] = []
        self._events: list[str] = []

    def started(self, first: TrialStarted) -> None:
        """Log the data set (the UI's Dataset column) and the pictures of its split."""
        self._first = first

        def job() -> None:
            from runner.tracking.artifacts import data_figures, log_dataset, log_files

            log_dataset(self._client, self.run_id, first.data)
            log_files(self._client, self.run_id, data_figures(first.data))
            if self._tracker.cfg.log_models:
                from runner.tracking.models import warm_up

                warm_up()

        self._put("the data set", job)

    def round(self, record: RoundRecord) -> None:
        """Log a round's metrics in one batch with one timestamp, and keep its rows for the artifacts.

        A round that was given before, by a trial that died and goes on, is left out; so are the metrics of one that
        the store has from an earlier session (contract 7).
        """
        if record.round <= self._taken:
            return
        self._taken = record.round
        now = int(record.time_s * 1000) or self._now_ms()
        self._rounds.append({"round": record.round, **record.metrics})
        self._clients.append(record.clients)
        self._assignments.append(record.assignments)
        self._load.extend(record.load)
        self._events.extend(f"round {record.round}: {event}" for event in record.events)
        if record.round > self._logged:
            metrics = {**record.metrics, ROUND: record.round}
            self._put(f"round {record.round}", lambda: self._log_metrics(metrics, record.round, now))

    def finish(self, result: TrialResult) -> None:
        """Log final metrics (bars, at step 0), tables, figures and models, and close the run as FINISHED."""
        now = self._now_ms()

        def job() -> None:
            from runner.tracking.models import log_model

            if not self._has_final:
                self._log_metrics({f"{FINAL}{key}": value for key, value in result.summary.items()}, 0, now)
            if result.stopped:
                self._client.set_tag(self.run_id, "stopped", result.stopped)
            self._client.set_tag(self.run_id, "weights_sha256", result.weights_sha256)
            self._log_tables(result)
            if self._tracker.cfg.log_models and self._first is not None:
                classes = len(self._first.data.class_names)
                store, model, shape = self._tracker.store, self._trial.model, result.input_shape
                for name, state in result.models.items():
                    log_model(store, self.run_id, name, model, state, shape, classes)

        self._close("FINISHED", job)

    def _leave(self) -> None:
        self._log_tables(None)

    def _log_metrics(self, metrics: Mapping[str, float], step: int, now_ms: int) -> None:
        from mlflow.entities import Metric

        entries = [Metric(key, float(value), now_ms, step) for key, value in metrics.items()]
        for first in range(0, len(entries), _BATCH):
            self._client.log_batch(self.run_id, metrics=entries[first : first + _BATCH])

    def _log_tables(self, result: TrialResult | None) -> None:
        from runner.tracking.artifacts import log_files, trial_files

        files: dict[str, Any] = trial_files(
            self._rounds, self._clients, self._assignments, self._load, self._first, result
        )
        if self._events:
            files["events.txt"] = redact("\n".join(self._events) + "\n")
        log_files(self._client, self.run_id, files)
        for rows in (self._rounds, self._clients, self._assignments, self._load):
            rows.clear()
