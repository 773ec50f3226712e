"""An app's folder, read as Flower reads it: components, config, clients, files, dependencies."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flwr.app import UserConfig
from packaging.requirements import InvalidRequirement, Requirement

from fedsweep.app.insides import DEFAULT_NODES, app_files, app_settings, flat_config
from fedsweep.app.modules import AppCode
from fedsweep.errors import ConfigError, shown
from fedsweep.parts.code import LOADED

_SIMULATED = ("options", "num-supernodes")
_PER_CLIENT = ("options", "backend", "client-resources")


@dataclass(frozen=True)
class Project:
    """A Flower app's folder.

    Parameters
    ----------
    name : str
        Of the project.
    folder : Path
        Where it lies.
    code : AppCode
        Its files, and which objects are its apps.
    config : mapping
        Run-config key, dots for nesting -> default value.
    num_clients : int
        Of its federation.
    client_resources : mapping
        What a client is given, where the federation says so: ``num-cpus``, ``num-gpus``.
    remarks : tuple of str
        What is left out of what the file says, in lines.
    """

    name: str
    folder: Path
    code: AppCode
    config: UserConfig
    num_clients: int
    client_resources: Mapping[str, float]
    remarks: tuple[str, ...]


def read_project(folder: Path) -> Project:
    """Return the app that lies in a folder.

    Raises
    ------
    ConfigError
        It is none, or a package that it depends on is not installed here.
    """
    settings = app_settings(folder)
    app = settings["tool"]["flwr"]["app"]
    components = app["components"]
    if "agentapp" in components:
        raise ConfigError(f"{folder} is an AgentApp of Flower; give one with a ServerApp")
    remarks = list(_check_dependencies(settings["project"].get("dependencies", ())))

    # The federation, if the file has one.
    federation, ignored = _federation(settings["tool"]["flwr"])
    remarks += ignored
    nodes = _at(federation, *_SIMULATED)
    if nodes is None:
        nodes = DEFAULT_NODES
        remarks.append(
            f"the app does not say how many clients there are: {nodes}, as Flower takes then; set "
            "num_clients"
        )
    if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1:
        raise ConfigError(f"options.num-supernodes={shown(repr(nodes))} is no number of clients")
    resources = _at(federation, *_PER_CLIENT)

    code = AppCode(
        str(folder.resolve()),
        tuple(app_files(folder, settings).items()),
        components["serverapp"],
        components["clientapp"],
    )
    LOADED.know(str(Path(code.root, path)) for path, _ in code.files)
    return Project(
        name=str(settings["project"]["name"]),
        folder=folder,
        code=code,
        config=flat_config(app.get("config", {})),
        num_clients=nodes,
        client_resources=resources if isinstance(resources, dict) else {},
        remarks=tuple(remarks),
    )


def _federation(flower: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """Return the federation that is simulated, and what of it means nothing here."""
    there = flower.get("federations", {})
    named = {name: given for name, given in there.items() if isinstance(given, dict)}
    simulated = {name: given for name, given in named.items() if "options" in given}
    default = there.get("default")
    chosen = default if default in simulated else next(iter(simulated), "")
    ignored = [f"federations.{name}" for name in named if name != chosen]
    federation = named.get(chosen, {})
    ignored += [f"federations.{chosen}.{key}" for key in federation if key != "options"]
    options = federation.get("options", {})
    ignored += [
        f"federations.{chosen}.options.{key}"
        for key in options
        if key not in ("num-supernodes", "backend")
    ]
    backend = options.get("backend", {})
    ignored += [
        f"federations.{chosen}.options.backend.{key}"
        for key in backend
        if key not in ("client-resources", "name")
    ]
    told = f"of pyproject.toml means nothing here and is left out: {', '.join(ignored)}"
    return federation, [told] if ignored else []


def _at(tree: Mapping[str, Any], *path: str) -> Any:
    """Return what stands at a place, None where nothing does."""
    found: Any = tree
    for part in path:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _check_dependencies(given: Iterable[str]) -> Iterable[str]:
    """Say which dependencies are here in other versions; refuse those that are not here."""
    missing, other = [], []
    for text in given:
        try:
            wanted = Requirement(text)
        except InvalidRequirement as error:
            raise ConfigError(f"dependency {shown(repr(text))} can't be read: {error}") from error
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            there = version(wanted.name)
        except PackageNotFoundError:
            missing.append(text)
            continue
        if not wanted.specifier.contains(there, prereleases=True):
            other.append(f"{wanted.name} {there} for {wanted.specifier}")
    if missing:
        raise ConfigError(
            f"the app depends on what is not installed here: {', '.join(missing)}; install it with "
            f"`pip install {shlex.join(missing)}`"
        )
    if other:
        yield f"the app asks for other versions than are installed: {', '.join(other)}"
