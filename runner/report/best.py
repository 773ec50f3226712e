"""Single trials and cells of a sweep: the best one, and several side by side."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import TYPE_CHECKING

import numpy as np
import yaml

from fedsweep import escape
from fedsweep.catalog import CATALOG
from fedsweep.config import TrialConfig
from fedsweep.errors import RunnerError, unknown
from fedsweep.output import amount
from fedsweep.report.choice import EVERYTHING, Choice, picked
from fedsweep.report.results import SEED
from fedsweep.report.stats import interval
from fedsweep.report.terminal import rich_lines
from fedsweep.tracking.read import ended_early

if TYPE_CHECKING:
    from rich.table import Table

    from fedsweep.tracking.read import StoredSweep, StoredTrial

_MISSING = "-"


def comparison(trials: "Sequence[StoredTrial]") -> "Table":
    """Return trials side by side, a column each: settings in which they differ, and their ends."""
    names = ["", *(f"{trial.name} {trial.run_id[:8]}" for trial in trials)]
    settings: list[list[str]] = []
    every = [trial.params for trial in trials]
    for key in sorted(set().union(*every)):
        values = [params.get(key, _MISSING) for params in every]
        group = key.removesuffix(".name")  # its option, told twice where it is an axis
        told = group != key and values == [params.get(group) for params in every]
        if len(set(values)) > 1 and not told:
            settings.append([key, *values])
    ends = [["status", *(trial.status for trial in trials)]]
    for key in dict.fromkeys(key for trial in trials for key in trial.final):
        ends.append([key, *(f"{t.final[key]:.4g}" if key in t.final else _MISSING for t in trials)])
    shown = rich_lines([names, *settings, *ends], "")
    if settings:
        shown.rows[len(settings) - 1].end_section = True
    for column in shown.columns[1:]:
        column.justify = "right"
    return shown


@dataclass(frozen=True, repr=False)
class Best:
    """The cell of a sweep that is the best by a final metric; it shows itself as it is read.

    Parameters
    ----------
    metric : str
        By its name at a trial's end.
    place : mapping
        Where it lies: the axes but the seed, by full key.
    trials : sequence of StoredTrial
        Its trials, one for each seed.
    top : StoredTrial
        The best of these.
    diverged : int
        How many trials of the sweep have nan: their cells come last.
    sweep : str
        What the sweep is called.
    others : sequence of Best
        The best cells of the sweep's other problems, which are not compared: other data, another
        split of them, ...
    lacking : tuple of int
        How many trials to choose from have no such number, as they failed or have yet to end: of
        this cell, of all, and how many all are.
    early : str
        How many trials of this cell ended before their last round; nothing where none did.
    """

    metric: str
    place: Mapping[str, str]
    trials: "Sequence[StoredTrial]"
    top: "StoredTrial"
    diverged: int
    sweep: str
    others: "Sequence[Best]" = ()
    lacking: tuple[int, int, int] = (0, 0, 0)
    early: str = ""

    @property
    def value(self) -> float:
        """The metric's mean over the trials, as it is logged: shares are from 0 to 1."""
        return float(np.mean([trial.final[self.metric] for trial in self.trials]))

    @property
    def run_id(self) -> str:
        """The run of the best trial, in MLflow."""
        return self.top.run_id

    @property
    def command(self) -> str:
        """The command that runs the best trial again."""
        return self.top.command

    def __repr__(self) -> str:
        values = np.array([trial.final[self.metric] for trial in self.trials])
        lost = f"{amount(self.diverged, 'trial')} of the sweep diverged: nan comes last"
        told = [
            self._where,
            f"{self.metric} {self.value:.4f} {_spread(values)}",
            *[lost] * bool(self.diverged),
            *self._partial,
            f"best trial: {self.metric} {self.top.final[self.metric]:.4f}, run {self.run_id}",
            self.command,
            *self._elsewhere,
        ]
        return "\n".join(map(escape.line, told))

    def file(self) -> str:
        """Return it as the file of a sweep, in YAML: its settings, and its seeds as an axis.

        Raises
        ------
        RunnerError
            The store does not tell the command of its best trial, or it is a Flower app's.
        """
        words = shlex.split(self.command)
        if words[:2] == ["fedsweep", "app"]:
            raise RunnerError(
                f"no sweep's file runs a Flower app; run it again with: {self.command}"
            )
        if words[:2] != ["fedsweep", "run"] or "$'" in self.command:
            raise RunnerError(
                f"the store does not tell the words of run {self.run_id}; they are in its note"
            )
        kept = [word for word in words[2:] if "=" in word and not word.startswith(f"{SEED}=")]
        seeds = sorted(int(trial.params[SEED]) for trial in self.trials)
        told = f"The best of sweep '{self.sweep}' by {self.metric}: {self._where}."
        loaded = {"description": told, "overrides": kept, "axes": {SEED: seeds}}
        return str(yaml.safe_dump(loaded, sort_keys=False, allow_unicode=True))

    @property
    def _partial(self) -> list[str]:
        """Say which trials it is not a mean over, and which did not run all their rounds."""
        here, lost, every = self.lacking
        told = f"{lost} of {every} trials have no {self.metric}, {here} of them of this cell"
        return [*([told] if lost else []), *([f"here {self.early}"] if self.early else [])]

    @property
    def _elsewhere(self) -> list[str]:
        """Say that it is the best of one problem, and which the other ones' are."""
        if not self.others:
            return []
        many = amount(len(self.others), "other problem")
        head = f"{many}, which can't be compared with this one; --where KEY=VALUE chooses"
        return [head, *(f"  {it._where}: {it.metric} {it.value:.4f}" for it in self.others)]

    @property
    def _where(self) -> str:
        return " ".join(f"{axis}={value}" for axis, value in self.place.items()) or "all trials"


def best_of(
    sweep: "StoredSweep",
    metric: str,
    lowest: bool = False,
    choice: Choice = EVERYTHING,
) -> Best:
    """Return the cell with the best mean of a final metric, and those of other problems with it.

    The best is the highest, unless the metric is declared to be better the lower, or ``lowest``.

    Parameters
    ----------
    choice : Choice, optional
        Which trials there are to choose from, by its ``where`` and ``seeds``.

    Raises
    ------
    RunnerError
        No trial has that metric, or is left.
    """
    known = sorted({name for trial in sweep.trials for name in trial.final})
    trials = [
        trial for trial in sweep.trials if metric in trial.final and trial.status == "FINISHED"
    ]
    if not trials:
        raise RunnerError(f"{unknown('metric', metric, known)} These are what '{sweep.name}' has.")
    sign = -1.0 if lowest else CATALOG.final(metric).sign
    places = dict(zip((trial.run_id for trial in sweep.trials), sweep.places, strict=True))
    left = {trial.run_id for trial in sweep.trials}
    if choice != EVERYTHING:
        settings = [trial.params for trial in sweep.trials]
        left = {sweep.trials[i].run_id for i in picked(choice, sweep.rows(), sweep.axes, settings)}
        trials = [trial for trial in trials if trial.run_id in left]
        if not trials:
            raise RunnerError(f"no trial that --where leaves has finished with a {metric}")

    def cell_of(run_id: str) -> tuple[tuple[str, str], ...]:
        return tuple(item for item in places[run_id].items() if item[0] != SEED)

    cells: dict[tuple[tuple[str, str], ...], list[StoredTrial]] = {}
    for trial in trials:
        cells.setdefault(cell_of(trial.run_id), []).append(trial)
    without = Counter(map(cell_of, left - {trial.run_id for trial in trials}))

    def rank(values: Sequence[float]) -> float:
        """Put what diverged last."""
        return -np.inf if np.isnan(values).any() else sign * float(np.mean(values))

    lost = sum(isnan(trial.final[metric]) for trial in trials)
    ordered = sorted(  # the best first, and of equal ones that which came first
        cells.items(), key=lambda item: -rank([trial.final[metric] for trial in item[1]])
    )
    found: dict[tuple[tuple[str, str], ...], Best] = {}
    for place, chosen in ordered:
        problem = tuple(item for item in place if TrialConfig.is_problem(item[0]))
        top = max(chosen, key=lambda trial: rank([trial.final[metric]]))
        best = Best(
            metric, dict(place), chosen, top, lost, sweep.name,
            lacking=(without[place], without.total(), len(left)), early=ended_early(chosen),
        )  # fmt: skip
        found.setdefault(problem, best)
    first, *others = found.values()
    return replace(first, others=others)


def _spread(values: np.ndarray) -> str:
    """Return a mean's interval, in brackets, or what there is in its place."""
    half = interval(values)
    if not isnan(half):
        ends = f"[{values.mean() - half:.4f}, {values.mean() + half:.4f}]"
        return f"{ends} (mean [95% interval] of {len(values)} trials)"
    if len(values) > 1:
        return f"(mean of {len(values)} trials: {values.min():.4f} to {values.max():.4f})"
    return "(one trial)"
