"""The configuration of a trial: every key, its meaning, its default and its range, in one place.

``configs/`` holds only what an option changes against these defaults. A field made by :func:`only` applies to some
options of its group; it is left out of the trial key, and refused when it is set for another option.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from runner.errors import ConfigError


def only(options: str, default: Any, description: str, **limits: Any) -> Any:
    """Declare a field that applies to the named options of its group (space separated) and to no other."""
    return Field(default, description=description, json_schema_extra={"options": [*options.split()]}, **limits)


class Section(BaseModel):
    """A frozen group of settings in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def options_of(cls, key: str) -> list[str] | None:
        """Return the options that a field applies to, or None where it applies to all."""
        extra = cls.model_fields[key].json_schema_extra
        return list(extra["options"]) if isinstance(extra, dict) else None  # type: ignore[arg-type]

    def canonical(self) -> dict[str, Any]:
        """Return what defines the section, without the fields that do not apply to its option."""
        name = getattr(self, "name", None)
        kept = {}
        for key in type(self).model_fields:
            options = self.options_of(key)
            if options is None or name in options:
                value = getattr(self, key)
                kept[key] = value.canonical() if isinstance(value, Section) else value
        return kept


class DatasetConfig(Section):
    """Which images and labels. ``dataset=hub`` and ``dataset=folder`` take any image data set."""

    name: str = Field("digits", description="short name; the folder looked for under data.root")
    id: str | None = Field(None, description="Hugging Face Hub id, e.g. ylecun/mnist")
    path: str | None = Field(None, description="a local folder that datasets.load_dataset opens")
    image: str = Field("image", description="column that holds the images")
    label: str = Field("label", description="column that holds the class labels")
    train_split: str = Field("train", description="split that the clients share")
    test_split: str = Field("test", description="split of the central test set")
    max_train: int | None = Field(None, ge=10, description="use only the first so many training images (all if null)")


class PartitionConfig(Section):
    """How the training set is split among the clients."""

    name: Literal[
        "iid", "dirichlet", "inner_dirichlet", "shard", "pathological", "linear", "square", "exponential", "centralized"
    ] = Field("iid", description="the rule; centralized gives one client everything")
    alpha: float = only("dirichlet inner_dirichlet", 0.5, "concentration; smaller is more skewed", gt=0)
    min_size: int = only("dirichlet", 10, "fewest examples that a client may get", ge=1)
    shards_per_client: int = only("shard", 2, "label-sorted shards per client (McMahan 2017)", ge=1)
    classes_per_client: int = only("pathological", 2, "distinct labels per client", ge=1)
    eval_fraction: float = Field(0.2, ge=0, lt=1, description="share of each client's examples kept for its evaluation")


class ShiftConfig(Section):
    """How the clients' data differ in known groups. Client i belongs to group i mod groups."""

    name: Literal["none", "rotation", "label_permutation"] = Field("none", description="the kind of shift")
    groups: int = only("rotation label_permutation", 4, "number of groups", ge=1)
    angles: tuple[float, ...] | None = only(
        "rotation", None, "degrees per group, counter-clockwise; null spreads 360 degrees evenly"
    )

    @model_validator(mode="after")
    def _angles_fit(self) -> Self:
        if self.angles is not None and len(self.angles) != self.groups:
            raise ValueError(f"angles has {len(self.angles)} values for {self.groups} groups; give one angle per group")
        return self


class ModelConfig(Section):
    """The network. Input shape and number of classes come from the data set."""

    name: str = Field("mlp", description="a registered model, or the dotted path of a torch.nn.Module class")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the model's constructor")


class TrainingConfig(Section):
    """Local training on a client. The strategy sends these values in the ConfigRecord of each message."""

    optimizer: Literal["sgd", "adam"] = Field("sgd", description="optimizer, new in each round")
    lr: float = Field(0.05, gt=0, description="learning rate of round 1")
    lr_decay: float = Field(1.0, gt=0, le=1, description="factor on the learning rate per round")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum (sgd)")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty")
    epochs: int = Field(1, ge=1, description="passes over the client's examples per round")
    steps: int | None = Field(None, ge=1, description="optimizer steps per round, instead of epochs")
    batch_size: int = Field(32, ge=0, description="examples per step; 0 takes all of them (full batch)")
    proximal_mu: float = Field(0.0, ge=0, description="weight of mu/2 ||w - w_round_start||^2 (FedProx)")
    engine: Literal["sequential", "vectorized", "auto"] = Field(
        "vectorized",
        description="clients of a chunk one by one, in one batched program where the model has one (the same up to "
        "rounding), or whichever is measured to be faster (then not repeatable to the bit)",
    )
    threads: int = Field(1, ge=1, description="torch threads per client task; part of what fixes the bits of a sum")


class ServerConfig(Section):
    """Which member of a cluster is its server (ALGORITHMS section 5)."""

    rule: Literal["load", "load_once", "random", "round_robin", "largest_data"] = Field(
        "load", description="load: lowest score each round; load_once: chosen at the clustering round and kept"
    )
    cpu_weight: float = Field(0.5, ge=0, description="weight of a client task's CPU seconds in the score")
    mem_weight: float = Field(0.3, ge=0, description="weight of a client task's peak memory in the score")
    node_weight: float = Field(0.2, ge=0, description="weight of the node's CPU + memory load in the score")
    ewma: float = Field(0.5, gt=0, le=1, description="weight of the newest measurement in the moving average")
    hysteresis: float = Field(0.85, gt=0, le=1, description="switch only below this share of the incumbent's score")
    min_tenure: int = Field(3, ge=1, description="rounds that a server keeps its role at least")


class StrategyConfig(Section):
    """How updates become models. Names and meanings are Flower's where Flower has them."""

    name: Literal[
        "fedavg", "fedavgm", "fedadam", "fedadagrad", "fedyogi", "fedprox", "fedmedian", "fedtrimmedavg",
        "krum", "multikrum", "bulyan", "qfedavg", "kmeans", "local",
    ] = Field("fedavg", description="the strategy")  # fmt: skip
    fraction_train: float = Field(1.0, gt=0, le=1, description="share of the clients that train in a round")
    fraction_evaluate: float = Field(1.0, ge=0, le=1, description="share of the clients that evaluate")
    min_train_nodes: int = Field(1, ge=1, description="train at least so many clients")
    min_evaluate_nodes: int = Field(1, ge=0, description="evaluate at least so many clients")
    min_available_nodes: int = Field(1, ge=1, description="start only with so many clients")
    min_fit_fraction: float = Field(0.5, ge=0, le=1, description="below this share of replies a round fails the trial")
    server_learning_rate: float = only("fedavgm", 1.0, "server's step size", gt=0)
    server_momentum: float = only("fedavgm", 0.9, "server's momentum", ge=0, lt=1)
    eta: float = only("fedadam fedadagrad fedyogi", 0.01, "server's step size", gt=0)
    eta_l: float = only("fedadam fedadagrad fedyogi", 0.05, "clients' step size, as the method assumes it", gt=0)
    beta_1: float = only("fedadam fedyogi", 0.9, "first moment's decay", ge=0, lt=1)
    beta_2: float = only("fedadam fedyogi", 0.99, "second moment's decay", ge=0, lt=1)
    tau: float = only("fedadam fedadagrad fedyogi", 1e-3, "adaptivity: added to the root of the second moment", gt=0)
    proximal_mu: float = only("fedprox", 0.1, "weight of the proximal term", ge=0)
    beta: float = only("fedtrimmedavg", 0.2, "share cut at each end", ge=0, lt=0.5)
    num_malicious_nodes: int = only("krum multikrum bulyan", 1, "attackers to withstand", ge=0)
    num_nodes_to_select: int = only("multikrum", 3, "replies that are averaged", ge=1)
    q: float = only("qfedavg", 0.1, "fairness; 0 is FedAvg", ge=0)
    num_clusters: int = only("kmeans", 4, "clusters; 1 is FedAvg", ge=1)
    warmup_rounds: int = only("kmeans", 1, "FedAvg rounds from one common model before the clustering", ge=1)
    recluster_every: int = only("kmeans", 0, "cluster anew every so many rounds after the warm-up; 0: once", ge=0)
    representation: Literal["updates", "weights", "last_layer"] = only("kmeans", "updates", "what stands for a client")
    distance: Literal["cosine", "euclidean"] = only("kmeans", "cosine", "cosine: K-means on vectors of unit length")
    server: ServerConfig = only("kmeans", ServerConfig(), "which member of a cluster is its server")


class PrivacyConfig(Section):
    """Flower's differential-privacy wrappers around the strategy."""

    name: Literal["none", "fixed_server", "fixed_client", "adaptive_server", "adaptive_client"] = Field(
        "none", description="where updates are clipped, and whether the clipping norm adapts"
    )
    noise_multiplier: float = only(
        "fixed_server fixed_client adaptive_server adaptive_client", 1.0, "noise deviation over clipping norm", ge=0
    )
    clipping_norm: float = only("fixed_server fixed_client", 1.0, "largest L2 norm of an update", gt=0)
    initial_clipping_norm: float = only("adaptive_server adaptive_client", 0.1, "clipping norm of round 1", gt=0)
    target_clipped_quantile: float = only("adaptive_server adaptive_client", 0.5, "share left unclipped", gt=0, lt=1)
    clip_norm_lr: float = only("adaptive_server adaptive_client", 0.2, "step size of the norm's adaptation", gt=0)


class HostGroup(Section):
    """Client hosts with one resource specification."""

    count: Annotated[int, Field(ge=1)] | Literal["auto"] = Field("auto", description="hosts; auto: all that fit")
    num_cpus: float = Field(1.0, ge=0, description="CPU cores that Ray reserves per host")
    num_gpus: float = Field(0.0, ge=0, description="GPUs per host, fractions too")
    resources: dict[str, float] = Field(default_factory=dict, description="custom Ray resources per host")


class ResourcesConfig(Section):
    """Where client tasks run. Never changes a result (contract 5)."""

    engine: Literal["ray", "inline"] = Field("ray", description="inline: one process without Ray, for debugging")
    address: str | None = Field(None, description="address of a running Ray cluster; null starts Ray on this machine")
    hosts: dict[str, HostGroup] = Field(
        default_factory=lambda: {"cpu": HostGroup()}, min_length=1, description="groups of client hosts by name"
    )
    trials: Annotated[int, Field(ge=1)] | Literal["auto"] = Field("auto", description="trials that run at once")
    chunk_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field("auto", description="clients per host call")
    round_timeout_s: float = Field(3600.0, gt=0, description="deadline of a round's replies; late hosts are restarted")


class TrackingConfig(Section):
    """Where results go. Never changes a result."""

    uri: str | None = Field(None, description="MLflow tracking URI; null: an SQLite store under output")
    experiment: str = Field("fedsweep", min_length=1, description="MLflow experiment")
    log_models: bool = Field(True, description="log the final models as MLflow models")
    output: str = Field("outputs", description="folder of the local MLflow store and of reports")


class DataConfig(Section):
    """Where data sets are looked for. Never changes a result."""

    root: str | None = Field(
        default_factory=lambda: os.environ.get("FEDSWEEP_DATA"),
        description="folder that holds <name>/train.parquet and test.parquet; default: $FEDSWEEP_DATA",
    )
    cache: str = Field("~/.cache/fedsweep", validate_default=True, description="folder of decoded data sets")

    @field_validator("root", "cache")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        """Resolve against the driver's folder: other processes have another one."""
        return None if path is None else str(Path(path).expanduser().absolute())


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
    resources: ResourcesConfig = Field(default_factory=ResourcesConfig, description="hosts")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="MLflow")
    data: DataConfig = Field(default_factory=DataConfig, description="data folders")

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
        if s.name == "kmeans" and s.num_clusters > n:
            raise ConfigError(
                f"strategy.num_clusters={s.num_clusters} is more than num_clients={n}; lower it or add clients"
            )
        for key in ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"):
            if getattr(s, key) > n:
                raise ConfigError(f"strategy.{key}={getattr(s, key)} is more than num_clients={n}; lower it")
        if self.shift.name != "none" and self.shift.groups > n:
            raise ConfigError(f"shift.groups={self.shift.groups} is more than num_clients={n}; lower it")
        if s.name == "kmeans" and s.representation == "weights" and s.distance == "cosine":
            raise ConfigError(
                "strategy.representation=weights with strategy.distance=cosine: angles between weights mean nothing; "
                "set strategy.distance=euclidean or strategy.representation=updates"
            )
        if self.privacy.name != "none" and s.name in ("kmeans", "local"):
            raise ConfigError(
                f"privacy={self.privacy.name} wraps Flower's strategies; strategy={s.name} is none of them"
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

    def canonical(self) -> dict[str, Any]:
        """Return what decides the numbers: no resources, tracking or folders, no field that does not apply."""
        where = {"resources", "tracking", "data"}
        return {key: value for key, value in super().canonical().items() if key not in where}

    @property
    def key(self) -> str:
        """Stable identity of the trial: 12 hex digits of the SHA-256 of its canonical form."""
        text = json.dumps(self.canonical(), sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
