"""A report's tables as Markdown and LaTeX.

Lines are lists of cells. Cells, names and captions are plain text: each renderer escapes all that
it is given. The tables are joined here: pandas' ``to_markdown`` escapes nothing, and what its
Styler escapes for LaTeX leaves ``--``, ``|`` and ``[`` at a line's beginning as they are.
"""

from collections.abc import Mapping, Sequence
from math import isnan
from typing import TYPE_CHECKING

from fedsweep import escape
from fedsweep.report.choice import Spread
from fedsweep.report.table import Cell, Column, Lines, Marked, Table, number

if TYPE_CHECKING:
    from fedsweep.tracking.read import StoredSweep


def markdown(lines: Lines) -> str:
    """Return a table in Markdown."""
    headings, *rest = [[_markdown(cell) for cell in line] for line in lines]
    rule = ["---"] * len(headings)
    return "".join("| " + " | ".join(line) + " |\n" for line in (headings, rule, *rest))


def document_markdown(
    sweep: "StoredSweep",
    table: Table,
    figures: Mapping[str, str],
    missing: Sequence[str] = (),
    tuning: Lines = (),
    others: Mapping[str, Table] | None = None,
) -> str:
    """Return the report in Markdown: ``figures`` are captions by path, ``missing`` says why others
    lack.

    ``tuning`` is a table of what was searched, if anything was; ``others`` are tables beside the
    main one, by their titles.
    """
    shown = "\n".join(f"{escape.picture(path, said)}\n" for path, said in figures.items())
    command = escape.fence(sweep.command) if sweep.command else ""
    notes = "\n\n".join(map(escape.markdown, (table.caption, *missing)))
    lines = markdown(table.lines())
    searched = f"## Tuning\n\n{markdown(tuning)}\n" if tuning else ""
    more = "".join(
        f"## {escape.markdown(told)}\n\n{markdown(one.lines())}\n{escape.markdown(one.caption)}\n\n"
        for told, one in (others or {}).items()
    )
    head = f"# {escape.markdown(sweep.name)}\n\n{lines}\n{notes}\n\n"
    return f"{head}{searched}{more}{command}\n\n{shown}"


def latex(table: Table, label: str) -> str:
    r"""Return a table for LaTeX with ``booktabs`` and, for its numbers, ``siunitx``.

    Numbers stand at their points: ``S`` columns whose format is that of the widest number. A cell
    that is more than a number and its deviation is set as text. With ``full`` intervals, which
    ``siunitx`` can't set, all is text.
    """
    aligned = table.spread != "full"
    kinds = ["l"] * len(table.down)
    lines = [[_latex(cell) for cell in label_] for label_ in table.labels]
    for i, column in enumerate(table.columns):
        cells = [line[i] for line in table.cells]
        if aligned and column.metric is not None:
            kinds.append(f"S[table-format={_format(column, cells, table.spread)}]")
            told = [_aligned(column, cell, table.spread) for cell in cells]
        else:
            kinds.append("r" if column.metric is None else "l")
            told = [_latex(table.shown(column, cell)) for cell in cells]
        for line, cell in zip(lines, told, strict=True):
            line.append(cell)
    packages = r"\usepackage{booktabs,siunitx}" if aligned else r"\usepackage{booktabs}"
    kept = "separate-uncertainty, retain-zero-uncertainty, detect-weight, mode=text"
    setup = [rf"\sisetup{{{kept}}}"] * aligned
    return "\n".join([
        rf"% needs {packages}",
        r"\begin{table}",
        r"\centering",
        *setup,
        rf"\caption{{{escape.latex(table.caption)}}}",
        rf"\label{{tab:{escape.label(label)}}}",
        rf"\begin{{tabular}}{{{' '.join(kinds)}}}",
        r"\toprule",
        *_headings(table),
        r"\midrule",
        *(" & ".join(line) + r" \\" for line in lines),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ])  # fmt: skip


def _headings(table: Table) -> list[str]:
    r"""Return the lines of the head: conditions over their columns, with rules under them."""
    down = [_latex(name) for name in table.down]
    names = [f"{{{_latex(column.heading)}}}" for column in table.columns]
    if not table.across:
        return [" & ".join([*down, *names]) + r" \\"]
    blocks, rules, at = [], [], len(down) + 1
    for place, width in table.conditions():
        told = _latex(table.condition(place))
        blocks.append(f"{{{told}}}" if width == 1 else rf"\multicolumn{{{width}}}{{c}}{{{told}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    if len({column.name for column in table.columns}) == 1:  # the caption says which
        return [" & ".join([*down, *blocks]) + r" \\"]
    empty = [""] * len(down)
    return [
        " & ".join([*empty, *blocks]) + r" \\",
        " ".join(rules),
        " & ".join([*down, *names]) + r" \\",
    ]


def _format(column: Column, cells: Sequence[Cell], spread: Spread) -> str:
    """Return the ``table-format`` of a column: room for its widest number and deviation."""
    sign, whole, behind = "", 1, 0
    for mean, rest in filter(None, (_parts(column, cell, spread) for cell in cells)):
        digits = mean.lstrip("-").partition(".")[0]
        sign = "-" if mean.startswith("-") else sign
        whole = max(whole, len(digits))
        behind = max(behind, len(rest.replace(".", "").lstrip("0") or "0") if rest else 0)
    uncertain = f"({behind})" if behind else ""
    return f"{sign}{whole}" + (f".{column.decimals}" if column.decimals else "") + uncertain


def _parts(column: Column, cell: Cell, spread: Spread) -> tuple[str, str] | None:
    """Return a number and its deviation; None where there is more to say, or nothing."""
    told = number(column, cell, spread)
    mean, rest = told.strong, told.rest.removeprefix(" ± ")
    plain = all(part.lstrip("-").replace(".", "", 1).isdigit() for part in (mean, rest or "0"))
    return (mean, rest) if plain and not isnan(cell.mean) else None


def _aligned(column: Column, cell: Cell, spread: Spread) -> str:
    """Return a cell of an S column."""
    if not cell.count:
        return "{--}"
    parts = _parts(column, cell, spread)
    if parts is None:
        told = number(column, cell, spread)
        shown = Marked(told.strong, told.rest) if cell.best else told.strong + told.rest
        return f"{{{_latex(shown)}}}"
    mean, rest = parts
    bold = r"\bfseries " if cell.best else ""
    return bold + mean + (rf" \pm {rest}" if rest else "")


def _markdown(cell: str | Marked) -> str:
    if isinstance(cell, str):
        return escape.markdown(cell)
    return escape.bold(cell.strong) + escape.markdown(cell.rest)


def _latex(cell: str | Marked) -> str:
    if isinstance(cell, str):
        return escape.latex(cell)
    return rf"\textbf{{{escape.latex(cell.strong)}}}{escape.latex(cell.rest)}"
