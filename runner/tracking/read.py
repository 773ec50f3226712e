"""What reports read back from the store: a finished sweep's trials, their rounds and tables."""

import difflib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fedsweep.catalog import CATALOG, FINAL
from fedsweep.config import TrackingConfig
from fedsweep.errors import ConfigError, TrackingError, shown
from fedsweep.escape import tag_is
from fedsweep.parts.code import CodeError, code_of_file
from fedsweep.paths import component
from fedsweep.records import TrialRow
from fedsweep.redaction import redact
from fedsweep.scores import SCORES
from fedsweep.tracking.describe import (
    APP_METRICS,
    CODE,
    DESCRIPTION,
    GRID,
    LAYOUT,
    LAYOUT_NOW,
    OWN_METRICS,
    PRIVACY,
    SEARCHED,
    environment_of,
)
from fedsweep.tracking.past import SUPERSEDED
from fedsweep.tracking.store import Store, open_store

if TYPE_CHECKING:
    from mlflow.entities import Run

_RULE = re.compile(r"halving over [\w.]+|stop\.\w+|diverged")
"""The rule in the reason why a trial ended early."""


def ended_early(trials: "Sequence[StoredTrial]") -> str:
    """Say how many of these trials ended before their last round, and by which rules."""
    rules = Counter(trial.stopped for trial in trials if trial.stopped)
    by = ", ".join(f"{rule}: {count}" for rule, count in rules.items())
    many = f"{rules.total()} of {len(trials)} trials ended before their last round ({by})"
    return f"{many}; their numbers are those of the round in which they ended" if rules else ""


@dataclass(frozen=True)
class StoredTrial:
    """One trial as the store has it."""

    store: Store
    run: "Run"

    def __post_init__(self) -> None:
        self.declare()

    def declare(self) -> None:
        """Know what its metrics are that somebody brought: their code is not here."""
        tags = self.run.data.tags
        for tag, declare in ((OWN_METRICS, SCORES.declare), (APP_METRICS, CATALOG.declare)):
            self._declare(tag, tags.get(tag, ""), declare)

    def _declare(self, tag: str, told: str, declare: Callable[[str], None]) -> None:
        try:
            declare(told)
        except (ConfigError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrackingError(
                f"the tag {tag} of run {self.run_id} is no declaration of metrics "
                f"({shown(told)}): {error}"
            ) from error

    @property
    def run_id(self) -> str:
        """MLflow's id."""
        return str(self.run.info.run_id)

    @property
    def name(self) -> str:
        """Name in the UI."""
        return str(self.run.info.run_name)

    @property
    def status(self) -> str:
        """FINISHED, FAILED, KILLED or RUNNING."""
        return str(self.run.info.status)

    @property
    def params(self) -> dict[str, str]:
        """Settings and axes."""
        return dict(self.run.data.params)

    @property
    def reason(self) -> str:
        """Why it did not finish, or stopped early; nothing where it ended as planned."""
        return str(self.run.data.tags.get("reason", ""))

    @property
    def stopped(self) -> str:
        """The rule that ended it before its last round; nothing where none did."""
        found = _RULE.search(told := str(self.run.data.tags.get("stopped", "")))
        return found.group() if found else told

    @property
    def environment(self) -> dict[str, str]:
        """The code, the packages and the machine that it ran on."""
        return environment_of(self.run.data.tags)

    @property
    def final(self) -> dict[str, float]:
        """Final metrics by bare name."""
        return {
            k.removeprefix(FINAL): v
            for k, v in self.run.data.metrics.items()
            if k.startswith(FINAL)
        }

    @property
    def command(self) -> str:
        """The command that gives this trial again."""
        note = self.run.data.tags.get("mlflow.note.content", "")
        found = re.search(r"```bash\n(.*?)\n```", note, re.DOTALL)
        return found.group(1) if found else ""

    def history(self, keys: Sequence[str]) -> pd.DataFrame:
        """Return the rounds' metrics: ``round`` and the keys that were logged."""
        table: dict[str, dict[int, float]] = {}
        for key in keys:
            if key in self.run.data.metrics:
                points = self.store.client.get_metric_history(self.run_id, key)
                table[key] = {point.step: point.value for point in points}
        frame = pd.DataFrame(table)
        frame.index.name = "round"
        return frame.sort_index().reset_index()

    @cached_property
    def _files(self) -> set[str]:
        return {entry.path for entry in self.store.client.list_artifacts(self.run_id)}

    def text(self, name: str) -> str | None:
        """Return an artifact that is a text (``config.yaml``); None where there is none."""
        return _artifact(self.store, self.run, name)

    def table(self, name: str) -> pd.DataFrame | None:
        """Return a Parquet artifact (``clients``, ``assignments``, ``load``, ``split``);
        None where there is none.
        """
        path = f"{name}.parquet"
        if path not in self._files:
            return None
        with tempfile.TemporaryDirectory(prefix="fedsweep-") as folder:
            return pd.read_parquet(self.store.client.download_artifacts(self.run_id, path, folder))


@dataclass(frozen=True)
class StoredSweep:
    """A sweep as the store has it.

    Parameters
    ----------
    axes : tuple[str, ...]
        Full keys, in the grid's order.
    trials : tuple[StoredTrial, ...]
        Those of its trials that the store has, in the grid's order.
    places : tuple[Mapping[str, str], ...]
        Their values of the axes, as far as these apply to them.
    absent : int
        Trials of the sweep that the store does not have.
    description : str
        What it is for, in the words of its file.
    also : tuple[Mapping[str, float], ...]
        What the trials' rows tell beside their own metrics; empty where they tell nothing.
    searched : str
        What a search tried, and what came of it, as JSON; empty where there was none.
    searching : bool
        Whether a search has yet to end: the trials are the methods at their default settings.
    """

    name: str
    run_id: str
    axes: tuple[str, ...]
    command: str
    trials: tuple[StoredTrial, ...]
    places: tuple[Mapping[str, str], ...]
    absent: int = 0
    description: str = ""
    also: tuple[Mapping[str, float], ...] = ()
    searched: str = ""
    searching: bool = False

    def edited(self) -> list[str]:
        """Say which files of somebody's own have another text now than the trials ran with."""
        ran: dict[Path, list[str]] = {}
        for trial in self.trials:
            for place, digest in json.loads(trial.run.data.tags.get(CODE) or "{}").items():
                ran.setdefault(Path(place), []).append(digest)
        told = []
        for path, digests in ran.items():
            try:
                now = code_of_file(path).digest
            except CodeError:  # it is not here, or not whole: nothing can be said of it
                continue
            if others := sum(digest != now for digest in digests):
                told.append(
                    f"{path} was edited since: {others} of {len(self.trials)} trials ran with "
                    "another text of it."
                )
        return told

    def privacy(self) -> list[str]:
        """Say what is accounted of the privacy of trials, and of how many."""
        said = [trial.run.data.tags.get(PRIVACY, "") for trial in self.trials]
        counts = Counter(filter(None, said))
        return [
            f"{line}." if count == len(said) else f"{line} ({count} of {len(said)} trials)."
            for line, count in counts.items()
        ]

    def rows(self) -> list[TrialRow]:
        """Return one row per trial: its axes and, where it finished, its final metrics.

        Another sweep may have been read meanwhile, with metrics of the same names: what they are
        and which way is better is as these trials have it, once more.
        """
        for trial in self.trials:
            trial.declare()
        also = self.also or ({},) * len(self.trials)
        return [
            TrialRow(place, {**trial.final, **more} if trial.status == "FINISHED" else {})
            for place, trial, more in zip(self.places, self.trials, also, strict=True)
        ]


def read_sweep(source: TrackingConfig | Store, word: str) -> StoredSweep:
    """Return a sweep by its name (its latest run) or by its run's id.

    Raises
    ------
    TrackingError
        The store can't be read, or has no such sweep: its sweeps are named; or its run does not
        tell its trials.
    """
    store = source if isinstance(source, Store) else open_store(source, write=False)
    run = _sweep_run(store, word)
    if run is None:
        names = {run.data.tags["sweep"] for run in _search(store, "tags.kind = 'sweep'")}
        raise TrackingError(
            f"there is no sweep '{word}' in "
            f"{redact(store.uri)}{_nearest(word, names, 'its sweeps')}"
        )
    name, command = run.data.tags["sweep"], StoredTrial(store, run).command
    grid = _grid(store, run, command)
    runs = _trials_of(store, run)
    there = [row for row in grid["trials"] if row["key"] in runs]
    return StoredSweep(
        name=name,
        run_id=run.info.run_id,
        axes=tuple(grid["axes"]),
        command=command,
        trials=tuple(StoredTrial(store, runs[row["key"]]) for row in there),
        places=tuple(row["axes"] for row in there),
        absent=len(grid["trials"]) - len(there),
        description=run.data.tags.get(DESCRIPTION, ""),
        also=tuple(row.get("also", {}) for row in there),
        searched="" if grid.get("searching") else _artifact(store, run, SEARCHED) or "",
        searching=bool(grid.get("searching")),
    )


def axes_of(store: Store, run_id: str) -> tuple[str, ...] | None:
    """Return the axes of a sweep's run by full key; None where it does not tell them yet."""
    told = _artifact(store, store.client.get_run(run_id), GRID)
    return None if told is None else tuple(json.loads(told)["axes"])


def sweeps_of(cfg: TrackingConfig, words: Sequence[str]) -> list[StoredSweep] | None:
    """Return the sweeps that all of these words name, or None where one names none."""
    store = open_store(cfg, write=False)
    if not all(_sweep_run(store, word) for word in words):
        return None
    return [read_sweep(store, word) for word in words]


def _sweep_run(store: Store, word: str) -> "Run | None":
    """Return the run of a sweep by its name (its latest) or its id."""
    run = _by_id(store, word) or _latest(_of_sweep(store, "sweep", word))
    return run if run is not None and run.data.tags.get("kind") == "sweep" else None


def _grid(store: Store, sweep: "Run", command: str) -> dict[str, Any]:
    """Return a sweep's axes and the places of its trials."""
    name, again = (
        sweep.data.tags["sweep"],
        f"run its command again, which keeps what is finished: {command}",
    )
    if sweep.data.tags.get(LAYOUT) != LAYOUT_NOW:
        raise TrackingError(
            f"sweep '{name}' (run {sweep.info.run_id}) was logged by another version of fedsweep, "
            f"which told its axes in another way; {again}"
        )
    told = _artifact(store, sweep, GRID)
    if told is None:
        raise TrackingError(
            f"{GRID} of sweep '{name}' is not in the store yet; send what waits with "
            f"`fedsweep flush`, or {again}"
        )
    loaded: dict[str, Any] = json.loads(told)
    return loaded


def _artifact(store: Store, run: "Run", name: str) -> str | None:
    """Return an artifact that is a text; None where there is none."""
    if name not in {entry.path for entry in store.client.list_artifacts(run.info.run_id)}:
        return None
    with tempfile.TemporaryDirectory(prefix="fedsweep-") as folder:
        return Path(store.client.download_artifacts(run.info.run_id, name, folder)).read_text()


def _trials_of(store: Store, sweep: "Run") -> "dict[str, Run]":
    """Return the runs of a sweep's trials by key: its own, else ones that later runs took along.

    Of a sweep that was started over, what ran before counts no longer.
    """
    runs = _of_sweep(store, "trial", sweep.data.tags["sweep"])
    if SUPERSEDED not in sweep.data.tags:
        runs = [run for run in runs if SUPERSEDED not in run.data.tags]
    found: dict[str, Run] = {}
    for own in (True, False):
        for run in runs:
            if own == (run.data.tags.get("mlflow.parentRunId") == sweep.info.run_id):
                found.setdefault(run.data.tags["trial.key"], run)
    return found


def read_runs(source: TrackingConfig | Store, words: Sequence[str]) -> list[StoredTrial]:
    """Return trials by run id, by the start of one, or by name (the latest of that name).

    Raises
    ------
    TrackingError
        The store can't be read, or a word fits no trial or several.
    """
    store = source if isinstance(source, Store) else open_store(source, write=False)
    every = _search(store, "tags.kind = 'trial'")
    found = []
    for word in words:
        fits = [run for run in every if run.info.run_id == word or run.info.run_name == word][:1]
        if not fits and re.fullmatch("[0-9a-f]{4,31}", word):
            fits = [run for run in every if run.info.run_id.startswith(word)]
        if len(fits) != 1:
            names = {run.info.run_name for run in every}
            problem = "fits several runs; give more of its id" if fits else "is no run"
            hint = "" if fits else _nearest(word, names, "its latest runs")
            raise TrackingError(f"'{word}' {problem} in {redact(store.uri)}{hint}")
        found.append(StoredTrial(store, fits[0]))
    return found


def report_folder(cfg: TrackingConfig, name: str, run_id: str) -> Path:
    """Return where the report of a sweep's run is written;
    RunnerError where the sweep's name leads elsewhere.
    """
    folder = f"{component(name, 'the tag sweep')}-{run_id[:8]}"
    reports = Path(cfg.output).expanduser().absolute() / "reports"
    return reports / component(folder, "the name of a report's folder")


def _search(store: Store, which: str) -> "list[Run]":
    """Return all runs that a filter lets through, the latest first."""
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = store.client.search_runs(
            [store.experiment_id],
            which,
            max_results=1000,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        runs += page
        token = page.token
        if not token:
            return runs


def _by_id(store: Store, word: str) -> "Run | None":
    if not re.fullmatch("[0-9a-f]{32}", word):
        return None
    return _first(_search(store, f"attributes.run_id = '{word}'"))


def _first(runs: "list[Run]") -> "Run | None":
    return runs[0] if runs else None


def _latest(runs: "list[Run]") -> "Run | None":
    """Return the run that was begun or ended last: one that went on began before others."""
    return max(runs, key=lambda run: max(run.info.start_time, run.info.end_time or 0), default=None)


def _of_sweep(store: Store, kind: str, name: str) -> "list[Run]":
    """Return the runs of a kind that carry a sweep's name."""
    runs = _search(store, f"tags.kind = '{kind}' AND {tag_is('sweep', name)}")
    return [run for run in runs if run.data.tags.get("sweep") == name]


def _nearest(word: str, names: set[str], what: str) -> str:
    if not names:
        return "; it has none yet"
    near = difflib.get_close_matches(word, names, 1)
    return (
        f"; did you mean '{near[0]}'?" if near else ""
    ) + f" {what}: {', '.join(sorted(names)[:10])}"
