"""FedRC: as FedEM, but clients of different labels stay together; clusters tell concepts apart.

Guo, Tang and Lin 2024, "FedRC: Tackling Diverse Distribution Shifts Challenge in Federated Learning
by Robust Clustering" (arXiv:2301.12379). Deviations: docs/strategies/fedrc.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray

from fedsweep.strategies.clients import Work
from fedsweep.strategies.mixtures import Losses, MixtureMembers, Mixtures
from fedsweep.strategies.settings import NumClustersSettings
from fedsweep.strategies.soft import CHOICE

RARE = 1e-8
"""Examples that each model has of a class at least, so that no probability is 0."""
CLASSES, MARGINALS = "classes", "marginals"


class FedRCSettings(NumClustersSettings):
    """How many models there are to mix."""


class RatioMembers(MixtureMembers):
    """An example is a model's by its likelihood over how common its class is among the model's."""

    method = "fedrc"

    def adjusted(self, work: Work, losses: Losses) -> Losses:
        """Return loss + log P(y; k), (n, K): what every example of a class has says nothing.

        Nothing is added before the server knows any P(y; k), in the first round.
        """
        told = cast(Sequence[float], work.config.get(MARGINALS, ()))
        if not len(told):
            return losses
        logs_KY = np.log(np.asarray(told).reshape(losses[0].shape[1], -1))
        return [
            own + logs_KY[:, labels].T for own, labels in zip(losses, work.labels(), strict=True)
        ]

    def told(self, work: Work, of_examples: Losses) -> Mapping[str, Sequence[Any]]:
        """Tell how many examples of each class are each model's, K x classes numbers in a row."""
        classes = work.class_counts().shape[1]
        pairs = zip(of_examples, work.labels(), strict=True)
        return {CLASSES: [by_class(q_NK, y, classes).ravel().tolist() for q_NK, y in pairs]}


class FedRC(Mixtures):
    """A mixture whose models share out concepts, and not classes.

    The server adds up what the clients told of their classes when they last trained.

    Parameters
    ----------
    num_clusters : int
        K, models.
    seed : int
        Root of the initial models.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = FedRCSettings
    colour = "#7B68A0"
    needs_classes = True

    clients = RatioMembers
    _kept = (*Mixtures._kept, "classes")

    def __init__(self, *, num_clusters: int = 4, seed: int = 0, **fedavg: Any) -> None:
        super().__init__(num_clusters=num_clusters, seed=seed, **fedavg)
        self.classes: dict[int, list[float]] = {}  # node -> its examples, K x classes

    def sent_beside(self, server_round: int) -> dict[str, Any]:
        """Tell the clients how common each class is among each model's examples."""
        del server_round
        if not self.classes:
            return {}
        tables = np.array([self.classes[node] for node in sorted(self.classes)])
        common_KY = marginals(tables.sum(axis=0).reshape(self.num_clusters, -1))
        return {MARGINALS: common_KY.ravel().tolist()}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average each model over the clients, and note whose examples have which classes."""
        replies = list(replies)
        for reply in replies:
            if reply.has_content():
                told = cast(Sequence[float], reply.content[CHOICE][CLASSES])
                self.classes[reply.metadata.src_node_id] = [float(count) for count in told]
        return super().aggregate_train(server_round, replies)


def by_class(
    of_examples_NK: NDArray[np.float64], labels_N: NDArray[np.int64], classes: int
) -> NDArray[np.float64]:
    """Return how much of each class is each model's, (K, classes)."""
    return np.stack(
        [np.bincount(labels_N, weights=own, minlength=classes) for own in of_examples_NK.T]
    )


def marginals(counts_KY: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return P(y; k), (K, classes): how common each class is among a model's examples."""
    counts_KY = np.maximum(counts_KY, RARE)
    return np.asarray(counts_KY / counts_KY.sum(axis=1, keepdims=True))
