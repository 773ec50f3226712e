"""fedsweep in Python: what the commands run, compose and read back, as functions and frames.

::

    import fedsweep

    results = fedsweep.sweep(
        axes={"strategy": ["fedavg", Mine], "partition.alpha": [0.1, 1.0], "seed": range(3)},
        settings={"partition": "dirichlet", "rounds": 20},
        name="mine",
    )
    results.table()

Words as on the command line may be given too, and mean the same: ``fedsweep.sweep("default",
"seed=0,1")``. What is given in Python is written as such words, so that a trial is the same trial
wherever it is called from.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from fedsweep.app.plan import planned as plan_app
from fedsweep.app.sweep import expand_app
from fedsweep.catalog import FINAL
from fedsweep.config import TrackingConfig
from fedsweep.environ import environ, variable
from fedsweep.errors import RunnerError, unknown
from fedsweep.escape import command, line
from fedsweep.given import words_of
from fedsweep.notebook import view_here
from fedsweep.output import amount
from fedsweep.report.best import Best, best_of
from fedsweep.report.choice import Choice
from fedsweep.report.layout import texts
from fedsweep.report.report import printed, report, table_of
from fedsweep.report.results import results_table, trials_table
from fedsweep.report.table import Table
from fedsweep.report.text import markdown
from fedsweep.sweeps.compose import (
    Trial,
    compose_trial,
    planned,
    split_sweep,
    validated,
    with_contents,
)
from fedsweep.sweeps.resume import Restart
from fedsweep.sweeps.searching import plan_search
from fedsweep.sweeps.sweep import SweepPlan, run_sweep
from fedsweep.sweeps.views import ViewMode
from fedsweep.sweeps.words import parse, store_words
from fedsweep.tracking import past
from fedsweep.tracking.read import StoredSweep, read_runs, read_sweep

if TYPE_CHECKING:
    from fedsweep.report.stats import Test

Values = Mapping[str, object]
Axes = Mapping[str, Iterable[object]]

_OWN = "own"
"""Folder of the output folder for parts and data that are given in Python."""


class Results:
    """The trials of a sweep, or one trial, as the store has them.

    In a notebook it shows itself as the table of means.
    """

    def __init__(self, stored: StoredSweep) -> None:
        self._stored = stored

    @property
    def name(self) -> str:
        """What the sweep is called, or the trial."""
        return self._stored.name

    @property
    def command(self) -> str:
        """The command that gives this again."""
        return self._stored.command

    @property
    def failures(self) -> dict[str, str]:
        """Why trials failed, by their names."""
        return {
            trial.name: trial.run.data.tags.get("reason", "")
            for trial in self._stored.trials
            if trial.status == "FAILED"
        }

    def table(self, test: "Test" = "t") -> pd.DataFrame:
        """Return a row per cell of the grid: its axes but the seed, and its numbers over the seeds.

        Columns are ``trials``, ``failed`` and, for each metric, ``<metric>_mean``, ``_std``,
        ``_ci`` (half the width of the 95% interval), ``_low``, ``_high``, ``_n`` and ``_best``: see
        :class:`fedsweep.report.results.Cells`. Shares are from 0 to 1.

        Parameters
        ----------
        test : str
            Paired test over the seeds behind ``_best``: ``t`` or ``wilcoxon``.
        """
        return results_table(self._stored.rows(), test, self._stored.axes).frame()

    def trials(self) -> pd.DataFrame:
        """Return a row per trial: its axes, ``status``, ``run_id`` and its final metrics.

        A metric that is called as an axis (``rounds``) has the name that it is logged by.
        """
        axes = {*self._stored.axes}
        rows = [
            {
                "status": trial.status,
                "run_id": trial.run_id,
                **{
                    f"{FINAL}{name}" if name in axes else name: value
                    for name, value in trial.final.items()
                },
            }
            for trial in self._stored.trials
        ]
        return pd.concat([self._places, pd.DataFrame(rows)], axis=1)

    def rounds(self, *metrics: str) -> pd.DataFrame:
        """Return a row per trial and round: its axes, ``round``, and metrics as they are logged.

        Parameters
        ----------
        metrics : str
            ``1_global/acc``, ``3_clients/acc_p10``, ...; all that were logged where none is named.

        Raises
        ------
        RunnerError
            No trial has logged such a metric.
        """
        logged = {key: None for trial in self._stored.trials for key in trial.run.data.metrics}
        known = [key for key in logged if not key.startswith(FINAL)]
        for metric in metrics:
            if metric not in known:
                raise RunnerError(unknown("metric", metric, known))
        return self._joined(trial.history(metrics or known) for trial in self._stored.trials)

    def assignments(self) -> pd.DataFrame:
        """Return a row per trial, round and client that has a cluster."""
        return self._tables("assignments")

    def clients(self) -> pd.DataFrame:
        """Return a row per trial, round and client that took part: what it did and how it fared."""
        return self._tables("clients")

    def load(self) -> pd.DataFrame:
        """Return the traces of CPU and memory of the hosts, a row per trial and sample."""
        return self._tables("load")

    def best(
        self,
        metric: str = "client_acc",
        *,
        lowest: bool = False,
        where: Mapping[str, object] | None = None,
    ) -> Best:
        """Return the cell with the best mean of a final metric: it shows itself, as a command does.

        Its ``value`` is the mean, ``place`` its axes by full key, ``run_id`` and ``command`` are
        those of its best trial. Best is the highest, unless the metric is declared to be better the
        lower, or ``lowest``. Cells that diverged come last. Cells of different problems, such as
        data sets, are not compared: ``others`` are the best of the other ones.

        Parameters
        ----------
        where : mapping of str to str or list of str, optional
            Axis or setting -> the values that a trial may have: ``{"dataset": "mnist"}``.

        Raises
        ------
        RunnerError
            No trial has that metric, or is left.
        """
        choice = validated(Choice, {"where": where or {}}, "")
        return best_of(self._stored, metric, lowest, choice)

    def paper(self, **choice: object) -> "PaperTable":
        """Return a table as a paper has it; in a notebook it shows itself.

        Parameters
        ----------
        choice
            What ``fedsweep report`` takes: ``rows``, ``by``, ``columns``, ``where``, ``seeds``,
            ``best``, ``sort``, ``labels``, ``decimals``, ``spread``, ``test``, ``caption``.

        Raises
        ------
        RunnerError
            There is no such axis or metric, or no trial that is shown has finished.
        """
        chosen = validated(Choice, choice, "")
        return PaperTable(table_of(self._stored, chosen).table, self.name)

    def figures(self) -> dict[str, "Picture"]:
        """Return the pictures of the sweep's report by name; in a notebook each shows itself."""
        files = report(self._stored).files
        return {
            Path(name).stem: Picture(content)
            for name, content in files.items()
            if isinstance(content, bytes) and name.endswith(".png")
        }

    def __len__(self) -> int:
        return len(self._stored.trials)

    def __repr__(self) -> str:
        head = f"{self.name}: {amount(len(self), 'trial')}"
        ended = sum(trial.status in ("FINISHED", "FAILED") for trial in self._stored.trials)
        counts = {
            "failed": len(self.failures),
            "have yet to end": len(self) - ended,
            "are not in the store": self._stored.absent,
        }
        told = "".join(f", {count} {what}" for what, count in counts.items() if count)
        if self._stored.searching:
            told += "; the search did not end, these are default settings"
        return f"{line(head)}{told}\n{markdown(texts(self._cells))}".rstrip()

    def _repr_html_(self) -> str:
        headings, *rest = [[_text(cell) for cell in row] for row in texts(self._cells)]
        shown = pd.DataFrame(rest, columns=headings)
        return str(shown.to_html(index=False, escape=True, border=0))

    @cached_property
    def _cells(self) -> Any:
        return results_table(self._stored.rows(), axes=self._stored.axes)

    @cached_property
    def _places(self) -> pd.DataFrame:
        """The trials' places on the axes, a row per trial."""
        return trials_table(self._stored.rows(), self._stored.axes).axes

    def _tables(self, name: str) -> pd.DataFrame:
        return self._joined(trial.table(name) for trial in self._stored.trials)

    def _joined(self, tables: Iterable[pd.DataFrame | None]) -> pd.DataFrame:
        """Return the trials' tables under each other, each row with its place on the axes."""
        found = {i: table for i, table in enumerate(tables) if table is not None}
        if not found:
            return self._places.iloc[:0]
        joined = pd.concat(found, names=["trial", "row"]).reset_index("row", drop=True)
        return self._places.join(joined, how="inner").reset_index(drop=True)


def _text(cell: object) -> str:
    strong, rest = getattr(cell, "strong", ""), getattr(cell, "rest", cell)
    return line(f"{strong}{rest}")


@dataclass(frozen=True, repr=False)
class PaperTable:
    """A table of results, with its caption; it shows itself as Markdown, in a notebook as HTML."""

    table: Table
    name: str

    def frame(self) -> pd.DataFrame:
        """Return its numbers, unrounded: rows and columns as shown, a mean in each cell."""
        return self.table.frame()

    def to(self, form: Literal["latex", "md", "csv", "html"]) -> str:
        """Return it in a format; LaTeX needs booktabs and siunitx."""
        return printed(self.table, form, self.name)

    def __repr__(self) -> str:
        return self.to("md").rstrip()

    def _repr_html_(self) -> str:
        return self.to("html")


@dataclass(frozen=True)
class Picture:
    """A figure as PNG."""

    png: bytes

    def save(self, path: Path | str) -> None:
        """Write it to a file."""
        Path(path).write_bytes(self.png)

    def _repr_png_(self) -> bytes:
        return self.png


def run(
    *words: str,
    settings: Values | None = None,
    show: ViewMode = "auto",
    fresh: bool = False,
    config_dir: str = "",
) -> Results:
    """Run one trial; return its results.

    Parameters
    ----------
    words : str
        ``GROUP=OPTION`` and ``key=value``, as on the command line.
    settings : mapping
        The same by full key: plain values, and parts of one's own as the classes, functions or
        data that they are.
    show : str
        ``auto``, ``quiet`` or ``json``.
    fresh : bool
        Start over, where a trial was interrupted.
    config_dir : str
        Folder with options of one's own, as ``--config-dir``.

    Raises
    ------
    RunnerError
        Bad input, in one line, before anything starts; or the trial failed.
    KeyboardInterrupt
        It was interrupted: called again, it goes on.
    """
    with _configured(config_dir):
        trial = compose_trial(_words(words, settings, None))
        [trial] = with_contents([trial])
        plan = SweepPlan(None, "", trial.command, [trial], Restart(fresh))
        store = _executed(plan, show)
        [ran] = past.past_trials(store, None, [trial.config.key]).values()
        [stored] = read_runs(store, [ran.run_id])
    if stored.status == "FAILED":
        raise RunnerError(f"{trial.label} failed: {stored.run.data.tags.get('reason', '')}")
    return Results(StoredSweep(stored.name, stored.run_id, (), trial.command, (stored,), ({},)))


def sweep(
    *words: str,
    axes: Axes | None = None,
    settings: Values | None = None,
    name: str = "",
    show: ViewMode = "auto",
    fresh: bool = False,
    retry_failed: bool = False,
    take_over: bool = False,
    config_dir: str = "",
) -> Results:
    """Run a grid of trials, of which those that ended before are not run again.

    Parameters
    ----------
    words : str
        First a sweep's name or file, if there is one, then words as on the command line.
    axes : mapping
        Full key to the values of an axis.
    settings : mapping
        What holds for all trials: see :func:`run`.
    name : str
        What the sweep is called; else as its file, or ``adhoc``.
    show, fresh, retry_failed, take_over, config_dir
        As the options of ``fedsweep sweep``.

    Returns
    -------
    Results
        Of all its trials; ``failures`` names those that failed.

    Raises
    ------
    RunnerError
        Bad input, in one line, before anything starts; or the storage takes no more.
    KeyboardInterrupt
        It was interrupted: called again, it goes on.
    """
    with _configured(config_dir):
        of, given = split_sweep(words)
        plan = planned(of, _words(given, settings, axes), name)
        trials = with_contents(plan.trials)
        restart = Restart(fresh, retry_failed, take_over)
        search = plan_search(plan.search, trials, plan.ranged)
        store = _executed(
            SweepPlan(plan.name, plan.description, plan.command, trials, restart, search=search),
            show,
        )
        return Results(read_sweep(store, plan.name))


def sweep_app(
    path: Path | str,
    *words: str,
    axes: Axes | None = None,
    settings: Values | None = None,
    name: str = "",
    show: ViewMode = "auto",
    fresh: bool = False,
    retry_failed: bool = False,
    take_over: bool = False,
) -> Results:
    """Run a Flower app, as it is, as a sweep; trials that ended before are not run again.

    Parameters
    ----------
    path : Path or str
        The app's folder, with its ``pyproject.toml``.
    words : str
        As ``fedsweep app`` takes them: ``run_config.lr=0.1,0.01``.
    axes : mapping
        Full key to the values of an axis: ``run_config.KEY``, ``problem.KEY``, ``seed``,
        ``num_clients``.
    settings : mapping
        What holds for all trials, by full key: the same keys, ``higher`` and ``lower`` (lists of
        metrics), ``seed_key``, ``journal_mb``, and those of resources, tracking and checkpoint.
    name : str
        What the sweep is called; else as the app's project.
    show, fresh, retry_failed, take_over
        As the options of ``fedsweep app``.

    Returns
    -------
    Results
        Of all its trials; ``failures`` names those that failed.

    Raises
    ------
    RunnerError
        Bad input, in one line, before anything starts; or the storage takes no more.
    KeyboardInterrupt
        It was interrupted: called again, it goes on.
    """
    given = _words(words, settings, axes)
    restart = Restart(fresh, retry_failed, take_over)
    plan = plan_app(expand_app(str(path), given), given, name=name, restart=restart)
    store = _executed(plan, show)
    return Results(read_sweep(store, plan.name or ""))


def compose(
    *words: str,
    axes: Axes | None = None,
    settings: Values | None = None,
    config_dir: str = "",
) -> list[Trial]:
    """Return the trials that :func:`sweep` would run, and run nothing.

    Each has its ``config``, its place on the ``axes``, its ``label`` and the ``command`` that runs
    it alone; ``config.key`` is its identity.

    Raises
    ------
    RunnerError
        As :func:`sweep` does.
    """
    with _configured(config_dir):
        of, given = split_sweep(words)
        return list(planned(of, _words(given, settings, axes), "").trials)


def load(name: str, *, output: str = "", uri: str = "") -> Results:
    """Return the results of a sweep that was run before.

    Parameters
    ----------
    name : str
        Of the sweep (its latest run), or the id of its run.
    output, uri : str
        Where it lies, if elsewhere than by default: ``tracking.output``, ``tracking.uri``.

    Raises
    ------
    RunnerError
        There is no such store, or no such sweep in it.
    """
    given = {"output": output, "uri": uri}
    config = TrackingConfig.model_validate({key: value for key, value in given.items() if value})
    return Results(read_sweep(config, name))


def _words(words: Sequence[str], settings: Values | None, axes: Axes | None) -> list[str]:
    """Return all that was given as words."""
    settings = settings or {}
    outputs = [word.value for word in parse(words) if word.key == "tracking.output"]
    output = settings.get("tracking.output", outputs[-1] if outputs else None)
    folder = Path(str(output or TrackingConfig().output)).expanduser() / _OWN
    return [*words, *words_of(settings, axes or {}, folder)]


@contextmanager
def _configured(config_dir: str) -> Iterator[None]:
    with environ({"FEDSWEEP_CONFIG": config_dir or variable("FEDSWEEP_CONFIG")}):
        yield


def _executed(plan: SweepPlan, show: ViewMode) -> Any:
    """Run a plan; return the store that has its results."""
    outcome, tracker = run_sweep(plan, view_here(show))
    if outcome.interrupted:
        raise KeyboardInterrupt("interrupted: the same call goes on")
    if outcome.stopped:
        label, reason = outcome.stopped[0]
        stopped = amount(len(outcome.stopped), "trial")
        raise RunnerError(f"{stopped} stopped before the end; {label}: {reason}")
    if outcome.missing:
        raise RunnerError(outcome.missing)
    if tracker.spilled:
        raise RunnerError(
            f"{tracker.spilled} events wait on disk: the store does not answer; send them with: "
            f"{command(['fedsweep', 'flush', *store_words(plan.session.tracking)])}"
        )
    return tracker.store
