"""One HTML page that holds a whole report: it needs no other file, and fits a phone.

Names and texts are plain: the template escapes all that it is given.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from fedsweep import escape
from fedsweep.report.table import Lines, Table

if TYPE_CHECKING:
    from jinja2 import Template

    from fedsweep.tracking.read import StoredSweep

_MOST = 60  # failures that are told one by one
_FEW = 6  # values of a setting that are told one by one
_Told = tuple[tuple[str, str], ...]
"""Names, and what is said of them."""
_STYLE = """\
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 1000px; margin: 0 auto; padding: 1em }
h1 { margin: .2em 0; overflow-wrap: anywhere } h2 { margin-top: 1.6em; font-size: 1.2em }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9em }
th, td { padding: .3em .7em; text-align: right; white-space: nowrap }
th[scope=row], thead th.down { text-align: left }
th[scope=row]:first-child { position: sticky; left: 0; background: inherit }
thead th { border-bottom: 1px solid #1a1a1a; white-space: normal; vertical-align: bottom }
thead tr:first-child th { border-top: 2px solid #1a1a1a }
thead th.block { text-align: center }
tbody tr { background: #fff } tbody tr:nth-child(even) { background: #f4f4f4 }
tbody tr:last-child > * { border-bottom: 2px solid #1a1a1a }
tbody th { font-weight: normal }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2em 1em; margin: .5em 0 }
dt { color: #555 } dd { margin: 0; overflow-wrap: anywhere }
img { max-width: 100%; height: auto } figure { margin: 1.5em 0 }
figcaption, .note { color: #555; font-size: .85em }
pre { background: #f4f4f4; padding: .6em; white-space: pre-wrap; overflow-wrap: anywhere }
summary { cursor: pointer; color: #333 } nav a { margin-right: 1em }
"""
_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>fedsweep: {{ sweep.name }}</title><style>
{{ style|safe }}</style></head>
<body><h1>{{ sweep.name }}</h1>
{%- if sweep.description %}
<p>{{ sweep.description }}</p>
{%- endif %}
<nav><a href="#table">table</a><a href="#figures">figures</a>
{%- if failed %}<a href="#failed">what failed</a>{% endif -%}
<a href="#again">run it again</a></nav>
<h2>What was run</h2>
<dl><dt>trials</dt><dd>{{ counts }}</dd>
{%- for name, values in axes %}<dt>{{ name }}</dt><dd>{{ values }}</dd>{% endfor %}
{%- for name, values in settings %}<dt>{{ name }}</dt><dd>{{ values }}</dd>{% endfor %}</dl>
{%- if rest %}
<details><summary>Other settings</summary>
<dl>{% for name, values in rest %}<dt>{{ name }}</dt><dd>{{ values }}</dd>{% endfor %}</dl>
</details>
{%- endif %}
{%- macro show(cell) -%}
{%- if cell is string -%}{{ cell }}{%- else -%}<b>{{ cell.strong }}</b>{{ cell.rest }}{%- endif -%}
{%- endmacro %}
<h2 id="table">Table</h2>
<div class="scroll"><table><thead>
{%- if blocks %}
<tr>{% for name in down %}<th class="down" rowspan="2">{{ name }}</th>{% endfor %}
{%- for name, width in blocks %}<th class="block" colspan="{{ width }}">{{ name }}</th>
{%- endfor %}</tr>
<tr>{% for name in headings %}<th>{{ name }}</th>{% endfor %}</tr>
{%- else %}
<tr>{% for name in down %}<th class="down">{{ name }}</th>{% endfor %}
{%- for name in headings %}<th>{{ name }}</th>{% endfor %}</tr>
{%- endif %}
</thead><tbody>
{%- for labels, cells in rows %}
<tr>{% for label in labels %}<th scope="row">{{ label }}</th>{% endfor %}
{%- for cell in cells %}<td>{{ show(cell) }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
<p class="note">{{ caption }}</p>
{%- for told, fragment in others %}
<h2>{{ told }}</h2>
<div class="scroll">{{ fragment|safe }}</div>
{%- endfor %}
{%- for reason in missing %}
<p class="note">{{ reason }}</p>
{%- endfor %}
{%- if tuning %}
<h2 id="tuning">Tuning</h2>
<div class="scroll"><table><thead>
<tr>{% for cell in tuning[0] %}<th class="down">{{ show(cell) }}</th>{% endfor %}</tr>
</thead><tbody>
{%- for line in tuning[1:] %}
<tr>{% for cell in line %}<td>{{ show(cell) }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- endif %}
{%- if failed %}
<h2 id="failed">What failed</h2>
<dl>{% for name, reason in failed %}<dt>{{ name }}</dt><dd>{{ reason }}</dd>{% endfor %}</dl>
{%- if more %}<p class="note">and {{ more }} more</p>{% endif %}
{%- endif %}
<h2 id="figures">Figures</h2>
{%- for caption, png in figures %}
<figure><img alt="{{ caption }}" loading="lazy" src="data:image/png;base64,{{ png }}">
<figcaption>{{ caption }}</figcaption></figure>
{%- endfor %}
<h2 id="again">Run it again</h2>
<p>MLflow run <code>{{ sweep.run_id }}</code>:</p><pre>{{ sweep.command }}</pre>
{%- if report %}
<p>This page:</p><pre>{{ report }}</pre>
{%- endif %}
<details><summary>Environment</summary>
<dl>{% for name, values in environment %}<dt>{{ name }}</dt><dd>{{ values }}</dd>{% endfor %}</dl>
</details>
</body></html>
"""


@dataclass(frozen=True)
class Story:
    """What a page tells of a sweep beside its table and its figures.

    All but the counts are names and what is said of them. ``settings`` are those that a reader
    asks for first: what is chosen by name (the data set, the model, ...), and what belongs to no
    section (rounds, clients); ``rest`` are all others.
    """

    counts: str
    axes: _Told
    settings: _Told
    rest: _Told
    failed: _Told
    environment: _Told


def story(sweep: "StoredSweep") -> Story:
    """Return what was run, what failed, and on what it ran."""
    done = [trial for trial in sweep.trials if trial.status == "FINISHED"]
    failed = [trial for trial in sweep.trials if trial.status != "FINISHED"]
    counts = f"{len(done)} of {len(sweep.trials) + sweep.absent} finished"
    values = {
        key: dict.fromkeys(place[key] for place in sweep.places if key in place)
        for key in sweep.axes
    }
    seen: dict[str, dict[str, None]] = {}
    for trial in done or sweep.trials:
        for name, value in trial.environment.items():
            seen.setdefault(name, {})[value] = None
    settings, rest = _settings(sweep)
    return Story(
        counts,
        tuple((key, ", ".join(found)) for key, found in values.items()),
        settings,
        rest,
        tuple((trial.name, trial.reason or trial.status) for trial in failed),
        tuple((name, "; ".join(found)) for name, found in seen.items()),
    )


def _settings(sweep: "StoredSweep") -> tuple[_Told, _Told]:
    """Return the settings that are no axes: those to be told first, and all others."""
    found: dict[str, list[str]] = {}
    for trial in sweep.trials:
        for key, value in trial.params.items():
            found.setdefault(key, []).append(value)
    first: list[tuple[str, str]] = []
    rest: list[tuple[str, str]] = []
    for key, values in found.items():
        short = key.removesuffix(".name")
        if key in sweep.axes or short in sweep.axes:
            continue
        told = (short, _said(values, len(sweep.trials)))
        (rest if "." in short else first).append(told)
    return tuple(first), tuple(rest)


def _said(values: Sequence[str], trials: int) -> str:
    """Return what trials have of a setting: few values, or how many; and how many trials."""
    several = list(dict.fromkeys(values))
    told = ", ".join(several) if len(several) <= _FEW else f"{len(several)} values"
    return told if len(values) == trials else f"{told} ({len(values)} of {trials} trials)"


def html(
    sweep: "StoredSweep",
    table: Table,
    figures: Sequence[tuple[str, bytes]],
    missing: Sequence[str] = (),
    report: str = "",
    tuning: Lines = (),
    others: Mapping[str, Table] | None = None,
) -> str:
    """Return the page: style, table and figures are in it.

    Parameters
    ----------
    sweep : StoredSweep
        What it tells of.
    table : Table
        What it shows.
    figures : sequence of (str, bytes)
        Captions and PNG files.
    missing : sequence of str
        Why other figures lack.
    report : str
        The command that makes this very page.
    tuning : lines
        A table of what was searched, headings first, if anything was.
    others : Mapping[str, Table]
        Tables beside the main one, by their titles.
    """
    told = story(sweep)
    rows = [
        (labels, [table.shown(*both) for both in zip(table.columns, cells, strict=True)])
        for labels, cells in zip(table.labels, table.cells, strict=True)
    ]
    blocks = [(table.condition(place), width) for place, width in table.conditions()]
    return _page().render(
        sweep=sweep,
        style=_STYLE,
        counts=told.counts,
        axes=told.axes,
        settings=told.settings,
        rest=told.rest,
        down=table.down,
        blocks=blocks if table.across else [],
        headings=[column.heading for column in table.columns],
        rows=rows,
        caption=table.caption,
        missing=missing,
        failed=told.failed[:_MOST],
        more=max(0, len(told.failed) - _MOST),
        figures=[(said, b64encode(png).decode()) for said, png in figures],
        environment=told.environment,
        report=report,
        tuning=tuning,
        others=[(told, html_table(one)) for told, one in (others or {}).items()],
    )


def html_table(table: Table) -> str:
    """Return the table alone, as a fragment of HTML."""
    headings, *rows = table.lines()
    return _fragment().render(headings=headings, rows=rows, caption=table.caption)


_FRAGMENT = """\
{%- macro show(cell) -%}
{%- if cell is string -%}{{ cell }}{%- else -%}<b>{{ cell.strong }}</b>{{ cell.rest }}{%- endif -%}
{%- endmacro -%}
<table><caption>{{ caption }}</caption>
<thead><tr>{% for cell in headings %}<th>{{ show(cell) }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for line in rows %}
<tr>{% for cell in line %}<td>{{ show(cell) }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table>
"""


@cache
def _page() -> "Template":
    return _template(_PAGE)


@cache
def _fragment() -> "Template":
    return _template(_FRAGMENT)


def _template(text: str) -> "Template":
    from jinja2 import Environment, StrictUndefined

    def shown(value: object) -> object:
        return escape.line(value) if type(value) is str else value  # not what was escaped before

    environment = Environment(autoescape=True, finalize=shown, undefined=StrictUndefined)
    return environment.from_string(text)
