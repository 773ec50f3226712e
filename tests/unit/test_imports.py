"""Who may import whom. Read from the source: nothing is run."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(p for top in ("runner", "strategies", "models") for p in (ROOT / top).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Return the dotted names of all imports in a file, those inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def importers(library: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in FILES
        if any(name == library or name.startswith(library + ".") for name in imported(path))
    }


def test_strategies_need_neither_torch_nor_ray() -> None:
    """Arrows between our own rooms are import-linter's, in ``make check``."""
    for library in ("ray", "torch", "mlflow"):
        assert not [name for name in importers(library) if name.startswith("strategies/")], library


def test_models_know_torch_only() -> None:
    for library in ("ray", "flwr", "mlflow"):
        assert not [name for name in importers(library) if name.startswith("models/")], library


def test_one_place_each_for_mlflow_and_psutil() -> None:
    assert {Path(name).parts[:2] for name in importers("mlflow")} == {("runner", "tracking")}
    assert importers("psutil") <= {
        "runner/drivers.py", "runner/engine/load.py", "runner/tracking/describe.py",
    }  # fmt: skip


def test_local_training_needs_torch_and_numpy_only() -> None:
    """So it runs where nothing else is installed: on a GPU machine that is lent for an hour."""
    allowed = {"torch", "numpy", *sys.stdlib_module_names}
    bare = (
        "local", "modules", "pool", "layers", "convolution", "winograd", "batched", "dual",
        "timetable", "blocks", "vectorized", "targets", "contrast",
    )  # fmt: skip
    ours = (
        *(f"fedsweep.training.{other}" for other in bare),
        "fedsweep.models._dropout",
        "fedsweep.batching",
        "fedsweep.predictions",
    )
    for name in bare:
        names = imported(ROOT / f"runner/training/{name}.py") - {"fedsweep.training"}
        found = {n for n in names if not n.startswith(ours)}
        assert {n.split(".")[0] for n in found} <= allowed, name


def test_a_trial_process_does_without_torch_mlflow_and_datasets() -> None:
    code = (
        "import sys, fedsweep.trial.trial; "
        "print([m for m in ('torch', 'mlflow', 'datasets', 'sklearn', 'pandas') "
        "if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["report", "--help"], ["rum"], ["ui", "--prot", "1"]]
)
def test_help_and_refused_commands_wait_for_no_library(words: list[str]) -> None:
    """They take the time of an interpreter: Flower, Hydra and NumPy took two seconds."""
    code = (
        "import sys\n"
        "from fedsweep.cli import main\n"
        "main(sys.argv[1:])\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(tops - {*sys.stdlib_module_names, '__main__', 'fedsweep'}))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, cwd=ROOT
    )
    heavy = ("numpy", "pandas", "flwr", "hydra", "omegaconf", "pydantic", "ray", "torch", "rich")
    assert not [name for name in heavy if f"'{name}'" in out.stdout.splitlines()[-1]]


LATE = """
import sys, threading
late = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        if ready:
            late.append((name, threading.current_thread().name))
ready = []
sys.meta_path.insert(0, Watch())
import fedsweep.sweeps.sweep as sweep
make_ready = sweep._make_ready
def made_ready(*args):
    made = make_ready(*args)
    ready.append(True)
    return made
sweep._make_ready = made_ready
from fedsweep.cli import main
status = main([*sys.argv[1:], "--quiet"])
print(status, len(ready), [(name, who) for name, who in late if name in sys.modules])
"""


def test_nothing_is_imported_once_threads_work_side_by_side(tmp_path: Path) -> None:
    """A thread sees half of what another imports: one sweep in six had a torch without Tensor.

    Whether it does is chance, and that somebody imports is none: figures, models and the report are
    made here, and whatever they need is there before the first run is opened.
    """
    words = ["sweep", "smoke", "seed=0", "rounds=1", "resources.engine=inline"]
    out = subprocess.run(
        [sys.executable, "-c", LATE, *words, f"tracking.output={tmp_path}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert out.stdout.strip() == "0 1 []", out.stderr[-2000:]
