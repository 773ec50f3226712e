"""Means that withstand f attackers among n clients: Krum, Multi-Krum, Bulyan, the trimmed mean.

Blanchard, El Mhamdi, Guerraoui and Stainer 2017, "Machine Learning with Adversaries: Byzantine
Tolerant Gradient Descent" (Krum, Multi-Krum); El Mhamdi, Guerraoui and Rouault 2018, "The Hidden
Vulnerability of Distributed Learning in Byzantium" (Bulyan, arXiv:1802.07927); Yin, Chen,
Ramchandran and Bartlett 2018, "Byzantine-Robust Distributed Learning" (arXiv:1803.01498).

No client has a weight: the examples are what an attacker says they are. Differences are taken in
float64 and then squared. Deviations, and Flower's own classes: docs/strategies/robust.md.
"""

from collections.abc import Callable, Iterable, Sequence
from math import floor
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from fedsweep.strategies.base import arrays_of, sort_replies
from fedsweep.strategies.insides import AggregationError
from fedsweep.strategies.layout import is_floating

BLOCK_FLOATS = 2**24
"""Numbers of all clients that are held in float64 at a time while distances are taken."""


class Krum(FedAvg):
    """The one model that is closest to its n - f - 2 nearest.

    Parameters
    ----------
    num_malicious_nodes : int
        f; n must be 2f + 3 or more in every round.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    def __init__(self, *, num_malicious_nodes: int = 0, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.num_malicious_nodes = num_malicious_nodes

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the chosen model, and its client's metrics.

        Raises
        ------
        AggregationError
            If too few clients replied.
        """
        f, valid = self.num_malicious_nodes, sort_replies(self, replies, read_arrays=True)[0]
        _check(server_round, "krum", f, len(valid), 2 * f + 3)
        models = [arrays_of(reply) for reply in valid]
        return _combined(self, valid, nearest(squared_distances(models), f, 1), _mean)


class MultiKrum(FedAvg):
    """The mean of the m models that are closest to their n - f - 2 nearest.

    Parameters
    ----------
    num_malicious_nodes : int
        f; n must be 2f + 3 or more in every round.
    num_nodes_to_select : int
        m, n - f - 2 at most.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    def __init__(
        self,
        *,
        num_malicious_nodes: int = 0,
        num_nodes_to_select: int = 1,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        self.num_malicious_nodes = num_malicious_nodes
        self.num_nodes_to_select = num_nodes_to_select

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the mean of the chosen models, and their clients' metrics.

        Raises
        ------
        AggregationError
            If too few clients replied.
        """
        f, m = self.num_malicious_nodes, self.num_nodes_to_select
        valid = sort_replies(self, replies, read_arrays=True)[0]
        _check(server_round, "multikrum", f, len(valid), max(2 * f + 3, m + f + 2))
        models = [arrays_of(reply) for reply in valid]
        return _combined(self, valid, nearest(squared_distances(models), f, m), _mean)


class Bulyan(FedAvg):
    """Krum's choice again and again, then each number's mean of those nearest to its median.

    Parameters
    ----------
    num_malicious_nodes : int
        f; n must be 4f + 3 or more in every round.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    def __init__(self, *, num_malicious_nodes: int = 0, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.num_malicious_nodes = num_malicious_nodes

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the model, and the metrics of the clients that Krum chose.

        Raises
        ------
        AggregationError
            If too few clients replied.
        """
        f, valid = self.num_malicious_nodes, sort_replies(self, replies, read_arrays=True)[0]
        _check(server_round, "bulyan", f, len(valid), 4 * f + 3)
        chosen = one_by_one(squared_distances([arrays_of(reply) for reply in valid]), f)
        beta = len(chosen) - 2 * f
        return _combined(self, valid, chosen, lambda values: around_the_median(values, beta))


class TrimmedMean(FedAvg):
    """Each number's mean without the share beta of the lowest and of the highest.

    Parameters
    ----------
    beta : float
        Share cut at each end, so that beta n is 1 or more.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    def __init__(self, *, beta: float = 0.2, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.beta = beta

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the trimmed mean, and the metrics of all that replied.

        Raises
        ------
        AggregationError
            If beta of those that replied is nobody.
        """
        valid = sort_replies(self, replies, read_arrays=True)[0]
        if (cut := num_cut(self.beta, len(valid))) < 1:
            raise AggregationError(
                f"round {server_round}: strategy=fedtrimmedavg with beta={self.beta:g} cuts nobody "
                f"of {len(valid)} replies; train more clients or raise strategy.beta"
            )
        everybody = range(len(valid))
        return _combined(self, valid, everybody, lambda values: trimmed_mean(values, cut))


def squared_distances(models: Sequence[ArrayRecord]) -> np.ndarray:
    """Return ||x_i - x_j||^2 over all floating arrays, float64 (n, n); inf where not finite."""
    from scipy.spatial.distance import pdist, squareform  # here: it takes 0.1 s to import

    pairs = np.zeros(len(models) * (len(models) - 1) // 2)
    width = max(1, BLOCK_FLOATS // len(models))
    for key, first in models[0].items():
        if not is_floating(first):
            continue
        values_NP = np.stack([model[key].numpy().ravel() for model in models])
        for start in range(0, values_NP.shape[1], width):
            block = values_NP[:, start : start + width].astype(np.float64)
            pairs += pdist(block, "sqeuclidean")
    return np.asarray(squareform(np.where(np.isfinite(pairs), pairs, np.inf)))


def krum_scores(distances: np.ndarray, f: int) -> np.ndarray:
    """Return each client's sum of squared distances to its n - f - 2 nearest others, (n,).

    Bulyan's last choices are among few: then it is the nearest one.
    """
    n = len(distances)
    others = np.sort(np.where(np.eye(n, dtype=bool), np.inf, distances), axis=1)
    return np.asarray(others[:, : max(1, n - f - 2)].sum(axis=1))


def nearest(distances: np.ndarray, f: int, m: int) -> list[int]:
    """Return the rows of the m lowest scores, lowest first; of equals the first."""
    return [int(row) for row in np.argsort(krum_scores(distances, f), kind="stable")[:m]]


def one_by_one(distances: np.ndarray, f: int) -> list[int]:
    """Return the theta = n - 2f rows that Krum chooses, each among those that are left."""
    left, chosen = list(range(len(distances))), []
    for _ in range(len(distances) - 2 * f):
        [best] = nearest(distances[np.ix_(left, left)], f, 1)
        chosen.append(left.pop(best))
    return chosen


def around_the_median(values: np.ndarray, beta: int) -> np.ndarray:
    """Return, for each number of (theta, ...), the mean of the beta nearest to its median."""
    distance = np.abs(values - np.median(values, axis=0))
    rows = np.argsort(distance, axis=0, kind="stable")[:beta]
    return np.asarray(np.take_along_axis(values, rows, axis=0).mean(axis=0))


def num_cut(beta: float, n: int) -> int:
    """Return how many of n are cut at each end: beta n, rounded down (.29 of 100 is 29)."""
    return floor(beta * n + 1e-9)


def trimmed_mean(values: np.ndarray, cut: int) -> np.ndarray:
    """Return, for each number of (n, ...), the mean without the ``cut`` lowest and highest.

    What is not a number counts as the highest.
    """
    return np.asarray(np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0))


def _mean(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.mean(axis=0))


def _check(server_round: int, name: str, f: int, n: int, needed: int) -> None:
    if n < needed:
        raise AggregationError(
            f"round {server_round}: strategy={name} with num_malicious_nodes={f} needs {needed} "
            f"replies or more, but {n} came; train more clients or lower num_malicious_nodes"
        )


def _combined(
    strategy: FedAvg,
    valid: Sequence[Message],
    chosen: Iterable[int],
    combine: Callable[[np.ndarray], np.ndarray],
) -> tuple[ArrayRecord, MetricRecord]:
    """Return what ``combine`` makes of each chosen array, float64 (chosen, ...), in its dtype."""
    contents = [valid[row].content for row in chosen]
    models = [arrays_of(valid[row]) for row in chosen]
    arrays = ArrayRecord()
    for key, first in models[0].items():
        values = np.stack([model[key].numpy().astype(np.float64) for model in models])
        arrays[key] = Array(np.asarray(combine(values), np.dtype(first.dtype)))
    return arrays, strategy.train_metrics_aggr_fn(contents, strategy.weighted_by_key)
