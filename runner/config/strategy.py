"""How updates become models: the strategies, the servers of clusters, differential privacy."""

from typing import Literal

from pydantic import Field

from fedsweep.config.ranges import CLIENTS, EXAMPLES, METRIC, ROUNDS, SHARE, WEIGHT
from fedsweep.config.section import Section, only
from fedsweep.errors import ConfigError


class ServerConfig(Section):
    """Which member of a cluster is its server."""

    rule: Literal["load", "load_once", "random", "round_robin", "largest_data"] = Field(
        "load",
        description="load: lowest score each round; load_once: chosen at the clustering round and kept",
    )
    mode: Literal["measured", "simulated", "hybrid"] = Field(
        "measured",
        description="simulated: of the examples on a drawn device; hybrid: measured, scaled by it",
    )
    cpu_weight: float = Field(
        0.5,
        ge=0,
        le=WEIGHT,
        description="weight of a client task's CPU seconds in the score",
    )
    mem_weight: float = Field(
        0.3,
        ge=0,
        le=WEIGHT,
        description="weight of a client task's peak memory in the score",
    )
    node_weight: float = Field(
        0.2,
        ge=0,
        le=WEIGHT,
        description="weight of the node's CPU + memory load in the score",
    )
    ewma: float = Field(
        0.5,
        ge=SHARE,
        le=1,
        description="weight of the newest measurement in the moving average",
    )
    hysteresis: float = Field(
        0.85,
        ge=SHARE,
        le=1,
        description="switch only below this share of the incumbent's score",
    )
    min_tenure: int = Field(
        3,
        ge=1,
        le=ROUNDS,
        description="rounds that a server keeps its role at least",
    )


class StrategyConfig(Section):
    """How updates become models. Names and meanings are Flower's where Flower has them."""

    name: Literal[
        "fedavg", "fedavgm", "fedadam", "fedadagrad", "fedyogi", "fedprox", "fedmedian", "fedtrimmedavg",
        "krum", "multikrum", "bulyan", "qfedavg", "kmeans", "local",
        "flhc", "cfl", "fesem", "fedgroup", "pacfl", "stocfl", "fedclust", "oracle",
        "ifca", "clove", "fedsoft", "fedavg_ft", "ditto", "fedper", "apfl", "scaffold",
    ] = Field("fedavg", description="the strategy")  # fmt: skip
    fraction_train: float = Field(
        1.0,
        ge=SHARE,
        le=1,
        description="share of the clients that train in a round",
    )
    fraction_evaluate: float = Field(
        1.0, ge=0, le=1, description="share of the clients that evaluate"
    )
    min_train_nodes: int = Field(1, ge=1, le=CLIENTS, description="train at least so many clients")
    min_evaluate_nodes: int = Field(
        1,
        ge=0,
        le=CLIENTS,
        description="evaluate at least so many clients",
    )
    min_available_nodes: int = Field(
        1,
        ge=1,
        le=CLIENTS,
        description="start only with so many clients",
    )
    min_fit_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="below this share of usable replies, or answers to a query, a round fails",
    )
    server_learning_rate: float = only("fedavgm scaffold", 1.0, "server's step size", gt=0, le=1000)
    server_momentum: float = only("fedavgm", 0.9, "server's momentum", ge=0, lt=1)
    eta: float = only("fedadam fedadagrad fedyogi", 0.01, "server's step size", gt=0, le=1000)

    beta_1: float = only("fedadam fedyogi", 0.9, "first moment's decay", ge=0, lt=1)
    beta_2: float = only("fedadam fedyogi", 0.99, "second moment's decay", ge=0, lt=1)
    tau: float = only(
        "fedadam fedadagrad fedyogi",
        1e-3,
        "adaptivity: added to the root of the second moment",
        gt=0,
        le=1000,
    )
    proximal_mu: float = only("fedprox stocfl", 0.1, "weight of the proximal term", ge=0, le=WEIGHT)
    beta: float = only("fedtrimmedavg", 0.2, "share cut at each end", ge=0, lt=0.5)
    num_malicious_nodes: int = only(
        "krum multikrum bulyan",
        1,
        "attackers to withstand",
        ge=0,
        le=CLIENTS,
    )
    num_nodes_to_select: int = only("multikrum", 3, "replies that are averaged", ge=1, le=CLIENTS)
    q: float = only("qfedavg", 0.1, "fairness; 0 is the plain mean over clients", ge=0, le=1000)
    num_clusters: int = only(
        "kmeans flhc fesem fedgroup pacfl fedclust ifca clove fedsoft",
        4,
        "clusters; 1 is FedAvg",
        ge=1,
        le=CLIENTS,
    )
    choose_k: Literal["given", "silhouette", "gap", "davies_bouldin"] = only(
        "kmeans flhc fesem fedgroup pacfl fedclust",
        "given",
        "given: num_clusters; else the rule that chooses their number",
    )
    max_clusters: int = only(
        "kmeans flhc fesem fedgroup pacfl fedclust",
        8,
        "most clusters that choose_k may take",
        ge=2,
        le=CLIENTS,
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
        le=ROUNDS,
    )
    recluster_every: int = only(
        "kmeans", 0, "cluster anew every so many rounds after the warm-up; 0: once", ge=0, le=ROUNDS
    )
    stable_after: int = only(
        "kmeans",
        0,
        "end that once the same clusters came so many times in a row; 0: never",
        ge=0,
        le=ROUNDS,
    )
    representation: Literal["updates", "weights", "last_layer", "losses", "data"] = only(
        "kmeans flhc", "updates", "what stands for a client (flhc: from its model)"
    )
    distance: Literal["cosine", "euclidean", "manhattan"] = only(
        "kmeans flhc",
        "cosine",
        "how far apart two clients are; cosine needs updates, manhattan is flhc's",
    )
    sketch: int = only(
        "kmeans", 0, "numbers that a client sends of its update in place of its model, to be grouped by; 0: the model",
        ge=0, le=EXAMPLES,
    )  # fmt: skip
    linkage: Literal["average", "complete", "single", "ward"] = only(
        "flhc pacfl fedclust", "average", "how far apart two groups are"
    )
    threshold: float | None = only(
        "flhc pacfl fedclust",
        None,
        "distance at which the tree is cut; null: as choose_k says",
        gt=0,
        le=METRIC,
    )
    vectors: int = only(
        "pacfl",
        3,
        "singular vectors that a client sends per label",
        ge=1,
        le=EXAMPLES,
    )
    measure: Literal["mean", "smallest"] = only(
        "pacfl", "mean", "principal angle that tells subspaces apart"
    )
    eps1: float = only("cfl", 0.4, "split below this length of the mean update", gt=0, le=METRIC)
    eps2: float = only("cfl", 1.6, "and above this length of the longest update", ge=0, le=METRIC)
    relative: bool = only("cfl", False, "eps1, eps2 in units of the longest mean update so far")
    min_size: int = only("cfl", 2, "split only larger clusters", ge=2, le=CLIENTS)
    merge_cosine: float = only("stocfl", 0.45, "clusters this similar are merged", gt=-1, le=1)
    server: ServerConfig = only(
        "kmeans flhc fesem fedgroup pacfl fedclust cfl stocfl oracle ifca clove",
        ServerConfig(),
        "which member of a cluster is its server",
    )
    auto_k: bool = only(
        "clove", False, "choose the clusters' number, from 2 to num_clusters, by silhouette"
    )
    estimate_every: int = only(
        "fedsoft",
        2,
        "rounds between two estimations of the clients' shares",
        ge=1,
        le=ROUNDS,
    )
    soft_lambda: float = only(
        "fedsoft",
        0.1,
        "pull of a client's model to the clusters' centres",
        ge=0,
        le=WEIGHT,
    )
    smoother: float = only("fedsoft", 1e-4, "least share of a client in a cluster", ge=0, le=1)
    finetune_epochs: int = only(
        "fedavg_ft",
        1,
        "passes over a client's examples before its evaluation",
        ge=1,
        le=10**6,
    )
    ditto_lambda: float = only(
        "ditto",
        0.1,
        "pull of the personal model to the global one",
        ge=0,
        le=WEIGHT,
    )
    personal_epochs: int = only(
        "ditto",
        0,
        "passes of the personal model per round; 0: training's",
        ge=0,
        le=10**6,
    )
    head_layers: int = only(
        "fedper",
        1,
        "modules at the end of the model that are each client's own",
        ge=1,
        le=10**4,
    )
    alpha: float = only(
        "apfl", 0.5, "share of the local model in the mixture, at first", ge=0, le=1
    )
    adaptive: bool = only("apfl", True, "adapt each client's share by a gradient step per round")

    def trained(self, num_clients: int) -> int:
        """Return how many of so many clients train in a round; ``build_strategy`` counts alike."""
        whole = int(num_clients * self.fraction_train * (1 + 1e-12))  # .29 of 100 is 29
        return min(num_clients, max(whole, self.min_train_nodes))


def check_distance(s: StrategyConfig) -> None:
    """Refuse distances that mean nothing for what stands for a client."""
    if s.distance == "cosine" and s.representation in ("weights", "losses", "data"):
        raise ConfigError(
            f"strategy.representation={s.representation} with strategy.distance=cosine: only updates have an angle; "
            "set strategy.distance=euclidean or strategy.representation=updates"
        )
    if s.sketch and s.representation not in ("updates", "last_layer"):
        raise ConfigError(
            f"strategy.sketch={s.sketch} with strategy.representation={s.representation}: sketches are of updates; "
            "set strategy.representation=updates or last_layer, or strategy.sketch=0"
        )
    if s.name == "flhc" and s.representation in ("losses", "data"):
        raise ConfigError(
            f"strategy.representation={s.representation} belongs to strategy=kmeans; "
            "set strategy.representation=updates, weights or last_layer"
        )
    if s.distance == "manhattan" and (
        s.name == "kmeans"
        or s.linkage == "ward"
        or s.gate
        or (s.threshold is None and s.choose_k != "given")
    ):
        raise ConfigError(
            "strategy.distance=manhattan goes with strategy=flhc, a threshold or a given num_clusters, and without "
            "linkage=ward and gate, which are Euclidean; set strategy.distance=euclidean"
        )


def check_cohort(s: StrategyConfig, clients: int) -> None:
    """Refuse robust means of fewer clients a round than they are defined for."""
    f = s.num_malicious_nodes
    needed = {
        "krum": 2 * f + 3,
        "multikrum": max(2 * f + 3, s.num_nodes_to_select + f + 2),
        "bulyan": 4 * f + 3,
    }.get(s.name, 0)
    if clients < needed:
        chosen = f", num_nodes_to_select={s.num_nodes_to_select}" if s.name == "multikrum" else ""
        raise ConfigError(
            f"strategy={s.name} with num_malicious_nodes={f}{chosen} needs at least {needed} "
            f"training clients a round, but there are {clients}; train more clients or lower them"
        )
    if s.name == "fedtrimmedavg" and s.beta * clients + 1e-9 < 1:
        raise ConfigError(
            f"strategy=fedtrimmedavg with strategy.beta={s.beta:g} cuts nobody of {clients} "
            "clients a round; train more clients or raise strategy.beta"
        )


PRIVATE = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
"""Strategies that go on from a mean over clients, which is what privacy's noise is added to."""


class PrivacyConfig(Section):
    """Clipping and noise around the strategy: user-level differential privacy."""

    name: Literal["none", "fixed_server", "fixed_client", "adaptive_server", "adaptive_client"] = (
        Field("none", description="where updates are clipped, and whether the clipping norm adapts")
    )
    noise_multiplier: float = only(
        "fixed_server fixed_client adaptive_server adaptive_client",
        1.0,
        "noise deviation over clipping norm",
        ge=0,
        le=WEIGHT,
    )
    clipping_norm: float = only(
        "fixed_server fixed_client",
        1.0,
        "largest L2 norm of an update",
        gt=0,
        le=METRIC,
    )
    initial_clipping_norm: float = only(
        "adaptive_server adaptive_client", 0.1, "clipping norm of round 1", gt=0, le=METRIC
    )
    target_clipped_quantile: float = only(
        "adaptive_server adaptive_client", 0.5, "share left unclipped", gt=0, lt=1
    )
    clip_norm_lr: float = only(
        "adaptive_server adaptive_client", 0.2, "step size of the norm's adaptation", gt=0, le=1000
    )
