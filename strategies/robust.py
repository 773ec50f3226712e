"""What means that withstand attackers share: Krum, Multi-Krum, Bulyan, the trimmed mean.

f is the number of attackers, n that of the clients.

No client has a weight: the examples are what an attacker says they are. Differences are taken in
float64 and then squared. Deviations, and Flower's own classes: docs/strategies/robust.md.
"""

from collections.abc import Callable, Iterable, Sequence
from math import floor
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from pydantic import Field

from fedsweep.strategies.base import arrays_of, metrics_of, sort_replies
from fedsweep.strategies.insides import AggregationError
from fedsweep.strategies.layout import is_floating
from fedsweep.strategies.ranges import CLIENTS
from fedsweep.strategies.settings import FedAvgSettings, Setting

Combine = Callable[[np.ndarray], np.ndarray]
"""Makes one array of those of the chosen clients: float64 (chosen, ...) -> (...)."""

BLOCK_FLOATS = 2**24
"""Numbers of all clients that are held in float64 at a time while distances are taken."""


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


def combined(
    strategy: FedAvg,
    valid: Sequence[Message],
    chosen: Iterable[int],
    combine: Combine,
) -> tuple[ArrayRecord, MetricRecord]:
    """Return what ``combine`` makes of each chosen array, float64 (chosen, ...), in its dtype."""
    taken = [valid[row] for row in chosen]
    models = [arrays_of(reply) for reply in taken]
    arrays = ArrayRecord()
    for key, first in models[0].items():
        values = np.stack([model[key].numpy().astype(np.float64) for model in models])
        arrays[key] = Array(np.asarray(combine(values), np.dtype(first.dtype)))
    return arrays, metrics_of(strategy, taken)


# What the methods share


class CheckedCohort(FedAvg):
    """FedAvg of a cohort that is looked at before it trains."""

    def check(self, clients: int) -> None:
        """Refuse fewer clients a round than the mean is defined for.

        Raises
        ------
        ValueError
            In one line: what was given, and what to change.
        """
        raise NotImplementedError

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask clients as FedAvg does.

        Raises
        ------
        ValueError
            They are fewer than the mean is defined for. Where nobody is there to be asked, whoever
            asks waits, and asks again.
        """
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if messages:
            self.check(len(messages))
        return messages


class AttackersSettings(FedAvgSettings):
    """Of a mean that withstands a number of attackers."""

    num_malicious_nodes: int = Field(1, ge=0, le=CLIENTS, description="attackers to withstand")

    @property
    def needed(self) -> int:
        """Clients a round that the mean is defined for."""
        raise NotImplementedError

    @property
    def told(self) -> str:
        """By which settings so many are needed."""
        return attackers_of(self)

    def check_in(self, setting: Setting) -> None:
        """Refuse fewer clients a round than the choice is defined for."""
        super().check_in(setting)
        check_attackers(self, setting.cohort)


class Attacked(CheckedCohort):
    """A mean of replies that are chosen by the distances between them; it accuses the others.

    Parameters
    ----------
    num_malicious_nodes : int
        f.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    accuses = True

    def __init__(self, *, num_malicious_nodes: int = 0, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.num_malicious_nodes = num_malicious_nodes
        self.accused: frozenset[int] = frozenset()

    @property
    def needed(self) -> int:
        """Clients a round that the mean is defined for."""
        raise NotImplementedError

    @property
    def told(self) -> str:
        """By which settings so many are needed."""
        return attackers_of(self)

    def check(self, clients: int) -> None:
        """Refuse fewer clients a round than the choice is defined for."""
        check_attackers(self, clients)

    def choose(self, distances: np.ndarray) -> tuple[list[int], Combine]:
        """Return which replies are chosen, and what is made of them.

        Parameters
        ----------
        distances : (n, n)
            Squared, between all replies.
        """
        raise NotImplementedError

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return what is made of the chosen models, and their clients' metrics.

        Raises
        ------
        AggregationError
            If too few clients replied.
        """
        valid = sort_replies(self, replies, read_arrays=True)[0]
        if len(valid) < self.needed:
            raise AggregationError(
                f"round {server_round}: {attackers_of(self)} needs {self.needed} replies or more, "
                f"but {len(valid)} came; train more clients or lower num_malicious_nodes"
            )
        chosen, combine = self.choose(squared_distances([arrays_of(reply) for reply in valid]))
        nodes = [reply.metadata.src_node_id for reply in valid]
        self.accused = frozenset(nodes) - {nodes[row] for row in chosen}
        return combined(self, valid, chosen, combine)


def attackers_of(method: AttackersSettings | Attacked) -> str:
    """Return how many attackers a method withstands, as it is said; it is called as its file is."""
    name = type(method).__module__.rpartition(".")[2]
    return f"strategy={name} with num_malicious_nodes={method.num_malicious_nodes}"


def check_attackers(method: AttackersSettings | Attacked, clients: int) -> None:
    """Refuse fewer clients a round than a method is defined for.

    Raises
    ------
    ValueError
        There are fewer.
    """
    if clients < method.needed:
        raise ValueError(
            f"{method.told} needs at least {method.needed} training clients a round, but there are "
            f"{clients}; train more clients or lower them"
        )
