"""FL+HC: one hierarchical clustering of the clients' updates.

Briggs, Fan and Andras 2020 (arXiv:2004.11791).

After ``warmup_rounds`` of FedAvg all clients train from the common model; their updates are
clustered agglomeratively under L1, L2 or cosine distance, and the tree is cut at a distance, or at
a number of clusters.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsweep.strategies.clustered import ClusterTraining, WarmupSettings
from fedsweep.strategies.clustering import (
    Distance,
    Representation,
    check_angles,
    points_of,
    view_of,
)
from fedsweep.strategies.grouping import (
    ChooseK,
    Found,
    Linkage,
    Points,
    TreeSettings,
    cut_tree,
    euclidean,
    find_groups,
    tree_split,
)
from fedsweep.strategies.settings import FedAvgSettings, inherited


class FLHCSettings(TreeSettings, WarmupSettings):
    """How the tree is made and cut, and what the clients are told apart by."""

    cuts = ("gate", "linkage", "representation", "distance")

    choose_k: ChooseK = inherited(TreeSettings, "choose_k", "silhouette")
    gate: float = inherited(TreeSettings, "gate", 0.01)
    representation: Representation = Field(
        "updates", description="what stands for a client, made of its model"
    )
    distance: Distance = Field(
        "cosine", description="how far apart two clients are; cosine needs updates"
    )

    def check(self) -> None:
        """Refuse distances that mean nothing for what stands for a client, or for the tree."""
        super().check()
        check_angles(self.representation, self.distance)
        check_tree(self)


def check_tree(tree: "FLHCSettings | FLHC") -> None:
    """Refuse what a tree can't be made of.

    Raises
    ------
    ValueError
        No model stands for a client, or a distance that is not Euclidean meets what has to be.
    """
    if tree.representation in ("losses", "data"):
        raise ValueError(
            f"strategy.representation={tree.representation} belongs to strategy=kmeans; "
            "set strategy.representation=updates, weights or last_layer"
        )
    chosen = tree.threshold is None and tree.choose_k != "given"
    if tree.distance == "manhattan" and (tree.linkage == "ward" or tree.gate or chosen):
        raise ValueError(
            "strategy.distance=manhattan goes with strategy=flhc, a threshold or a given "
            "num_clusters, and without linkage=ward and gate, which are Euclidean; set "
            "strategy.distance=euclidean"
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
        Cut the tree at this distance: 1 - cosine, or the length of the difference in L2 or L1.
        Without it the number of clusters is chosen as ``choose_k`` says.
    **common
        Parameters of ClusterTraining.
    """

    settings: ClassVar[type[FedAvgSettings]] = FLHCSettings
    title = "FL+HC"
    colour = "#336784"
    partial_means = True

    def __init__(
        self, *, linkage: Linkage = "average", threshold: float | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        self.linkage: Linkage = linkage
        self.threshold = threshold
        check_tree(self)

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
