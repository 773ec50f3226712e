"""Federated strategies by name: Flower's own, and ours beside them. They run unmodified on any Flower Grid.

To add one: write a Flower ``Strategy`` in a file of this package, and name it in ``STRATEGIES``.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedsweep.strategies.apart import StateApart
from fedsweep.strategies.apfl import APFL, Mixing
from fedsweep.strategies.base import Clustered, Resumable, mean_of_scored
from fedsweep.strategies.candidates import Choosing
from fedsweep.strategies.cfl import CFL
from fedsweep.strategies.clients import ClientPart
from fedsweep.strategies.clove import CLoVE
from fedsweep.strategies.clustered import ClusterTraining
from fedsweep.strategies.ditto import Ditto, DittoClients
from fedsweep.strategies.fedadam import FedAdam
from fedsweep.strategies.fedavg_ft import FedAvgFT, Finetuning
from fedsweep.strategies.fedclust import FedClust
from fedsweep.strategies.fedgroup import FedGroup
from fedsweep.strategies.fedper import FedPer, OwnHeads
from fedsweep.strategies.fedsoft import FedSoft, SoftMembers
from fedsweep.strategies.fesem import FeSEM
from fedsweep.strategies.flhc import FLHC
from fedsweep.strategies.ifca import IFCA
from fedsweep.strategies.insides import aggregate_metricrecords
from fedsweep.strategies.kmeans import KMeans
from fedsweep.strategies.layout import Layout, WithLayout
from fedsweep.strategies.local import KeepLocal, Local
from fedsweep.strategies.oracle import Oracle
from fedsweep.strategies.pacfl import PACFL
from fedsweep.strategies.privacy import AdaptiveNorm, FixedNorm, Norm, PrivateMean
from fedsweep.strategies.qfedavg import QFedAvg, TellingLoss
from fedsweep.strategies.robust import Bulyan, Krum, MultiKrum, TrimmedMean
from fedsweep.strategies.scaffold import Corrected, Scaffold
from fedsweep.strategies.selection import ServerRule
from fedsweep.strategies.stocfl import StoCFL

__all__ = [
    "STRATEGIES",
    "Clustered",
    "Layout",
    "Resumable",
    "build_strategy",
    "client_part",
    "is_weighted_mean",
    "with_layout",
    "wrap_privacy",
]

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
    "fedadam": FedAdam,
    "fedadagrad": flower.FedAdagrad,
    "fedyogi": flower.FedYogi,
    "fedprox": flower.FedProx,
    "fedmedian": flower.FedMedian,
    "fedtrimmedavg": TrimmedMean,
    "krum": Krum,
    "multikrum": MultiKrum,
    "bulyan": Bulyan,
    "qfedavg": QFedAvg,
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

_CLIENT_PARTS: dict[str, type[ClientPart]] = {
    part.method: part
    for part in (
        ClientPart,
        Choosing,
        Corrected,
        DittoClients,
        Finetuning,
        KeepLocal,
        Mixing,
        OwnHeads,
        SoftMembers,
        TellingLoss,
    )
}

_NORMS: dict[str, Callable[..., Norm]] = {
    "fixed_server": FixedNorm,
    "fixed_client": FixedNorm,
    "adaptive_server": AdaptiveNorm,
    "adaptive_client": AdaptiveNorm,
}

_PRIVATE = (
    flower.FedAvg,
    flower.FedProx,
    flower.FedAvgM,
    FedAdam,
    flower.FedAdagrad,
    flower.FedYogi,
)
"""Those that take a mean over clients, to which noise can be added, and go on from it."""

_WEIGHTED_MEANS = {
    flower.FedAvg,
    flower.FedAvgM,
    flower.FedProx,
    FedAdam,
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
    kwargs = {
        key: value for key, value in params.items() if key not in ("name", "min_fit_fraction")
    }
    for share in ("fraction_train", "fraction_evaluate"):
        if share in kwargs:
            kwargs[share] = Share(kwargs[share])
    kwargs["evaluate_metrics_aggr_fn"] = mean_of_scored
    if name == "qfedavg":
        if client_learning_rate is None:
            raise ValueError(
                "strategy=qfedavg needs the clients' learning rate; give client_learning_rate"
            )
        kwargs["client_learning_rate"] = client_learning_rate
    wanted = kwargs.get("choose_k", "given") == "given" and kwargs.get("threshold") is None
    if wanted and kwargs.get("num_clusters", 0) > num_clients:
        raise ValueError(
            f"strategy.num_clusters={kwargs['num_clusters']} is more than num_clients={num_clients}"
        )
    if "server" in kwargs:
        kwargs["server"] = ServerRule(**kwargs["server"])
    if name in _CLUSTER_TRAINING or "seed" in signature(STRATEGIES[name]).parameters:
        kwargs["seed"] = seed
    if name == "oracle":
        if groups is None:
            raise ValueError("strategy=oracle needs the true groups; give groups by node id")
        kwargs |= {"groups": groups, "drifted": drifted, "drift_round": drift_round}
    return STRATEGIES[name](**kwargs)


def client_part(method: str) -> ClientPart:
    """Return what a method's clients do; "" is FedAvg's.

    Raises
    ------
    ValueError
        No method is called so.
    """
    if method not in _CLIENT_PARTS:
        valid = ", ".join(sorted(name for name in _CLIENT_PARTS if name))
        raise ValueError(f"unknown method '{method}'. Valid: {valid}.")
    return _CLIENT_PARTS[method]()


def wrap_privacy(strategy: Strategy, params: Mapping[str, Any]) -> Strategy:
    """Return the strategy behind clipping and noise, or itself for ``none``.

    Parameters
    ----------
    strategy : Strategy
        One that goes on from a mean over clients: ``fedavg``, ``fedprox``, ``fedavgm``,
        ``fedadam``, ``fedadagrad``, ``fedyogi``.
    params : mapping
        ``PrivacyConfig.canonical()``. Under the ``*_client`` kinds the ClientApp has to clip.

    Raises
    ------
    ValueError
        If the kind is unknown, or the strategy takes no mean over clients.
    """
    kwargs = {key: value for key, value in params.items() if key != "name"}
    name = params["name"]
    if name == "none":
        return strategy
    if name not in _NORMS:
        raise ValueError(f"unknown privacy '{name}'. Valid: none, {', '.join(sorted(_NORMS))}.")
    if not isinstance(strategy, flower.FedAvg) or type(strategy) not in _PRIVATE:
        raise ValueError(
            f"privacy={name} needs a strategy that takes a mean over clients, and "
            f"{type(strategy).__name__} is not known to; take one of "
            f"{', '.join(kind.__name__ for kind in _PRIVATE)}"
        )
    if "initial_clipping_norm" in kwargs:
        kwargs["clipping_norm"] = kwargs.pop("initial_clipping_norm")
    return PrivateMean(strategy, _NORMS[name](**kwargs), clients_clip=name.endswith("_client"))


def with_layout(strategy: Strategy, layout: Layout) -> Strategy:
    """Tell a strategy what the arrays of its model are.

    One that does its own maths on models takes the layout; any other sees the trained arrays alone, by
    :class:`~fedsweep.strategies.apart.StateApart`, where the model has anything else.

    Parameters
    ----------
    strategy : Strategy
        Any Flower strategy, inside a privacy wrapper or not.
    layout : Layout
        Of the model that it is given.
    """
    if isinstance(strategy, WithLayout):
        strategy.layout = layout
        return strategy
    return StateApart(strategy, layout) if layout.has_state else strategy


def is_weighted_mean(strategy: Strategy) -> bool:
    """Whether replies of the round that was configured last may be replaced by partial weighted means.

    Ask after ``configure_train``: clustered methods must see each reply in their clustering rounds. Only types known to
    average are named, never subclasses; a privacy wrapper clips each reply, and metrics aggregated in a way of the
    user's own need each reply too.
    """
    if isinstance(strategy, StateApart):
        return is_weighted_mean(strategy.strategy)
    if type(strategy) in _CLUSTER_TRAINING.values():
        averages = not strategy.clustering_round  # type: ignore[attr-defined]
    else:
        averages = type(strategy) in _WEIGHTED_MEANS
    return averages and getattr(strategy, "train_metrics_aggr_fn", None) is aggregate_metricrecords
