"""Tables on a terminal: fitted to its width, never with a cut word."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsweep import escape
from fedsweep.catalog import CATALOG
from fedsweep.config import TrialConfig
from fedsweep.config.section import short_names
from fedsweep.report.results import SEED
from fedsweep.report.table import Lines, Marked, Table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table as RichTable

_FRAME = 3  # characters that a column takes beside its content: a line, a space to each side
_MARGIN = 1


def fitted(table: Table, title: str, width: int) -> "tuple[RenderableType, list[str]]":
    """Return a table that is at most so many characters wide, and the headings of what it lacks.

    The least important columns are left out, one by one: counts that say the same in each row,
    then metrics from the last of the catalog's on, those that rows are compared by at the end.
    Where even the axes and one column are too wide, each row is a block of lines.
    """
    lost: list[str] = []
    left = table
    for column in _by_importance(table):
        if _width(left.lines()) <= width or len(left.columns) == 1:
            break
        at = left.columns.index(table.columns[column])
        lost.append(table.columns[column].heading)
        left = left.without([at])
    if _width(left.lines()) <= width:
        return _rich(left, title), lost
    return _blocks(table.lines(), len(table.down), title), []


def fitted_lines(lines: Lines, place: int, title: str, width: int) -> "RenderableType":
    """Return a table of texts that is at most so wide, or each row as a block of lines.

    ``place`` columns say where a row lies.
    """
    if _width(lines) <= width:
        return rich_lines(lines, title)
    return _blocks(lines, place, title)


def ending(name: str, axes: Sequence[str], folder: Path | None, words: Sequence[str]) -> list[str]:
    """Return what the end of a sweep says: the page to open, and what may be done next.

    Parameters
    ----------
    name : str
        The sweep's.
    axes : sequence of str
        Its axes by full key.
    folder : Path or None
        Where its report lies, if there is one.
    words : sequence of str
        What names the store, where that is not the usual one.
    """
    names = short_names([*axes, SEED])
    problem = [names[key] for key in axes if key != SEED and TrialConfig.is_problem(key)]
    ways = [names[key] for key in axes if key != SEED and not TrialConfig.is_problem(key)]
    table = ["--rows", ",".join(ways)] if ways else []
    table += ["--by", ",".join(problem)] if problem and ways else []
    commands = (
        (["report", name, *table, "--format", "latex"], "a table for a paper"),
        (["best", name], "the best cell, and its command"),
        (["ui"], "curves and pictures in MLflow"),
    )
    told = [escape.command(["fedsweep", *command, *words]) for command, _ in commands]
    wide = max(map(len, told))
    opened = [f"open {folder / 'index.html'}"] if folder else []
    return [
        *opened,
        *(f"  {line:<{wide}}  # {why}" for line, (_, why) in zip(told, commands, strict=True)),
    ]


def rich_table(table: Table, title: str = "") -> "RichTable":
    """Return a whole table for the terminal."""
    return _rich(table, title)


def rich_lines(lines: Lines, title: str) -> "RichTable":
    """Return a table of texts, headings first, for the terminal."""
    from rich.table import Table as RichTable
    from rich.text import Text

    def cells(line: Sequence[str | Marked]) -> list[Text]:
        """Keep rich from reading what it is to show."""
        parts = [
            (cell.strong, cell.rest) if isinstance(cell, Marked) else ("", cell) for cell in line
        ]
        return [
            Text.assemble((escape.line(strong), "bold"), escape.line(rest))
            for strong, rest in parts
        ]

    shown = RichTable(title=Text(escape.line(title)) if title else None, title_justify="left")
    for heading in cells(lines[0]):
        shown.add_column(heading, overflow="fold")
    for line in lines[1:]:
        shown.add_row(*cells(line))
    return shown


def _rich(table: Table, title: str) -> "RichTable":
    shown = rich_lines(table.lines(), title)
    for i, column in enumerate(shown.columns):
        if i >= len(table.down) or table.numeric[i]:
            column.justify = "right"
    return shown


def _by_importance(table: Table) -> list[int]:
    """Return the columns' numbers, the first to go first."""
    ranked, order = CATALOG.ranked, list(CATALOG.finals)

    def worth(i: int) -> tuple[int, int]:
        column = table.columns[i]
        if column.metric is None:
            same = len({line[i].text for line in table.cells}) == 1
            return (0, i) if same else (3, -i)
        if column.name in ranked:
            return 2, -order.index(column.name)
        return 1, -order.index(column.name) if column.name in order else -len(order)

    return sorted(range(len(table.columns)), key=worth)


def _width(lines: Lines) -> int:
    """Return how wide a table has to be for no word in it to be cut."""
    from rich.cells import cell_len

    columns = zip(*lines, strict=True)
    total = _MARGIN
    for heading, *cells in columns:
        # A heading may be folded between its words, a number may not.
        words = max((cell_len(escape.line(word)) for word in _text(heading).split()), default=0)
        total += _FRAME + max([words, *(cell_len(escape.line(_text(cell))) for cell in cells)])
    return total


def _blocks(lines: Lines, place: int, title: str) -> "RenderableType":
    """Return each row as a block: its place, then a line for each other column."""
    from rich.text import Text

    headings, *rows = lines
    told = [title] if title else []
    for row in rows:
        both = list(zip(map(_text, headings), map(_text, row), strict=True))
        told.append(" ".join(f"{name}={value}" for name, value in both[:place]) or "all trials")
        told += [f"  {name}: {value}" for name, value in both[place:]]
    return Text("\n".join(map(escape.line, told)))


def _text(cell: str | Marked) -> str:
    return cell if isinstance(cell, str) else cell.strong + cell.rest
