"""The best value of an axis in each row, chosen on what clients hold out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from statistics import fmean

from fedsweep.catalog import CATALOG
from fedsweep.errors import RunnerError
from fedsweep.records import TrialRow
from fedsweep.report.results import SEED
from fedsweep.report.stats import LEAST

Place = tuple[tuple[str, str], ...]
"""A row of a table: its axes and their values, without the seed."""


@dataclass(frozen=True)
class Tuned:
    """What is left of a sweep when each of its rows shows its best value of an axis alone.

    Parameters
    ----------
    axis : str
        By its full key.
    rows : tuple of TrialRow
        The trials that have the best value, without the axis.
    kept : tuple of int
        Where they stood among all.
    chosen : mapping
        Place of a row -> the value that was chosen there; none where the axis does not apply.
    told : str
        How it was chosen, as a sentence.
    """

    axis: str
    rows: tuple[TrialRow, ...]
    kept: tuple[int, ...]
    chosen: Mapping[Place, str]
    told: str


def tuned(
    rows: Sequence[TrialRow], axis: str, name: str, metric: str, seeds: Sequence[str] = ()
) -> Tuned:
    """Choose the value of an axis with the best mean of a held-out metric, in each other cell.

    A value of which a trial failed or diverged, or that lacks a seed which another value has, is
    chosen only where none is whole. Of equal values the first of the grid is chosen.

    Parameters
    ----------
    rows : sequence of TrialRow
        Trials.
    axis, name : str
        The axis by its full key, and what it is called.
    metric : str
        Its name at a trial's end.
    seeds : sequence of str
        Seeds to choose on: the trials of the others are then shown. Without any, both is done on
        all of them.

    Raises
    ------
    RunnerError
        No trial to choose by has the metric, there is none of a seed, or none is left to be shown.
    """
    sign = CATALOG.final(metric).sign
    cells: dict[Place, dict[str, list[int]]] = {}
    for i, row in enumerate(rows):
        options = cells.setdefault(_place(row, axis), {})
        options.setdefault(row.axes.get(axis, ""), []).append(i)

    there = dict.fromkeys(row.axes.get(SEED) for row in rows)
    if absent := [seed for seed in seeds if seed not in there]:
        raise RunnerError(
            f"no trial is of the seed {', '.join(absent)} that {axis} is to be chosen on; there is "
            f"seed={','.join(str(seed) for seed in there)}"
        )
    counted = [i for i, row in enumerate(rows) if not seeds or row.axes.get(SEED) in seeds]
    if not any(metric in rows[i].metrics for i in counted):
        on = f" of the seeds {','.join(seeds)}" if seeds else ""
        raise RunnerError(f"no trial{on} has {metric}, by which {axis} is to be chosen")

    def rank(of: Sequence[int]) -> tuple[int, float]:
        """Rank a value: how many of its trials have a number, then their mean."""
        values = [rows[i].metrics.get(metric, float("nan")) for i in of if i in by]
        whole = [value for value in values if not isnan(value)]
        return (len(whole) if whole and len(whole) == len(values) else -1), (
            sign * fmean(whole) if whole else float("-inf")
        )

    by = frozenset(counted)
    chosen: dict[Place, str] = {}
    kept: list[int] = []
    blind = 0  # rows with several values and nothing to choose by
    for place, options in cells.items():
        best = max(options, key=lambda value: rank(options[value]))
        blind += len(options) > 1 and rank(options[best])[1] == float("-inf")
        if best:
            chosen[place] = best
        kept += [i for i in options[best] if not seeds or i not in by]
    if not kept:
        raise RunnerError(
            f"no trial is left of other seeds than those that {axis} is chosen on "
            f"({','.join(seeds)}); choose on fewer"
        )
    kept.sort()
    left = tuple(
        replace(rows[i], axes={key: at for key, at in rows[i].axes.items() if key != axis})
        for i in kept
    )
    return Tuned(axis, left, tuple(kept), chosen, _told(name, metric, seeds, cells, blind))


def _place(row: TrialRow, axis: str) -> Place:
    return tuple((key, value) for key, value in row.axes.items() if key not in (axis, SEED))


def _told(
    name: str,
    metric: str,
    seeds: Sequence[str],
    cells: Mapping[Place, Mapping[str, list[int]]],
    blind: int,
) -> str:
    """Say how a value was chosen, and what that does to the numbers."""
    most = max(len(options) for options in cells.values())
    by = CATALOG.final(metric).name
    told = (
        f"{name}: in each row the best of up to {most} values, by the mean {by} on what the "
        "clients hold out; the test set was not looked at"
    )
    if blind:
        told += f". In {blind} of {len(cells)} rows no trial has it: the first value stands there"
    if seeds:
        which = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"
        return f"{told}. Chosen on {which}, shown on the other ones."
    least = f" (with {LEAST} seeds or more, --best-seeds keeps them apart)"
    return f"{told}. Chosen and shown on the same seeds, so that {by} itself is flattered{least}."
