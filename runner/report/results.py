"""A sweep's results: mean, deviation, interval and marks over seeds, per cell of its axes.

A trial is a row: its axes by full key, its seed among them, and its final metrics; one that failed
has none.
"""

from collections.abc import Iterable, Mapping, Sequence
from csv import QUOTE_NONNUMERIC
from dataclasses import dataclass
from math import nan

import numpy as np
import pandas as pd

from fedsweep.catalog import CATALOG
from fedsweep.config import TrialConfig
from fedsweep.escape import storable
from fedsweep.records import TrialRow
from fedsweep.report.rows import Trials
from fedsweep.report.stats import EXACT, Test, clear_best, interval

SEED = "seed"
"""The axis that cells are means over."""
_SERVER = "strategy.server."  # settings of theirs


@dataclass(frozen=True)
class Cells:
    """A sweep's table: a row per cell of its axes but the seed, in the grid's order.

    Parameters
    ----------
    axes : pd.DataFrame
        The place of each cell, as in :class:`Trials`.
    numbers : pd.DataFrame
        ``trials`` (that have results), ``failed``, and for each metric ``<metric>_mean``, ``_std``
        (n - 1; missing for a single trial), ``_ci`` (half the width of the 95% t interval; missing
        for fewer than three), ``_low`` and ``_high`` (of the trials), ``_n`` (trials that have it),
        ``_nan`` (that diverged: so does the mean) and, where rows are ranked, ``_best``. Means to a
        target are those of the ``reached`` trials. ``recovered`` is the share with ARI = 1.
    """

    axes: pd.DataFrame
    numbers: pd.DataFrame

    def frame(self) -> pd.DataFrame:
        """Return both tables side by side."""
        return pd.concat([self.axes, self.numbers], axis=1)


def trials_table(rows: Sequence[TrialRow], axes: Sequence[str] | None = None) -> Trials:
    """Return a sweep's trials as a table; ``axes`` orders the columns, else the rows do."""
    shown = _shown_metrics(rows)
    metrics = {metric: [float(row.metrics.get(metric, nan)) for row in rows] for metric in shown}
    return Trials(
        _places([row.axes for row in rows], _all_axes(rows, axes)),
        pd.DataFrame(metrics, index=range(len(rows))),
        pd.Series([bool(row.metrics) for row in rows], dtype=bool),
        pd.DataFrame(
            {metric: [metric in row.metrics for row in rows] for metric in shown},
            index=range(len(rows)),
            dtype=bool,
        ),
    )


def results_table(
    rows: Sequence[TrialRow], test: Test = "t", axes: Sequence[str] | None = None
) -> Cells:
    """Return one row per cell of the sweep's axes.

    Parameters
    ----------
    rows : sequence of TrialRow
        One per trial.
    test : str
        Paired test over the seeds that says whether a cell is the best: see
        :func:`fedsweep.report.stats.clear_best`.
    axes : sequence of str, optional
        All axes of the sweep in its order.
    """
    keys = [key for key in _all_axes(rows, axes) if key != SEED]
    cells: dict[tuple[str | None, ...], list[TrialRow]] = {}
    for row in rows:
        cells.setdefault(tuple(row.axes.get(key) for key in keys), []).append(row)
    metrics = _shown_metrics(rows)
    numbers = pd.DataFrame([_cell(part, metrics) for part in cells.values()])
    blocks = _blocks(keys, cells)
    for metric in (metric for metric in CATALOG.ranked if metric in metrics):
        seeds = [_by_seed(part, metric) for part in cells.values()]
        marked = set()
        for block in blocks:
            # A method without a global model, say, is no rival in its accuracy. One of which
            # nothing has finished might have been: beside it no row is known to be the best.
            rivals = [i for i in block if seeds[i] or not numbers["trials"][i]]
            best = clear_best([seeds[i] for i in rivals], test)
            if best is not None:
                marked.add(rivals[best])
        numbers[f"{metric}_best"] = [i in marked for i in range(len(cells))]
    places = [
        {key: value for key, value in zip(keys, place, strict=True) if value is not None}
        for place in cells
    ]
    return Cells(_places(places, keys), numbers)


def best_means(cells: Cells) -> dict[str, float]:
    """Return the best mean of each metric that rows are compared by, whichever cell has it."""
    found: dict[str, float] = {}
    for name in CATALOG.ranked:
        if f"{name}_mean" in cells.numbers:
            means = cells.numbers[f"{name}_mean"].dropna()
            if len(means):
                sign = CATALOG.final(name).sign
                found[name] = sign * float((sign * means).max())
    return found


def _blocks(keys: Sequence[str], places: Iterable[Sequence[str | None]]) -> list[list[int]]:
    """Return the numbers of the cells of each problem: only these are compared."""
    blocks: dict[tuple[str | None, ...], list[int]] = {}
    for i, place in enumerate(places):
        pairs = zip(keys, place, strict=True)
        problem = tuple(value for key, value in pairs if TrialConfig.is_problem(key))
        blocks.setdefault(problem, []).append(i)
    return list(blocks.values())


def _cell(part: Sequence[TrialRow], metrics: Sequence[str]) -> dict[str, object]:
    """Return the numbers of a cell."""
    kept = [row.metrics for row in part if row.metrics]
    cell: dict[str, object] = {"trials": len(kept), "failed": len(part) - len(kept)}
    for metric in metrics:
        values = np.array([float(final[metric]) for final in kept if metric in final])
        if CATALOG.final(metric).over_seeds == "reached":
            values = values[~np.isnan(values)]
        cell[f"{metric}_mean"] = values.mean() if len(values) else nan
        cell[f"{metric}_std"] = values.std(ddof=1) if len(values) > 1 else nan
        cell[f"{metric}_ci"] = interval(values)
        cell[f"{metric}_low"] = values.min() if len(values) else nan
        cell[f"{metric}_high"] = values.max() if len(values) else nan
        cell[f"{metric}_n"] = len(values)
        cell[f"{metric}_nan"] = int(np.isnan(values).sum())
    if "ari" in metrics:
        known = [final["ari"] > EXACT for final in kept if "ari" in final]  # nan is no recovery
        cell["recovered"] = np.mean(known) if known else nan
    if "rounds_to_target" in metrics:
        cell["reached"] = cell["rounds_to_target_n"]
    return cell


def _by_seed(part: Sequence[TrialRow], metric: str) -> dict[object, float]:
    """Return a cell's values by seed, more is better; a trial that has none is left out."""
    sign = CATALOG.final(metric).sign
    return {row.axes.get(SEED): sign * row.metrics[metric] for row in part if metric in row.metrics}


def _shown_metrics(rows: Sequence[TrialRow]) -> list[str]:
    """Return the metrics that some trial has; the servers' where their settings are compared."""
    servers = any(key.startswith(_SERVER) for row in rows for key in row.axes)
    there = {metric for row in rows for metric in row.metrics}
    return [
        metric
        for metric in CATALOG.tabled
        if metric in there and (servers or CATALOG.final(metric).shown != "servers")
    ]


def _all_axes(rows: Sequence[TrialRow], axes: Sequence[str] | None) -> list[str]:
    return (
        list(axes)
        if axes is not None
        else list(dict.fromkeys(key for row in rows for key in row.axes))
    )


def _places(places: Sequence[Mapping[str, str]], keys: Sequence[str]) -> pd.DataFrame:
    """Return a row per place; a column is numbers where no two texts are one number."""
    values = {
        key: [storable(place[key]) if key in place else None for place in places] for key in keys
    }
    frame = pd.DataFrame(values, index=range(len(places)))
    for key in keys:
        numbers = pd.to_numeric(frame[key], errors="coerce")
        if numbers.notna().equals(frame[key].notna()) and numbers.nunique() == frame[key].nunique():
            whole = not (numbers % 1).any() and numbers.abs().max() < 2**53
            frame[key] = numbers.astype("Int64") if whole else numbers
    return frame


def csv(table: Cells | Trials) -> str:
    """Return a table as CSV; texts are quoted: a lone carriage return in one would end its row."""
    return str(table.frame().to_csv(index=False, quoting=QUOTE_NONNUMERIC))
