"""A plugin of pytest that writes down which functions each test runs, and which start processes.

``make mutants`` loads it once, on the code as it is: only tests that run a function can notice a
change of it. A process that a test starts is not looked into: such a test may run anything. What a
fixture runs, in whatever test it was set up, counts for each test that uses it.
"""

import json
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

ROOT = Path.cwd().resolve()
ELSEWHERE = "<elsewhere>"
"""The function that stands for all that runs in other processes."""
EVERYBODY = "<collected>"
"""The test that stands for what runs while modules are imported."""

POOL = "runner/engine/pool.py::"
"""What starts client hosts, on a Ray that may run since an earlier test."""
_STARTS = {"subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec"}

_ran: dict[str, set[str]] = defaultdict(set)  # test or fixture -> functions
_fixtures: dict[str, set[str]] = {}  # test -> fixtures
_now = [EVERYBODY]
_names: dict[CodeType, str] = {}


def function_of(file: str, qualified: str) -> str:
    """Return what a function is called here; what is defined inside of one counts as that one."""
    return f"{file}::{qualified.partition('.<locals>')[0]}"


def test_of(node: str) -> str:
    """Return a test without its parameters."""
    return node.partition("[")[0]


def _trace(frame: FrameType, event: str, argument: Any) -> None:
    code = frame.f_code
    name = _names.get(code)
    if name is None:
        path = Path(code.co_filename)
        if path.is_absolute():  # and not <frozen ...>: a copy of the tree is laid out by links
            path = path.resolve()
        inside = path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "tests")
        inside &= bool(code.co_flags & CO_OPTIMIZED)  # not the body of a module or class
        relative = path.relative_to(ROOT).as_posix() if inside else ""
        name = _names[code] = function_of(relative, code.co_qualname) if inside else ""
    if name:
        _ran[_now[-1]].add(name)
        if name.startswith(POOL):
            _ran[_now[-1]].add(ELSEWHERE)


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _STARTS:
        _ran[_now[-1]].add(ELSEWHERE)


def pytest_configure() -> None:
    sys.addaudithook(_listen)
    threading.settrace(_trace)
    sys.settrace(_trace)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    test = test_of(item.nodeid)
    _fixtures.setdefault(test, set()).update(getattr(item, "fixturenames", ()))
    _now.append(test)
    try:
        return (yield)
    finally:
        _now.pop()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> Iterator[None]:
    _now.append(f"fixture {fixturedef.argname}")
    try:
        return (yield)
    finally:
        _now.pop()


def pytest_sessionfinish() -> None:
    found = {EVERYBODY: sorted(_ran[EVERYBODY])}
    for test, fixtures in _fixtures.items():
        parts = (_ran[f"fixture {fixture}"] for fixture in fixtures)
        found[test] = sorted(_ran[test].union(*parts))
    Path(os.environ["MUTANTS_TRACE"]).write_text(json.dumps(found))
