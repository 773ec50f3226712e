"""Hostile names through every place where text leaves, and back.

What comes out is parsed, or handed to a real reader.
The names are a list of those that broke something somewhere, and random ones of the same letters.
"""

import ast
import io
import json
import random
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from html.parser import HTMLParser
from os import fsencode
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console

import fedsweep
from fedsweep import cli, escape
from fedsweep.config import RunConfig, TrackingConfig
from fedsweep.errors import RunnerError
from fedsweep.figures import canvas, split, trial
from fedsweep.output import say
from fedsweep.paths import component
from fedsweep.records import DataSummary, RoundRecord, TrialResult, TrialRow, TrialStarted
from fedsweep.report import page as report_page
from fedsweep.report import plots as sweep
from fedsweep.report import text as report_text
from fedsweep.report.choice import EVERYTHING
from fedsweep.report.layout import layout
from fedsweep.report.results import csv, results_table
from fedsweep.report.table import Cell, Column, Table
from fedsweep.report.terminal import rich_lines
from fedsweep.sweeps.compose import Trial
from fedsweep.sweeps.progress import TrialProgress
from fedsweep.sweeps.views import new_console, view_of
from fedsweep.tracking import Tracker, describe, past
from fedsweep.tracking.read import StoredSweep, StoredTrial, read_runs, read_sweep

KNOWN = [
    "plain", "", " ", "   ", " a ", "a  b", "-", "-rf", "--help", "_hidden", "__x__", "_", "..",
    ".", "../../etc/passwd", "/etc", "a/b", "a//b", "a/../b", "...", "..a", "CON", "nul.txt",
    "C:\\x", "a.", "x" * 300, "é" * 300, "🦊" * 300, r"$\frac$", "$x$", "$", "$$", r"\$", "\\",
    "\\\\", r"\input{/etc/passwd}", r"\\[1]", "{", "}", "{}", "{0}", "{{x}}", "%s", "%", "%d%n",
    "~", "^", "#", "# x", "a #", "&", "&lt;", "&#65;", "&amp", "<b>", "</td>",
    "<script>alert(1)</script>", "<!--", "]]>", "<img src=x onerror=alert(1)>", "'", '"', "''",
    "``", "`", "```", "`a`", "?`", "!`", "--", "---", "|", "||", "a|b", "*", "**", "*a*",
    "**a**", "_a_", "a_b", "a__b", "~~a~~", "[", "]", "[red]", "[/x]", "[/]", "[bold", "[1,2]",
    "[a](b)", "![a](b)", "[a][b]", "[a]: b", ":smile:", "https://x.y/z", "a@b", "- a", "+ a",
    "1. a", "> a", "= a", "***", "a\nb", "\n", "a\r\nb", "\t", "a\tb", "a\0b", "\0",
    "\x1b[2J\x1b[31mred", "\x1b]0;title\x07", "\x7f", "\x85", "\u2028", "\u2029", "\u202eabc",
    "\u200f", "\u2066a\u2069", "\ufeff", "\u200b", "\u200d", "\u00a0", "\u3000a", "e\u0301",
    "\u0301", "a" + "\u0300" * 20, "עברית", "العربية", "中文", "日本語", "👨\u200d👩\u200d👧",
    "🏴\U000e0067\U000e007f", "\udcff", "a\udc80b", "\ud800", "\uffff", "\U000f0000", "a\n```\nb",
    "$(touch x)", "`touch x`", "; touch x", "a && b", "a'b", 'a"b', "!!", "a=b", "*?", "~root",
    "$HOME", "\\n", "null", "nan", "None", "true", "0", "007", "1e5",
]  # fmt: skip
LETTERS = [
    *"ab_-. $\\{}%#&~^<>|*`'\"[]()!?:;/@=+,\n\t\r\0", "\x1b[", "\u202e", "\u0301", "\u200d", "é",
    "中", "א", "🦊", "\udcff", "\ud800", "<b>", "&lt;", "](", "--", "``",
]  # fmt: skip
_draw = random.Random(16)
_drawn = ["".join(_draw.choices(LETTERS, k=_draw.randint(1, 12))) for _ in range(300)]
NAMES = list(dict.fromkeys([*KNOWN, *_drawn]))
COMMAND = "fedsweep sweep x 'a=b c'"


def shown(name: str) -> str:
    """What a person reads for a name, where edges and runs of white space do not count."""
    return " ".join(escape.line(name).split())


def stored(name: str) -> StoredSweep:
    return StoredSweep(name, "0" * 32, (), COMMAND, (), ())


def chosen(*names: str, heading: str = "", caption: str = "", block: str = "") -> Table:
    """A table with names as its labels and its texts, under conditions if it has a block."""
    return Table(
        (heading or "h",),
        (heading,) if block else (),
        (False,),
        tuple((name,) for name in names),
        tuple(Column(key, heading or "i", place=(block,) if block else ()) for key in "ab"),
        tuple((Cell(text=name), Cell(text="x")) for name in names),
        "std",
        caption,
    )


def table(*names: str) -> list[list[str | report_text.Marked]]:
    """A table with names in every place that a table has."""
    marked = [[report_text.Marked(name), report_text.Marked("1.5", f" {name}")] for name in names]
    return [*([name, name] for name in names), *marked]


def test_a_line_is_one_and_says_all_that_it_hides() -> None:
    for name in NAMES:
        told = escape.line(name)
        assert all(char.isprintable() or char in "\u200c\u200d" or ord(char) > 127 for char in told)
        assert len(told.splitlines()) <= 1
        assert not re.search("[\u2028\u2029\u202a-\u202e\u2066-\u2069\u200e\u200f\x7f-\x9f]", told)
        assert told.encode().decode() == told
        assert escape.line(told) == told
    alone = "\u0301"  # a mark without the letter that it belongs to
    same = [name for name in KNOWN if name.isprintable() and name != alone]
    assert len(same) > 100
    assert [escape.line(name) for name in same] == same
    assert escape.line("a\nb\t\x1b[2J\0\udcff\u202e") == r"a\nb\t\x1b[2J\x00\udcff\u202e"


class _Page(HTMLParser):
    """Takes a page apart: its elements, their attributes, the text of each cell and heading."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[tuple[str, tuple[str, ...]]] = set()
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add((tag, tuple(key for key, _ in attrs)))
        if tag in ("td", "th", "h1", "title", "pre", "p", "figcaption"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def test_a_page_shows_names_and_takes_none_for_its_own() -> None:
    plain = _Page()
    plain.feed(
        report_page.html(
            stored("x"), chosen("a", caption="b", block="1"), [("curve", b"png")], ["missing"]
        )
    )
    for name in NAMES:
        page = _Page()
        shown_table = chosen(name, heading=name, caption=f"about {name}.", block="1")
        text = report_page.html(stored(name), shown_table, [(name, b"png")], [name])
        text.encode()
        page.feed(text)
        told = escape.line(name)
        assert page.tags == plain.tags
        heads = [told or "h", f"{told} = 1", told or "i", told or "i"]
        assert page.texts["th"] == [*heads, told]
        assert page.texts["td"] == [told or "-", "x"]
        assert (page.texts["h1"], page.texts["title"]) == ([told], [f"fedsweep: {told}"])
        assert page.texts["p"][:2] == [f"about {told}.", told]
        assert page.texts["figcaption"] == [told]
        assert page.texts["pre"] == [COMMAND]


def markdown(text: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of each part of a document; any mark-up but bold is an error."""
    around = ""
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        if token.type == "fence":
            yield "fence", token.content
        elif token.type == "inline":
            marks = {child.type for child in token.children or ()}
            known = {"text", "strong_open", "strong_close", "softbreak", "image"}
            assert marks <= known, token.content
            yield around, "".join(map(text_of, token.children or ()))
        else:
            around = token.type


def text_of(part: Token) -> str:
    """Return what is read of a part of a line; of a picture what is told in its place."""
    return "".join(map(text_of, part.children)) if part.children else part.content


def test_markdown_shows_names_in_the_cells_that_they_were_put_in() -> None:
    for name in NAMES:
        cells = list(markdown(report_text.markdown([["h", "i"], *table(name), ["a", "b"]])))
        told, last = shown(name), " ".join(f"1.5 {escape.line(name)}".split())
        found = [" ".join(text.split()) for _, text in cells]
        assert found == ["h", "i", told, told, told, last, "a", "b"]
        assert [kind for kind, _ in cells] == ["th_open"] * 2 + ["td_open"] * 6


def test_a_report_in_markdown_keeps_its_parts() -> None:
    for name in NAMES:
        text = report_text.document_markdown(
            stored(name), chosen("x", caption=f"about {name}."), {"x.png": name}
        )
        *parts, picture = markdown(text)
        assert shown(picture[1]) == shown(name)
        if shown(name):  # else there is no heading
            assert (parts[0][0], shown(parts[0][1])) == ("heading_open", shown(name))
        assert parts[-1] == ("fence", f"{COMMAND}\n")
        assert parts[-2] == ("paragraph_open", f"about {escape.line(name)}.")


def test_the_notes_of_runs_show_names_and_give_their_command_back() -> None:
    from types import SimpleNamespace

    for name in NAMES:
        command = escape.command(["python", name])
        for tags in (
            describe.sweep_tags(name, "key", "why", command),
            describe.trial_tags(RunConfig(), name, command),
        ):
            note = tags["mlflow.note.content"]
            *before, last = markdown(note)
            assert last == ("fence", f"{command}\n")
            assert shown(name) in " ".join(before[0][1].split())
            run = SimpleNamespace(data=SimpleNamespace(tags={"mlflow.note.content": note}))
            assert StoredTrial(None, run).command == command  # type: ignore[arg-type]


_TOKENS = {
    r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^",
    "$<$": "<", "$>$": ">", "$|$": "|", r"$\pm$": "±", "{[}": "[", "{*}": "*", "{}": "",
    **{f"\\{char}": char for char in "{}$&%#_"},
}  # fmt: skip


def unlatex(text: str) -> str:
    """Read back what LaTeX would set; a special character that stands for itself is an error."""
    told, at = "", 0
    while at < len(text):
        token = next((token for token in _TOKENS if text.startswith(token, at)), text[at])
        assert token in _TOKENS or token not in "\\{}$&%#_~^<>|", text[at:]
        told += _TOKENS.get(token, token)
        at += len(token)
    return told


def test_latex_sets_names_as_they_are() -> None:
    for name in NAMES:
        text = report_text.latex(chosen(name, name, caption=name), name)
        lines = text.splitlines()
        begin, end = lines.index(r"\midrule"), lines.index(r"\bottomrule")
        first, _ = lines[begin + 1 : end]
        assert not re.search("--|``|''|[?!]`", first)  # ligatures
        assert first[0] not in "[*"  # of \\ in the line before
        told = escape.line(name)
        cells = [unlatex(cell) for cell in first.removesuffix(r" \\").split(" & ")]
        assert cells == [told, told or "-", "x"]
        assert unlatex(escape.latex(name)) == told
        [caption] = [line for line in lines if line.startswith(r"\caption")]
        assert unlatex(caption.removeprefix(r"\caption{")[:-1]) == told
        [label] = [line for line in lines if line.startswith(r"\label")]
        assert re.fullmatch(r"\\label\{tab:[A-Za-z0-9_-]*\}", label)
    assert len({escape.label(name) for name in NAMES}) == len(NAMES)


def test_latex_compiles_where_there_is_a_tex(tmp_path: Path) -> None:
    """Without one the test above holds alone: it knows all that LaTeX gives a meaning."""
    letters = [name for name in NAMES if escape.line(name).isascii() and len(name) < 100]
    tables = [
        report_text.latex(
            chosen(*letters[at : at + 9], heading=letters[at], caption=letters[at], block="b"),
            letters[at],
        )
        for at in range(0, len(letters), 9)
    ]
    head = "\\documentclass{article}\n\\usepackage{booktabs,siunitx}\n\\begin{document}\n"
    (tmp_path / "x.tex").write_text(f"{head}{''.join(tables)}\\end{{document}}\n")
    if tex := shutil.which("pdflatex"):
        words = [tex, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "x.tex"]
        ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout[-2000:]
    assert len(tables) > 30


def arguments(line: str, shell: str) -> list[bytes]:
    """Return the words as which a shell hands a line on."""
    script = f"printf '%s\\0' {line}"
    ran = subprocess.run([shell, "-c", fsencode(script)], capture_output=True, check=True)
    return ran.stdout.split(b"\0")[:-1]


def test_a_printed_command_is_read_by_a_shell_as_its_words() -> None:
    words = [name for name in NAMES if "\0" not in name and "\ud800" not in name]
    plain = [word for word in words if escape.line(word) == word]
    assert len(plain) > 100
    line = escape.command(plain)
    assert shlex.split(line) == plain
    assert arguments(line, "sh") == [fsencode(word) for word in plain]
    line = escape.command(words)
    assert escape.line(line) == line  # a terminal, a note and a page show it as it is
    assert arguments(line, "bash") == [fsencode(word) for word in words]
    for name in NAMES:
        escape.command([name]).encode()


def test_the_command_of_a_trial_runs_it_again() -> None:
    words = ("dataset=folder", "dataset.path='/data/a b;c\"$(x)'", "partition.sizes='[1,2]'")
    again = Trial(RunConfig(), {}, words).command
    assert shlex.split(again) == ["fedsweep", "run", *words]
    assert arguments(again, "sh") == list(map(fsencode, shlex.split(again)))


@pytest.mark.parametrize("terminal", [False, True])
def test_a_console_shows_names_and_obeys_none(
    terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def console(file: io.StringIO) -> Console:
        return new_console(file=file, width=9000, force_terminal=terminal, color_system=None)

    for name in NAMES:
        file, told = io.StringIO(), escape.line(name)
        console(file).print(rich_lines(table(name), name or "x"))
        assert file.getvalue().count(told) >= 4
        assert file.getvalue().isascii() or file.getvalue().encode()
        assert "\x1b" not in re.sub(r"\x1b\[[013]m", "", file.getvalue())  # bold and italic
        say(name)
        assert capsys.readouterr().out == f"{told}\n"


def test_a_narrow_console_cuts_no_name() -> None:
    """Else long values with one beginning, such as two paths, would be the same."""
    file = io.StringIO()
    lines = [["path", "trials"], ["x" * 300 + "1", "4"], ["x" * 300 + "2", "4"]]
    new_console(file=file, width=60).print(rich_lines(lines, ""))
    shown = file.getvalue()
    assert (shown.count("x"), shown.count("1"), shown.count("2")) == (600, 1, 1)


@pytest.mark.parametrize("mode", ["auto", "quiet", "json"])
def test_each_view_tells_names(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    console = new_console(file=file, width=9000)
    with TrialProgress(view_of(mode, console)) as progress:  # type: ignore[arg-type]
        progress.begin("x", to_run=len(NAMES), rounds=1, cluster="c", store="s")
        for i, name in enumerate(NAMES):
            progress.started(str(i), name, 1)
            progress.round(str(i), RoundRecord(1, {}, events=(name,)))
            progress.ended(str(i), "FAILED", f"about {name}.")
    text = file.getvalue() + capsys.readouterr().err
    text.encode()
    lines = text.splitlines()
    if mode == "json":
        events = [json.loads(line) for line in lines]
        whole = [json.loads(json.dumps(name)) for name in NAMES]  # two surrogates may be one letter
        assert [event["trial"] for event in events if event["event"] == "end"] == whole
        return
    told = [
        f"[{i}/{len(NAMES)}] {told}: FAILED: about {told}."
        for i, told in enumerate(map(escape.line, NAMES), 1)
    ]
    assert [line for line in lines if ": FAILED: " in line] == told


def test_the_bars_show_names() -> None:
    file = io.StringIO()
    console = new_console(file=file, width=9000, force_terminal=True)
    with TrialProgress(view_of("auto", console)) as progress:
        progress.begin("x", to_run=1, rounds=1, cluster="c", store="s")
        for i, name in enumerate(NAMES[:120]):
            progress.started(str(i), f"{name}END", 1)
            progress.round(str(i), RoundRecord(1, {}))
            progress.ended(str(i), "FINISHED")
        progress.started("last", "[red]a[/x] :smile: \x1b[2J", 1)
    assert r"[red]a[/x] :smile: \x1b[2J" in file.getvalue()


def texts(figure: Figure) -> list[str]:
    """Draw a figure, and return its texts; none of them is read as mathematics."""
    assert canvas.to_png(figure, 110, canvas.new_layouts()).startswith(b"\x89PNG")
    found = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    assert not [text for text in found if text._preprocess_math(text.get_text())[1]]
    many = figure.findobj(lambda artist: isinstance(artist, canvas.labels_type()))
    assert not any(artist._sample.get_parse_math() for artist in many)
    return [*(text.get_text() for text in found), *(t for artist in many for t in artist.texts)]


def short(name: str, most: int = 60) -> str:
    return escape.line(escape.shortened(escape.line(name), most))


@pytest.mark.parametrize("first", range(0, len(KNOWN), 20))
def test_figures_draw_names_as_they_are(first: int) -> None:
    names = list(dict.fromkeys(KNOWN[first : first + 20]))
    count = len(names)
    counts, groups = np.ones((3, count), int), np.zeros(3, int)
    title = " ".join(names)
    ticks = {short(name, 24) for name in names}
    entries, captions = ({short(name, most) for name in names} for most in (40, 14))
    assert set(texts(split.label_bars(counts, groups, names, title))) >= entries
    assert set(texts(split.class_counts(counts, names, title))) >= ticks
    images = np.zeros((count, 1, 8, 8), np.uint8)
    assert set(texts(split.example_grid(images, np.arange(count), names, title))) >= captions
    lines = names[:8]
    rows = pd.DataFrame({"line": lines, "p": lines}).assign(k=1, acc=0.5)
    called = {"k": names[0], "line": names[1]}
    told = set(texts(sweep.axis_effect(rows, "k", "acc", "line", names=called)))
    assert told >= {short(name, 40) for name in lines}
    assert set(texts(sweep.axis_effect(rows, "p", "acc"))) >= {short(name, 24) for name in lines}
    curves = pd.DataFrame({"trial": range(len(lines)), "line": lines, "panel": names[1]})
    curves = curves.assign(round=1, acc=0.5, acc_nan=False)
    assert set(texts(sweep.over(curves, "round", "acc", "accuracy"))) >= {
        short(names[1]),
        *(short(name, 40) for name in lines),
    }


def test_figures_draw_names_of_hosts_and_of_classes_on_two_axes() -> None:
    names = ["_a", r"$\frac$", "b\nc", "\udcff", "x" * 300]
    rows = [
        (
            float(t),
            escape.storable(name),
            name.encode("utf-8", "replace").decode(),
            1.0,
            1.0,
            1.0,
            1.0,
        )
        for t in range(2)
        for name in names
    ]
    columns = ["time_s", "host", "node", "host_cpu", "host_rss_mb", "node_cpu", "node_mem"]
    assert set(texts(trial.load_plot(pd.DataFrame(rows, columns=columns), names[1]))) >= {
        short(name, 40) for name in names
    }
    ticks = {short(name, 24) for name in names}
    assert set(texts(trial.confusion_matrix(np.eye(5, dtype=int), names))) >= ticks
    columns = [f"class_{escape.storable(name)}" for name in names]
    table = pd.DataFrame({"client": [0], "group": [0], **{key: [1] for key in columns}})
    assert set(texts(sweep.label_distributions({names[1]: table}))) >= ticks - {short("\udcff")}


def test_no_figure_makes_a_legend_of_its_own() -> None:
    """``Axes.legend`` leaves out what ``label=`` begins with an underscore."""
    for path in Path(fedsweep.__file__).parent.rglob("figures/*.py"):
        if path.name == "canvas.py":
            continue
        nodes = ast.walk(ast.parse(path.read_text()))
        for call in (node for node in nodes if isinstance(node, ast.Call)):
            assert getattr(call.func, "attr", "") not in ("legend", "savefig"), path
            assert not [word for word in call.keywords if word.arg == "label"], (path, call.lineno)


def test_consoles_are_made_in_one_place() -> None:
    """So none of them reads mark-up in what it shows."""
    for path in Path(fedsweep.__file__).parent.rglob("*.py"):
        made = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        names = [call.func.id for call in made if isinstance(call.func, ast.Name)]
        assert ("Console" in names) == (path.name == "views.py"), path


DOCUMENTS = {
    "to_yaml(trial.config)", "as_json({**told, 'cells': made.records()})",
    "printed(table, args.format, sweep.name)",
    "best",
    "str(made.files['report.md']).partition('```')[0].rstrip()",
}  # fmt: skip
"""What has lines of its own, each with an escape; all else is a line, and said by ``say``."""


def test_what_the_commands_print_is_a_line_or_a_document() -> None:
    calls = [
        node
        for node in ast.walk(ast.parse(Path(cli.__file__).read_text()))
        if isinstance(node, ast.Call)
    ]
    printed = {ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func) == "print"}
    assert printed == DOCUMENTS


def test_mlflow_takes_every_key_and_each_has_its_own() -> None:
    from mlflow.utils import validation

    keys = [escape.key(name) for name in NAMES]
    assert len(set(keys)) == len(NAMES)
    for key in keys:
        validation._validate_metric(key, 1.0, 0, 0)
        validation._validate_param(key, "value")
        validation._validate_tag(key, "value")
    same = ["1_global/acc", "strategy.num_clusters", "mlflow.note.content", "a b:c-d"]
    assert [escape.key(name) for name in same] == same


def test_a_run_with_hostile_names_is_stored_and_read_back(template: Path, tmp_path: Path) -> None:
    shutil.copy(template, tmp_path / "mlflow.db")
    cfg = TrackingConfig(output=str(tmp_path), log_models=False, figures="none")
    many = " ".join(NAMES)
    with Tracker(cfg) as tracker:
        tracker.tags.update({"all": many, **{name: name for name in NAMES[:60]}})
        parent = tracker.start_sweep("grid", "key", many, {name: name for name in NAMES}, many)
        run = parent.start_trial(
            RunConfig(), {"model.kwargs." + name: name for name in NAMES}, many
        )
        counts, groups = np.ones((1, len(NAMES)), int), np.zeros(1, int)
        data = DataSummary(
            many, "iid", many, "f" * 64, many, tuple(NAMES), counts, groups, {}, 1, 1
        )
        run.started(TrialStarted("key", data))
        run.round(RoundRecord(1, {f"2_clusters/{name}": 1.0 for name in NAMES}, events=(many,)))
        run.finish(TrialResult("key", {}, "hash", {"acc": 0.5, "a?": 0.25}, None, (1, 8, 8), many))
        parent.finish(many, {"report.md": many})
    [stored] = read_runs(tracker.store, [run.run_id])
    assert stored.status == "FINISHED"
    params = stored.params
    found = [params[escape.key("model.kwargs." + name)] for name in NAMES]
    assert found == [escape.storable(name) for name in NAMES]
    metrics = [key for key in stored.run.data.metrics if key.startswith("2_clusters")]
    assert len(metrics) == len(NAMES)
    split_table = stored.table("split")
    assert split_table is not None
    assert [f"class_{escape.storable(name)}" for name in NAMES] == list(split_table)[2:]
    events = Path(tracker.store.client.download_artifacts(run.run_id, "events.txt")).read_text()
    assert events == escape.line(f"round 1: {many}") + "\n"


def test_mlflows_filters_find_the_sweep_of_a_name_and_no_other(
    template: Path, tmp_path: Path
) -> None:
    shutil.copy(template, tmp_path / "mlflow.db")
    names = ["it's", '"quoted"', "a' or tags.sweep != 'x", "a", "b\\", "`", "%", "é 🦊", "a\nb"]
    cfg = TrackingConfig(output=str(tmp_path), log_models=False, figures="none")
    with Tracker(cfg) as tracker:
        made = {name: tracker.start_sweep(name, "key", trials={}) for name in names}
        for run in made.values():
            run.finish()
        tracker.writer.flush()
        for name, run in made.items():
            found = past.past_sweep(tracker.store, name, "key")
            assert found is not None
            assert found.run_id == run.run_id
            assert read_sweep(tracker.store, name).run_id == run.run_id
        past.supersede(tracker.store, "it's")
        left = {name for name in names if past.past_sweep(tracker.store, name, "key")}
    assert left == {*names} - {"it's"}


def test_names_that_become_files_stay_in_their_folder(tmp_path: Path) -> None:
    made = set()
    for name in NAMES:
        with suppress(RunnerError):
            path = tmp_path / component(name, "x")
            assert (path.parent, path.name) == (tmp_path, name)
            made.add(path)
    assert len(made) > 100


def test_cells_and_axes_of_hostile_values_make_a_whole_table() -> None:
    rows = [TrialRow({"model.kwargs.a": name, "seed": "0"}, {"acc": 0.5}) for name in NAMES]
    cells = results_table(rows)
    whole = [escape.storable(name) for name in NAMES]
    assert [line[0] for line in layout(cells, EVERYTHING).lines()[1:]] == whole
    text = csv(cells).encode()
    back = pd.read_csv(io.BytesIO(text), dtype=str, keep_default_na=False)["model.kwargs.a"]
    assert back.tolist() == whole
