"""One trial of a Flower app: what defines it, and its key."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from flwr.app import UserConfig
from pydantic import Field

from fedsweep.app.project import Project
from fedsweep.config import HalvingConfig, SessionConfig
from fedsweep.config.trial import identity
from fedsweep.errors import ConfigError, shown, unknown
from fedsweep.strategies.ranges import CLIENTS, LONGEST
from fedsweep.tracking.describe import Facts, config_yaml

RUN_CONFIG = "run_config"
"""Section of the app's own settings; their keys have dots and hyphens as the app has them."""

PROBLEM = "problem"
"""The same section, for settings that make another problem: rows of two are never compared."""

Value = bool | int | float | str
"""What a setting of an app is, as Flower has it."""


class AppConfig(SessionConfig):
    """A trial of a Flower app, and what it is run with."""

    DEFINES: ClassVar[tuple[str, ...]] = ("run_config", "num_clients", "seed", "seed_key")
    """The fields that decide its numbers, beside the app's code."""

    app: str = Field(description="name of the app's project")
    code: str = Field(description="digest of its files")
    run_config: dict[str, Value] = Field(description="settings of the app: all of its run config")
    num_clients: int = Field(ge=1, le=CLIENTS, description="virtual clients (Flower nodes)")
    seed: int = Field(
        0,
        ge=0,
        le=LONGEST,
        description="root of what the server and the clients draw: random, NumPy, PyTorch",
    )
    seed_key: str = Field("", description="run-config key that is set to the seed of each trial")
    journal_mb: int = Field(
        1024,
        ge=0,
        le=10**6,
        description=(
            "most MiB of clients' replies that are kept of a running trial, to go on from after an "
            "interruption; 0: none"
        ),
    )
    higher: tuple[str, ...] = Field(
        (), strict=False, description="metrics that are better the higher, as evaluate.accuracy"
    )
    lower: tuple[str, ...] = Field(
        (), strict=False, description="metrics that are better the lower, as evaluate.loss"
    )

    @property
    def better(self) -> dict[str, Literal["higher", "lower"]]:
        """Which way is better, by metric, where somebody said so."""
        better: dict[str, Literal["higher", "lower"]] = dict.fromkeys(self.higher, "higher")
        return better | dict.fromkeys(self.lower, "lower")

    @property
    def rounds(self) -> int:
        """How many rounds there will be: that is up to the app."""
        return 0

    @property
    def course_key(self) -> str:
        """Nothing: how many rounds there are is one of the app's own settings."""
        return ""

    @property
    def halving(self) -> HalvingConfig:
        """No halving: an app can't be told to wait at a rung."""
        return HalvingConfig()

    def canonical(self) -> dict[str, Any]:
        """Return what defines the trial."""
        settings = {key: getattr(self, key) for key in self.DEFINES}
        return {"app": self.code, **{key: v for key, v in settings.items() if v != ""}}

    @property
    def key(self) -> str:
        """Stable identity of the trial: 12 hex digits of the SHA-256 of its canonical form."""
        return identity(self.canonical())

    def facts(self, name: str) -> Facts:
        """Return what the store is told of the trial; ``name`` is its place in a sweep."""
        flat = {f"{RUN_CONFIG}.{key}": str(value) for key, value in self.run_config.items()}
        params = {"app": self.app, "app.code": self.code, "num_clients": str(self.num_clients)}
        return Facts(
            key=self.key,
            name=name or f"{self.app} seed={self.seed}",
            params={**flat, **params, "seed": str(self.seed)},
            tags={"trial.settings": self.key, "app": self.app},
            config=config_yaml(self),
            num_clients=self.num_clients,
        )


def no_such_metric(name: str, better: str, there: Iterable[str]) -> str:
    """Return what is said of a metric that nobody has, and that was said to be better some way."""
    return f"{better}={name}: there is no such metric; there are {', '.join(there) or 'none'}"


def own_key(key: str) -> str:
    """Return which setting of the app a word's key names; nothing where it names none."""
    section, _, own = key.partition(".")
    return own if section in (RUN_CONFIG, PROBLEM) else ""


def set_value(
    project: Project, config: UserConfig, key: str, value: object, section: str = RUN_CONFIG
) -> None:
    """Set a key of a run config; a whole number is a float where the app's default is one.

    Raises
    ------
    ConfigError
        The app has no such key, or its value is of another kind.
    """
    named, default = f"{section}.{key}", project.config.get(key)
    if default is None:
        keys = [f"{section}.{known}" for known in project.config]
        raise ConfigError(unknown("key", named, keys))
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    kinds: Mapping[type, str] = {bool: "true or false", int: "a whole number", float: "a number"}
    if type(value) is not type(default):
        told = kinds.get(type(default), "a text")
        raise ConfigError(
            f"{named}={shown(repr(value))}: the app's own is {shown(repr(default))}, so it has to "
            f"be {told}"
        )
    assert isinstance(value, Value)
    config[key] = value


def seeds_of_its_own(project: Project) -> Iterator[str]:
    """Yield the keys of an app that look like seeds, to be asked about."""
    yield from (key for key in project.config if "seed" in Path(key.replace(".", "/")).name)
