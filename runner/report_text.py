"""A report's tables as Markdown, LaTeX and one HTML page that holds everything. Lines are lists of cells."""

import html as markup
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.tracking.read import StoredSweep

Lines = Sequence[Sequence[str]]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
th, td { padding: .25em .8em; text-align: right; white-space: nowrap }
thead th { border-top: 2px solid #1a1a1a; border-bottom: 1px solid #1a1a1a; white-space: normal }
tbody tr:last-child td { border-bottom: 2px solid #1a1a1a }
tbody tr:nth-child(even) { background: #f4f4f4 }
img { max-width: 100%; height: auto } figure { margin: 2em 0 } figcaption, .note { color: #555; font-size: 13px }
pre { background: #f4f4f4; padding: .6em; overflow-x: auto }
"""


def markdown(lines: Lines) -> str:
    """Return a table in Markdown."""
    headings, *rest = lines
    rule = ["---"] * len(headings)
    return "".join("| " + " | ".join(line) + " |\n" for line in (headings, rule, *rest))


def document_markdown(sweep: "StoredSweep", lines: Lines, caption: str, figures: Sequence[str]) -> str:
    """Return the report in Markdown; figures are links to ``plots/``."""
    shown = "\n".join(f"![{_title(name)}](plots/{name}.png)\n" for name in figures)
    command = f"```bash\n{sweep.command}\n```" if sweep.command else ""
    return f"# {sweep.name}\n\n{markdown(lines)}\n{caption}\n\n{command}\n\n{shown}"


def latex(lines: Lines, caption: str, label: str) -> str:
    r"""Return a table for LaTeX with ``\usepackage{booktabs}``."""
    headings, *rest = lines
    rows = [" & ".join(map(_latex, line)) + r" \\" for line in rest]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(caption)}}}",
            rf"\label{{tab:{re.sub('[^A-Za-z0-9-]', '-', label)}}}",
            rf"\begin{{tabular}}{{{'l' * len(headings)}}}",
            r"\toprule",
            " & ".join(map(_latex, headings)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def html(sweep: "StoredSweep", lines: Lines, caption: str, figures: Mapping[str, bytes]) -> str:
    """Return one page that needs no other file: style, tables and figures are in it."""
    headings, *rest = lines
    head = "".join(f"<th>{markup.escape(cell)}</th>" for cell in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{_html(cell)}</td>" for cell in line) + "</tr>" for line in rest)
    drawn = "\n".join(
        f'<figure><img alt="{_title(name)}" src="data:image/png;base64,{b64encode(png).decode()}">'
        f"<figcaption>{_title(name)}</figcaption></figure>"
        for name, png in figures.items()
    )
    name = markup.escape(sweep.name)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>fedsweep: {name}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{name}</h1>\n<table><thead><tr>{head}</tr></thead>\n"
        f'<tbody>{body}</tbody></table>\n<p class="note">{markup.escape(caption)}</p>\n'
        f"<p>Reproduce (MLflow run <code>{sweep.run_id}</code>):</p><pre>{markup.escape(sweep.command)}</pre>\n"
        f"{drawn}\n</body></html>\n"
    )


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _html(cell: str) -> str:
    """Escape a cell, but for the marks that the table itself put there."""
    return markup.escape(cell).replace("&lt;b&gt;", "<b>").replace("&lt;/b&gt;", "</b>")


def _latex(text: str) -> str:
    r"""Escape a cell, but for ``\textbf`` that the table itself put there."""
    for plain, escaped in (("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("#", r"\#"), ("±", r"$\pm$"), (">=", r"$\geq$")):
        text = text.replace(plain, escaped)
    return re.sub(r" < ", r" $<$ ", text)
