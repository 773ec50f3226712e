"""From the words of ``fedsweep app`` to the trials of a sweep, and how such trials are run."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import ray

from fedsweep.app.client import client_app
from fedsweep.app.config import (
    PROBLEM,
    RUN_CONFIG,
    AppConfig,
    no_such_metric,
    own_key,
    seeds_of_its_own,
    set_value,
)
from fedsweep.app.insides import read_words
from fedsweep.app.modules import AppCode, Modules
from fedsweep.app.project import Project, read_project
from fedsweep.app.trial import run_app
from fedsweep.config import SessionConfig
from fedsweep.engine.executors import Host
from fedsweep.errors import AppError, ConfigError, shown, unknown
from fedsweep.escape import command
from fedsweep.records import Json
from fedsweep.sweeps.compose import Trial, check_size, compose, validated
from fedsweep.sweeps.words import Word, literal, parse

_SESSION = ("resources", "tracking", "checkpoint")
_OWN = ("num_clients", "seed", "seed_key", "journal_mb", "higher", "lower")
_AXES = ("num_clients", "seed")
"""Those of an app's own keys that may be an axis, beside its run config."""


_IDLE = {
    "checkpoint.every": "what its clients reply is kept as it comes",
    "checkpoint.keep": "how many rounds it has is one of its own settings",
    "resources.round_timeout_s": "its server says how long it waits",
}
"""Settings of a session that other trials have, and why an app's have no use for them."""


@dataclass(frozen=True)
class AppTrial(Trial):
    """One cell of an app's grid at one seed."""

    config: AppConfig  # type: ignore[assignment]  # another kind of trial, of the same shape
    path: str = ""

    @property
    def command(self) -> str:
        """The command that runs this trial alone."""
        return command(["fedsweep", "app", self.path, *self.overrides])

    @property
    def alone(self) -> str:
        """What it is called where there are no axes."""
        return self.config.app


@dataclass(frozen=True)
class AppSweep:
    """The trials of an app, and how they are run: a :class:`fedsweep.sweeps.kinds.Kind`."""

    client_app: ClassVar[str] = client_app.__module__

    project: Project
    trials: Sequence[AppTrial]

    def remarks(self, trials: Sequence[Trial]) -> list[str]:
        """Return what is to be said before anything starts."""
        del trials
        told = list(self.project.remarks)
        seeds = {trial.config.seed for trial in self.trials}
        for key in seeds_of_its_own(self.project) if len(seeds) > 1 else ():
            on_axis = any(own_key(axis) == key for axis in self.trials[0].grid)
            if not on_axis and not self.trials[0].config.seed_key:
                told.append(
                    f"{RUN_CONFIG}.{key} is the app's own and the same in all trials; with "
                    f"seed_key={key} it is the seed of each"
                )
        return [*told, *self._compared()]

    def _compared(self) -> Iterator[str]:
        """Say what rows are compared across that may make them different problems."""
        first = self.trials[0]
        varied = [key for key in first.grid if len({trial.axes[key] for trial in self.trials}) > 1]
        ways = [key for key in varied if key.startswith(f"{RUN_CONFIG}.")]
        if (
            first.config.better
            and ways
            and not any(key.startswith(f"{PROBLEM}.") for key in varied)
        ):
            yield (
                f"rows are compared across {', '.join(ways)}, as settings of one method; what "
                f"makes another problem, such as a split of the data, is given as {PROBLEM}.KEY "
                "instead"
            )

    def recalled(self, told: Sequence[str]) -> tuple[list[str], list[str]]:
        """Have trials that were run before be compared by what this command says is better."""
        better = self.trials[0].config.better
        stored: list[dict[str, str]] = [json.loads(text) if text else {} for text in told]
        now = [{name: better.get(name, "") for name in of} for of in stored]
        before = {name: was for of in stored for name, was in of.items()}
        news = [
            f"{name} {better.get(name, 'neither')} (before: {was or 'not said'})"
            for name, was in before.items()
            if was != better.get(name, "")
        ]
        said = [no_such_metric(name, better[name], before) for name in better if name not in before]
        if news:
            said.append(
                "which metrics are better the higher or the lower is what this command says, for "
                f"trials that were run before too: {', '.join(news)}"
            )
        shown = [
            text if new == old else json.dumps(new)
            for text, new, old in zip(told, now, stored, strict=True)
        ]
        return shown, said if before else []

    def prepare(self, trials: Sequence[Trial], inline: bool) -> Mapping[str, "ReadyApp"]:
        """Return the app for each trial, by key, once both of its parts can be imported.

        Raises
        ------
        ConfigError
            One can't: file and line of the app's.
        """
        code: Any = self.project.code if inline else ray.put(self.project.code)
        try:
            if inline:
                check_app(self.project.code)
            else:
                ray.get(_check.remote(code))
        except AppError as error:
            raise ConfigError(str(getattr(error, "cause", error))) from None
        ready = ReadyApp(code, self.project)
        return {trial.config.key: ready for trial in trials}

    def parameters(
        self, trials: Sequence[Trial], prepared: Mapping[str, Any], hosts: list[Host] | None
    ) -> Mapping[str, int]:
        """Return nothing: an app's model is its own."""
        del trials, prepared, hosts
        return {}

    def longest_first(
        self, trials: Sequence[Trial], prepared: Mapping[str, Any], parameters: Mapping[str, int]
    ) -> list[Trial]:
        """Return the trials in the grid's order: nobody knows how long they take."""
        del prepared, parameters
        return list(trials)

    run = staticmethod(run_app)


@dataclass(frozen=True)
class ReadyApp:
    """An app that was checked: its code, or a reference to it."""

    code: Any
    project: Project

    @property
    def told(self) -> str:
        """What was read, in a line."""
        code = self.project.code
        return f"app {self.project.name}, {len(code.files)} files, digest {code.digest}"

    @property
    def values(self) -> tuple[Any, ...]:
        """What a trial is given."""
        return (self.code,)


def check_app(code: AppCode) -> None:
    """Import both parts of an app in this process, and leave nothing of it behind."""
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

    modules = Modules(code)
    try:
        modules.load(code.serverapp, ServerApp)
        modules.load(code.clientapp, ClientApp)
    finally:
        modules.leave()


@ray.remote(num_cpus=0)
def _check(code: AppCode) -> None:
    check_app(code)


def expand_app(path: str, words: Sequence[str], given: Sequence[str] = ()) -> AppSweep:
    """Return the sweep of an app.

    Parameters
    ----------
    path : str
        The app's folder.
    words : sequence of str
        ``run_config.KEY=a,b``, ``problem.KEY=a,b``, ``seed=0,1``, ``num_clients=10``, and keys of
        resources, tracking and checkpoint.
    given : sequence of str
        Words of ``flwr run --run-config``, or a TOML file.

    Raises
    ------
    ConfigError
        The folder is no app, or a word is none of these.
    """
    project = read_project(Path(path).expanduser())
    parsed = list({word.key: word for word in parse(words)}.values())  # the last wins
    for word in parsed:
        _check_word(word, project)
    _check_once(parsed)
    base, told = dict(project.config), read_words(given)
    for key, value in told.items():
        set_value(project, base, key, value)
    worded = {own_key(word.key) for word in parsed}
    settings = [
        f"{RUN_CONFIG}.{key}={literal(value)}" for key, value in told.items() if key not in worded
    ]

    session = _session(project, [word for word in parsed if word.key.split(".")[0] in _SESSION])
    own = [word for word in parsed if word.key.split(".")[0] not in _SESSION]
    axes = {word.key: word.values for word in own if word.values is not None}
    check_size(axes)

    found: dict[str, AppTrial] = {}
    for cell in product(*axes.values()):
        place = dict(zip(axes, cell, strict=True))
        lines = [f"{key}={value}" for key, value in place.items()]
        fixed = [word for word in own if word.values is None]
        config = _config(project, base, session, [*fixed, *parse(lines)])
        trial = AppTrial(
            config=config,
            axes={key: _shown(config, key) for key in axes},
            overrides=(*settings, *(word.line for word in parsed if word.values is None), *lines),
            grid=tuple(axes),
            path=path,
        )
        found.setdefault(config.key, trial)
    trials = list(found.values())
    for key, values in axes.items():
        if len(values) > 1 and len({trial.axes[key] for trial in trials}) == 1:
            raise ConfigError(f"the values of '{key}' all give the same trials; give one of them")
    return AppSweep(project, trials)


def _check_word(word: Word, project: Project) -> None:
    """Refuse a word that means nothing to an app."""
    top = word.key.partition(".")[0]
    if own_key(word.key):
        return
    if word.key in _IDLE:
        raise ConfigError(f"'{word.key}' means nothing to an app: {_IDLE[word.key]}; leave it out")
    if top in _SESSION:
        if word.values is not None:
            raise ConfigError(
                f"'{word.key}' is no axis: it says where trials run and are logged and changes "
                "none of them; give one value"
            )
        return
    if word.key not in _OWN:
        keys = [*_OWN, *_SESSION, *(f"{RUN_CONFIG}.{key}" for key in project.config)]
        near = f"{RUN_CONFIG}.{word.key}"
        raise ConfigError(unknown("key", near if near in keys else word.key, keys))
    if word.values is not None and word.key not in _AXES:
        raise ConfigError(f"'{shown(word.line)}' has several values; write {word.key}=[a,b]")


def _check_once(words: Sequence[Word]) -> None:
    """Refuse a setting of the app that is given in both of its sections."""
    seen: dict[str, str] = {}
    for word in words:
        own = own_key(word.key)
        if own and seen.setdefault(own, word.key) != word.key:
            raise ConfigError(f"{seen[own]} and {word.key} are the same setting; give one of them")


def _session(project: Project, words: Sequence[Word]) -> dict[str, Any]:
    """Return the sections that say where trials run: the federation says what a client is given."""
    lines = [word.line for word in words]
    told = any(line.startswith(("resources=", "resources.hosts")) for line in lines)
    if project.client_resources and not told:
        known = {"num-cpus": "num_cpus", "num-gpus": "num_gpus"}
        for key, value in project.client_resources.items():
            if key in known:
                lines.append(f"resources.hosts.cpu.{known[key]}={value}")
    composed = compose(lines)
    return {name: getattr(composed, name) for name in SessionConfig.model_fields}


def _config(
    project: Project, base: Mapping[str, Any], session: Mapping[str, Any], words: Sequence[Word]
) -> AppConfig:
    """Return the configuration of a cell."""
    settings, run_config = dict[str, Json](), dict(base)
    for word in words:
        if word.key in _OWN:
            settings[word.key] = word.value
        else:
            section = word.key.partition(".")[0]
            set_value(project, run_config, own_key(word.key), word.value, section)
    for name in ("higher", "lower"):
        if isinstance(settings.get(name), str):
            settings[name] = [settings[name]]
    values = {
        "app": project.name,
        "code": project.code.digest,
        "num_clients": project.num_clients,
        "run_config": run_config,
        **session,
        **settings,
    }
    config = validated(AppConfig, values, "")
    if twice := [name for name in config.higher if name in config.lower]:
        raise ConfigError(f"higher and lower both name {twice[0]}; only one of them can be meant")
    if not config.seed_key:
        return config
    if both := [word.key for word in words if own_key(word.key) == config.seed_key]:
        raise ConfigError(
            f"seed_key={config.seed_key} and {both[0]} both set the same; leave out one of them"
        )
    set_value(project, run_config, config.seed_key, config.seed)
    return config.model_copy(update={"run_config": run_config})


def _shown(config: AppConfig, key: str) -> str:
    """Return a trial's place on an axis."""
    if key in _AXES:
        return str(getattr(config, key))
    return str(config.run_config[own_key(key)])
