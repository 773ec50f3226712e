"""The changes that ``make mutants`` makes, by hand; that it notices what tests notice."""

import ast
import resource
from pathlib import Path

import pytest

from benchmarks import mutants
from benchmarks.mutants import (
    ROOT,
    Copy,
    Judge,
    Mutant,
    MutantsError,
    Nearness,
    _company,
    mutants_of,
    sample,
)


def changes(text: str) -> list[str]:
    """Return each mutant's changed line."""
    return [mutant.changed for mutant in mutants_of("m.py", text)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a < b <= c", ["a <= b <= c", "a < b < c"]),
        ("a is not b", ["a is b"]),
        ("a not  in b", ["a in b"]),
        ("a == (b) # == c", ["a != (b) # == c"]),
        ("x = a and b or c", ["x = a or b or c", "x = a and b and c"]),
        ("x = not (a or b)", ["x = (a or b)", "x = not (a and b)"]),
        ("x = (a + b) * c", ["x = (a - b) * c", "x = (a + b) / c"]),
        ("x = a ** -b", ["x = a * -b", "x = a ** b"]),
        ("x += y", ["x -= y"]),
        ("x = [7, 0.0, 2.5, True]", [
            "x = [8, 0.0, 2.5, True]", "x = [7, 1.0, 2.5, True]", "x = [7, 0.0, 5.0, True]",
            "x = [7, 0.0, 2.5, False]",
        ]),
        ("x = max(y.any(), z)", ["x = min(y.any(), z)", "x = max(y.all(), z)"]),
        ("x = a if b else c", ["x = a if not b else c"]),
        ("x = [a for a in b if a]", ["x = [a for a in b if not a]"]),
        ("π = 'é', 1 + e", ["π = 'é', 1 - e", "π = 'é', 2 + e"]),
        # what is left alone
        ("x = 'text' + y % 'other'", []),
        ("x = f'{a + 1}'", []),
        ("raise ValueError(a + 1)", []),
        ("assert a < b", []),
        ("print(a + b)", []),
        ("log.info('%d', a + b)", []),
        ("from a import b", []),
        ("__all__ = [1]", []),
        ("x: Literal[1, 2] = y", []),
        ("x = zip(a, b, strict=True)", []),
    ],
)  # fmt: skip
def test_a_line_is_changed_in_these_ways_and_no_other(line: str, expected: list[str]) -> None:
    assert sorted(changes(line)) == sorted(expected)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("bool", "f(x)", ["return not f(x)"]),
        ("int | None", "x", ["return None; x"]),
        ("int | None", "None", []),
        ("str", "f(x)", ['return ""; f(x)']),
        ("dict[str, int]", "x, y", ["return {}; x, y"]),
        ("list", "[]", []),
        ("NDArray[np.float64]", "x", ["return -x"]),
        ("'float'", "x", ["return -x"]),
        ("Thing", "x", []),
    ],
)
def test_what_is_returned_is_of_its_type(kind: str, value: str, expected: list[str]) -> None:
    text = f"def f(x: int, *, n: Sequence[1] = y) -> {kind}:\n    '''1.'''\n    return {value}\n"
    assert changes(text) == expected


def test_a_change_says_where_it_is() -> None:
    text = (
        "@wrap(1)\nclass A(B[1]):\n    def f(self, n=1):\n        for x in n:\n            break\n"
        "        g(\n            2,\n            3,\n        )\n        g(3)\n        g(3)\n"
    )
    found = [(m.function, m.line, m.changed, m.nth) for m in mutants_of("m.py", text)]
    assert found == [
        ("A.f", 3, "def f(self, n=2):", 1),
        ("A.f", 5, "continue", 1),
        ("A.f", 7, "3,", 1),
        ("A.f", 8, "4,", 1),
        ("A.f", 10, "g(4)", 1),
        ("A.f", 11, "g(4)", 2),
    ]
    assert mutants_of("m.py", text)[2].apply(text) == text.replace("2,", "3,")


TEXTS = {f"strategies/{p.name}": p.read_text() for p in sorted((ROOT / "strategies").glob("*.py"))}


@pytest.mark.parametrize("file", TEXTS)
def test_mutants_of_our_code_are_other_programs_with_the_same_lines(file: str) -> None:
    text = TEXTS[file]
    for mutant in mutants_of(file, text)[::4]:  # a quarter of them: parsing takes its time
        changed = mutant.apply(text)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))
        pairs = list(zip(text.splitlines(), changed.splitlines(), strict=True))
        assert [n for n, (a, b) in enumerate(pairs, 1) if a != b] == [mutant.line]


@pytest.mark.parametrize("target", mutants.TARGETS)
def test_what_is_to_be_changed_is_there(target: str) -> None:
    assert list(ROOT.glob(target))


def test_the_sample_depends_on_the_seed_and_the_changes_alone() -> None:
    every = [mutant for file, text in TEXTS.items() for mutant in mutants_of(file, text)]
    assert len({mutant.key for mutant in every}) == len(every)
    drawn = sample(every, 50, seed=3)
    assert drawn == sample(reversed(every), 50, seed=3)
    assert drawn[:20] == sample(every, 20, seed=3)
    assert drawn != sample(every, 50, seed=4)
    # Lines above, and another file's changes, move none.
    moved = [m for file, text in TEXTS.items() for m in mutants_of(file, f"import os\n\n{text}")]
    assert [m.key for m in sample(moved, 50, seed=3)] == [m.key for m in drawn]
    fewer = sample([m for m in every if m.file != "strategies/kmeans.py"], 50, seed=3)
    kept = [m for m in drawn if m.file != "strategies/kmeans.py"]
    assert fewer[: len(kept)] == kept


def test_nearest_tests_are_those_that_import_the_module_or_are_called_after_it() -> None:
    near = Nearness(
        {
            "runner/trial/stop.py": "import math\n",
            "runner/trial/trial.py": "def f():\n    from fedsweep.trial.stop import X\n",
            "runner/deep.py": "from fedsweep.trial import trial\n",
            "runner/alone.py": "",
            "strategies/ifca.py": "",
            "tests/unit/test_stop.py": "",
            "tests/unit/test_import.py": "from fedsweep.trial import stop\n",
            "tests/unit/test_deep.py": "import fedsweep.deep\n",
            "tests/unit/test_names.py": "x = 'strategy=ifca'\n",
            "tests/unit/test_shell.py": "import subprocess\n",
            "tests/contract/test_trial.py": "from fedsweep.trial.trial import f\n",
            "tests/ray/test_stop_too.py": "import fedsweep.trial.stop\n",
        }
    )
    nearest, rest = near.order("runner/trial/stop.py")
    assert nearest == ["tests/unit/test_stop.py", "tests/unit/test_import.py"]
    assert rest == [
        "tests/contract/test_trial.py", "tests/unit/test_deep.py", "tests/unit/test_names.py",
        "tests/unit/test_shell.py",
    ]  # fmt: skip
    # A part that is found by where it lies is imported by nobody: any test may run it.
    assert near.order("runner/alone.py") == ([], near.tests)
    assert near.order("strategies/ifca.py")[0] == ["tests/unit/test_names.py"]


SOURCE = "def double(x):\n    return x * 2 if x > 0 else 0\n"
NEAR = "from code import double\n\ndef test_near():\n    assert double(2) == 4\n"
FAR = "from far import quadruple\n\ndef test_far():\n    assert quadruple(-1) == 0\n"


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A tree of two modules and two tests in a folder of its own."""
    texts = {
        "double.py": SOURCE,
        "far.py": "from double import double\n\ndef quadruple(x):\n    return double(double(x))\n",
        "tests/unit/test_near.py": NEAR.replace("code", "double"),
        "tests/unit/test_far.py": FAR,
    }
    for file, text in texts.items():
        path = tmp_path / "tree" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(mutants, "ROOT", tmp_path / "tree")
    monkeypatch.setattr(mutants, "_tree_files", lambda: sorted(texts))
    return texts


def _outcome(judge: Judge, chosen: list[Mutant]) -> dict[str, tuple[str, str]]:
    return {m.changed: (v["stage"], v["by"]) for m, v in judge.judge(chosen)}


def test_the_nearest_tests_are_tried_first(texts: dict[str, str], tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    chosen = [m for m in mutants_of("double.py", SOURCE) if "/ 2" not in m.changed]
    near = "tests/unit/test_near.py::test_near"
    expected = {
        "return x * 3 if x > 0 else 0": ("nearest", near),
        "return x * 2 if x >= 0 else 0": ("", ""),  # the same function
        "return x * 2 if x > 1 else 0": ("", ""),  # nobody tries 1
        "return x * 2 if x > 0 else 1": ("rest", "tests/unit/test_far.py::test_far"),
    }
    assert _outcome(Judge(texts, kept, jobs=2), chosen) == expected
    assert (tmp_path / "tree" / "double.py").read_text() == SOURCE

    # What is kept is not tried again, until a file that it depends on changes.
    assert _outcome(Judge(texts, kept, jobs=1), chosen) == {}
    texts["tests/unit/test_far.py"] += "\ndef test_one():\n    assert quadruple(1) == 4\n"
    (tmp_path / "tree/tests/unit/test_far.py").write_text(texts["tests/unit/test_far.py"])
    again = _outcome(Judge(texts, kept, jobs=1), chosen)
    assert again.keys() == expected.keys() - {"return x * 3 if x > 0 else 0"}
    assert again["return x * 2 if x > 1 else 0"] == ("rest", "tests/unit/test_far.py::test_one")


def test_a_default_is_noticed_by_a_test_that_calls_nothing(
    texts: dict[str, str], tmp_path: Path
) -> None:
    """Those that call the function alone were tried, and give the value themselves."""
    for file, text in (
        ("double.py", "def double(x, by=2):\n    return x * by\n"),
        ("tests/unit/test_near.py", "from double import double\n\ndef test_near():\n"
         "    assert double(2, 2) == 4\n"),
        ("tests/unit/test_far.py", "import inspect\nfrom double import double\n\n"
         "def test_far():\n    assert inspect.signature(double).parameters['by'].default == 2\n"),
    ):  # fmt: skip
        texts[file] = text
        (tmp_path / "tree" / file).write_text(text)
    chosen = [m for m in mutants_of("double.py", texts["double.py"]) if "by=3" in m.changed]
    assert [m.function for m in chosen] == ["double"]
    assert _outcome(Judge(texts, tmp_path / "kept.json", jobs=1), chosen) == {
        "def double(x, by=3):": ("nearest", "tests/unit/test_far.py::test_far")
    }


def test_a_trace_says_what_each_test_runs(texts: dict[str, str], tmp_path: Path) -> None:
    more = (
        "import subprocess, sys\nfrom threading import Thread\nimport pytest\n"
        "from double import double\n\n@pytest.fixture(scope='module')\ndef four():\n"
        "    return double(2)\n\n"
        "def test_first(four):\n    pass\n\ndef test_second(four):\n    assert four == 4\n\n"
        "def test_none():\n    assert double\n\n"
        "@pytest.mark.parametrize('n', [0, 1])\ndef test_thread(n):\n    if n:\n"
        "        thread = Thread(target=double, args=(n,))\n        thread.start()\n"
        "        thread.join()\n\n"
        "def test_process():\n    subprocess.run([sys.executable, '-c', ''], check=True)\n"
    )
    texts["tests/unit/test_more.py"] = more
    (tmp_path / "tree/tests/unit/test_more.py").write_text(more)
    files = ["tests/unit/test_more.py", "tests/unit/test_far.py"]
    found = Copy(tmp_path / "copy", texts).trace(files)
    assert {test.rpartition("::")[2]: list(usual.functions) for test, usual in found.items()} == {
        "<collected>": [],
        "test_first": ["double.py::double"],
        "test_second": ["double.py::double"],
        "test_none": [],
        "test_thread": ["double.py::double"],
        "test_process": ["<elsewhere>"],
        "test_far": ["double.py::double", "far.py::quadruple"],
    }
    assert found["tests/unit/test_more.py::test_process"].seconds > 0


def test_a_trace_knows_a_package_that_is_laid_out_by_links(
    texts: dict[str, str], tmp_path: Path
) -> None:
    """As ours is: what is imported lies beside the tree, and is a file of it."""
    for file, text in (
        ("runner/__init__.py", ""),
        ("runner/twice.py", SOURCE),
        ("tests/unit/test_laid.py", "from fedsweep.twice import double\n\n"
         "def test_laid():\n    assert double(2) == 4\n"),
    ):  # fmt: skip
        texts[file] = text
        (tmp_path / "tree" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "tree" / file).write_text(text)
    found = Copy(tmp_path / "copy", texts).trace(["tests/unit/test_laid.py"])
    [laid] = [usual for test, usual in found.items() if test.endswith("test_laid")]
    assert list(laid.functions) == ["runner/twice.py::double"]


def test_tests_that_fail_anyway_or_never_end_say_so(texts: dict[str, str], tmp_path: Path) -> None:
    texts["tests/unit/test_near.py"] = "import double\n\ndef test_near():\n    assert False\n"
    (tmp_path / "tree/tests/unit/test_near.py").write_text(texts["tests/unit/test_near.py"])
    chosen = mutants_of("double.py", SOURCE)[:1]
    with pytest.raises(MutantsError, match="test_near.py::test_near fails on the code as it is"):
        list(Judge(texts, tmp_path / "kept.json", jobs=1).judge(chosen))

    # Where it fails without the mutant, too, that run says nothing of the mutant.
    texts["tests/unit/test_near.py"] = (
        "import double\nfrom pathlib import Path\n\ndef test_near():\n"
        "    n = len(list(Path('..').glob('run*')))\n    Path(f'../run{n}').touch()\n"
        "    assert n not in (1, 2, 3)\n"
    )
    (tmp_path / "tree/tests/unit/test_near.py").write_text(texts["tests/unit/test_near.py"])
    [(_, verdict)] = Judge(texts, tmp_path / "kept.json", jobs=1).judge(chosen)
    assert verdict["stage"] != "nearest"

    copy = Copy(tmp_path / "copy", texts)
    copy.write("tests/unit/test_far.py", "def test_far():\n    while True:\n        pass\n")
    assert copy.run(["tests/unit/test_far.py"], timeout=3).by == "more than 3 s"


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits are set from outside on Linux")
def test_a_change_that_takes_all_memory_ends_itself(
    texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two such changes once took the machine's memory, and the kernel killed what ran beside."""
    monkeypatch.setattr(mutants, "MEMORY", 2**30)
    copy = Copy(tmp_path / "copy", texts)
    copy.write("tests/unit/test_far.py", "def test_far():\n    assert bytearray(2**31)\n")
    assert copy.run(["tests/unit/test_far.py"], timeout=60).by == "tests/unit/test_far.py::test_far"


def test_a_test_that_fails_after_other_files_alone_notices_nothing(
    texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one file leaves behind was taken for what another one noticed."""
    monkeypatch.setattr(mutants, "PORTION", 1)  # traced apart, where nobody sees it
    head = "import sys, time\nfrom double import double\n\n"
    del texts["tests/unit/test_near.py"], texts["tests/unit/test_far.py"]
    for name, body in (
        ("a", "def test_a():\n    assert double(2)\n    sys.left_behind = True\n"),
        (
            "b",
            "def test_b():\n    time.sleep(0.5)  # so that it comes second\n"
            "    assert double(2)\n    assert not hasattr(sys, 'left_behind')\n",
        ),
    ):
        texts[f"tests/unit/test_{name}.py"] = head + body
        (tmp_path / f"tree/tests/unit/test_{name}.py").write_text(head + body)
    chosen = [m for m in mutants_of("double.py", SOURCE) if "else 1" in m.changed]
    judge = Judge(texts, tmp_path / "kept.json", jobs=1)
    assert list(_outcome(judge, chosen).values()) == [("", "")]
    assert judge.unsteady == {"tests/unit/test_b.py::test_b"}


def test_the_table_counts_who_noticed_and_leaves_out_what_is_equivalent() -> None:
    row = {"file": "a.py", "function": "f", "line": 1, "original": "a | b", "changed": "a & b"}
    said = mutants.table(
        [
            {**row, "stage": "nearest", "by": "t.py::one"},
            {**row, "stage": "rest", "by": "t.py::two"},
            {**row, "stage": "", "by": ""},
            {**row, "stage": "", "reason": "equivalent: why"},
        ]
    ).splitlines()
    place = "| a.py:1 | f | a \\| b | a & b |"
    assert said[2:6] == [
        f"{place} nearest: t.py::one |",
        f"{place} rest: t.py::two |",
        f"{place} **nobody** |",
        f"{place} equivalent: why |",
    ]
    assert said[-3].startswith("noticed by the nearest tests: 1 of 3, 33%")
    assert said[-2].startswith("noticed by the whole suite: 2 of 3, 67%")
    assert said[-1] == "equivalent, not counted: 1"


def test_an_equivalent_mutant_needs_a_reason() -> None:
    place = 'file = "a"\nfunction = "f"\noriginal = "x"\nchanged = "y"'
    entry = f'[[equivalent]]\n{place}\nreason = "{{}}"'
    assert mutants.equivalents(entry.format("so")) == {("a", "f", "x", "y"): "so"}
    with pytest.raises(MutantsError, match="a f x y has no reason"):
        mutants.equivalents(entry.format(" "))


def test_who_notices_is_tried_again_after_those_that_ran_before_it() -> None:
    """A test that fails after another one of its file, whatever is changed, notices nothing."""
    ran = ["a.py::one", "b.py::one", "b.py::two", "b.py::three"]
    assert _company(ran, "b.py::two[x]") == ["b.py::one", "b.py::two[x]"]
    assert _company(ran, "a.py::one") == ["a.py::one"]
