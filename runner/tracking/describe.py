"""What MLflow shows about a run besides its metrics: name, params, tags, note. Pure, but for :func:`environment`."""

import getpass
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from runner.config import TrialConfig
from runner.figures.canvas import strategy_colour
from runner.redaction import redact

_GROUPS = {"dataset", "partition", "shift", "model", "strategy", "privacy"}
_PACKAGES = ("fedsweep", "flwr", "flwr-datasets", "ray", "torch", "torchvision", "numpy", "scikit-learn", "mlflow")
_SWEEP_COLOUR = "#888888"


def run_name(trial: TrialConfig, axes: Mapping[str, str]) -> str:
    """Return the trial's name in the UI: its place in the sweep, or what it is where there is no sweep."""
    if not axes:
        sections = [trial.dataset.name, trial.partition.name, trial.shift.name, trial.strategy.name]
        return " ".join([name for name in sections if name != "none"] + [f"seed={trial.seed}"])
    return " ".join(value if key in _GROUPS else f"{key}={value}" for key, value in axes.items())


def trial_params(trial: TrialConfig, axes: Mapping[str, str]) -> dict[str, str]:
    """Return every setting that decides the numbers, flat, and each axis as a short param for the UI's group-by."""
    return _flat(trial.canonical()) | dict(axes)


def trial_tags(trial: TrialConfig, axes: Mapping[str, str], command: str) -> dict[str, str]:
    """Return the tags of a trial's run; ``mlflow.note.content`` is the Markdown of the UI's overview page."""
    return {
        "kind": "trial",
        "trial.key": trial.key,
        "strategy": trial.strategy.name,
        "mlflow.runColor": strategy_colour(trial.strategy.name),
        "mlflow.note.content": f"**{run_name(trial, axes)}**\n\n{reproduce(command)}",
    }


def sweep_tags(name: str, key: str, description: str, command: str) -> dict[str, str]:
    """Return the tags of a sweep's run."""
    note = f"**{name}**: {description}\n\n{reproduce(command)}"
    return {
        "kind": "sweep",
        "sweep": name,
        "sweep.key": key,
        "mlflow.runColor": _SWEEP_COLOUR,
        "mlflow.note.content": note,
    }


def reproduce(command: str) -> str:
    """Return the Markdown that says how to get this run again."""
    return f"Reproduce:\n```bash\n{redact(command)}\n```"


def config_yaml(trial: TrialConfig) -> str:
    """Return the whole resolved configuration; lines are not folded, so that redaction sees each URI whole."""
    return redact(yaml.safe_dump(trial.model_dump(mode="json"), sort_keys=False, width=10_000))


def environment() -> dict[str, str]:
    """Return tags for the code, the packages and the machine."""
    tags = {
        "mlflow.source.name": "fedsweep",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "host": f"{platform.node()}, {os.cpu_count()} CPUs, {_memory_gib():.0f} GiB, {platform.platform(terse=True)}",
        "version.python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            tags[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit
        tags["code.changed"] = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    return tags


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[prefix + key] = redact(str(value))
    return flat


def _git(*args: str) -> str:
    """Return what git says about this code's repository; nothing where it is installed without one."""
    repository = Path(__file__).resolve().parents[2]
    if not (repository / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(repository), *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return str(os.getuid())


def _memory_gib() -> float:
    if sys.platform == "win32":
        return float("nan")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
