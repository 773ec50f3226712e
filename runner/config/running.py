"""Where a trial runs, when it ends, where its results go: only stopping rules decide a number."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from fedsweep.catalog import CATALOG
from fedsweep.config.section import Section
from fedsweep.environ import cache_folder, variable
from fedsweep.errors import ConfigError
from fedsweep.places import absolute
from fedsweep.strategies.ranges import CLIENTS, METRIC, ROUNDS, YEAR_S


class HostGroup(Section):
    """Client hosts with one resource specification."""

    count: Annotated[int, Field(ge=1, le=10**4)] | Literal["auto"] = Field(
        "auto", description="hosts; auto: all that fit"
    )
    num_cpus: float = Field(1.0, ge=0, le=10**4, description="CPU cores that Ray reserves per host")
    num_gpus: float = Field(0.0, ge=0, le=10**4, description="GPUs per host, fractions too")
    resources: dict[str, Annotated[float, Field(ge=0, le=1e9)]] = Field(
        default_factory=dict, description="custom Ray resources per host"
    )

    @field_validator("num_cpus", "num_gpus", "resources")
    @classmethod
    def _can_be_asked_for(cls, value: float | dict[str, float]) -> float | dict[str, float]:
        amounts = value if isinstance(value, dict) else {"": value}
        if any(0 < amount < 1e-4 for amount in amounts.values()):
            raise ValueError("Ray counts in steps of 0.0001; give that at least, or 0")
        if {"CPU", "GPU"} & amounts.keys():
            raise ValueError("cores and GPUs are asked for by num_cpus and num_gpus")
        return value


class ResourcesConfig(Section):
    """Where client tasks run. Never changes a result."""

    engine: Literal["ray", "inline"] = Field(
        "ray", description="inline: one process without Ray, for debugging"
    )
    address: str | None = Field(
        None, description="address of a running Ray cluster; null starts Ray on this machine"
    )
    hosts: dict[str, HostGroup] = Field(
        default_factory=lambda: {"cpu": HostGroup()},
        min_length=1,
        description="groups of client hosts by name",
    )
    trials: Annotated[int, Field(ge=1, le=10**4)] | Literal["auto"] = Field(
        "auto", description="trials that run at once"
    )
    max_retries: int = Field(
        2,
        ge=0,
        le=10**6,
        description="times that a trial that died goes on from its last checkpoint",
    )
    chunk_size: Annotated[int, Field(ge=1, le=CLIENTS)] | Literal["auto"] = Field(
        "auto", description="clients per host call"
    )
    round_timeout_s: float = Field(
        3600.0,
        ge=0.001,
        le=YEAR_S,
        description="deadline of a round's replies; late hosts are restarted",
    )


Mode = Literal["auto", "max", "min"]
_MODE = "whether more of the metric is better (max), or less (min); auto: as the metric says"


def _watched(metric: str) -> str:
    """Return a metric's key; refuse one that no rule can watch."""
    CATALOG.watched(metric)
    return metric


def _mode(metric: str, mode: Mode) -> Literal["max", "min"]:
    """Return whether more of a metric is better, or less."""
    if mode == "auto":
        return "min" if CATALOG.watched(metric).better == "lower" else "max"
    return mode


class StopConfig(Section):
    """When a trial ends before its last round: once one of these rules holds, where evaluated."""

    metric: str = Field("3_clients/acc", description="logged metric that target and patience watch")
    mode: Mode = Field("auto", description=_MODE)
    target: float | None = Field(
        None,
        ge=-METRIC,
        le=METRIC,
        description="stop where the metric is at least (mode=min: at most) this",
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=ROUNDS,
        description="stop after so many evaluations without an improvement",
    )
    min_delta: float = Field(
        0.0,
        ge=0,
        le=METRIC,
        description="what counts as an improvement, for patience",
    )
    wall_s: float | None = Field(
        None,
        ge=0.001,
        le=YEAR_S,
        description="stop after so many seconds of rounds, interruptions left out",
    )
    mb: float | None = Field(
        None,
        gt=0,
        le=METRIC,
        description="stop after so many MiB moved to and from clients",
    )
    epsilon: float | None = Field(
        None,
        gt=0,
        le=METRIC,
        description="stop before the next evaluated round would spend more than this epsilon",
    )
    divergence: bool = Field(
        False, description="stop where a loss is NaN or infinite, of one client too"
    )

    def canonical(self) -> dict[str, Any]:
        """Return the rules that are set; what target and patience watch, where one of them is."""
        settings = super().canonical() | {"mode": _mode(self.metric, self.mode)}
        rules = {key: value for key, value in settings.items() if value not in (None, False)}
        watched = ("metric", "mode") if self.watches else ()
        unused = {"metric", "mode", "min_delta"} - {
            *watched,
            *(("min_delta",) if self.patience else ()),
        }
        return {key: value for key, value in rules.items() if key not in unused}

    @property
    def watches(self) -> bool:
        """Whether a rule reads the metric."""
        return self.target is not None or self.patience is not None

    @property
    def sign(self) -> float:
        """Times the metric, more is better."""
        return 1.0 if _mode(self.metric, self.mode) == "max" else -1.0

    @field_validator("metric")
    @classmethod
    def _known(cls, name: str) -> str:
        return _watched(name)


class HalvingConfig(Section):
    """Successive halving: at each rung the best trials along an axis go on, the others end."""

    axis: str = Field(
        "",
        description=(
            "axis whose values compete, such as training.lr; none: every trial runs in full"
        ),
    )
    metric: str = Field(
        "3_clients/acc",
        description="logged metric that is compared; one that is missing is the worst",
    )
    mode: Mode = Field("auto", description=_MODE)
    min_rounds: int = Field(
        1,
        ge=1,
        le=ROUNDS,
        description="round of the first rung; each next one is factor times as late",
    )
    factor: int = Field(3, ge=2, le=ROUNDS, description="one trial in so many goes on from a rung")

    def canonical(self) -> dict[str, Any]:
        """Return the rules, where an axis is set."""
        mode = _mode(self.metric, self.mode)
        return super().canonical() | {"mode": mode} if self.axis else {}

    @property
    def sign(self) -> float:
        """Times the metric, more is better."""
        return 1.0 if _mode(self.metric, self.mode) == "max" else -1.0

    def rungs(self, rounds: int) -> tuple[int, ...]:
        """Return the rounds after which a trial of so many rounds is compared."""
        rungs: list[int] = []
        while (rung := self.min_rounds * self.factor ** len(rungs)) < rounds:
            rungs.append(rung)
        return tuple(rungs)

    @field_validator("metric")
    @classmethod
    def _known(cls, name: str) -> str:
        return _watched(name)


class CheckpointConfig(Section):
    """Where a trial keeps what it needs to go on after an interruption. Never changes a result."""

    storage_path: str | None = Field(
        None,
        description=(
            "folder or fsspec URL that every node can write; null: a folder under tracking.output"
        ),
    )
    every: int = Field(
        1,
        ge=1,
        le=ROUNDS,
        description="rounds from one checkpoint to the next; an interruption redoes so many",
    )
    keep: bool = Field(
        True,
        description="keep the last one of a trial that ended, so that more rounds go on from there",
    )

    @field_validator("storage_path")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        return path if path is None or "://" in path else absolute(path)


class TrackingConfig(Section):
    """Where results go. Never changes a result."""

    uri: str | None = Field(
        None, description="MLflow tracking URI; null: an SQLite store under output"
    )
    experiment: str = Field("fedsweep", min_length=1, description="MLflow experiment")
    log_models: bool = Field(True, description="log the final models as MLflow models")
    figures: Literal["all", "data", "none"] = Field(
        "all",
        description=(
            "pictures of each trial: all, those of its data alone, or none (reports draw their own)"
        ),
    )
    patience_s: float = Field(
        60.0,
        ge=0,
        le=YEAR_S,
        description=(
            "seconds to wait at the end while the store takes nothing; then events stay on disk"
        ),
    )
    output: str = Field("outputs", description="folder of the local MLflow store and of reports")


def _default(named: str, path: str) -> str | None:
    """Return a folder that nobody gave as a setting; what is wrong with it is said by its name."""
    try:
        return absolute(path) if path else None
    except ValueError as error:
        raise ConfigError(f"{named}={path}: {error}") from error


class DataConfig(Section):
    """Where data sets are looked for. Equal content gives equal results, wherever it lies."""

    root: str | None = Field(
        default_factory=lambda: _default("FEDSWEEP_DATA", variable("FEDSWEEP_DATA")),
        description="folder that holds a folder per data set; default: $FEDSWEEP_DATA",
    )
    cache: str = Field(
        default_factory=lambda: str(_default("data.cache", cache_folder())),
        description="folder of decoded data sets; default: $FEDSWEEP_CACHE or ~/.cache/fedsweep",
    )

    @field_validator("root", "cache")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        return None if path is None else absolute(path)


class SessionConfig(Section):
    """What a session runs its trials with. It defines none of them: no part of their keys."""

    resources: ResourcesConfig = Field(default_factory=ResourcesConfig, description="hosts")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="MLflow")
    data: DataConfig = Field(default_factory=DataConfig, description="data folders")
    checkpoint: CheckpointConfig = Field(
        default_factory=CheckpointConfig, description="checkpoints"
    )
