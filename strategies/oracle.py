"""The true groups: what a clustered method could reach at best. No method: it is told what others have to find."""

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord

from strategies.base import join_largest
from strategies.clustered import ClusterTraining
from strategies.clustering import canonical


class Oracle(ClusterTraining):
    """FedAvg within each known group from the first round on.

    Partial participation: a cluster without replies keeps its model. A newcomer joins its group's cluster; one whose
    group is not known, or which is the first of its group, the largest cluster. Clients that leave: as in
    :class:`~strategies.clustered.ClusterTraining`.

    Parameters
    ----------
    groups : mapping
        Node id -> true group.
    **common
        Parameters of ClusterTraining.
    """

    def __init__(self, *, groups: Mapping[int, int], **common: Any) -> None:
        super().__init__(**common)
        self.groups = dict(groups)

    def prepare(self, server_round: int, arrays: ArrayRecord) -> None:
        """Form the clusters in the first round."""
        if not self.assignment:
            nodes = [node for node in sorted(self._grid.get_node_ids()) if node in self.groups]
            if not nodes:
                raise ValueError("strategy=oracle knows the group of no client; give it groups by node id")
            assignment = canonical(nodes, [self.groups[node] for node in nodes])
            self.set_clusters(assignment, arrays=dict.fromkeys(assignment.values(), arrays))

    def welcome(self, nodes: Sequence[int]) -> None:
        """Assign newcomers to the clusters of their groups."""
        clusters = {self.groups[node]: c for node, c in self.assignment.items() if node in self.groups}
        known = {node: clusters[self.groups[node]] for node in nodes if self.groups.get(node) in clusters}
        self.assignment.update(known)
        join_largest(self.assignment, nodes)
