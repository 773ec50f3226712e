"""PACFL: cluster the clients by the principal angles between their data, once, before any training.

Vahidian et al. 2022 (arXiv:2209.10526). Each client sends the top ``vectors`` left singular vectors
of its raw images of each label; the server compares the subspaces that they span by their principal
angles, and cuts a hierarchical clustering of the clients. **It uploads directions of the clients'
raw data**, which other methods do not. Clients whose labels alone differ in meaning (label
permutation) span the same subspace: it can't tell them apart.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray
from pydantic import Field

from fedsweep.strategies.base import State, join_largest
from fedsweep.strategies.clustered import ClusterTraining
from fedsweep.strategies.clustering import canonical, one_thread, points_at
from fedsweep.strategies.grouping import Linkage, TreeSettings, cut_tree, find_groups, tree_split
from fedsweep.strategies.ranges import EXAMPLES
from fedsweep.strategies.settings import inherited

Measure = Literal["mean", "smallest"]


class PACFLSettings(TreeSettings):
    """What a client sends of its data, and how the tree is made and cut."""

    gate: float = inherited(TreeSettings, "gate", 0.01)
    vectors: int = Field(
        3, ge=1, le=EXAMPLES, description="singular vectors that a client sends per label"
    )
    measure: Measure = Field("mean", description="principal angle that tells subspaces apart")


class PACFL(ClusterTraining):
    """Principal angles between client data subspaces.

    Partial participation: all clients answer the query before round 1, then the sampled ones train.
    A newcomer answers the query when it is first sampled, and joins the cluster whose members'
    subspaces are nearest on average; a client that gives no answer joins the largest cluster.
    Clients that leave: as in :class:`~fedsweep.strategies.clustered.ClusterTraining`.

    Parameters
    ----------
    vectors : int
        p: singular vectors per label.
    measure : str
        How far apart two subspaces are: their ``mean`` or their ``smallest`` principal angle, in
        degrees.
    linkage : str
        How far apart two groups are.
    threshold : float, optional
        Cut the tree at this angle. Without it the number of clusters is chosen as ``choose_k``
        says.
    **common
        Parameters of ClusterTraining.
    """

    settings = PACFLSettings
    colour = "#070707"
    partial_means = True

    def __init__(
        self,
        *,
        vectors: int = 3,
        measure: Measure = "mean",
        linkage: Linkage = "average",
        threshold: float | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.vectors, self.linkage, self.threshold = vectors, linkage, threshold
        self.measure: Measure = measure
        self.subspaces: dict[
            int, NDArray[np.float32]
        ] = {}  # node -> orthonormal columns (pixels, rank)

    def prepare(self, server_round: int, arrays: ArrayRecord) -> None:
        """Cluster all clients before the first round."""
        if self.assignment:
            return
        self._ask(list(self._grid.get_node_ids()))
        nodes = sorted(self.subspaces)
        with one_thread():
            angles_CC = np.array([[self._angle(a, b) for b in nodes] for a in nodes])
            np.fill_diagonal(angles_CC, 0.0)  # arccos near 1 loses half the digits
            labels = None
            if self.threshold is not None:
                labels = cut_tree(angles_CC, self.linkage, threshold=self.threshold)
            found = find_groups(
                points_at(angles_CC), tree_split(self.linkage), self.how, self.seed, labels=labels
            )
        assignment = canonical(nodes, found.labels.tolist())
        self.set_clusters(assignment, found, dict.fromkeys(assignment.values(), arrays))
        join_largest(self.assignment, self._grid.get_node_ids())

    def welcome(self, nodes: Sequence[int]) -> None:
        """Ask newcomers for their subspaces, and let each join the nearest cluster."""
        self._ask(nodes, needed=False)
        known = {node: c for node, c in self.assignment.items() if node in self.subspaces}
        for node in nodes:
            if node in self.subspaces and known:
                angles: dict[int, list[float]] = {}
                for other, cluster in known.items():
                    angles.setdefault(cluster, []).append(self._angle(node, other))
                self.assignment[node] = min(
                    angles, key=lambda cluster: (np.mean(angles[cluster]), cluster)
                )
        join_largest(self.assignment, nodes)

    def _ask(self, nodes: Sequence[int], needed: bool = True) -> None:
        content = RecordDict({"config": ConfigRecord({"vectors": self.vectors})})
        for node, answer in self.ask(
            "query.subspace", dict.fromkeys(nodes, content), needed
        ).items():
            self.subspaces[node] = answer.array_records["arrays"]["subspace"].numpy()

    def _angle(self, a: int, b: int) -> float:
        angles = principal_angles(self.subspaces[a], self.subspaces[b])
        return float(angles.mean() if self.measure == "mean" else angles[0])

    def state_dict(self) -> State:
        """Return everything that the next round depends on."""
        subspaces = ArrayRecord({str(node): Array(u) for node, u in self.subspaces.items()})
        return {**super().state_dict(), "subspaces": subspaces}

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        super().load_state_dict(state)
        self.subspaces = {int(node): array.numpy() for node, array in state["subspaces"].items()}


def principal_angles(u_PR: NDArray[np.float32], v_PS: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the min(R, S) principal angles between two subspaces, in degrees, the smallest first.

    Their cosines are the singular values of U^T V (Bjorck and Golub 1973), for orthonormal columns.
    The reference code takes the arccos of the elements of U^T V, which depend on the choice of the
    basis; these angles do not.
    """
    cosines = np.linalg.svd(u_PR.astype(np.float64).T @ v_PS.astype(np.float64), compute_uv=False)
    angles: NDArray[np.float64] = np.degrees(np.arccos(np.clip(cosines, 0.0, 1.0)))
    return angles
