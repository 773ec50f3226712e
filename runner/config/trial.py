"""One trial: all its settings, whether they fit together, and its key."""

import hashlib
import json
from typing import Any, Self

from pydantic import Field, model_validator

from runner.config.learning import DatasetConfig, ModelConfig, PartitionConfig, ShiftConfig, TrainingConfig
from runner.config.running import (
    CheckpointConfig,
    DataConfig,
    HalvingConfig,
    ResourcesConfig,
    StopConfig,
    TrackingConfig,
)
from runner.config.section import Section
from runner.config.strategy import PrivacyConfig, StrategyConfig, check_distance
from runner.errors import ConfigError


class TrialConfig(Section):
    """One trial: everything that decides its numbers, and where it runs and is logged."""

    dataset: DatasetConfig = Field(default_factory=DatasetConfig, description="images and labels")
    partition: PartitionConfig = Field(default_factory=PartitionConfig, description="split among the clients")
    shift: ShiftConfig = Field(default_factory=ShiftConfig, description="known groups of clients")
    model: ModelConfig = Field(default_factory=ModelConfig, description="network")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="local training")
    strategy: StrategyConfig = Field(default_factory=StrategyConfig, description="federated strategy")
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig, description="differential privacy")
    num_clients: int = Field(10, ge=1, description="virtual clients (Flower nodes); 1 under partition=centralized")
    rounds: int = Field(10, ge=1, description="federated rounds")
    evaluate_every: int = Field(1, ge=1, description="evaluate every so many rounds, and in the last")
    seed: int = Field(0, ge=0, description="root of every random choice")
    stop: StopConfig = Field(default_factory=StopConfig, description="rules that end a trial early")
    halving: HalvingConfig = Field(default_factory=HalvingConfig, description="successive halving over an axis")
    resources: ResourcesConfig = Field(default_factory=ResourcesConfig, description="hosts")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="MLflow")
    data: DataConfig = Field(default_factory=DataConfig, description="data folders")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="checkpoints")

    @model_validator(mode="before")
    @classmethod
    def _centralized_is_one_client(cls, values: Any) -> Any:
        """Let the centralized baseline stand in one grid with federated trials: it always has one client."""
        partition = values.get("partition") if isinstance(values, dict) else None
        name = partition.get("name") if isinstance(partition, dict) else getattr(partition, "name", None)
        return values | {"num_clients": 1} if name == "centralized" else values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Refuse what can't work before anything starts (contract 10)."""
        n, s = self.num_clients, self.strategy
        if self.halving.axis and self.halving.min_rounds >= self.rounds:
            raise ConfigError(
                f"halving.min_rounds={self.halving.min_rounds} is not less than rounds={self.rounds}; lower it"
            )
        if self.halving.axis and self.halving.min_rounds % self.evaluate_every:
            raise ConfigError(
                f"halving.min_rounds={self.halving.min_rounds} is no multiple of evaluate_every={self.evaluate_every}: "
                "a rung has to be an evaluated round; change one of them"
            )
        if "num_clusters" in s.canonical() and s.num_clusters > n:
            raise ConfigError(
                f"strategy.num_clusters={s.num_clusters} is more than num_clients={n}; lower it or add clients"
            )
        for key in ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"):
            if getattr(s, key) > n:
                raise ConfigError(f"strategy.{key}={getattr(s, key)} is more than num_clients={n}; lower it")
            if getattr(s, key) > (first := self.online(1)):
                raise ConfigError(
                    f"strategy.{key}={getattr(s, key)} is more than the {first} clients there are before "
                    f"shift.join_round={self.shift.join_round}; lower it or shift.newcomers"
                )
        if self.shift.name != "none" and self.shift.groups > n:
            raise ConfigError(f"shift.groups={self.shift.groups} is more than num_clients={n}; lower it")
        if s.name in (s.options_of("distance") or ()):
            check_distance(s)
        if s.name == "cfl" and s.fraction_train < 1:
            raise ConfigError(
                f"strategy.fraction_train={s.fraction_train:g} with strategy=cfl: the norms of a cluster's updates "
                "need every member in every round; set strategy.fraction_train=1"
            )
        ours = ["local", "fedsoft", "fedavg_ft", "ditto", "fedper", "apfl", "scaffold", *(s.options_of("server") or ())]
        if self.privacy.name != "none" and s.name in ours:
            raise ConfigError(
                f"privacy={self.privacy.name} wraps Flower's strategies; strategy={s.name} is none of them"
            )
        if s.name == "scaffold" and self.training.optimizer != "sgd":
            raise ConfigError(
                f"strategy=scaffold with training.optimizer={self.training.optimizer}: its control variates are mean "
                "gradients of SGD; set training.optimizer=sgd"
            )
        if self.training.precision == "tf32" and not any(group.num_gpus for group in self.resources.hosts.values()):
            raise ConfigError(
                "training.precision=tf32 is a format of NVIDIA GPUs, and no host has one; set resources=gpu or "
                "training.precision=float32"
            )
        if s.name == "fedper" and self.model.name == "logreg":
            raise ConfigError(
                "strategy=fedper with model=logreg: the head would be the whole model; take a model with more layers"
            )
        trained = max(int(n * s.fraction_train), s.min_train_nodes)
        if trained < 1:
            raise ConfigError(
                f"strategy.fraction_train={s.fraction_train} of num_clients={n} is no client; raise one of them"
            )
        if self.privacy.name.startswith("adaptive") and self.privacy.noise_multiplier >= trained / 10:
            raise ConfigError(
                f"privacy.noise_multiplier={self.privacy.noise_multiplier:g} with {trained} training clients a round: "
                f"adaptive clipping needs less than {trained / 10:g} (clients / 10); lower it or train more clients"
            )
        needed = {"krum": 2, "multikrum": 2, "bulyan": 4}.get(s.name)
        if needed and trained < needed * s.num_malicious_nodes + 3:
            raise ConfigError(
                f"strategy={s.name} with num_malicious_nodes={s.num_malicious_nodes} needs at least "
                f"{needed * s.num_malicious_nodes + 3} training clients a round, but there are {trained}"
            )
        return self

    def online(self, server_round: int) -> int:
        """Return how many clients there are in a round: all but the newcomers before they join, at least one."""
        late = round(self.num_clients * self.shift.newcomers) if server_round < self.shift.join_round else 0
        return max(1, self.num_clients - late)

    def canonical(self) -> dict[str, Any]:
        """Return what decides the numbers: no resources, tracking or folders, no field that does not apply."""
        where = {"resources", "tracking", "data", "checkpoint"}
        return {key: value for key, value in super().canonical().items() if key not in where and value != {}}

    @property
    def key(self) -> str:
        """Stable identity of the trial: 12 hex digits of the SHA-256 of its canonical form.

        The content of the data is a part of it: see :func:`runner.data.sources.identified`.
        """
        return _digest(self.canonical())

    @property
    def settings_key(self) -> str:
        """The identity of what was asked for, whatever the content of the data: 12 hex digits."""
        canonical = self.canonical()
        return _digest(canonical | {"dataset": canonical["dataset"] | {"content": None}})


def _digest(canonical: dict[str, Any]) -> str:
    text = json.dumps(canonical, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
