"""Federated strategies by name: Flower's own, and ours beside them. They run unmodified on any Flower Grid.

To add one: write a Flower ``Strategy`` in a file of this package, and name it in ``STRATEGIES``.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from strategies.apfl import APFL
from strategies.base import Clustered, Resumable
from strategies.cfl import CFL
from strategies.clove import CLoVE
from strategies.clustered import ClusterTraining
from strategies.ditto import Ditto
from strategies.fedavg_ft import FedAvgFT
from strategies.fedclust import FedClust
from strategies.fedgroup import FedGroup
from strategies.fedper import FedPer
from strategies.fedsoft import FedSoft
from strategies.fesem import FeSEM
from strategies.flhc import FLHC
from strategies.ifca import IFCA
from strategies.kmeans import KMeans
from strategies.local import Local
from strategies.oracle import Oracle
from strategies.pacfl import PACFL
from strategies.scaffold import Scaffold
from strategies.selection import ServerRule
from strategies.stocfl import StoCFL

__all__ = ["STRATEGIES", "Clustered", "Resumable", "build_strategy", "is_weighted_mean", "wrap_privacy"]

_CLUSTER_TRAINING: dict[str, type[ClusterTraining]] = {
    "kmeans": KMeans,
    "flhc": FLHC,
    "cfl": CFL,
    "fesem": FeSEM,
    "fedgroup": FedGroup,
    "pacfl": PACFL,
    "stocfl": StoCFL,
    "fedclust": FedClust,
    "oracle": Oracle,
}

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "fedavg": flower.FedAvg,
    "fedavgm": flower.FedAvgM,
    "fedadam": flower.FedAdam,
    "fedadagrad": flower.FedAdagrad,
    "fedyogi": flower.FedYogi,
    "fedprox": flower.FedProx,
    "fedmedian": flower.FedMedian,
    "fedtrimmedavg": flower.FedTrimmedAvg,
    "krum": flower.Krum,
    "multikrum": flower.MultiKrum,
    "bulyan": flower.Bulyan,
    "qfedavg": flower.QFedAvg,
    **_CLUSTER_TRAINING,
    "local": Local,
    "ifca": IFCA,
    "clove": CLoVE,
    "fedsoft": FedSoft,
    "fedavg_ft": FedAvgFT,
    "ditto": Ditto,
    "fedper": FedPer,
    "apfl": APFL,
    "scaffold": Scaffold,
}

_PRIVACY: dict[str, Callable[..., Strategy]] = {
    "fixed_server": flower.DifferentialPrivacyServerSideFixedClipping,
    "fixed_client": flower.DifferentialPrivacyClientSideFixedClipping,
    "adaptive_server": flower.DifferentialPrivacyServerSideAdaptiveClipping,
    "adaptive_client": flower.DifferentialPrivacyClientSideAdaptiveClipping,
}

_WEIGHTED_MEANS = {
    flower.FedAvg,
    flower.FedAvgM,
    flower.FedProx,
    flower.FedAdam,
    flower.FedAdagrad,
    flower.FedYogi,
    FedAvgFT,
    Ditto,
    FedPer,
    APFL,
}


class Share(float):
    """A share of clients. Flower cuts off ``clients * share``: .29 of 100 is 29 here, not 28."""

    def __rmul__(self, clients: float) -> float:
        """Return the product, above any whole number that the floats fell short of."""
        return clients * float(self) * (1 + 1e-12)


def build_strategy(
    name: str,
    params: Mapping[str, Any],
    seed: int,
    num_clients: int,
    *,
    client_learning_rate: float | None = None,
    groups: Mapping[int, int] | None = None,
    drifted: Mapping[int, int] | None = None,
    drift_round: int = 0,
) -> Strategy:
    """Return the strategy of a trial.

    Parameters
    ----------
    name : str
        One of ``STRATEGIES``.
    params : mapping
        The strategy's settings, named as its constructor names them: ``StrategyConfig.canonical()``.
    seed : int
        Root of the strategy's own random choices.
    num_clients : int
        Clients of the trial.
    client_learning_rate : float, optional
        The clients' step size, which q-FedAvg takes for its Lipschitz estimate 1/lr.
    groups : mapping, optional
        Node id -> true group, which the oracle is told.
    drifted, drift_round : mapping and int, optional
        The true groups from a round on, which the oracle is told as well.

    Raises
    ------
    ValueError
        If the name is unknown, or the settings do not go together.
    """
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy '{name}'. Valid: {', '.join(sorted(STRATEGIES))}.")
    # The name is the registry's, and the least share of replies is the round loop's to watch.
    kwargs = {key: value for key, value in params.items() if key not in ("name", "min_fit_fraction")}
    for share in ("fraction_train", "fraction_evaluate"):
        if share in kwargs:
            kwargs[share] = Share(kwargs[share])
    if name == "qfedavg":
        if client_learning_rate is None:
            raise ValueError("strategy=qfedavg needs the clients' learning rate; give client_learning_rate")
        kwargs["client_learning_rate"] = client_learning_rate
    wanted = kwargs.get("choose_k", "given") == "given" and kwargs.get("threshold") is None
    if wanted and kwargs.get("num_clusters", 0) > num_clients:
        raise ValueError(f"strategy.num_clusters={kwargs['num_clusters']} is more than num_clients={num_clients}")
    if "server" in kwargs:
        kwargs["server"] = ServerRule(**kwargs["server"])
    if name in _CLUSTER_TRAINING or "seed" in signature(STRATEGIES[name]).parameters:
        kwargs["seed"] = seed
    if name == "oracle":
        if groups is None:
            raise ValueError("strategy=oracle needs the true groups; give groups by node id")
        kwargs |= {"groups": groups, "drifted": drifted, "drift_round": drift_round}
    return STRATEGIES[name](**kwargs)


def wrap_privacy(strategy: Strategy, params: Mapping[str, Any], num_sampled: int) -> Strategy:
    """Return the strategy inside Flower's differential-privacy wrapper, or itself for ``none``.

    Parameters
    ----------
    strategy : Strategy
        One of Flower's own.
    params : mapping
        ``PrivacyConfig.canonical()``. The ``*_client`` kinds also need Flower's clipping mod in the ClientApp.
    num_sampled : int
        Clients that train in a round; the noise is scaled to it.

    Raises
    ------
    ValueError
        If the kind is unknown, or an adaptive one has too few clients for its noise.
    """
    kwargs = {key: value for key, value in params.items() if key != "name"}
    if params["name"] == "none":
        return strategy
    if params["name"] not in _PRIVACY:
        raise ValueError(f"unknown privacy '{params['name']}'. Valid: none, {', '.join(sorted(_PRIVACY))}.")
    # Flower spends a part of the noise on the count of clipped updates, whose deviation is num_sampled / 20.
    if params["name"].startswith("adaptive") and params["noise_multiplier"] >= num_sampled / 10:
        raise ValueError(
            f"privacy.noise_multiplier={params['noise_multiplier']} must be below {num_sampled / 10}, a tenth of the "
            f"clients that train in a round, under privacy={params['name']}; lower it or train more clients"
        )
    return _PRIVACY[params["name"]](strategy, num_sampled_clients=num_sampled, **kwargs)


def is_weighted_mean(strategy: Strategy) -> bool:
    """Whether replies of the round that was configured last may be replaced by partial weighted means.

    Ask after ``configure_train``: clustered methods must see each reply in their clustering rounds. Only types known to
    average are named, never subclasses; a privacy wrapper clips each reply, and metrics aggregated in a way of the
    user's own need each reply too.
    """
    if type(strategy) in _CLUSTER_TRAINING.values():
        averages = not strategy.clustering_round  # type: ignore[attr-defined]
    else:
        averages = type(strategy) in _WEIGHTED_MEANS
    return averages and getattr(strategy, "train_metrics_aggr_fn", None) is aggregate_metricrecords
