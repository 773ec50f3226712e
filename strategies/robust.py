"""The maths of means that withstand f attackers among n clients: Krum, Multi-Krum, Bulyan, the trimmed mean.

No client has a weight: the examples are what an attacker says they are. Differences are taken in
float64 and then squared. Deviations, and Flower's own classes: docs/strategies/robust.md.
"""

from collections.abc import Callable, Iterable, Sequence
from math import floor

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from pydantic import Field

from fedsweep.strategies.base import arrays_of
from fedsweep.strategies.insides import AggregationError
from fedsweep.strategies.layout import is_floating
from fedsweep.strategies.ranges import CLIENTS
from fedsweep.strategies.settings import FedAvgSettings

BLOCK_FLOATS = 2**24
"""Numbers of all clients that are held in float64 at a time while distances are taken."""


class AttackersSettings(FedAvgSettings):
    """Of a mean that withstands a number of attackers."""

    num_malicious_nodes: int = Field(1, ge=0, le=CLIENTS, description="attackers to withstand")


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


def mean(values: np.ndarray) -> np.ndarray:
    """Return, for each number of (n, ...), the plain mean."""
    return np.asarray(values.mean(axis=0))


def check_replies(name: str, server_round: int, f: int, n: int, needed: int) -> None:
    """Refuse fewer replies than a mean is defined for.

    Raises
    ------
    AggregationError
        n is less than what is needed.
    """
    if n < needed:
        raise AggregationError(
            f"round {server_round}: strategy={name} with num_malicious_nodes={f} needs {needed} "
            f"replies or more, but {n} came; train more clients or lower num_malicious_nodes"
        )


def check_cohort(settings: str, clients: int, needed: int) -> None:
    """Refuse fewer clients a round than a mean is defined for.

    Raises
    ------
    ValueError
        There are fewer than what is needed; ``settings`` says by which settings.
    """
    if clients < needed:
        raise ValueError(
            f"{settings} needs at least {needed} training clients a round, but there are {clients}; "
            "train more clients or lower them"
        )


def combined(
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
