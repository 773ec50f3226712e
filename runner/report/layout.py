"""Which rows and columns a choice makes of results: a table of them, laid out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

import pandas as pd

from fedsweep.catalog import CATALOG, Metric
from fedsweep.config.section import short_names
from fedsweep.errors import ConfigError, RunnerError
from fedsweep.records import TrialRow
from fedsweep.report.caption import caption_of
from fedsweep.report.choice import (
    COUNTS,
    EVERYTHING,
    Choice,
    axis_of,
    decimals_of,
    metric_of,
    picked,
    same_value,
    unmatched,
)
from fedsweep.report.results import SEED, Cells, results_table
from fedsweep.report.rows import grouped, said_by_others
from fedsweep.report.table import MISSING, Cell, Column, Lines, Table, condition
from fedsweep.report.tuning import Tuned, tuned
from fedsweep.strategies.registry import STRATEGIES


def texts(cells: Cells, full: bool = False) -> Lines:
    """Return results as they are read, headings first: ``91.2 ± 0.4``, per cents.

    With ``full`` all metrics, intervals, the recovery rate and the marks of the best are there too.
    """
    return layout(cells, EVERYTHING, full=full).lines()


@dataclass(frozen=True)
class Chosen:
    """What a choice makes of a sweep.

    Parameters
    ----------
    table : Table
        As it is read.
    cells : Cells
        The results behind it, a row per cell, unrounded.
    rows : tuple of TrialRow
        The trials that it is of.
    kept : tuple of int
        Where these stand in the sweep.
    axes : tuple of str
        Their axes by full key: without one of which the best value was chosen.
    """

    table: Table
    cells: Cells
    rows: tuple[TrialRow, ...]
    kept: tuple[int, ...]
    axes: tuple[str, ...]


def chosen(
    choice: Choice,
    rows: Sequence[TrialRow],
    axes: Sequence[str],
    settings: Sequence[Mapping[str, str]] = (),
    absent: int = 0,
    full: bool = False,
) -> Chosen:
    """Return what a choice makes of a sweep's trials.

    Parameters
    ----------
    choice : Choice
        What is to be shown.
    rows : sequence of TrialRow
        All trials of the sweep.
    axes : sequence of str
        Its axes by full key, in its order.
    settings : sequence of mapping, optional
        All settings of each trial, which ``where`` may name.
    absent : int
        Trials that the store lacks.
    full : bool
        All metrics, where no column is named.

    Raises
    ------
    RunnerError
        The sweep has no such axis, setting or metric, or no trial is left.
    """
    kept, every = picked(choice, rows, axes, settings), axes
    left: Sequence[TrialRow] = [rows[i] for i in kept]
    found: Tuned | None = None
    if choice.best:
        axis = axis_of(choice.best, [key for key in axes if key != SEED], "--best")
        for words, option in ((choice.rows, "--rows"), (choice.by, "--by")):
            if axis in [axis_of(word, axes, option) for word in words]:
                raise ConfigError(
                    f"{option} names {axis}, of which --best shows one value in each row; "
                    "leave it out of one of them"
                )
        name = choice.labels.get(axis) or short_names([*axes, SEED])[axis]
        seeds = choice.best_seeds
        found = tuned(left, axis, name, choice.best_by, seeds)
        left, kept = found.rows, [kept[i] for i in found.kept]
        axes = [key for key in axes if key != axis]
    if not any(row.metrics for row in left):
        raise RunnerError("no trial that is to be shown has finished")
    cells = results_table(left, choice.test, axes)
    table = layout(cells, choice, full=full, best=found, absent=absent)
    strange = unmatched(choice, rows, every, settings)
    table = replace(table, remarks=(*table.remarks, *strange))
    return Chosen(table, cells, tuple(left), tuple(kept), tuple(axes))


def layout(
    cells: Cells,
    choice: Choice,
    *,
    full: bool = False,
    best: Tuned | None = None,
    absent: int = 0,
) -> Table:
    """Lay results out as a choice says: which axes go down, which across, which columns there are.

    Axes that are named nowhere go down after those that are, so that no cell is a mean over
    anything but seeds; those that have one value are told in the caption.
    """
    keys, remarks = list(map(str, cells.axes)), []
    across = [axis_of(word, keys, "--by") for word in choice.by]
    first = [axis_of(word, keys, "--rows") for word in choice.rows]
    if both := [key for key in first if key in across]:
        raise ConfigError(f"--rows and --by both name {', '.join(both)}; an axis goes one way")
    rest = [key for key in keys if key not in (*first, *across)]
    fixed = said_by_others(cells.axes, [*first, *across], rest) if choice.is_chosen else []
    down = [*first, *(key for key in rest if key not in fixed)]
    added = [key for key in down if key not in first]
    if choice.rows and added:
        remarks.append(
            f"rows are also by {', '.join(added)}: to have fewer, take some of its values "
            "(--where), put it across (--by) or take its best (--best)"
        )

    # Which row and which condition each cell of the results belongs to.
    marked = full or choice.is_chosen  # else no caption says what marks mean
    names = {**short_names([*keys, SEED]), **_given(keys, choice)}
    at_row, labels = grouped(cells.axes, down, reorder=bool(first))
    at_block, places = grouped(cells.axes, across, reorder=True)
    said = reader(choice, titles=marked)
    columns, used = _columns(cells, choice, full or bool(across), best)

    # The cells, row by row; one that the grid lacks is empty.
    found = {(row, block): i for i, (row, block) in enumerate(zip(at_row, at_block, strict=True))}
    records = cells.numbers.to_dict("records")
    axes = cells.axes.to_dict("records")
    lines = []
    for row in range(len(labels)):
        line: list[Cell] = []
        for block in range(len(places)):
            i = found.get((row, block))
            for column in columns:
                cell = Cell() if i is None else _cell(column, records[i], axes[i], best)
                line.append(cell if marked else replace(cell, best=False))
        lines.append(tuple(line))
    order = _order(choice, columns, lines, used)
    table = Table(
        down=tuple(names[key] for key in down),
        across=tuple(names[key] for key in across),
        numeric=tuple(bool(pd.api.types.is_numeric_dtype(cells.axes[key])) for key in down),
        labels=tuple(
            tuple(said(key, value) for key, value in zip(down, labels[i], strict=True))
            for i in order
        ),
        columns=tuple(
            replace(
                column,
                place=tuple(said(key, value) for key, value in zip(across, place, strict=True)),
            )
            for place in places
            for column in columns
        ),
        cells=tuple(lines[i] for i in order),
        spread=choice.spread or ("full" if full and not choice.is_chosen else "std"),
        remarks=tuple(remarks),
    )
    one = [_fixed_at(names[key], key, cells.axes[key], said) for key in fixed]
    return replace(table, caption=caption_of(table, cells, choice, names, one, best, absent))


def _fixed_at(name: str, key: str, values: "pd.Series", said: Callable[[str, Any], str]) -> str:
    """Return what a caption says of an axis that is no row and no column."""
    there = values.dropna().unique()
    if len(there) > 1:
        return f"{name}: one value in each row"
    told = condition(name, said(key, there[0]) if len(there) else MISSING)
    return f"{told} where it applies" if values.isna().any() else told


def _given(keys: Sequence[str], choice: Choice) -> dict[str, str]:
    """Return what axes are called by a choice, by full key."""
    short = short_names([*keys, SEED])
    found = {key: choice.labels.get(key) or choice.labels.get(short[key]) for key in keys}
    return {key: name for key, name in found.items() if name}


def reader(choice: Choice, titles: bool = True) -> Callable[[str, Any], str]:
    """Return what says a setting as it is read; methods by their papers' names, if with titles."""

    def said(key: str, value: Any) -> str:
        if pd.isna(value):
            return MISSING
        text = f"{value}"
        for name in (f"{key}={text}", f"{key.rpartition('.')[2]}={text}", text):
            if name in choice.labels:
                return choice.labels[name]
        return STRATEGIES.title(text) if key == "strategy" and titles else text

    return said


def _columns(
    cells: Cells, choice: Choice, full: bool, best: Tuned | None
) -> tuple[list[Column], dict[str, Column]]:
    """Return the columns of a condition, and all that rows may be sorted by."""
    numbers = cells.numbers
    there = [
        metric
        for column in map(str, numbers)
        if (metric := column.removesuffix("_mean")) != column and numbers[f"{metric}_n"].any()
    ]
    every = {
        name: Column(
            name,
            _heading(CATALOG.final(name), choice),
            CATALOG.final(name),
            decimals_of(choice, CATALOG.final(name)),
        )
        for name in there
    }
    every |= {
        name: Column(name, choice.labels.get(name, _COUNT_HEADINGS.get(name, name)))
        for name in COUNTS
        if name in numbers
    }
    if choice.columns:
        shown = [metric_of(word, every, "--columns") for word in choice.columns]
        lacking = [name for name in shown if name not in every]
        if lacking:
            raise ConfigError(f"--columns: no trial here has {', '.join(lacking)}")
    else:
        ranked = [name for name in CATALOG.ranked if name in there]
        shown = ranked[:1] if choice.by else _usual(cells, full and not choice.is_chosen, every)
    columns = [every[name] for name in dict.fromkeys(shown)]
    if best is not None:
        name = choice.labels.get(best.axis) or best.axis.rpartition(".")[2]
        columns.append(Column(best.axis, f"best {name}"))
    return columns, every


_COUNT_HEADINGS = {"recovered": "recovered (%)"}


def _heading(metric: Metric, choice: Choice) -> str:
    for name in (metric.final, metric.key):
        if name in choice.labels:
            return choice.labels[name]
    return metric.heading


def _usual(cells: Cells, full: bool, every: Mapping[str, Column]) -> list[str]:
    """Return the columns of a table that nobody chose, in the order of the numbers."""

    def is_shown(name: str) -> bool:
        metric = every[name].metric
        if metric is not None:  # one by which rows are compared was asked for to be seen
            asked = bool(metric.on_request) and metric.ranked
            return full or asked or metric.shown != "full"
        if name == "recovered":
            return full and bool(cells.numbers[name].notna().any())
        return name != "failed" or bool(cells.numbers[name].any())

    names = (str(column).removesuffix("_mean") for column in cells.numbers)
    return [name for name in names if name in every and is_shown(name)]


def _cell(
    column: Column, record: Mapping[Any, Any], axes: Mapping[Any, Any], best: Tuned | None
) -> Cell:
    """Return what stands in a cell of the table."""
    if column.metric is None:
        if best is not None and column.name == best.axis:
            return Cell(text=_chosen_value(axes, best))
        value = record[column.name]
        if column.name == "recovered":
            return Cell(text=MISSING if isnan(value) else f"{value * 100:.0f}")
        return Cell(text=str(value))
    name = column.name
    mean, std, half, low, high = (
        float(record[f"{name}_{kind}"]) for kind in ("mean", "std", "ci", "low", "high")
    )
    count, diverged = int(record[f"{name}_n"]), int(record[f"{name}_nan"])
    marked = bool(record.get(f"{name}_best", False))
    return Cell("", mean, std, half, low, high, count, int(record["trials"]), diverged, marked)


def _chosen_value(axes: Mapping[Any, Any], best: Tuned) -> str:
    place = {str(key): f"{value}" for key, value in axes.items() if not pd.isna(value)}
    for there, value in best.chosen.items():
        if _same_place(dict(there), place):
            return value
    return MISSING


def _same_place(first: Mapping[str, str], second: Mapping[str, str]) -> bool:
    return first.keys() == second.keys() and all(
        same_value(value, second[key]) for key, value in first.items()
    )


def _order(
    choice: Choice,
    columns: Sequence[Column],
    lines: Sequence[Sequence[Cell]],
    every: Mapping[str, Column],
) -> list[int]:
    """Return the rows in their order: the grid's, or by a metric in the first condition."""
    if choice.sort == "grid":
        return list(range(len(lines)))
    name = metric_of(choice.sort, every, "--sort")
    places = [i for i, column in enumerate(columns) if column.name == name]
    if not places or columns[places[0]].metric is None:
        raise ConfigError(f"--sort {name}: name it in --columns too, so that the order can be seen")
    metric = columns[places[0]].metric
    assert metric is not None

    def rank(i: int) -> float:
        mean = lines[i][places[0]].mean
        return float("inf") if isnan(mean) else -metric.sign * mean

    return sorted(range(len(lines)), key=rank)
