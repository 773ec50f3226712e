"""Federated strategies by name: Flower's own, and ours beside them.

They run unmodified on any Flower Grid.

To add one, write one file: see :mod:`fedsweep.strategies.registry`.
"""

from collections.abc import Mapping
from dataclasses import fields
from inspect import Parameter
from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedsweep.strategies.apart import StateApart
from fedsweep.strategies.base import Clustered, Resumable, mean_of_scored, says
from fedsweep.strategies.clustered import ClusterTraining
from fedsweep.strategies.defended import Defend, Defended
from fedsweep.strategies.insides import aggregate_metricrecords
from fedsweep.strategies.layout import Layout, WithLayout
from fedsweep.strategies.privacy import AdaptiveNorm, FixedNorm, PrivateMean
from fedsweep.strategies.registry import STRATEGIES, settings_of
from fedsweep.strategies.selection import ServerRule
from fedsweep.strategies.settings import Setting
from fedsweep.strategies.signature import SignatureSettings, parameters

__all__ = [
    "STRATEGIES",
    "Clustered",
    "Layout",
    "Resumable",
    "build_strategy",
    "is_weighted_mean",
    "settings_of",
    "with_defence",
    "with_layout",
    "wrap_privacy",
]

_NORMS: dict[str, type[FixedNorm | AdaptiveNorm]] = {
    "fixed_server": FixedNorm,
    "fixed_client": FixedNorm,
    "adaptive_server": AdaptiveNorm,
    "adaptive_client": AdaptiveNorm,
}

_GIVE = {
    "client_learning_rate": "the clients' learning rate; give client_learning_rate",
    "groups": "the true groups; give groups by node id",
}
"""What a trial may tell a method beside its settings, where the method can't do without."""


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

    Beside its settings a strategy is told of the seed, the learning rate and the groups what its
    constructor has a parameter for, by these names.

    Parameters
    ----------
    name : str
        One of ``STRATEGIES``.
    params : mapping
        The strategy's settings, named as its constructor names them: those of ``settings_of``.
    seed : int
        Root of the strategy's own random choices.
    num_clients : int
        Clients of the trial.
    client_learning_rate : float, optional
        The clients' step size.
    groups : mapping, optional
        Node id -> true group.
    drifted, drift_round : mapping and int, optional
        The true groups from a round on.

    Raises
    ------
    ValueError
        If the name is unknown, or the settings do not go together.
    """
    name = STRATEGIES.find(name)
    settings = settings_of(name, **{k: value for k, value in params.items() if k != "name"})
    settings.check()
    settings.check_in(Setting(num_clients, settings.trained(num_clients)))

    # The name is the registry's, and the least share of replies is the round loop's to watch.
    left_out = ("name", "min_fit_fraction")
    kwargs = {k: value for k, value in settings.canonical().items() if k not in left_out}

    for share in ("fraction_train", "fraction_evaluate"):
        if share in kwargs:
            kwargs[share] = Share(kwargs[share])
    if "server" in kwargs:
        kwargs["server"] = ServerRule.model_validate(kwargs["server"])
    taken = parameters(STRATEGIES[name])
    if isinstance(settings, SignatureSettings):
        kwargs = {key: value for key, value in kwargs.items() if key not in settings.without}
    if "evaluate_metrics_aggr_fn" in taken:
        kwargs["evaluate_metrics_aggr_fn"] = mean_of_scored

    # What else the method's constructor asks for is told by the trial.
    told = {
        "seed": seed,
        "client_learning_rate": client_learning_rate,
        "groups": groups,
        "drifted": drifted,
        "drift_round": drift_round,
    }
    for key, parameter in taken.items():
        if key in told:
            kwargs[key] = told[key]
            if told[key] is None and parameter.default is Parameter.empty:
                raise ValueError(f"strategy={name} needs {_GIVE[key]}")
    return STRATEGIES[name](**kwargs)


def wrap_privacy(
    strategy: Strategy, params: Mapping[str, Any], rate: float | None = None
) -> Strategy:
    """Return the strategy behind clipping and noise, or itself for ``none`` and ``local_sgd``.

    Parameters
    ----------
    strategy : Strategy
        One that goes on from a mean over clients, and says so.
    params : mapping
        ``PrivacyConfig.canonical()``: those that the noise depends on are taken. Under the
        ``*_client`` kinds the ClientApp has to clip.
    rate : float, optional
        With which probability each client is asked in a round, where clients are drawn so.

    Raises
    ------
    ValueError
        If the kind is unknown, or the strategy takes no mean over clients.
    """
    kwargs, name = dict(params), params["name"]
    if name in ("none", "local_sgd"):  # the noise of the latter is in what clients train
        return strategy
    if name not in _NORMS:
        raise ValueError(f"unknown privacy '{name}'. Valid: none, {', '.join(sorted(_NORMS))}.")
    if not isinstance(strategy, flower.FedAvg) or not says(strategy, "private_mean"):
        raise ValueError(
            f"privacy={name} needs a strategy that takes a mean over clients, and "
            f"{type(strategy).__name__} is not known to; take one of "
            f"{', '.join(STRATEGIES.saying('private_mean'))}"
        )
    if "initial_clipping_norm" in kwargs:
        kwargs["clipping_norm"] = kwargs.pop("initial_clipping_norm")
    taken = {field.name for field in fields(_NORMS[name])}
    norm = _NORMS[name](**{key: value for key, value in kwargs.items() if key in taken})
    return PrivateMean(strategy, norm, clients_clip=name.endswith("_client"), rate=rate)


def with_defence(strategy: Strategy, defend: Defend) -> Strategy:
    """Return a strategy whose means are of what a defence makes of the clients' updates.

    A method that trains in clusters takes it inside each; around any other one it sees all.
    """
    if isinstance(strategy, ClusterTraining):
        strategy.defend = defend
        return strategy
    return Defended(strategy, defend)


def with_layout(strategy: Strategy, layout: Layout) -> Strategy:
    """Tell a strategy what the arrays of its model are.

    One that does its own maths on models takes the layout; any other sees the trained arrays alone,
    by :class:`~fedsweep.strategies.apart.StateApart`, where the model has anything else.

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
    """Whether replies of the last configured round may be replaced by partial weighted means.

    Ask after ``configure_train``: clustered methods must see each reply in their clustering rounds.
    A class says it for itself, and for none derived from it; a defence and a privacy wrapper see
    each reply, and metrics aggregated in a way of the user's own need each reply too.
    """
    if isinstance(strategy, StateApart):
        return is_weighted_mean(strategy.strategy)
    reads = getattr(strategy, "clustering_round", False) or getattr(strategy, "defend", None)
    averages = says(strategy, "partial_means") and not reads
    return averages and getattr(strategy, "train_metrics_aggr_fn", None) is aggregate_metricrecords
