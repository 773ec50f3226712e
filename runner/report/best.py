"""Single trials and cells of a sweep: the best one, and several side by side."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING

import numpy as np
import yaml

from fedsweep import escape
from fedsweep.catalog import CATALOG
from fedsweep.errors import RunnerError, unknown
from fedsweep.report.results import SEED
from fedsweep.report.stats import interval
from fedsweep.report.terminal import rich_lines

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


def best_cell(sweep: "StoredSweep", metric: str, lowest: bool = False) -> str:
    """Return the cell of a final metric's best mean, its interval, its best trial's command.

    The best is the highest, unless the metric is declared to be better the lower, or ``lowest``.

    Raises
    ------
    RunnerError
        No trial has that metric.
    """
    best = _best(sweep, metric, lowest)
    values = np.array([trial.final[metric] for trial in best.trials])
    last = (
        f"{best.lost} of the sweep's trials diverged: their {metric} is nan, and their cells come "
        "last"
    )
    told = [
        best.place,
        f"{metric} {values.mean():.4f} {_spread(values)}",
        *[last] * bool(best.lost),
        f"best trial: {metric} {best.top.final[metric]:.4f}, run {best.top.run_id}",
        best.top.command,
    ]
    return "\n".join(map(escape.line, told))


def best_file(sweep: "StoredSweep", metric: str, lowest: bool = False) -> str:
    """Return the best cell as the file of a sweep, in YAML: its settings, and its seeds as an axis.

    Raises
    ------
    RunnerError
        No trial has that metric, or the store does not tell the command of one.
    """
    best = _best(sweep, metric, lowest)
    words = shlex.split(best.top.command)
    if words[:2] != ["fedsweep", "run"] or "$'" in best.top.command:
        raise RunnerError(
            f"the store does not tell the words of run {best.top.run_id}; they are in its note"
        )
    kept = [word for word in words[2:] if "=" in word and not word.startswith(f"{SEED}=")]
    seeds = sorted(int(trial.params[SEED]) for trial in best.trials)
    told = f"The best of sweep '{sweep.name}' by {metric}: {best.place}."
    loaded = {"description": told, "overrides": kept, "axes": {SEED: seeds}}
    return str(yaml.safe_dump(loaded, sort_keys=False, allow_unicode=True))


@dataclass(frozen=True)
class _Best:
    """The best cell: place, trials, the best of these; how many of the sweep diverged."""

    place: str
    trials: "Sequence[StoredTrial]"
    top: "StoredTrial"
    lost: int


def _best(sweep: "StoredSweep", metric: str, lowest: bool) -> _Best:
    known = sorted({name for trial in sweep.trials for name in trial.final})
    trials = [
        trial for trial in sweep.trials if metric in trial.final and trial.status == "FINISHED"
    ]
    if not trials:
        raise RunnerError(
            f"--metric: {unknown('metric', metric, known)} These are what '{sweep.name}' has."
        )
    sign = -1.0 if lowest else CATALOG.final(metric).sign
    places = dict(zip((trial.run_id for trial in sweep.trials), sweep.places, strict=True))
    cells: dict[str, list[StoredTrial]] = {}
    for trial in trials:
        place = " ".join(
            f"{axis}={value}" for axis, value in places[trial.run_id].items() if axis != SEED
        )
        cells.setdefault(place or "all trials", []).append(trial)

    def rank(values: Sequence[float]) -> float:
        """Put what diverged last."""
        return -np.inf if np.isnan(values).any() else sign * float(np.mean(values))

    place, chosen = max(
        cells.items(), key=lambda item: rank([trial.final[metric] for trial in item[1]])
    )
    lost = sum(isnan(trial.final[metric]) for trial in trials)
    return _Best(place, chosen, max(chosen, key=lambda trial: rank([trial.final[metric]])), lost)


def _spread(values: np.ndarray) -> str:
    """Return a mean's interval, in brackets, or what there is in its place."""
    half = interval(values)
    if not isnan(half):
        ends = f"[{values.mean() - half:.4f}, {values.mean() + half:.4f}]"
        return f"{ends} (mean [95% interval] of {len(values)} trials)"
    if len(values) > 1:
        return f"(mean of {len(values)} trials: {values.min():.4f} to {values.max():.4f})"
    return "(one trial)"
