"""``python -m benchmarks.mutants``: do the tests notice when the code is wrong?

One change at a time is made to the code that computes (a comparison, an operator, a constant, a
condition, a returned value) in a copy of the tree. First the nearest unit and contract tests are
run against it, then the other ones, the files first that take least: those of them that run the
changed function, as a trace of the tests on the code as it is says. A change that nobody notices is
a test that is missing, or makes no difference: those are named in ``mutants_equivalent.toml``, with
a reason.

Which changes are drawn is fixed by the seed and by each change itself (its file, function, line):
an edit elsewhere leaves the sample as it is, and a larger ``--count`` adds to a smaller one.

Left alone: texts, docstrings, annotations, imports, decorators, what is raised or asserted, and
``strict=`` of ``zip``: a check of ours that no test can trip while the code is right.
"""

import argparse
import ast
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import pairwise, takewhile
from pathlib import Path
from queue import Queue
from threading import Lock
from typing import Any
from xml.etree import ElementTree

from benchmarks.contender import ROOT
from benchmarks.mutants_trace import ELSEWHERE, EVERYBODY, test_of
from fedsweep.places import lay_out, module

TARGETS = (
    "strategies/*.py",
    "runner/report/*.py",
    "runner/catalog.py",
    "runner/trial/metrics.py",
    "runner/sweeps/halving.py",
    "runner/trial/stop.py",
    "runner/data/partition.py",
    "runner/data/shift.py",
    "runner/pace/*.py",
    "runner/pace/schedules/*.py",
    "runner/accounting.py",
    "runner/search/*.py",
    "runner/scenario/*.py",
    "runner/scenario/attacks/*.py",
    "runner/scenario/defences/*.py",
    "runner/scenario/compressions/*.py",
    "runner/scenario/devices/*.py",
    "runner/scenario/partitions/*.py",
    "runner/scenario/shifts/*.py",
    "runner/client/*.py",
    "runner/training/*.py",
)
"""The code whose numbers a user takes on trust."""

TESTS = ("tests/unit", "tests/contract")
PORTION = 10
"""Test files that are traced at a time: what is known of them is kept, whatever comes after."""
OWN = "tests/unit/test_mutants.py"
"""The tests of this file: they say nothing of the code that is changed."""

MEMORY = 12 * 2**30
"""Bytes of data that a run's process may have: a change that appends for ever ends itself alone."""

ATTEMPTS = 3
"""Runs of a mutant until its failing test passes without it, which a busy machine may delay."""

EQUIVALENT = ROOT / "benchmarks" / "mutants_equivalent.toml"
RESULTS = ROOT / "outputs" / "mutants.json"

COMPARISONS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "is": "is not", "is not": "is", "in": "not in", "not in": "in",
}  # fmt: skip
ARITHMETIC = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "/", "%": "*", "**": "*",
              "|": "&", "&": "|", "^": "|", "<<": ">>", ">>": "<<", "@": "*"}  # fmt: skip
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "argmin": "argmax",
         "argmax": "argmin", "floor": "ceil", "ceil": "floor"}  # fmt: skip
EMPTY = {"str": '""', "dict": "{}", "Mapping": "{}", "list": "[]", "Sequence": "[]", "set": "set()"}
NUMBERS = {"float", "int", "NDArray", "ndarray", "Points", "Tensor"}
"""Names of returned types: what is empty is returned empty, the sign of a number is turned."""

SPOKEN = {"print", "warn", "debug", "info", "warning", "error", "exception", "log"}
"""Functions whose arguments are texts for a reader."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file. Its key does not hold where the line stands, so edits above keep it.

    ``start`` and ``end`` are characters of the file's text, which ``new`` replaces. ``runs_in`` is
    the function whose run evaluates it: around the one that it belongs to, for a default value.
    """

    file: str
    function: str
    line: int
    original: str  # the changed line as it was and as it is, without indentation
    changed: str
    nth: int  # 1, or more where a function holds the same line several times
    start: int = field(compare=False)
    end: int = field(compare=False)
    new: str = field(compare=False)
    runs_in: str = field(compare=False)

    @property
    def key(self) -> str:
        """What names the mutant from one edit of the code to the next."""
        named = [self.file, self.function, self.original, self.changed, self.nth]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]

    def apply(self, text: str) -> str:
        """Return the file's text with the change."""
        return text[: self.start] + self.new + text[self.end :]

    def rank(self, seed: int) -> str:
        """Return the mutant's place in the order of a seed: the sample is the first of them."""
        return hashlib.sha256(f"{seed} {self.key}".encode()).hexdigest()


# What can be changed


class _Finder(ast.NodeVisitor):
    """Collects (start, end, new text) of every change of a module, and the function it is in."""

    def __init__(self, text: str) -> None:
        self.found: list[tuple[int, int, str, str, str]] = []
        self._scope: list[str] = []
        self._runs: list[str] = []  # the scope, but for a function whose defaults we are in
        self._returns: list[str] = []  # annotations of the functions that we are in
        self._lines = text.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))
        self._tokens = [
            (self._starts[token.start[0] - 1] + token.start[1], token.string)
            for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type in (tokenize.OP, tokenize.NAME)
        ]

    def _at(self, row: int, column: int) -> int:
        """Return the character at a node's row and column, which counts bytes."""
        line = self._lines[row - 1]
        return self._starts[row - 1] + len(line.encode()[:column].decode())

    def _span(self, node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._at(node.lineno, node.col_offset)
        return start, self._at(node.end_lineno, node.end_col_offset)

    def _add(self, start: int, end: int, new: str) -> None:
        scopes = (".".join(scope) or "<module>" for scope in (self._scope, self._runs))
        self.found.append((start, end, new, *scopes))

    def _swap(self, left: int, right: int, changes: Mapping[str, str]) -> None:
        """Change the operator that stands between two operands, beside brackets and comments."""
        words = [(at, word) for at, word in self._tokens if left <= at < right]
        words = [(at, word) for at, word in words if word not in "()"]
        for (at, word), (after, then) in zip(words, [*words[1:], (right, "")], strict=True):
            if (both := f"{word} {then}") in changes:
                return self._add(at, after + len(then), changes[both])
            if word in changes:
                return self._add(at, at + len(word), changes[word])
        return None

    # Where nothing is changed

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave texts alone."""

    def visit_Raise(self, node: ast.Raise) -> None:
        """Leave errors alone."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """Leave checks of ours alone."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Leave the annotation alone."""
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Leave ``__all__`` alone."""
        if not any(isinstance(name, ast.Name) and name.id == "__all__" for name in node.targets):
            self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> None:
        """Leave annotations alone."""

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Leave decorators and bases alone."""
        self._enter(node.name, node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Leave decorators and annotations alone; default values count as the function's.

        They are evaluated where it is made, and read from there: who sees them need not call it.
        """
        of_keywords = [value for value in node.args.kw_defaults if value is not None]
        runs = self._runs
        self._returns.append(ast.unparse(node.returns).strip("'\"") if node.returns else "")
        self._enter(node.name, [*node.args.defaults, *of_keywords], runs)
        self._enter(node.name, node.body)
        self._returns.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def _enter(self, name: str, nodes: Iterable[ast.AST], runs: list[str] | None = None) -> None:
        before = self._scope, self._runs
        self._scope = [*self._scope, name]
        self._runs = [*self._runs, name] if runs is None else runs
        for node in nodes:
            self.visit(node)
        self._scope, self._runs = before

    # What is changed

    def visit_Compare(self, node: ast.Compare) -> None:
        """Change ``<`` to ``<=``, ``==`` to ``!=``, ``in`` to ``not in``, ..."""
        operands = [node.left, *node.comparators]
        for left, right in pairwise(operands):
            self._swap(self._span(left)[1], self._span(right)[0], COMPARISONS)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """Change ``and`` to ``or`` and back, one of them."""
        for left, right in pairwise(node.values):
            changes = {"and": "or", "or": "and"}
            self._swap(self._span(left)[1], self._span(right)[0], changes)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Change ``+`` to ``-``, ``*`` to ``/``, ...; texts are joined and filled as they are."""
        sides = (node.left, node.right)
        if not any(isinstance(side, ast.JoinedStr) or _is_text(side) for side in sides):
            self._swap(self._span(node.left)[1], self._span(node.right)[0], ARITHMETIC)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Change ``+=`` to ``-=``, ..."""
        changes = {f"{old}=": f"{new}=" for old, new in ARITHMETIC.items()}
        if not _is_text(node.value):
            self._swap(self._span(node.target)[1], self._span(node.value)[0], changes)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """Leave out ``not``, ``-`` and ``~``."""
        start = self._span(node)[0]
        if isinstance(node.op, ast.Not):
            self._add(start, start + len("not "), "")
        elif isinstance(node.op, ast.USub | ast.Invert):
            self._add(start, start + 1, "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Change True to False and back, n to n + 1, x to 2 x (0.0 to 1.0)."""
        value = node.value
        if isinstance(value, bool):
            self._add(*self._span(node), str(not value))
        elif isinstance(value, int):
            self._add(*self._span(node), str(value + 1))
        elif isinstance(value, float):
            self._add(*self._span(node), repr(value * 2 or 1.0))

    def visit_Call(self, node: ast.Call) -> None:
        """Change ``min`` to ``max``, ``any`` to ``all``, ...; leave what is spoken alone."""
        func = node.func
        name = func.id if isinstance(func, ast.Name) else getattr(func, "attr", "")
        if name in SPOKEN:
            return
        if name in CALLS:
            end = self._span(func)[1]
            self._add(end - len(name), end, CALLS[name])
        self.visit(func)
        for value in node.args:
            self.visit(value)
        for keyword in node.keywords:
            if (name, keyword.arg) != ("zip", "strict"):
                self.visit(keyword.value)

    def visit_Return(self, node: ast.Return) -> None:
        """Return what callers are ready for: nothing, an empty text or list, the opposite.

        Where the annotation says nothing of the kind the value is kept: a bare None fails in any
        test. What was returned stays behind as a statement, so that lines stay where they are.
        """
        if node.value is not None:
            start = self._at(node.lineno, node.col_offset) + len("return")
            atom = isinstance(node.value, ast.Name | ast.Attribute | ast.Subscript | ast.Call)
            shown = self._returns[-1] if self._returns else ""
            name = shown.partition("[")[0].rpartition(".")[2]
            written = ast.unparse(node.value)
            if shown.endswith("| None") and written != "None":
                self._add(start, start, " None;")
            elif name in EMPTY and written != EMPTY[name]:
                self._add(start, start, f" {EMPTY[name]};")
            elif name == "bool":
                self._negate(node.value)
            elif name in NUMBERS and atom:
                at = self._span(node.value)[0]
                self._add(at, at, "-")
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        """Negate a condition that has no operator to change; leave what only types need alone."""
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self._negate(node.test)
            self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        """As ``if``."""
        self._negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        """As ``if``."""
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """As ``if``."""
        for test in node.ifs:
            self._negate(test)
        self.generic_visit(node)

    def visit_Break(self, node: ast.Break) -> None:
        """Go on instead."""
        start = self._at(node.lineno, node.col_offset)
        self._add(start, start + len("break"), "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        """End the loop instead."""
        start = self._at(node.lineno, node.col_offset)
        self._add(start, start + len("continue"), "break")

    def _negate(self, test: ast.expr) -> None:
        if isinstance(test, ast.Name | ast.Attribute | ast.Subscript | ast.Call):
            start = self._span(test)[0]
            self._add(start, start, "not ")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def mutants_of(file: str, text: str) -> list[Mutant]:
    """Return every change of a module, in the order of its text.

    Parameters
    ----------
    file : str
        The module's path in the tree, with slashes; it is part of each mutant's key.
    text : str
        The module. Lines keep their numbers in each mutant.
    """
    finder = _Finder(text)
    finder.visit(ast.parse(text))
    seen: Counter[tuple[str, str, str]] = Counter()
    mutants = []
    for start, end, new, function, runs_in in sorted(finder.found):
        first = text.rfind("\n", 0, start) + 1
        last = end + (text + "\n")[end:].index("\n")
        original = text[first:last].strip()
        changed = (text[first:start] + new + text[end:last]).strip()
        seen[function, original, changed] += 1
        nth = seen[function, original, changed]
        line = text.count("\n", 0, start) + 1
        mutants.append(
            Mutant(file, function, line, original, changed, nth, start, end, new, runs_in)
        )
    return mutants


def sample(mutants: Iterable[Mutant], count: int, seed: int) -> list[Mutant]:
    """Return ``count`` mutants: of a larger sample with the same seed, the first."""
    return sorted(mutants, key=lambda mutant: mutant.rank(seed))[:count]


# Which tests are near


class Nearness:
    """How far test files are from a module, by who imports what; imports inside functions count.

    Parameters
    ----------
    texts : mapping
        Path -> text of the tree's Python files.

    Attributes
    ----------
    tests : list of str
        All unit and contract tests' files.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        modules = {module(path): path for path in texts}
        self._trees = {path: ast.parse(text) for path, text in texts.items()}
        self._imports = {path: {modules[name] for name in _imported(tree) & modules.keys()}
                         for path, tree in self._trees.items()}  # fmt: skip
        tests = [path for path in texts if path.startswith(TESTS) and path != OWN]
        self.tests = sorted(path for path in tests if Path(path).name.startswith("test_"))

    def order(self, file: str) -> tuple[list[str], list[str]]:
        """Return the nearest test files of a module, and the other ones, nearer ones first.

        Nearest are those that import it or are called after it, and those that name it in a text
        if it is a strategy (``strategy=ifca``); else those with the fewest imports in between. Of
        parts that are found by where they lie no import tells, so the other ones are all tests: by
        a trace it is known which of them run what.
        """
        stem = Path(module(file).replace(".", "/")).name
        steps = self._steps(file)
        called = [path for path in self.tests if f"_{stem}_" in f"{Path(path).stem}_"]
        direct = [path for path in self.tests if steps.get(path) == 1]
        naming = self._naming(stem) if file.startswith("strategies/") else []
        reached = sorted(
            self.tests, key=lambda path: (path not in naming, steps.get(path, len(steps)))
        )
        nearest = list(dict.fromkeys([*called, *direct, *naming]))
        if not nearest and reached:
            first = steps.get(reached[0], -1)
            nearest = [path for path in reached if steps.get(path) == first]
        return nearest, [path for path in reached if path not in nearest]

    def _naming(self, word: str) -> list[str]:
        whole = re.compile(rf"(?<![A-Za-z0-9_]){re.escape(word)}(?![A-Za-z0-9_])")
        return [path for path in self.tests if any(map(whole.search, _texts(self._trees[path])))]

    def _steps(self, file: str) -> dict[str, int]:
        """Return file -> number of imports from it to the module."""
        steps, level = {file: 0}, {file}
        while level:
            level = {path for path, found in self._imports.items() if found & level} - steps.keys()
            steps |= dict.fromkeys(level, max(steps.values()) + 1)
        return steps


def _imported(tree: ast.Module) -> set[str]:
    """Return the dotted names that a module imports, as modules or from them."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    # A package comes with each of its modules.
    return {".".join(parts[:n]) for parts in map(_parts, names) for n in range(1, len(parts) + 1)}


def _parts(name: str) -> list[str]:
    return name.split(".")


def _texts(tree: ast.Module) -> list[str]:
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [node.value for node in nodes if isinstance(node.value, str)]


# Running the tests


class MutantsError(Exception):
    """The tests can't judge mutants."""


@dataclass(frozen=True)
class Ran:
    """What a run of pytest said: the first test that failed, or nothing; and the seconds."""

    by: str
    seconds: float
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Usual:
    """A test on the code as it is: its seconds, and the functions that it runs."""

    seconds: float
    functions: Sequence[str]


class Copy:
    """A copy of the tree in which one file at a time is changed."""

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        self._tree, self._scratch = folder / "tree", folder / "scratch"
        self._trace = folder / "trace.json"
        self._process: subprocess.Popen[str] | None = None
        for file in files:
            path = self._tree / file
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, path)
        self._path = [self._tree, Path(__file__).parents[1]]  # the copy may lack our plugin
        if (runner := self._tree / "runner").is_dir():
            self._path.insert(0, lay_out(folder / "laid-out", runner).parent)

    def write(self, file: str, text: str) -> None:
        """Change a file. Its bytecode goes: edits of one size within a second fool Python."""
        path = self._tree / file
        path.write_text(text, encoding="utf-8")
        for cached in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            cached.unlink()

    def run(self, tests: Sequence[str], timeout: float, *more: str) -> Ran:
        """Run tests until one fails; a run that takes too long has noticed, too."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
                   "-p", "pytest_timeout", "--timeout=0",  # a mutant has a limit of its own
                   f"--basetemp={self._scratch}", *more, *tests]  # fmt: skip
        # An editable install points at the user's checkout; the copy comes before it. Plugins that
        # nobody asks for cost seconds a run.
        env = {
            **os.environ, "PYTHONPATH": os.pathsep.join(map(str, self._path)),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "MUTANTS_TRACE": str(self._trace),
        }  # fmt: skip
        start = time.monotonic()
        self._process = process = subprocess.Popen(
            command, cwd=self._tree, env=env, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if hasattr(resource, "prlimit"):  # Linux
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (MEMORY, MEMORY))
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            process.communicate()
            return Ran(f"more than {timeout:.0f} s", time.monotonic() - start)
        seconds = time.monotonic() - start
        if process.returncode == 0:
            return Ran("", seconds)
        if found := re.findall(r"^(?:FAILED|ERROR) (tests/.+?)(?: - |$)", output, re.MULTILINE):
            return Ran(found[0], seconds, tuple(found))
        if process.returncode < 0:
            return Ran(f"signal {-process.returncode}", seconds)
        raise MutantsError(f"pytest ended with {process.returncode}:\n{output[-2000:]}")

    def trace(self, files: Sequence[str]) -> dict[str, Usual]:
        """Run test files on the code as it is, on which they must pass: test -> what it does.

        A trace slows the tests down: one that fails under it may pass without.
        """
        said = self._trace.with_suffix(".xml")
        options = (f"--junit-xml={said}", "-o", "junit_family=xunit1", "--maxfail=100000")
        ran = self.run(files, 3600, "-p", "benchmarks.mutants_trace", *options)
        if ran.by and (again := self.run(ran.failed or [ran.by], 600)).by:
            raise MutantsError(f"{again.by} fails on the code as it is; mend that first")
        seconds: Counter[str] = Counter()
        for case in ElementTree.parse(said).iter("testcase"):
            path = case.get("file", "")
            inside = case.get("classname", "").removeprefix(module(path)).replace(".", "::")
            test = test_of(f"{path}{inside}::{case.get('name')}")
            seconds[test] += float(case.get("time", 0))
        functions = json.loads(self._trace.read_text())
        return {test: Usual(seconds[test], ran) for test, ran in functions.items()}

    def kill(self) -> None:
        """End the tests that run, and what they started: they have a session of their own."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


def _company(tests: Sequence[str], by: str) -> list[str]:
    """Return the tests of a file that ran until one of them failed, that one with them."""
    until = [*takewhile(lambda test: test_of(by) != test, tests), by]
    return [test for test in until if test.partition("::")[0] == by.partition("::")[0]]


def _tree_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return sorted(file for file in listed.splitlines() if (ROOT / file).is_file())


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


class Judge:
    """Tries mutants in copies of the tree, and keeps what came out in a file after each.

    A verdict counts again as long as the mutant's file and the test file that noticed it are as
    they were, and "not noticed" as long as no Python file changed but those of the benchmarks.

    Parameters
    ----------
    texts : mapping
        Path -> text of the tree's Python files.
    kept : Path
        The file of verdicts.
    jobs : int
        Mutants tried at a time, each in a copy of its own.
    """

    def __init__(self, texts: Mapping[str, str], kept: Path, jobs: int) -> None:
        self._texts, self._kept, self._jobs = texts, kept, jobs
        self._near = Nearness(texts)
        self._ended = False
        self.unsteady: set[str] = set()
        """Tests that failed now and then, or after other files' tests alone."""
        read = [item for item in sorted(texts.items()) if not item[0].startswith("benchmarks/")]
        self._state = _digest(*(part for item in read for part in item))
        stored = json.loads(kept.read_text()) if kept.exists() else {}
        self._verdicts: dict[str, dict[str, Any]] = stored.get("verdicts", {})
        # A test file's trace holds until it changes, or what it runs.
        self._files = {file: _digest(texts[file]) for file in self._near.tests}
        code = (item for item in read if item[0] not in self._files)
        self._code = _digest(*(part for item in code for part in item))
        same = stored.get("code") == self._code
        traced = stored.get("traced", {}) if same else {}
        self._traced = {file: at for file, at in traced.items() if self._files.get(file) == at}
        usual = stored.get("usual", {}) if same else {}
        self._usual = {
            test: Usual(**of_test)
            for test, of_test in usual.items()
            if test == EVERYBODY or test.partition("::")[0] in self._traced
        }
        self._lock = Lock()

    def verdict(self, mutant: Mutant) -> dict[str, Any] | None:
        """Return what is known of a mutant, if it still holds."""
        found = self._verdicts.get(mutant.key)
        if found is None or found["valid_for"] != self._validity(mutant, found["by"]):
            return None
        return found

    def judge(self, mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, dict[str, Any]]]:
        """Yield each mutant that has no verdict yet with its verdict, as they come."""
        left = [mutant for mutant in mutants if self.verdict(mutant) is None]
        files = _tree_files()
        with tempfile.TemporaryDirectory(prefix="fedsweep-mutants-") as folder:
            copies = [Copy(Path(folder) / str(number), files) for number in range(self._jobs)]
            free: Queue[Copy] = Queue()
            for copy in copies:
                free.put(copy)

            def attempt(mutant: Mutant) -> tuple[Mutant, dict[str, Any]]:
                copy = free.get()
                try:
                    return mutant, self._try(mutant, copy)
                finally:
                    free.put(copy)

            def trace(portion: Sequence[str]) -> None:
                copy = free.get()
                try:
                    self._trace(copy, portion)
                finally:
                    free.put(copy)

            untraced = [file for file in self._files if file not in self._traced] if left else []
            portions = [untraced[i : i + PORTION] for i in range(0, len(untraced), PORTION)]
            with ThreadPoolExecutor(self._jobs) as pool:
                try:
                    list(pool.map(trace, portions))
                    yield from pool.map(attempt, left)
                except BaseException:  # interrupted: what runs is ended, and counts for nothing
                    self._ended = True
                    pool.shutdown(wait=False, cancel_futures=True)
                    for copy in copies:
                        copy.kill()
                    raise

    def _try(self, mutant: Mutant, copy: Copy) -> dict[str, Any]:
        start = time.monotonic()
        stage, by = "", ""
        for name, files in zip(("nearest", "rest"), self._near.order(mutant.file), strict=True):
            tests = self._that_run(mutant, files)
            if tests and not by:
                by = self._noticed(mutant, copy, tests)
                stage = name if by else ""
        verdict = {
            **asdict(mutant), "stage": stage, "by": by,
            "seconds": round(time.monotonic() - start, 1), "valid_for": self._validity(mutant, by),
        }  # fmt: skip
        with self._lock:
            self._verdicts[mutant.key] = verdict
            self._keep()
        return verdict

    def _trace(self, copy: Copy, files: Sequence[str]) -> None:
        """Find out what some test files run, and keep that."""
        found = copy.trace(files)
        with self._lock:
            before = self._usual.get(EVERYBODY, Usual(0, ())).functions
            everybody = sorted({*before, *found[EVERYBODY].functions})
            self._usual |= {**found, EVERYBODY: Usual(0, everybody)}
            self._traced |= {file: self._files[file] for file in files}
            self._keep()

    def _that_run(self, mutant: Mutant, files: Sequence[str]) -> list[str]:
        """Return the tests in some files that may run a mutant, the files first that take least.

        Of a file those come first that take least. They are all of them where it stands outside
        functions, or where imports run it; those that start processes may run anything.
        """
        place = f"{mutant.file}::{mutant.runs_in}."
        ran = {
            test
            for test, usual in self._usual.items()
            if any(place.startswith(f"{function}.") for function in usual.functions)
        }
        if EVERYBODY in ran or not ran:
            ran = set(self._usual)
        ran |= {test for test, usual in self._usual.items() if ELSEWHERE in usual.functions}
        of_file: dict[str, list[str]] = {file: [] for file in files}
        for test in sorted(ran, key=lambda test: (self._usual[test].seconds, test)):
            if (file := test.partition("::")[0]) in of_file:
                of_file[file].append(test)
        cheap = sorted(of_file.values(), key=lambda own: sum(self._usual[t].seconds for t in own))
        return [test for own in cheap for test in own]

    def _noticed(self, mutant: Mutant, copy: Copy, tests: Sequence[str]) -> str:
        """Return the test that notices a mutant.

        After those of its file that ran before it, it must fail with the mutant, and pass where
        only the mutant is undone. One that keeps failing otherwise, now and then or after other
        files' tests alone, says nothing of a mutant: it is :attr:`unsteady`, and the others decide.
        """
        text = self._texts[mutant.file]
        left = list(tests)
        while True:
            timeout = 240 + 8 * sum(self._usual[test].seconds for test in left)
            for _ in range(ATTEMPTS):
                copy.write(mutant.file, mutant.apply(text))
                by = copy.run(left, timeout).by if left else ""
                company = _company(left, by) if "::" in by else []
                fails = not company or copy.run(company, timeout).by
                copy.write(mutant.file, text)
                passes = not company or not copy.run(company, timeout).by
                if self._ended:
                    raise MutantsError("interrupted")
                if fails and passes:
                    return by
            self.unsteady.add(by)
            left = [test for test in left if test != test_of(by)]

    def _keep(self) -> None:
        self._kept.parent.mkdir(parents=True, exist_ok=True)
        usual = {test: asdict(of_test) for test, of_test in self._usual.items()}
        kept = {"code": self._code, "traced": self._traced, "usual": usual,
                "verdicts": self._verdicts}  # fmt: skip
        staged = self._kept.with_suffix(".part")
        staged.write_text(json.dumps(kept, indent=1) + "\n")
        staged.replace(self._kept)

    def _validity(self, mutant: Mutant, by: str) -> str:
        test = self._texts.get(by.partition("::")[0])
        return self._state if test is None else _digest(self._texts[mutant.file], test)


# What is said of it


def equivalents(text: str) -> dict[tuple[str, str, str, str], str]:
    """Return (file, function, line, changed line) -> why the change makes no difference."""
    named = {}
    for entry in tomllib.loads(text).get("equivalent", []):
        place = tuple(str(entry[key]) for key in ("file", "function", "original", "changed"))
        if not entry["reason"].strip():
            raise MutantsError(f"{EQUIVALENT.name}: {' '.join(place)} has no reason; say why")
        named[place] = str(entry["reason"])
    return named  # type: ignore[return-value]


def _place(mutant: Mutant) -> tuple[str, str, str, str]:
    return mutant.file, mutant.function, mutant.original, mutant.changed


def table(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Return a line per mutant in Markdown, and the share that was noticed."""
    from fedsweep.report.stats import share_interval
    from fedsweep.report.text import Marked, markdown

    lines: list[list[str | Marked]] = [["where", "in", "was", "is", "noticed by"]]
    for v in sorted(verdicts, key=lambda v: (v["file"], v["line"])):
        shown = f"{v['stage']}: {v['by']}" if v["stage"] else v.get("reason") or Marked("nobody")
        place = f"{v['file']}:{v['line']}"
        lines.append([place, v["function"], v["original"], v["changed"], shown])
    counted = [v for v in verdicts if not v.get("reason")]
    said = []
    for what, stages in (("nearest tests", ("nearest",)), ("whole suite", ("nearest", "rest"))):
        hits = sum(v["stage"] in stages for v in counted)
        if counted:
            low, high = share_interval(hits, len(counted))
            share = f"{100 * hits / len(counted):.0f}% [{100 * low:.0f}, {100 * high:.0f}]"
            said.append(f"noticed by the {what}: {hits} of {len(counted)}, {share}")
    if len(counted) < len(verdicts):
        said.append(f"equivalent, not counted: {len(verdicts) - len(counted)}")
    return markdown(lines) + "\n" + "\n".join(said)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make mutants ARGS=...", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="mutants in the sample (100)")
    parser.add_argument("--seed", type=int, default=0, help="fixes the sample (0)")
    parser.add_argument("--only", nargs="+", metavar="PATH", help="draw from these files alone")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at a time (1)")
    parser.add_argument("--list", action="store_true", help="show the sample, try nothing")
    parser.add_argument(
        "--survivors", action="store_true",
        help="show those of the sample that are known not to be noticed, try nothing",
    )  # fmt: skip
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"verdicts ({RESULTS})")
    return parser


def main() -> int:
    """Draw mutants, try those that have no verdict yet, print the table."""
    given = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what runs is ended
    python = [file for file in _tree_files() if file.endswith(".py")]
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file in python}
    chosen = [file for file in texts if any(Path(file).match(target) for target in TARGETS)]
    if gone := [t for t in TARGETS if not any(Path(file).match(t) for file in chosen)]:
        sys.exit(f"TARGETS: no file of this tree is {', '.join(gone)}; say where it went")
    if given.only:
        chosen = [file for file in texts if file in given.only]
        if lost := set(given.only) - set(chosen):
            sys.exit(f"--only: not Python files of this tree: {', '.join(sorted(lost))}")
    every = [mutant for file in chosen for mutant in mutants_of(file, texts[file])]
    named = equivalents(EQUIVALENT.read_text(encoding="utf-8")) if EQUIVALENT.exists() else {}
    drawn = sample(every, given.count, given.seed)
    print(f"{len(drawn)} of {len(every)} mutants in {len(chosen)} files, seed {given.seed}")
    if stale := [] if given.only else sorted(named.keys() - {_place(mutant) for mutant in every}):
        print(*(f"{EQUIVALENT.name}: no such change: {' '.join(p)}" for p in stale), sep="\n")
    if given.list:
        for m in drawn:
            print(f"{m.file}:{m.line} {m.function}\n  - {m.original}\n  + {m.changed}")
        return 0

    judge = Judge(texts, given.results, given.jobs)
    counted = [mutant for mutant in drawn if _place(mutant) not in named]
    if not given.survivors:
        try:
            for number, (m, verdict) in enumerate(judge.judge(counted), 1):
                noticed = f"{verdict['stage']}: {verdict['by']}" if verdict["stage"] else "NOBODY"
                print(f"{number} {m.file}:{m.line} `{m.changed}` {noticed}, {verdict['seconds']} s",
                      flush=True)  # fmt: skip
        except MutantsError as error:
            sys.exit(str(error))
    known: list[Mapping[str, Any]] = [v for m in counted if (v := judge.verdict(m)) is not None]
    if given.survivors:
        known = [verdict for verdict in known if not verdict["stage"]]
        print(table(known).partition("\n\n")[0])
        return 0
    for mutant in drawn:
        if reason := named.get(_place(mutant)):
            known.append({**asdict(mutant), "stage": "", "reason": f"equivalent: {reason}"})
    print("\n" + table(known))
    for test in sorted(judge.unsteady):
        print(
            f"{test} fails now and then, or after other files' tests alone: it counted for nothing"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
