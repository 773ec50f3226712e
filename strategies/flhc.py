"""FL+HC: one hierarchical clustering of the clients' updates (Briggs, Fan, Andras 2020, arXiv:2004.11791).

After ``warmup_rounds`` of FedAvg all clients train from the common model; their updates are clustered agglomeratively
under L1, L2 or cosine distance, and the tree is cut at a distance, or at a number of clusters.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsweep.strategies.clustered import ClusterTraining
from fedsweep.strategies.clustering import points_of, view_of
from fedsweep.strategies.grouping import (
    Found,
    Linkage,
    Points,
    cut_tree,
    euclidean,
    find_groups,
    tree_split,
)


class FLHC(ClusterTraining):
    """Federated learning with hierarchical clustering.

    Partial participation, newcomers and clients that leave: as in
    :class:`~fedsweep.strategies.clustered.ClusterTraining`.

    Parameters
    ----------
    linkage : str
        How far apart two groups are: ``average``, ``complete``, ``single`` or ``ward``.
    threshold : float, optional
        Cut the tree at this distance: 1 - cosine, or the length of the difference in L2 or L1. Without it the number
        of clusters is chosen as ``choose_k`` says.
    **common
        Parameters of ClusterTraining.
    """

    def __init__(
        self, *, linkage: Linkage = "average", threshold: float | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        if self.representation in ("losses", "data"):
            raise ValueError(
                f"strategy.representation={self.representation} belongs to strategy=kmeans; "
                "set strategy.representation=updates, weights or last_layer"
            )
        if self.distance == "manhattan" and (
            linkage == "ward" or self.gate or (threshold is None and self.choose_k != "given")
        ):
            raise ValueError(
                "strategy.distance=manhattan goes with strategy.threshold or a given num_clusters, not with ward, "
                "choose_k or gate, which are Euclidean; set strategy.distance=euclidean"
            )
        self.linkage: Linkage = linkage
        self.threshold = threshold

    def find(self, rows_CP: NDArray[np.float32]) -> Found:
        """Cut the tree of the updates."""
        points_CD, view = points_of(rows_CP, self.distance), view_of(self.distance)
        labels = None
        if self.threshold is not None or self.distance == "manhattan":
            k = None if self.threshold is not None else self.num_clusters
            distances_CC = self._distances(rows_CP, view(points_CD))
            labels = cut_tree(distances_CC, self.linkage, num_clusters=k, threshold=self.threshold)
        return find_groups(points_CD, tree_split(self.linkage), self.how, self.seed, view, labels)

    def _distances(self, rows_CP: NDArray[np.float32], seen_CD: Points) -> Points:
        if self.distance == "manhattan":
            rows = rows_CP.astype(np.float64)
            return np.array([np.abs(rows - row).sum(axis=1) for row in rows])
        lengths = euclidean(seen_CD)
        return lengths**2 / 2 if self.distance == "cosine" else lengths
