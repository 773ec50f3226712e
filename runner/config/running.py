"""Where a trial runs, when it ends early, where its results go: only the stopping rules decide a number."""

import os
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from fedsweep.config.ranges import CLIENTS, METRIC, ROUNDS, YEAR_S
from fedsweep.config.section import Section, absolute
from fedsweep.errors import ConfigError, unknown

HELD_OUT = (
    "3_clients/acc", "3_clients/acc_std", "3_clients/acc_p10", "3_clients/acc_min", "3_clients/acc_jain",
    "3_clients/loss",
)  # fmt: skip
"""Metrics over the clients that hold out examples."""
LOGGED = (
    "1_global/acc", "1_global/loss", *HELD_OUT, "3_clients/test_acc", "3_clients/test_acc_p10",
    "3_clients/test_acc_min", "3_clients/test_loss", "3_clients/train_loss", "4_comm/mb_total", "2_clusters/ari",
    "2_clusters/ami", "2_clusters/matched", "2_clusters/silhouette",
)  # fmt: skip
"""Metrics that a stopping rule may watch."""


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


def _is_logged(name: str) -> str:
    """Refuse a metric that no trial logs; clustered strategies add diagnostics of their own to ``2_clusters``."""
    if name not in LOGGED and not name.startswith("2_clusters/"):
        raise ConfigError(unknown("metric", name, LOGGED))
    return name


class StopConfig(Section):
    """When a trial ends before its last round: as soon as one of these rules holds, at an evaluated round."""

    metric: str = Field("3_clients/acc", description="logged metric that target and patience watch")
    mode: Literal["max", "min"] = Field(
        "max", description="whether more of the metric is better, or less"
    )
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
    divergence: bool = Field(
        False, description="stop where a loss is NaN or infinite, of one client too"
    )

    def canonical(self) -> dict[str, Any]:
        """Return the rules that are set; what target and patience watch only where one of them is."""
        rules = {
            key: value for key, value in super().canonical().items() if value not in (None, False)
        }
        watched = () if self.target is None and self.patience is None else ("metric", "mode")
        unused = {"metric", "mode", "min_delta"} - {
            *watched,
            *(("min_delta",) if self.patience else ()),
        }
        return {key: value for key, value in rules.items() if key not in unused}

    @field_validator("metric")
    @classmethod
    def _known(cls, name: str) -> str:
        return _is_logged(name)


class HalvingConfig(Section):
    """Successive halving: at each rung the best trials along an axis of the sweep go on, the others end."""

    axis: str = Field(
        "",
        description="axis whose values compete, such as training.lr; none: every trial runs in full",
    )
    metric: str = Field(
        "3_clients/acc",
        description="logged metric that is compared; one that is missing is the worst",
    )
    mode: Literal["max", "min"] = Field(
        "max", description="whether more of the metric is better, or less"
    )
    min_rounds: int = Field(
        1,
        ge=1,
        le=ROUNDS,
        description="round of the first rung; each next one is factor times as late",
    )
    factor: int = Field(3, ge=2, le=ROUNDS, description="one trial in so many goes on from a rung")

    def canonical(self) -> dict[str, Any]:
        """Return the rules, where an axis is set."""
        return super().canonical() if self.axis else {}

    def rungs(self, rounds: int) -> tuple[int, ...]:
        """Return the rounds after which a trial of so many rounds is compared."""
        rungs: list[int] = []
        while (rung := self.min_rounds * self.factor ** len(rungs)) < rounds:
            rungs.append(rung)
        return tuple(rungs)

    @field_validator("metric")
    @classmethod
    def _known(cls, name: str) -> str:
        return _is_logged(name)


class CheckpointConfig(Section):
    """Where a trial keeps what it needs to go on after an interruption. Never changes a result."""

    storage_path: str | None = Field(
        None,
        description="folder or fsspec URL that every node can write; null: a folder under tracking.output",
    )
    every: int = Field(
        1,
        ge=1,
        le=ROUNDS,
        description="rounds from one checkpoint to the next; an interruption redoes so many",
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
        description="pictures of each trial: all, those of its data alone, or none (reports draw their own)",
    )
    patience_s: float = Field(
        60.0,
        ge=0,
        le=YEAR_S,
        description="seconds to wait at the end while the store takes nothing; then events stay on disk",
    )
    output: str = Field("outputs", description="folder of the local MLflow store and of reports")


def _default(named: str, path: str | None) -> str | None:
    """Return a folder that nobody gave as a setting; what is wrong with it is said by its name."""
    try:
        return absolute(path) if path else None
    except ValueError as error:
        raise ConfigError(f"{named}={path}: {error}") from error


class DataConfig(Section):
    """Where data sets are looked for. Equal content gives equal results, wherever it lies."""

    root: str | None = Field(
        default_factory=lambda: _default("FEDSWEEP_DATA", os.environ.get("FEDSWEEP_DATA")),
        description="folder that holds a folder per data set; default: $FEDSWEEP_DATA",
    )
    cache: str = Field(
        default_factory=lambda: str(_default("data.cache", "~/.cache/fedsweep")),
        description="folder of decoded data sets; default: ~/.cache/fedsweep",
    )

    @field_validator("root", "cache")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        return None if path is None else absolute(path)
