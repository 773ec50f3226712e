"""FedGroup: K-means on cosines with the main directions of the updates (FlexCFL).

Duan et al. 2020 (arXiv:2010.06870).

Before the first round min(20 m, n) clients pre-train from one model. A truncated SVD of their
update matrix gives m directions; each client is the vector of its m cosines with them (the
decomposed cosine similarity), and K-means makes m groups of those. Any other client joins the group
whose mean update it deviates from the least, by (1 - cos) / 2.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsweep.strategies.arrays import ModelRows
from fedsweep.strategies.clustered import ClusterTraining, WarmupSettings
from fedsweep.strategies.clustering import group_means, kmeans_split, one_thread, points_of
from fedsweep.strategies.grouping import Found, GroupSettings, find_groups
from fedsweep.strategies.settings import inherited

PRETRAINED_PER_GROUP = 20


class FedGroupSettings(GroupSettings, WarmupSettings):
    """How many groups, and when they are formed."""

    gate: float = inherited(GroupSettings, "gate", 0.01)


class FedGroup(ClusterTraining):
    """Clustered federated learning by decomposed cosine similarity, with cold start for others.

    Clients outside the pre-training, newcomers, and clients whose reply was lost, pre-train when
    they are first sampled, then belong to a group: the cold start of
    :class:`~fedsweep.strategies.clustered.ClusterTraining`, which also says what happens when
    clients leave.
    """

    settings = FedGroupSettings
    colour = "#8A832A"
    partial_means = True

    def __init__(self, **common: Any) -> None:
        super().__init__(**{"warmup_rounds": 1, **common})

    def pool(self, nodes: list[int]) -> list[int]:
        """Draw min(20 m, n) clients for the pre-training."""
        m = self.num_clusters if self.choose_k == "given" else self.max_clusters
        drawn = np.random.default_rng(self.seed).permutation(nodes)[: PRETRAINED_PER_GROUP * m]
        return sorted(drawn.tolist())

    def find(self, rows_CP: NDArray[np.float32]) -> Found:
        """Run K-means on the decomposed cosine similarities."""
        m = self.num_clusters if self.choose_k == "given" else self.max_clusters
        return find_groups(
            points_of(rows_CP, "cosine"),
            kmeans_split(self.seed),
            self.how,
            self.seed,
            partial(decomposed_cosines, m=m),
        )

    def group_rows(self, nodes: list[int], rows_CP: NDArray[np.float32]) -> bool:
        """Group clients; a group's direction is the plain mean of its members' raw updates."""
        grouped = super().group_rows(nodes, rows_CP)
        if grouped:
            kept = [i for i, node in enumerate(nodes) if node in self.assignment]
            labels_C = np.array([self.assignment[nodes[i]] for i in kept])
            self.means_KP = group_means(rows_CP[kept], labels_C, "euclidean")
        return grouped


def decomposed_cosines(rows_CP: ModelRows, m: int) -> NDArray[np.float64]:
    """Return the cosine of each update with the m main directions of all updates, (C, m);
    fewer where C or P is less.

    The directions are the right singular vectors of the matrix of updates. With far more parameters
    than clients they come from its C x C Gram matrix, and are never built: update i has the product
    U_ij s_j with direction j.
    """
    with one_thread():
        rows = rows_CP.astype(np.float64)
        gram_CC = rows @ rows.T
        values, vectors = np.linalg.eigh(gram_CC)
        top = np.argsort(values)[::-1][: min(m, *rows.shape)]
        products_Cm = vectors[:, top] * np.sqrt(np.clip(values[top], 0.0, None))
        lengths = np.sqrt(np.diag(gram_CC))
        cosines: NDArray[np.float64] = products_Cm / np.where(lengths > 0, lengths, 1.0)[:, None]
        return cosines
