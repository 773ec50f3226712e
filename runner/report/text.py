"""A report's tables as Markdown, LaTeX and one HTML page that holds everything.

Lines are lists of cells. Cells, names and captions are plain text: each renderer escapes all that
it is given.

Jinja2 makes the page. The other tables are joined here: pandas' ``to_markdown`` escapes nothing,
and what its Styler escapes for LaTeX leaves ``--``, ``|`` and ``[`` at a line's beginning as they
are.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from fedsweep import escape

if TYPE_CHECKING:
    from jinja2 import Template

    from fedsweep.tracking.read import StoredSweep


@dataclass(frozen=True)
class Marked:
    """A cell whose beginning stands out, such as the mean of the best."""

    strong: str
    rest: str = ""


Lines = Sequence[Sequence[str | Marked]]

_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>fedsweep: {{ sweep.name }}</title><style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a;
  max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  display: block; overflow-x: auto }
th, td { padding: .25em .8em; text-align: right; white-space: nowrap }
thead th { border-top: 2px solid #1a1a1a; border-bottom: 1px solid #1a1a1a; white-space: normal }
tbody tr:last-child td { border-bottom: 2px solid #1a1a1a }
tbody tr:nth-child(even) { background: #f4f4f4 }
img { max-width: 100%; height: auto } figure { margin: 2em 0 }
figcaption, .note { color: #555; font-size: 13px }
pre { background: #f4f4f4; padding: .6em; overflow-x: auto }
</style></head>
<body><h1>{{ sweep.name }}</h1>
{%- macro show(cell) -%}
{%- if cell is string -%}{{ cell }}{%- else -%}<b>{{ cell.strong }}</b>{{ cell.rest }}{%- endif -%}
{%- endmacro %}
<table><thead><tr>{% for cell in lines[0] %}<th>{{ show(cell) }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for line in lines[1:] %}
<tr>{% for cell in line %}<td>{{ show(cell) }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table>
<p class="note">{{ caption }}</p>
{%- for reason in missing %}
<p class="note">{{ reason }}</p>
{%- endfor %}
<p>Reproduce (MLflow run <code>{{ sweep.run_id }}</code>):</p><pre>{{ sweep.command }}</pre>
{%- for title, png in figures %}
<figure><img alt="{{ title }}" src="data:image/png;base64,{{ png }}">
<figcaption>{{ title }}</figcaption></figure>
{%- endfor %}
</body></html>
"""


def markdown(lines: Lines) -> str:
    """Return a table in Markdown."""
    headings, *rest = [[_markdown(cell) for cell in line] for line in lines]
    rule = ["---"] * len(headings)
    return "".join("| " + " | ".join(line) + " |\n" for line in (headings, rule, *rest))


def document_markdown(
    sweep: "StoredSweep",
    lines: Lines,
    caption: str,
    figures: Sequence[str],
    missing: Sequence[str] = (),
) -> str:
    """Return the report in Markdown; figures are links, ``missing`` says why others lack."""
    shown = "\n".join(f"![{_title(path)}]({path})\n" for path in figures)
    command = escape.fence(sweep.command) if sweep.command else ""
    notes = "\n\n".join(map(escape.markdown, (caption, *missing)))
    return f"# {escape.markdown(sweep.name)}\n\n{markdown(lines)}\n{notes}\n\n{command}\n\n{shown}"


def latex(lines: Lines, caption: str, label: str) -> str:
    r"""Return a table for LaTeX with ``\usepackage{booktabs}``."""
    headings, *rest = [" & ".join(map(_latex, line)) + r" \\" for line in lines]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape.latex(caption)}}}",
            rf"\label{{tab:{escape.label(label)}}}",
            rf"\begin{{tabular}}{{{'l' * len(lines[0])}}}",
            r"\toprule",
            headings,
            r"\midrule",
            *rest,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def html(
    sweep: "StoredSweep",
    lines: Lines,
    caption: str,
    figures: Mapping[str, bytes],
    missing: Sequence[str] = (),
) -> str:
    """Return one page that needs no other file: style, tables and figures are in it."""
    drawn = [(_title(path), b64encode(png).decode()) for path, png in figures.items()]
    return _page().render(sweep=sweep, lines=lines, caption=caption, figures=drawn, missing=missing)


@cache
def _page() -> "Template":
    from jinja2 import Environment, StrictUndefined

    def shown(value: object) -> object:
        return escape.line(value) if type(value) is str else value  # not what was escaped before

    environment = Environment(autoescape=True, finalize=shown, undefined=StrictUndefined)
    return environment.from_string(_PAGE)


def _title(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".png").replace("_", " ").capitalize()


def _markdown(cell: str | Marked) -> str:
    if isinstance(cell, str):
        return escape.markdown(cell)
    return escape.bold(cell.strong) + escape.markdown(cell.rest)


def _latex(cell: str | Marked) -> str:
    if isinstance(cell, str):
        return escape.latex(cell)
    return rf"\textbf{{{escape.latex(cell.strong)}}}{escape.latex(cell.rest)}"
