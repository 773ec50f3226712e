"""Sweeps and trials as MLflow runs.

Every method returns at once; the writer thread does the work, in order.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from fedsweep import escape
from fedsweep.catalog import FINAL, ROUND
from fedsweep.config import RunConfig
from fedsweep.errors import TrackingError, one_line
from fedsweep.figures.style import styles, way_of
from fedsweep.records import (
    Columns,
    DataSummary,
    LoadSample,
    RoundRecord,
    TrialResult,
    TrialStarted,
)
from fedsweep.tracking import describe, ops
from fedsweep.tracking.describe import APP_METRICS, Told
from fedsweep.tracking.ops import Op
from fedsweep.tracking.past import REPORT, ROUNDS_A_PART, PastRun
from fedsweep.tracking.session import Session
from fedsweep.tracking.tables import Parts, rounds_a_part

if TYPE_CHECKING:
    from fedsweep.figures.canvas import Extras

_PICTURED_MODELS = 40
"""The first models whose tasks are in the picture of a trial's time."""
_DRAWN = (
    "round",
    "client",
    "eval_acc",
    "eval_loss",
)  # columns of the clients' rows that figures need


class OpenRun:
    """A run of MLflow: opened by the constructor (a past one anew), closed once."""

    def __init__(
        self,
        session: Session,
        name: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        files: Mapping[str, str],
        parent: "OpenRun | None" = None,
        past: PastRun | None = None,
    ) -> None:
        self.name = name
        self.token = uuid.uuid4().hex
        self._session = session
        start, above = self._now_ms(), parent.token if parent else None
        tags = {**session.tags, **tags}

        def job() -> Iterator[Op]:
            if past is None:
                yield ops.create(self.token, name, start, tags, above)
            else:  # its driver may have died before it could say what the run is
                yield ops.reopen(self.token, past.run_id, past.token, tags, above)
            there = past.params if past else {}
            yield ops.params(
                self.token,
                {name: value for name, value in params.items() if escape.key(name) not in there},
            )
            yield ops.files(self.token, files)

        self._put_job("the start", job)
        session.open_runs.append(self)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; waits until it is open, as long as the store takes something.

        Raises the TrackingError of a store that refuses it, or does not answer.
        """
        if self.token not in self._session.runs:
            self._session.writer.settle()
        try:
            return self._session.runs[self.token]
        except KeyError as error:
            reason = self._session.writer.lost.get(self.token, "the store did not answer")
            raise TrackingError(f"MLflow: '{self.name}' could not be made: {reason}") from error

    def fail(self, reason: str, traceback: str = "") -> None:
        """Close the run as FAILED: its reason is a tag, traceback and rounds are artifacts."""

        def job() -> Iterator[Op]:
            yield ops.tags(self.token, {"reason": reason})
            if traceback:
                yield ops.files(self.token, {"traceback.txt": traceback})
            yield from self._log_gathered()

        self._close("FAILED", job)

    def killed(self, reason: str = "") -> None:
        """Close the run as KILLED: it was interrupted; what its rounds gave is kept."""

        def job() -> Iterator[Op]:
            if reason:
                yield ops.tags(self.token, {"reason": reason})
            yield from self._log_gathered()

        self._close("KILLED", job)

    def _log_gathered(self) -> Iterator[Op]:
        """Log what a run has gathered when it ends early."""
        return iter(())

    def _put_job(self, what: str, job: Callable[[], Iterator[Op]], closing: bool = False) -> None:
        self._session.writer.put(f"{what} of '{self.name}'", self.token, job, closing)

    def _close(self, status: str, job: Callable[[], Iterator[Op]]) -> None:
        """Do a last job and close the run, once.

        A run of which something was not written ends as KILLED.
        """
        if self not in self._session.open_runs:
            return
        end = self._now_ms()

        def last() -> Iterator[Op]:
            finishes = status == "FINISHED"
            whole = self.token not in self._session.writer.lost
            reached, reason = "KILLED" if finishes else status, ""
            try:
                if whole or not finishes:
                    yield from job()
                    reached = status
            except Exception as error:
                reason = one_line(error) if finishes else ""
                raise
            finally:
                yield ops.end(self.token, reached, end, reason)

        self._put_job("the end", last, closing=True)
        self._session.open_runs.remove(self)
        self._session.names[self.token] = self.name

    def _now_ms(self) -> int:
        return int(self._session.clock() * 1000)


class SweepRun(OpenRun):
    """The parent run of a sweep."""

    def __init__(
        self,
        session: Session,
        name: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        trials: Mapping[str, Mapping[str, str]],
        past: PastRun | None = None,
        searching: bool = False,
    ) -> None:
        files = {describe.GRID: describe.grid_json(trials, params, searching=searching)}
        super().__init__(session, name, params, tags, files, past=past)
        self.axes = tuple(params)
        self._looks = styles(way_of(place) for place in trials.values())
        self._note = tags["mlflow.note.content"]

    def start_trial(
        self, trial: RunConfig | Told, axes: Mapping[str, str], command: str = ""
    ) -> "TrialRun":
        """Open the run of a trial, nested in this one."""
        return TrialRun(self._session, trial, dict(axes), command, self, None)

    def colour(self, axes: Mapping[str, str]) -> str | None:
        """Return the colour of a trial's way, the one that it has in the report's figures."""
        look = self._looks.get(way_of(axes))
        return look.colour if look else None

    def searched(
        self,
        trials: Mapping[str, Mapping[str, str]],
        also: Mapping[str, Mapping[str, float]],
        story: str,
    ) -> None:
        """Log what a search came to, before the report is made.

        Parameters
        ----------
        trials : mapping
            The values of the axes of each trial that is reported, by trial key, in order.
        also : mapping
            By trial key: what its row tells beside its own metrics.
        story : str
            The whole search, as JSON: :class:`fedsweep.report.searched.Searched`.
        """
        grid = describe.grid_json(trials, self.axes, also)

        def job() -> Iterator[Op]:
            yield ops.files(self.token, {describe.GRID: grid, describe.SEARCHED: story})

        self._put_job("the search", job)

    def finish(
        self,
        summary: str = "",
        files: Mapping[str, str | bytes] | None = None,
        failed: int = 0,
        missing: str = "",
        best: Mapping[str, float] | None = None,
    ) -> None:
        """Close the run: FINISHED, or FAILED where so many trials failed.

        Parameters
        ----------
        summary : str
            Markdown, added to the run's note; the table of results.
        files : Mapping[str, str | bytes]
            Artifacts by path, as made by :func:`fedsweep.report.report.report`.
        failed : int
            Trials that failed.
        missing : str
            Why there is no report, where it could not be made.
        best : Mapping[str, float]
            Final metric -> the mean of the cell that is the best by it: the sweep's own metrics.
        """
        now = self._now_ms()

        def job() -> Iterator[Op]:
            from fedsweep.tracking.artifacts import ui_images

            if best:
                finals = {f"{FINAL}{key}": value for key, value in best.items()}
                yield ops.metrics(self.token, finals, 0, now)
            tags = {"mlflow.note.content": f"{self._note}\n\n{summary}"}
            if files:
                pngs = {
                    path: content for path, content in files.items() if isinstance(content, bytes)
                }
                images = self._session.kept(ui_images(pngs, now))
                yield ops.files(self.token, {**files, **images})
                if images:
                    tags["mlflow.loggedImages"] = "True"
            if failed:
                tags["reason"] = f"{failed} trials failed"
            tags[REPORT] = f"missing: {missing}" if missing else "made"
            yield ops.tags(self.token, tags)

        self._close("FAILED" if failed else "FINISHED", job)


class TrialRun(OpenRun):
    """The run of one trial.

    Each round's rows are written with it; what the figures need is kept until the end.
    """

    def __init__(
        self,
        session: Session,
        trial: RunConfig | Told,
        axes: dict[str, str],
        command: str,
        parent: SweepRun | None,
        past: PastRun | None = None,
        also: Mapping[str, str] | None = None,
    ) -> None:
        facts = describe.facts_of(trial, axes, command, parent.axes if parent else ())
        rounds = past.rounds_a_part if past else rounds_a_part(facts.num_clients)
        tags = {**facts.tags, **(also or {}), ROUNDS_A_PART: str(rounds)}
        if parent is not None and (colour := parent.colour(axes)):
            tags |= {"mlflow.runColor": colour}
        self._parts = Parts(rounds)
        if parent is not None:
            tags |= {"sweep": parent.name}
        files = {"config.yaml": facts.config}
        super().__init__(session, facts.name, facts.params, tags, files, parent, past)
        self._trial = facts
        self._taken = -1  # last round that was given
        self._logged = (
            past.round if past else -1
        )  # last round that the store had when the run was opened
        self._has_final = bool(past and past.summary)
        self._figures = session.cfg.figures
        self._data: DataSummary | None = None
        self._rounds: list[dict[str, float]] = []
        self._clients: list[Columns] = []
        self._assignments: list[Columns] = []
        self._tasks: list[Columns] = []
        self._load: list[LoadSample] = []
        self._events: list[str] = []
        self._pictured = False  # whether the slider has its first picture

    def started(self, first: TrialStarted) -> None:
        """Log the data set (the UI's Dataset column) and the pictures of its split."""
        data = self._data = first.data
        if data is None:
            return

        def job() -> Iterator[Op]:
            from fedsweep.tracking.artifacts import dataset_fields, split_table

            yield Op("dataset", self.token, dataset_fields(data))
            yield ops.files(self.token, {"split.parquet": split_table(data)})
            if self._figures != "none":
                yield from self._pictures(self._session.pictures.of_data(data))

        self._put_job("the data set", job)

    def round(self, record: RoundRecord) -> None:
        """Log a round: its rows' parts of the tables, then its metrics in one batch, at one time.

        A round that was given before, by a trial that died and goes on, is left out; so is the
        writing of one that the store has from an earlier session.
        """
        if record.round <= self._taken:
            return
        self._taken = record.round
        now = int(record.time_s * 1000) or self._now_ms()
        self._rounds.append({"round": record.round, **record.metrics})
        if self._figures == "all":
            self._clients.append(
                {key: record.clients[key] for key in _DRAWN if key in record.clients}
            )
            self._assignments.append(record.assignments)
            if len(self._tasks) < _PICTURED_MODELS:
                self._tasks.append(record.tasks)
            self._load.extend(record.load)
        self._events.extend(f"round {record.round}: {event}" for event in record.events)

        def job() -> Iterator[Op]:
            from fedsweep.tracking.artifacts import cluster_image

            content = self._parts.add(record)
            if self._figures == "all" and self._data is not None:
                groups, rounds = self._data.groups, self._trial.rounds
                images = self._kept(cluster_image(record, groups, rounds, now, not self._pictured))
                self._pictured |= bool(images)
                content |= images
            if content:
                yield ops.files(self.token, content)
            yield ops.metrics(
                self.token, {**record.metrics, ROUND: record.round}, record.round, now
            )

        if record.round > self._logged:
            self._put_job(f"round {record.round}", job)
        else:  # before any job: parts that are not full go on
            self._parts.add(record)

    def finish(self, result: TrialResult) -> None:
        """Log final metrics (bars, at step 0), figures and models; close the run as FINISHED."""
        now = self._now_ms()

        def job() -> Iterator[Op]:
            if not self._has_final:
                yield ops.metrics(
                    self.token, {f"{FINAL}{key}": v for key, v in result.summary.items()}, 0, now
                )
            tags = {"weights_sha256": result.weights_sha256, "mlflow.loggedImages": "True"}
            yield ops.tags(
                self.token, tags | ({"stopped": result.stopped} if result.stopped else {})
            )
            if result.declared:
                yield ops.tags(self.token, {APP_METRICS: result.declared})
            if result.confusion is not None and self._data is not None:
                from fedsweep.tracking.artifacts import class_table

                table = class_table(result.confusion, self._data.class_names)
                yield ops.files(self.token, {"classes.parquet": table})
            if result.files:
                yield ops.files(
                    self.token, {f"files/{path}": part for path, part in result.files.items()}
                )
            if self._session.cfg.log_models:
                yield from self._models(result)
            yield from self._figures_and_events(result)

        self._close("FINISHED", job)

    def _models(self, result: TrialResult) -> Iterator[Op]:
        """Log the final models: as networks, or, where these are not known here, their weights."""
        from fedsweep.tracking.models import model_op, weights_op

        for name, state in result.models.items():
            if self._trial.model is None:
                yield weights_op(self.token, name, state)
            elif self._data is not None:
                model, sizes = self._trial.model, (self._data.num_outputs, self._data.num_symbols)
                yield from model_op(self.token, name, model, state, result.input_shape, *sizes)

    def _log_gathered(self) -> Iterator[Op]:
        return self._figures_and_events(None)

    def _figures_and_events(self, result: TrialResult | None) -> Iterator[Op]:
        """Log the pictures once all else is stored, then what happened, failed pictures too."""
        if self._figures == "all":
            gathered = self._rounds, self._clients, self._assignments, self._load
            drawn = self._session.pictures.of_trial(
                *gathered, self._data, result, tasks=self._tasks
            )
            yield from self._pictures(drawn)
        if self._events:
            told = "".join(f"{escape.line(event)}\n" for event in self._events)
            yield ops.files(self.token, {"events.txt": told})
        for rows in (self._rounds, self._clients, self._assignments, self._tasks, self._load):
            rows.clear()

    def _pictures(self, pictures: "Extras") -> Iterator[Op]:
        """Log the pictures that there are."""
        if content := self._kept(pictures):
            yield ops.files(self.token, content)

    def _kept(self, pictures: "Extras") -> dict[str, bytes]:
        """Return the pictures that there are; those that failed are events of this trial."""
        self._events.extend(told for told in pictures.told() if told not in self._events)
        return self._session.kept(pictures)
