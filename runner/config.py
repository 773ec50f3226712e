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

from runner.errors import ConfigError, unknown

LOGGED = (
    "1_global/acc", "1_global/loss", "3_clients/acc", "3_clients/acc_min", "3_clients/acc_p10", "3_clients/acc_std",
    "3_clients/loss", "3_clients/test_acc", "3_clients/train_loss", "4_comm/mb_total", "2_clusters/ari",
    "2_clusters/ami", "2_clusters/matched", "2_clusters/silhouette",
)  # fmt: skip
"""Metrics that a stopping rule may watch."""


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
    normalize: Literal["standard", "unit"] = Field(
        "standard", description="pixels at mean 0 and deviation 1 per channel, or unit: divided by 255"
    )
    max_train: int | None = Field(None, ge=10, description="use only the first so many training images (all if null)")


class PartitionConfig(Section):
    """How the training set is split among the clients."""

    name: Literal[
        "iid", "dirichlet", "inner_dirichlet", "shard", "pathological", "linear", "square", "exponential", "centralized"
    ] = Field("iid", description="the rule; centralized gives one client everything")
    alpha: float = only("dirichlet inner_dirichlet", 0.5, "concentration; smaller is more skewed", gt=0)
    sizes: Literal["equal", "linear", "square"] = only(
        "inner_dirichlet", "equal", "examples per client: client i has a share as 1, i or i squared"
    )
    min_size: int = only("dirichlet", 10, "fewest examples that a client may get", ge=1)
    shards_per_client: int = only("shard", 2, "label-sorted shards per client (McMahan 2017)", ge=1)
    classes_per_client: int = only("pathological", 2, "distinct labels per client", ge=1)
    eval_fraction: float = Field(0.2, ge=0, lt=1, description="share of each client's examples kept for its evaluation")


_GROUPED = "rotation inversion noise morphology label_permutation label_groups"
_SEEN = "rotation inversion noise morphology label_permutation"  # how a group sees an example, not which ones it has


class ShiftConfig(Section):
    """How the clients' data differ in known groups, and over time. Client i belongs to group i mod groups."""

    name: Literal[
        "none", "rotation", "inversion", "noise", "morphology", "label_permutation", "label_groups"
    ] = Field("none", description="the kind of shift")  # fmt: skip
    groups: int = only(_GROUPED, 4, "number of groups; at most 2 for inversion and 3 for morphology", ge=1)
    angles: tuple[float, ...] | None = only(
        "rotation", None, "degrees per group, counter-clockwise; null spreads 360 degrees evenly"
    )
    noise_std: float = only("noise", 64.0, "last group's noise in grey levels (0 to 255); group 0 has none", gt=0)
    classes_per_group: int | None = only(
        "label_groups", None, "classes of each group, shared with others where they do not suffice; null deals out all",
        ge=1,
    )  # fmt: skip
    replicate: bool = only(_SEEN, False, "the clients of each group together hold all training images (IFCA)")
    drift_round: int = only(_SEEN, 0, "from this round on some clients belong to the next group; 0: never", ge=0)
    drift_fraction: float = only(_SEEN, 0.5, "share of each group's clients that move to the next group", ge=0, le=1)
    newcomers: float = Field(0.0, ge=0, lt=1, description="share of the clients, the last ones, that join later")
    join_round: int = Field(2, ge=2, description="first round of the newcomers")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.angles is not None and len(self.angles) != self.groups:
            raise ValueError(f"angles has {len(self.angles)} values for {self.groups} groups; give one angle per group")
        most = {"inversion": 2, "morphology": 3}.get(self.name)
        if most and self.groups > most:
            raise ValueError(f"groups={self.groups} with {self.name}: there are only {most} kinds; lower shift.groups")
        return self


class ModelConfig(Section):
    """The network. Input shape and number of classes come from the data set."""

    name: str = Field("mlp", description="a registered model, or the dotted path of a torch.nn.Module class")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the model's constructor")


class TrainingConfig(Section):
    """Local training on a client. The strategy sends these values in the ConfigRecord of each message."""

    optimizer: Literal["sgd", "adam"] = Field("sgd", description="optimizer, new in each round")
    lr: float = Field(0.02, gt=0, description="learning rate of round 1")
    lr_decay: float = Field(1.0, gt=0, le=1, description="factor on the learning rate per round")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum (sgd)")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty")
    epochs: int = Field(1, ge=1, description="passes over the client's examples per round")
    steps: int | None = Field(None, ge=1, description="optimizer steps per round, instead of epochs")
    batch_size: int = Field(10, ge=0, description="examples per step; 0 takes all of them (full batch)")
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
        "flhc", "cfl", "fesem", "fedgroup", "pacfl", "stocfl", "fedclust", "oracle",
        "ifca", "clove", "fedsoft", "fedavg_ft", "ditto", "fedper", "apfl", "scaffold",
    ] = Field("fedavg", description="the strategy")  # fmt: skip
    fraction_train: float = Field(1.0, gt=0, le=1, description="share of the clients that train in a round")
    fraction_evaluate: float = Field(1.0, ge=0, le=1, description="share of the clients that evaluate")
    min_train_nodes: int = Field(1, ge=1, description="train at least so many clients")
    min_evaluate_nodes: int = Field(1, ge=0, description="evaluate at least so many clients")
    min_available_nodes: int = Field(1, ge=1, description="start only with so many clients")
    min_fit_fraction: float = Field(0.5, ge=0, le=1, description="below this share of replies a round fails the trial")
    server_learning_rate: float = only("fedavgm scaffold", 1.0, "server's step size", gt=0)
    server_momentum: float = only("fedavgm", 0.9, "server's momentum", ge=0, lt=1)
    eta: float = only("fedadam fedadagrad fedyogi", 0.01, "server's step size", gt=0)
    eta_l: float = only("fedadam fedadagrad fedyogi", 0.05, "clients' step size, as the method assumes it", gt=0)
    beta_1: float = only("fedadam fedyogi", 0.9, "first moment's decay", ge=0, lt=1)
    beta_2: float = only("fedadam fedyogi", 0.99, "second moment's decay", ge=0, lt=1)
    tau: float = only("fedadam fedadagrad fedyogi", 1e-3, "adaptivity: added to the root of the second moment", gt=0)
    proximal_mu: float = only("fedprox stocfl", 0.1, "weight of the proximal term", ge=0)
    beta: float = only("fedtrimmedavg", 0.2, "share cut at each end", ge=0, lt=0.5)
    num_malicious_nodes: int = only("krum multikrum bulyan", 1, "attackers to withstand", ge=0)
    num_nodes_to_select: int = only("multikrum", 3, "replies that are averaged", ge=1)
    q: float = only("qfedavg", 0.1, "fairness; 0 is FedAvg", ge=0)
    num_clusters: int = only(
        "kmeans flhc fesem fedgroup pacfl fedclust ifca clove fedsoft", 4, "clusters; 1 is FedAvg", ge=1
    )
    choose_k: Literal["given", "silhouette", "gap", "davies_bouldin"] = only(
        "kmeans flhc fesem fedgroup pacfl fedclust",
        "given",
        "given: num_clusters; else the rule that chooses their number",
    )
    max_clusters: int = only(
        "kmeans flhc fesem fedgroup pacfl fedclust", 8, "most clusters that choose_k may take", ge=2
    )
    gate: float = only(
        "kmeans flhc fesem fedgroup pacfl fedclust cfl",
        0.0,
        "level of the test whether there are clusters at all: the share of false splits allowed; 0: cluster untested",
        ge=0,
        lt=1,
    )
    warmup_rounds: int = only(
        "kmeans flhc fesem fedgroup fedclust cfl",
        1,
        "FedAvg rounds; clients are grouped in the last (cfl: after it)",
        ge=1,
    )
    recluster_every: int = only("kmeans", 0, "cluster anew every so many rounds after the warm-up; 0: once", ge=0)
    stable_after: int = only("kmeans", 0, "end that once the same clusters came so many times in a row; 0: never", ge=0)
    representation: Literal["updates", "weights", "last_layer", "losses", "data"] = only(
        "kmeans flhc", "updates", "what stands for a client (flhc: from its model)"
    )
    distance: Literal["cosine", "euclidean", "manhattan"] = only(
        "kmeans flhc", "cosine", "how far apart two clients are; cosine needs updates, manhattan is flhc's"
    )
    linkage: Literal["average", "complete", "single", "ward"] = only(
        "flhc pacfl fedclust", "average", "how far apart two groups are"
    )
    threshold: float | None = only(
        "flhc pacfl fedclust", None, "distance at which the tree is cut; null: as choose_k says", gt=0
    )
    vectors: int = only("pacfl", 3, "singular vectors that a client sends per label", ge=1)
    measure: Literal["mean", "smallest"] = only("pacfl", "mean", "principal angle that tells subspaces apart")
    eps1: float = only("cfl", 0.4, "split below this length of the mean update", gt=0)
    eps2: float = only("cfl", 1.6, "and above this length of the longest update", ge=0)
    relative: bool = only("cfl", False, "eps1, eps2 in units of the longest mean update so far")
    min_size: int = only("cfl", 2, "split only larger clusters", ge=2)
    merge_cosine: float = only("stocfl", 0.45, "clusters this similar are merged", gt=-1, le=1)
    server: ServerConfig = only(
        "kmeans flhc fesem fedgroup pacfl fedclust cfl stocfl oracle ifca clove",
        ServerConfig(),
        "which member of a cluster is its server",
    )
    auto_k: bool = only("clove", False, "choose the clusters' number, from 2 to num_clusters, by silhouette")
    estimate_every: int = only("fedsoft", 2, "rounds between two estimations of the clients' shares", ge=1)
    soft_lambda: float = only("fedsoft", 0.1, "pull of a client's model to the clusters' centres", ge=0)
    smoother: float = only("fedsoft", 1e-4, "least share of a client in a cluster", ge=0, le=1)
    finetune_epochs: int = only("fedavg_ft", 1, "passes over a client's examples before its evaluation", ge=1)
    ditto_lambda: float = only("ditto", 0.1, "pull of the personal model to the global one", ge=0)
    personal_epochs: int = only("ditto", 0, "passes of the personal model per round; 0: training's", ge=0)
    head_layers: int = only("fedper", 1, "modules at the end of the model that are each client's own", ge=1)
    alpha: float = only("apfl", 0.5, "share of the local model in the mixture, at first", ge=0, le=1)
    adaptive: bool = only("apfl", True, "adapt each client's share by a gradient step per round")


def _check_distance(s: StrategyConfig) -> None:
    """Refuse distances that mean nothing for what stands for a client."""
    if s.distance == "cosine" and s.representation in ("weights", "losses", "data"):
        raise ConfigError(
            f"strategy.representation={s.representation} with strategy.distance=cosine: only updates have an angle; "
            "set strategy.distance=euclidean or strategy.representation=updates"
        )
    if s.name == "flhc" and s.representation in ("losses", "data"):
        raise ConfigError(
            f"strategy.representation={s.representation} belongs to strategy=kmeans; "
            "for flhc set updates, weights or last_layer"
        )
    if s.distance == "manhattan" and (
        s.name == "kmeans" or s.linkage == "ward" or s.gate or (s.threshold is None and s.choose_k != "given")
    ):
        raise ConfigError(
            "strategy.distance=manhattan goes with strategy=flhc, a threshold or a given num_clusters, and without "
            "linkage=ward and gate, which are Euclidean; set strategy.distance=euclidean"
        )


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
    max_retries: int = Field(2, ge=0, description="times that a trial that died goes on from its last checkpoint")
    chunk_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field("auto", description="clients per host call")
    round_timeout_s: float = Field(3600.0, gt=0, description="deadline of a round's replies; late hosts are restarted")


class StopConfig(Section):
    """When a trial ends before its last round: as soon as one of these rules holds, at an evaluated round."""

    metric: str = Field("3_clients/acc", description="logged metric that target and patience watch")
    mode: Literal["max", "min"] = Field("max", description="whether more of the metric is better, or less")
    target: float | None = Field(None, description="stop where the metric is at least (mode=min: at most) this")
    patience: int | None = Field(None, ge=1, description="stop after so many evaluations without an improvement")
    min_delta: float = Field(0.0, ge=0, description="what counts as an improvement, for patience")
    wall_s: float | None = Field(None, gt=0, description="stop after so many seconds of rounds, interruptions left out")
    mb: float | None = Field(None, gt=0, description="stop after so many MiB moved to and from clients")
    divergence: bool = Field(False, description="stop where a loss is NaN or infinite")

    def canonical(self) -> dict[str, Any]:
        """Return the rules that are set; what target and patience watch only where one of them is."""
        rules = {key: value for key, value in super().canonical().items() if value not in (None, False)}
        watched = () if self.target is None and self.patience is None else ("metric", "mode")
        unused = {"metric", "mode", "min_delta"} - {*watched, *(("min_delta",) if self.patience else ())}
        return {key: value for key, value in rules.items() if key not in unused}

    @field_validator("metric")
    @classmethod
    def _is_logged(cls, name: str) -> str:
        """Refuse a metric that no trial logs; clustered strategies add diagnostics of their own to ``2_clusters``."""
        if name not in LOGGED and not name.startswith("2_clusters/"):
            raise ConfigError(unknown("metric", name, LOGGED))
        return name


class CheckpointConfig(Section):
    """Where a trial keeps what it needs to go on after an interruption. Never changes a result."""

    storage_path: str | None = Field(
        None, description="folder or fsspec URL that every node can write; null: a folder under tracking.output"
    )
    every: int = Field(1, ge=1, description="rounds from one checkpoint to the next; an interruption redoes so many")

    @field_validator("storage_path")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        """Resolve a path against the driver's folder: other processes have another one."""
        return path if path is None or "://" in path else str(Path(path).expanduser().absolute())


class TrackingConfig(Section):
    """Where results go. Never changes a result."""

    uri: str | None = Field(None, description="MLflow tracking URI; null: an SQLite store under output")
    experiment: str = Field("fedsweep", min_length=1, description="MLflow experiment")
    log_models: bool = Field(True, description="log the final models as MLflow models")
    figures: Literal["all", "data", "none"] = Field(
        "all", description="pictures of each trial: all, those of its data alone, or none (reports draw their own)"
    )
    patience_s: float = Field(
        60.0,
        ge=0,
        description="seconds to wait at the end for a store that does not answer; then events stay on disk",
    )
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
    stop: StopConfig = Field(default_factory=StopConfig, description="rules that end a trial early")
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
            _check_distance(s)
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
        """Stable identity of the trial: 12 hex digits of the SHA-256 of its canonical form."""
        text = json.dumps(self.canonical(), sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
