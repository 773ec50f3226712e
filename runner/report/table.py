"""A table as data: which rows and columns a choice makes of results, before anybody prints it.

Every format shows this one table: the terminal, Markdown, LaTeX, HTML, and the Python API.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from typing import Any

import pandas as pd

from fedsweep.catalog import CATALOG, Metric
from fedsweep.config import TrialConfig
from fedsweep.config.section import short_names
from fedsweep.errors import ConfigError, RunnerError
from fedsweep.records import TrialRow
from fedsweep.report.choice import (
    COUNTS,
    EVERYTHING,
    Choice,
    Spread,
    axis_of,
    decimals_of,
    metric_of,
    picked,
    same_value,
)
from fedsweep.report.curves import Target
from fedsweep.report.results import SEED, Cells, results_table
from fedsweep.report.rows import plain, said_by_others
from fedsweep.report.stats import LEAST, LEVEL, TESTS
from fedsweep.report.tuning import Tuned, tuned
from fedsweep.strategies.registry import STRATEGIES

MISSING = "-"


@dataclass(frozen=True)
class Marked:
    """A cell whose beginning stands out, such as the mean of the best."""

    strong: str
    rest: str = ""


Lines = Sequence[Sequence[str | Marked]]
"""A table as texts, headings first: plain text, which each renderer escapes."""


@dataclass(frozen=True)
class Cell:
    """What stands in a cell: a mean over seeds as it is, or a text.

    Parameters
    ----------
    text : str
        A count or a setting; empty where it is a mean.
    mean, std, half, low, high : float
        Over the trials; ``half`` is half the width of the 95% interval.
    count, trials, diverged : int
        Trials that have the metric, that finished, and whose value is nan.
    best : bool
        Whether the row is clearly better than each other one of its problem.
    """

    text: str = ""
    mean: float = nan
    std: float = nan
    half: float = nan
    low: float = nan
    high: float = nan
    count: int = 0
    trials: int = 0
    diverged: int = 0
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Parameters
    ----------
    name : str
        A metric's name at a trial's end, a count, or the axis of a setting that was chosen.
    heading : str
        What it is called.
    metric : Metric or None
        None: its cells are texts.
    decimals : int
        Digits behind the point.
    place : tuple of str
        Its condition: a value of each of the table's ``across``, as it is read.
    """

    name: str
    heading: str
    metric: Metric | None = None
    decimals: int = 0
    place: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table, read and chosen.

    Parameters
    ----------
    down, across : tuple of str
        What the axes are called that go down, and those that go across.
    numeric : tuple of bool
        Of each axis that goes down, whether its values are numbers.
    labels : tuple of tuple of str
        Of each row, its values of ``down``, as they are read.
    columns : tuple of Column
        Its columns, those of one condition side by side.
    cells : tuple of tuple of Cell
        Row by row.
    spread : str
        What stands behind a mean.
    caption : str
        What it shows, how sure it is, by which test.
    remarks : tuple of str
        What whoever asked for it must know, besides.
    """

    down: tuple[str, ...]
    across: tuple[str, ...]
    numeric: tuple[bool, ...]
    labels: tuple[tuple[str, ...], ...]
    columns: tuple[Column, ...]
    cells: tuple[tuple[Cell, ...], ...]
    spread: Spread
    caption: str = ""
    remarks: tuple[str, ...] = ()

    def lines(self) -> Lines:
        """Return it as texts, headings first; a condition stands before its column's heading."""
        headings = [*self.down, *map(self._heading, self.columns)]
        rows = [
            [*label, *(self.shown(*both) for both in zip(self.columns, cells, strict=True))]
            for label, cells in zip(self.labels, self.cells, strict=True)
        ]
        return [headings, *rows]

    def shown(self, column: Column, cell: Cell) -> str | Marked:
        """Return a cell as it is read: ``91.2 ± 0.4``, in bold where it is the best."""
        told = number(column, cell, self.spread)
        return Marked(told.strong, told.rest) if cell.best else told.strong + told.rest

    def conditions(self) -> list[tuple[tuple[str, ...], int]]:
        """Return the conditions across, and how many columns stand under each."""
        found: list[tuple[tuple[str, ...], int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.place:
                found[-1] = column.place, found[-1][1] + 1
            else:
                found.append((column.place, 1))
        return found

    def condition(self, place: Sequence[str]) -> str:
        """Return a condition as it is read: ``alpha = 0.1, rotation``."""
        both = zip(self.across, place, strict=False)
        return ", ".join(_condition(name, value) for name, value in both)

    def without(self, columns: Sequence[int]) -> "Table":
        """Return it without some of its columns."""
        kept = [i for i in range(len(self.columns)) if i not in set(columns)]
        return replace(
            self,
            columns=tuple(self.columns[i] for i in kept),
            cells=tuple(tuple(line[i] for i in kept) for line in self.cells),
        )

    def frame(self) -> pd.DataFrame:
        """Return its numbers, unrounded: rows and columns as shown, a mean in each cell."""
        index = (
            pd.MultiIndex.from_tuples(self.labels, names=self.down)
            if len(self.down) > 1
            else pd.Index([label[0] if label else "" for label in self.labels], name=self.down[0])
            if self.down
            else pd.RangeIndex(len(self.labels))
        )
        headings = [self._heading(column) for column in self.columns]
        values = [
            [
                cell.mean if column.metric else cell.text
                for column, cell in zip(self.columns, line, strict=True)
            ]
            for line in self.cells
        ]
        return pd.DataFrame(values, index=index, columns=headings)

    def _heading(self, column: Column) -> str:
        told = self.condition(column.place)
        return f"{told}: {column.heading}" if told else column.heading


def number(column: Column, cell: Cell, spread: Spread) -> Marked:
    """Return a cell's number, and what stands behind it."""
    if column.metric is None:
        return Marked(cell.text or MISSING)
    if not cell.count:
        return Marked(MISSING)
    if cell.diverged:
        return Marked(f"nan ({cell.diverged} of {cell.count})")

    def told(value: float) -> str:
        assert column.metric is not None
        return f"{value * column.metric.factor:.{column.decimals}f}"

    over_all = column.metric.over_seeds == "all"
    rest = ""
    if spread in ("std", "full") and not isnan(cell.std):
        rest += f" ± {told(cell.std)}"
    if spread == "interval" and not isnan(cell.half):
        rest += f" ± {told(cell.half)}"
    if spread == "full" and over_all:
        if not isnan(cell.half):
            rest += f" [{told(cell.mean - cell.half)}, {told(cell.mean + cell.half)}]"
        elif cell.count > 1:
            rest += f" ({told(cell.low)} to {told(cell.high)})"
    if cell.count < cell.trials and over_all:
        rest += f" ({cell.count} of {cell.trials})"
    return Marked(told(cell.mean), rest)


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
    kept = picked(choice, rows, axes, settings)
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
    at_row, labels = _group(cells.axes, down, reorder=bool(first))
    at_block, places = _group(cells.axes, across, reorder=True)
    said = reader(choice, titles=marked)
    columns, used = _columns(cells, choice, full or bool(across), best)
    if across and not choice.columns:
        columns = columns[:1]

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
    return replace(table, caption=_caption(table, cells, choice, one, best, absent))


def _fixed_at(name: str, key: str, values: "pd.Series", said: Callable[[str, Any], str]) -> str:
    """Return what a caption says of an axis that is no row and no column."""
    there = values.dropna().unique()
    if len(there) > 1:
        return f"{name}: one value in each row"
    told = _condition(name, said(key, there[0]) if len(there) else MISSING)
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


def _condition(name: str, value: str) -> str:
    """Return a condition as it is read; a word needs no name of its axis, a number does."""
    try:
        float(value)
    except ValueError:
        return f"no {name}" if value == "none" else value
    return f"{name} = {value}"


def _group(
    axes: pd.DataFrame, keys: Sequence[str], reorder: bool
) -> tuple[list[int], list[tuple[Any, ...]]]:
    """Return which group each cell is of, and the groups: in the grid's order, or by key."""
    values = [[plain(value) for value in axes[key]] for key in keys]
    places = list(zip(*values, strict=True)) if keys else [()] * len(axes)
    groups = list(dict.fromkeys(places))
    if reorder:
        first = [{value: i for i, value in reversed(list(enumerate(column)))} for column in values]
        groups.sort(key=lambda place: [first[n][value] for n, value in enumerate(place)])
    where = {place: i for i, place in enumerate(groups)}
    return [where[place] for place in places], groups


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
        shown = ranked if choice.by else _usual(cells, full and not choice.is_chosen, every)
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
        if metric is not None:
            return full or metric.shown != "full"
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


def _caption(
    table: Table,
    cells: Cells,
    choice: Choice,
    fixed: Sequence[str],
    best: Tuned | None,
    absent: int,
) -> str:
    """Say what a table shows, and how sure it is."""
    words = [choice.caption.rstrip(".") + "."] if choice.caption else []
    if fixed:
        words.append(", ".join(fixed) + ".")
    metrics = {column.name: column.metric for column in table.columns if column.metric}
    if table.across and len({column.name for column in table.columns}) == 1:
        heading = table.columns[0].heading
        words.append(f"{heading[:1].upper()}{heading[1:]}.")
    words.append(_BEHIND[table.spread])
    numbers = cells.numbers
    if table.spread == "full" and (numbers["trials"] == LEAST - 1).any():
        words.append(f"Of fewer than {LEAST} trials: (lowest to highest).")
    if table.spread == "interval" and (numbers["trials"] < LEAST).any():
        words.append(f"None of fewer than {LEAST} trials.")
    if any(metric.ranked for metric in metrics.values()):
        words.append(_marks(table, cells, choice))
    shown = [line[i] for line in table.cells for i, c in enumerate(table.columns) if c.metric]
    if any(cell.diverged for cell in shown):
        words.append("nan (k of n): k of a cell's n trials diverged.")
    if any(column.name == "recovered" for column in table.columns) or (
        not choice.is_chosen and "recovered" in numbers
    ):
        words.append("Recovered: trials whose clusters are the known groups (ARI = 1).")
    if choice.target and any(metric.over_seeds == "reached" for metric in metrics.values()):
        target = Target.parse(choice.target)
        words.append(f"Target: {target}; means over the trials that reached it.")
    if choice.epsilon is not None:
        words.append(
            "Accuracy within epsilon: of the global model in the last evaluated round that had "
            f"spent no more than {choice.epsilon:g}; means over the trials that have one."
        )
    if best is not None:
        words.append(best.told)
    if absent:
        words.append(f"NOT WHOLE: {absent} trials of the sweep are not in the store.")
    return " ".join(words)


_BEHIND: Mapping[Spread, str] = {
    "full": "Mean ± standard deviation [95% confidence interval of the mean, Student's t] over the "
    "seeds.",
    "std": "Mean ± standard deviation over the seeds.",
    "interval": "Mean ± half the width of its 95% confidence interval (Student's t) over the "
    "seeds.",
    "none": "Mean over the seeds.",
}


def _marks(table: Table, cells: Cells, choice: Choice) -> str:
    """Say what bold means, by which test."""
    names = {
        **short_names([*map(str, cells.axes), SEED]),
        **_given([*map(str, cells.axes)], choice),
    }
    varied = [key for key in map(str, cells.axes) if cells.axes[key].nunique(dropna=False) > 1]
    problem = [names[key] for key in varied if TrialConfig.is_problem(key)]
    same = f" of the same {', '.join(problem)}" if problem else ""
    rule = (
        f"{TESTS[choice.test]} over at least {LEAST} seeds, the sign test where all differences "
        f"are the same; p < {LEVEL}, corrected for the number of rows by Holm"
    )
    if any(cell.best for line in table.cells for cell in line):
        return f"Bold: better than each other row{same} ({rule})."
    return f"No row is better than each other row{same} ({rule})."
