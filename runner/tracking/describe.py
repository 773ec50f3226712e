"""What MLflow shows about a run besides its metrics: name, params, tags, note.

Pure, but for :func:`environment`.
"""

import getpass
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import yaml

from fedsweep.config import ModelConfig, RunConfig, SessionConfig, TrialConfig
from fedsweep.config.section import flat, short_names
from fedsweep.data.sources import place_of
from fedsweep.escape import bold, fence, markdown
from fedsweep.figures.canvas import strategy_colour
from fedsweep.redaction import redact
from fedsweep.scores import SCORES

_GROUPS = {"dataset", "partition", "shift", "model", "strategy", "privacy"}
_PACKAGES = (
    "fedsweep",
    "flwr",
    "flwr-datasets",
    "ray",
    "torch",
    "torchvision",
    "dp-accounting",
    "numpy",
    "scikit-learn",
    "mlflow",
)
_SWEEP_COLOUR = "#888888"
LAYOUT, LAYOUT_NOW = "layout", "2"
"""Tag and version of how a sweep's run tells its trials; version 1 had no tag, and short names."""

PRIVACY = "privacy.account"
"""Tag of a trial's run: what is accounted of its privacy, in a line; only where it has some."""

OWN_METRICS = "metrics.own"
"""Tag of a trial's run: what its metrics of somebody's own are called, and which way is better."""

CODE = "code.places"
"""Tag of a trial's run: the files of its parts of somebody's own, and the digests of their code."""
APP_METRICS = "metrics.app"
"""Tag of a trial's run: how the metrics are shown that its app has, and the catalog has not."""

ATTACKERS = "attackers"
"""Tag of a trial's run: the clients that are attackers."""

DESCRIPTION = "sweep.description"
"""Tag of a sweep's run: what it is for, in the words of its file."""

GRID = "grid.json"
"""Artifact of a sweep's run: its axes by full key, and its trials' keys and places, in order."""


SEARCHED = "search.json"
"""Artifact of a sweep's run: what a search tried, and what came of it."""


@dataclass(frozen=True)
class Facts:
    """What the store is told of a trial when its run begins.

    Parameters
    ----------
    key : str
        Of the trial.
    name : str
        Of its run.
    params : mapping
        Every setting that decides its numbers.
    tags : mapping
        What else is to be known, and to be found by.
    config : str
        Its whole configuration, as YAML.
    num_clients : int
        That it has.
    rounds : int
        That it has; 0 where nobody knows before its end.
    model : ModelConfig, optional
        The network that its models are of.
    """

    key: str
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    config: str
    num_clients: int
    rounds: int = 0
    model: ModelConfig | None = None


class Told(Protocol):
    """A trial of another kind than a TrialConfig, which says itself what is to be told of it."""

    def facts(self, name: str) -> Facts:
        """Return what the store is told of it."""


def facts_of(
    trial: RunConfig | Told, axes: Mapping[str, str], command: str, grid: Iterable[str] = ()
) -> Facts:
    """Return what the store is told of a trial; ``grid`` are all axes of its sweep, by full key."""
    if not isinstance(trial, RunConfig):
        facts = trial.facts(_place(axes, grid) if axes else "")
        params = {key: redact(value) for key, value in {**axes, **facts.params}.items()}
        tags = {**facts.tags, **_page(facts.key, facts.name, command)}
        return replace(facts, params=params, tags=tags)
    name = run_name(trial, axes, grid)
    return Facts(
        key=trial.key,
        name=name,
        params=trial_params(trial, axes),
        tags=trial_tags(trial, name, command),
        config=config_yaml(trial),
        num_clients=trial.num_clients,
        rounds=trial.rounds,
        model=trial.model,
    )


def run_name(trial: TrialConfig, axes: Mapping[str, str], grid: Iterable[str] = ()) -> str:
    """Return the trial's name in the UI: its place in the sweep, or what it is on its own.

    ``grid`` are all axes of the sweep, by full key: names are short as long as they are none of
    two.
    """
    if not axes:
        sections = ("strategy", "dataset", "partition", "shift")
        axes = {key: getattr(trial, key).name for key in sections}
        axes = {key: name for key, name in axes.items() if name != "none"}
        axes["seed"] = str(trial.seed)
    return _place(axes, grid)


def _place(axes: Mapping[str, str], grid: Iterable[str]) -> str:
    """Return a place as the UI's narrow columns need it: what is compared comes first."""
    names = short_names([*grid, *axes])

    def rank(key: str) -> int:
        if key == "strategy":
            return 0
        return 3 if key == "seed" else 2 if TrialConfig.is_problem(key) else 1

    def told(key: str, value: str) -> str:
        if key not in _GROUPS:
            return f"{names[key]}={value}"
        return f"no {key}" if value == "none" else value

    return " ".join(told(key, axes[key]) for key in sorted(axes, key=rank))


def trial_params(trial: TrialConfig, axes: Mapping[str, str]) -> dict[str, str]:
    """Return every setting that decides the numbers, and the axes that are groups."""
    settings = {key: str(value) for key, value in flat(trial.canonical()).items()}
    return {key: redact(value) for key, value in {**axes, **settings}.items()}


def trial_tags(trial: RunConfig, name: str, command: str) -> dict[str, str]:
    """Return the tags of a trial's run; ``mlflow.note.content`` is its page in the UI, Markdown."""
    return {
        "trial.settings": trial.settings_key,
        "trial.course": trial.course_key,
        "data.content": trial.dataset.content or "",
        "data.place": place_of(trial),
        "strategy": trial.strategy.name,
        **_attackers(trial),
        OWN_METRICS: SCORES.declared(trial.metrics),
        CODE: json.dumps({str(c.path): c.digest for c in trial.own_code if not c.installed}),
        "mlflow.runColor": strategy_colour(trial.strategy.name),
        **({PRIVACY: trial.account.said_of_kind} if trial.account.said_of_kind else {}),
        **_page(trial.key, name, command, trial.account.said),
    }


def _attackers(trial: TrialConfig) -> dict[str, str]:
    """Return the tag that says which clients attack; none where nobody does."""
    found = trial.attack.attackers(trial.num_clients, trial.seed)
    return {ATTACKERS: ", ".join(map(str, found))} if found else {}


def _page(key: str, name: str, command: str, said: str = "") -> dict[str, str]:
    """Return the tags by which any trial's run is found, and its page."""
    told = f"{markdown(said)}\n\n" if said else ""
    note = f"{bold(name)}\n\n{told}{reproduce(command)}"
    return {"kind": "trial", "trial.key": key, "mlflow.note.content": note}


def sweep_tags(name: str, key: str, description: str, command: str) -> dict[str, str]:
    """Return the tags of a sweep's run."""
    note = f"{bold(name)}: {description}\n\n{reproduce(command)}"
    return {
        "kind": "sweep",
        LAYOUT: LAYOUT_NOW,
        "sweep": name,
        "sweep.key": key,
        DESCRIPTION: description,
        "mlflow.runColor": _SWEEP_COLOUR,
        "mlflow.note.content": note,
    }


def grid_json(
    trials: Mapping[str, Mapping[str, str]],
    axes: Iterable[str],
    also: Mapping[str, Mapping[str, float]] | None = None,
    searching: bool = False,
) -> str:
    """Return the content of ``GRID``; ``trials`` are values of the axes by trial key, in order.

    ``also`` is, by trial key, what its row tells beside its own metrics; ``searching`` says that
    these are not yet the trials that a search will come to.
    """
    rows = [
        {"key": key, "axes": place} | ({"also": also[key]} if also and key in also else {})
        for key, place in trials.items()
    ]
    open_ = {"searching": True} if searching else {}
    return redact(json.dumps({"axes": list(axes), "trials": rows, **open_}, indent=0))


def reproduce(command: str) -> str:
    """Return the Markdown that says how to get this run again."""
    return f"Reproduce:\n{fence(redact(command))}"


def config_yaml(trial: SessionConfig) -> str:
    """Return the whole resolved configuration;
    lines are not folded, so that redaction sees each URI whole.
    """
    return redact(yaml.safe_dump(trial.model_dump(mode="json"), sort_keys=False, width=10_000))


def environment_of(tags: Mapping[str, str]) -> dict[str, str]:
    """Return what a run's tags say of its code, its packages and its machine, as it is read."""
    told = {
        "code": tags.get("mlflow.source.git.commit", "")[:12]
        + (" with uncommitted changes" if tags.get("code.changed") == "true" else ""),
        "machine": tags.get("host", ""),
        "hosts": tags.get("cluster", ""),
        **{
            key.removeprefix("version."): value
            for key, value in tags.items()
            if key.startswith("version.")
        },
    }
    return {key: value for key, value in told.items() if value}


def environment() -> dict[str, str]:
    """Return tags for the code, the packages and the machine."""
    tags = {
        "mlflow.source.name": "fedsweep",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "host": (
            f"{platform.node()}, {os.cpu_count()} CPUs, {_memory_gib():.0f} GiB, "
            f"{platform.platform(terse=True)}"
        ),
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
        tags["code.changed"] = str(
            bool(_git("status", "--porcelain", "--untracked-files=no"))
        ).lower()
    return tags


def _git(*args: str) -> str:
    """Return what git says about this code's repository;
    nothing where it is installed without one.
    """
    repository = Path(__file__).resolve().parents[2]
    if not (repository / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(repository), *args]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
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
