"""Single trials and cells of a sweep: the best one, and several side by side."""

from collections.abc import Sequence
from math import isnan
from typing import TYPE_CHECKING

import numpy as np

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
    values = np.array([trial.final[metric] for trial in chosen])
    lost = sum(isnan(trial.final[metric]) for trial in trials)
    last = (
        f"{lost} of the sweep's trials diverged: their {metric} is nan, and their cells come last"
    )
    diverged = [last] * bool(lost)
    top = max(chosen, key=lambda trial: rank([trial.final[metric]]))
    told = [
        place,
        f"{metric} {values.mean():.4f} {_spread(values)}",
        *diverged,
        f"best trial: {metric} {top.final[metric]:.4f}, run {top.run_id}",
        top.command,
    ]
    return "\n".join(map(escape.line, told))


def _spread(values: np.ndarray) -> str:
    """Return a mean's interval, in brackets, or what there is in its place."""
    half = interval(values)
    if not isnan(half):
        ends = f"[{values.mean() - half:.4f}, {values.mean() + half:.4f}]"
        return f"{ends} (mean [95% interval] of {len(values)} trials)"
    if len(values) > 1:
        return f"(mean of {len(values)} trials: {values.min():.4f} to {values.max():.4f})"
    return "(one trial)"
