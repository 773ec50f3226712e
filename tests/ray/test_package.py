"""One package over the folders of the top level: a user's own folders may be called like ours."""

import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from fedsweep import __version__
from fedsweep.places import BESIDE, lay_out, module
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(sysconfig.get_path("scripts")) / "fedsweep"
OURS = ("runner", "strategies", "models", "configs", "fedsweep", "tests")
NET = """
import torch

from models.parts import last


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), last())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)
"""
WORDS = [
    "num_clients=2", "rounds=1", "model.name=models.Net", "partition=iid", "shift=none",
    "strategy=kmeans", "strategy.num_clusters=1", "strategy.warmup_rounds=1", "seed=0",
    "tracking.figures=none", "tracking.log_models=false", "resources.hosts.cpu.num_cpus=0.5",
]  # fmt: skip


def test_each_folder_of_the_package_is_installed() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = {
        path.parent for name in ("runner", *BESIDE[:2]) for path in (ROOT / name).rglob("*.py")
    }
    found = {module(f"{room.relative_to(ROOT)}/__init__.py") for room in rooms}
    assert sorted(named["packages"]) == sorted({*found, "fedsweep.configs"})
    assert all(module(place) == name for name, place in named["package-dir"].items())


def test_what_is_laid_out_follows_what_is_there(tmp_path: Path) -> None:
    here = tmp_path / "checkout" / "runner"
    for name in ("runner/room", "strategies", "models"):
        (here.parent / name).mkdir(parents=True)
    (here / "cli.py").touch()
    package = lay_out(tmp_path / "out", here)
    assert {p.name for p in package.iterdir()} == {"cli.py", "room", "strategies", "models"}
    (here / "cli.py").unlink()
    (here / "api.py").touch()
    lay_out(tmp_path / "out", here)
    assert {p.name for p in package.iterdir()} == {"api.py", "room", "strategies", "models"}


@pytest.mark.parametrize("packages", [False, True], ids=["folders", "packages"])
def test_own_folders_called_like_ours_are_the_users(tmp_path: Path, packages: bool) -> None:
    """In the driver and in the hosts: her network imports her own ``models``."""
    for name in OURS:
        (tmp_path / name).mkdir()
        if packages and name != "fedsweep":  # a package of our own name would be ours
            (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "models" / "__init__.py").write_text(NET)
    (tmp_path / "models" / "parts.py").write_text(
        "import torch\n\n\ndef last():\n    return torch.nn.Linear(64, 10)\n"
    )
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ran = subprocess.run(
        [COMMAND, "sweep", "default", *WORDS, "tracking.output=out"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]


def test_a_checkout_runs_without_being_installed(tmp_path: Path) -> None:
    """As a submitted job: ``-S`` leaves out what makes installed checkouts importable."""
    start = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r}); "
    start += (
        "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    ran = subprocess.run(
        [sys.executable, "-S", "-c", start, ROOT / "runner", "--version"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert ran.stdout == f"fedsweep {__version__}\n", ran.stderr
