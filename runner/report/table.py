"""A table as data: rows, columns and cells, before anybody prints it.

Every format shows this one table: the terminal, Markdown, LaTeX, HTML, and the Python API. What
makes one of results is :mod:`fedsweep.report.layout`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan, nan

import pandas as pd

from fedsweep.catalog import Metric
from fedsweep.report.choice import Spread

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
        return ", ".join(condition(name, value) for name, value in both)

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


def condition(name: str, value: str) -> str:
    """Return a condition as it is read; a word needs no name of its axis, a number does."""
    try:
        float(value)
    except ValueError:
        return f"no {name}" if value == "none" else value
    return f"{name} = {value}"
