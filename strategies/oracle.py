"""The true groups: what a clustered method could reach at best.

No method: it is told what others have to find.
"""

from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord

from fedsweep.strategies.base import State, int_keys, join_largest, string_keys
from fedsweep.strategies.clustered import ClusterTraining
from fedsweep.strategies.clustering import canonical
from fedsweep.strategies.selection import ServerSettings


class Oracle(ClusterTraining):
    """FedAvg within each known group from the first round on.

    Drift: from its round on each client belongs to the cluster of its new group, which keeps its
    model. Partial participation: a cluster without replies keeps its model. A newcomer joins its
    group's cluster, which begins with the global model where the newcomer is the group's first;
    one whose group is not known joins the largest cluster. Clients that leave: as in
    :class:`~fedsweep.strategies.clustered.ClusterTraining`.

    Parameters
    ----------
    groups : mapping
        Node id -> true group.
    drifted : mapping, optional
        Node id -> true group from ``drift_round`` on.
    drift_round : int
        0: the groups never change.
    **common
        Parameters of ClusterTraining.
    """

    settings = ServerSettings
    colour = "#805801"
    partial_means = True
    any_version = True
    sums_suffice = True

    def __init__(
        self,
        *,
        groups: Mapping[int, int],
        drifted: Mapping[int, int] | None = None,
        drift_round: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.groups = dict(groups)
        self.drifted = self.groups if drifted is None else dict(drifted)
        self.drift_round = drift_round
        self.cluster_of: dict[int, int] = {}  # true group -> its cluster

    def prepare(self, server_round: int, arrays: ArrayRecord) -> None:
        """Form the clusters in the first round, and let every client follow its group."""
        groups = self.drifted if 0 < self.drift_round <= server_round else self.groups
        nodes = [node for node in sorted(self._grid.get_node_ids()) if node in groups]
        if not self.cluster_of:
            if not nodes:
                raise ValueError(
                    "strategy=oracle knows the group of no client; give it groups by node id"
                )
            assignment = canonical(nodes, [groups[node] for node in nodes])
            self.cluster_of = {groups[node]: cluster for node, cluster in assignment.items()}
            self.set_clusters(assignment, arrays=dict.fromkeys(assignment.values(), arrays))
        for node in nodes:
            cluster = self.cluster_of.setdefault(groups[node], len(self.cluster_of))
            if cluster not in self.cluster_arrays:
                self.cluster_arrays[cluster] = ArrayRecord(dict(arrays))
            self.assignment[node] = cluster
        join_largest(self.assignment, self._grid.get_node_ids())

    def state_dict(self) -> State:
        """Return everything that the next round depends on."""
        return {**super().state_dict(), "cluster_of": string_keys(self.cluster_of)}

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        super().load_state_dict(state)
        self.cluster_of = int_keys(state["cluster_of"])
