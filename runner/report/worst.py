"""Methods by the worst that attackers do to them: a mean over attacks hides the one that works."""

from collections.abc import Mapping, Sequence
from math import inf, isnan
from typing import Any

import numpy as np

from fedsweep.catalog import CATALOG
from fedsweep.config import TrialConfig
from fedsweep.config.section import short_names
from fedsweep.report.results import SEED, Cells
from fedsweep.report.rows import plain, said_by_others
from fedsweep.report.table import Cell, Column, Table

ATTACK = "attack"
_NOBODY = "none"


def worst_table(cells: Cells) -> Table | None:
    """Return a row per way and problem, best first by its worst attack; None where none vary.

    The worst is that of the least mean over seeds of the first metric that tables rank by; a mean
    that diverged is the worst there is. Ranks are within a problem, and say nothing of chance:
    the main table has the intervals.
    """
    keys = [str(key) for key in cells.axes if key != SEED]
    over = [key for key in keys if key.partition(".")[0] == ATTACK]
    metric = next((m for m in CATALOG.ranked if f"{m}_mean" in cells.numbers), None)
    if ATTACK not in over or metric is None or cells.axes[ATTACK].nunique() < 2:
        return None
    rest = [key for key in keys if key not in over]
    fixed = said_by_others(cells.axes[rest], [], rest)
    shown = [key for key in rest if key not in fixed]
    names = short_names(keys)

    # The cells of each way in each problem: an attack each.
    places: dict[tuple[Any, ...], dict[str, int]] = {}
    for i, values in enumerate(cells.axes.to_dict("records")):
        of = [plain(values[key]) for key in over]
        told = ", ".join(
            str(value) if key == ATTACK else f"{names[key]}={value}"
            for key, value in zip(over, of, strict=True)
            if value is not None
        )
        there = places.setdefault(tuple(plain(values[key]) for key in rest), {})
        there[told] = i
    every = dict.fromkeys(attack for found in places.values() for attack in found)
    attacks = [attack for attack in every if attack != _NOBODY]

    rows = {place: _row(cells, metric, found, attacks) for place, found in places.items()}
    problems: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for place in places:
        problem = tuple(
            value for key, value in zip(rest, place, strict=True) if TrialConfig.is_problem(key)
        )
        problems.setdefault(problem, []).append(place)
    ordered = [
        (rank, place)
        for block in problems.values()
        for rank, place in enumerate(sorted(block, key=lambda p: -_order(rows[p][1], metric)), 1)
    ]
    labels = tuple(
        tuple(
            str(value) if value is not None else ""
            for key, value in zip(rest, place, strict=True)
            if key in shown
        )
        for _, place in ordered
    )
    found_metric = CATALOG.final(metric)
    number = [
        Column(metric, heading, found_metric, found_metric.decimals)
        for heading in (
            f"{found_metric.heading} under it", "mean over attacks", "without attackers",
        )
    ]  # fmt: skip
    columns = (Column("rank", "rank"), Column(ATTACK, "worst attack"), *number)
    return Table(
        tuple(names[key] for key in shown),
        (),
        tuple(False for _ in shown),
        labels,
        columns,
        tuple((Cell(str(rank)), *rows[place]) for rank, place in ordered),
        "std",
        f"Ranked by the worst of {len(attacks)} attack{'s' * (len(attacks) != 1)}: the least "
        f"mean of the {found_metric.name} over seeds, ± their deviation.",
    )


def _row(
    cells: Cells, metric: str, found: Mapping[str, int], attacks: Sequence[str]
) -> tuple[Cell, ...]:
    """Return the worst attack's name and cell, the mean over attacks, and the cell without one."""
    each = {attack: _cell(cells, metric, found[attack]) for attack in attacks if attack in found}
    each = {attack: cell for attack, cell in each.items() if cell.count}
    nobody = _cell(cells, metric, found[_NOBODY]) if _NOBODY in found else Cell()
    if not each:
        return Cell("-"), Cell(), Cell(), nobody
    worst = min(each, key=lambda attack: _order(each[attack], metric))
    told = worst if len(each) == len(attacks) else f"{worst} (of {len(each)} of {len(attacks)})"
    mean = float(np.mean([cell.mean for cell in each.values()]))
    diverged = sum(cell.diverged for cell in each.values())
    count = sum(cell.count for cell in each.values())
    over_all = Cell(mean=mean, count=count, trials=count, diverged=diverged)
    return Cell(told), each[worst], over_all, nobody


def _order(cell: Cell, metric: str) -> float:
    """Return how good a mean is: more is better; what diverged or is missing is the worst."""
    return -inf if isnan(cell.mean) else CATALOG.final(metric).sign * cell.mean


def _cell(cells: Cells, metric: str, i: int) -> Cell:
    numbers = cells.numbers.iloc[i]
    mean, std = (float(numbers[f"{metric}_{part}"]) for part in ("mean", "std"))
    count, diverged = (int(numbers[f"{metric}_{part}"]) for part in ("n", "nan"))
    return Cell(mean=mean, std=std, count=count, trials=int(numbers["trials"]), diverged=diverged)
