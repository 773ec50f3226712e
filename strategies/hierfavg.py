"""HierFAVG: edge servers average their clients every round, the cloud the edges every few rounds.

Liu, Zhang, Song and Letaief 2020, "Client-Edge-Cloud Hierarchical Federated Learning"
(arXiv:1905.06641), algorithm 1: an edge is a cluster, and its server is one of its members.
Deviations: docs/strategies/hierfavg.md.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from pydantic import Field

from fedsweep.strategies.clustered import ClusterTraining
from fedsweep.strategies.clustering import canonical
from fedsweep.strategies.ranges import ROUNDS
from fedsweep.strategies.selection import ServerSettings
from fedsweep.strategies.settings import NumClustersSettings, Setting


class HierFAVGSettings(ServerSettings, NumClustersSettings):
    """How many edges there are, and how often the cloud averages them."""

    cloud_every: int = Field(
        2, ge=1, le=ROUNDS, description="rounds of the edges between two averages of the cloud"
    )

    def check_in(self, setting: Setting) -> None:
        """Refuse a cloud that never averages."""
        super().check_in(setting)
        if setting.rounds is not None and self.cloud_every > setting.rounds:
            raise ValueError(
                f"strategy.cloud_every={self.cloud_every} with rounds={setting.rounds}: the cloud "
                "would never average; lower it, or raise rounds"
            )


class HierFAVG(ClusterTraining):
    """FedAvg within edges of equal size, drawn by the seed, and FedAvg of the edges now and then.

    A newcomer joins the smallest edge. Partial participation, and clients that leave: as in
    :class:`~fedsweep.strategies.clustered.ClusterTraining`.

    Parameters
    ----------
    cloud_every : int
        Rounds of the edges between two averages of the cloud; 1 is FedAvg.
    **common
        Parameters of ClusterTraining; ``num_clusters`` is the number of edges.
    """

    settings = HierFAVGSettings
    colour = "#1919E5"
    partial_means = True
    sums_suffice = True  # edges are drawn

    def __init__(self, *, cloud_every: int = 2, **common: Any) -> None:
        super().__init__(**common)
        self.cloud_every = cloud_every

    def prepare(self, server_round: int, arrays: ArrayRecord) -> None:
        """Draw the edges before the first round."""
        del server_round
        if self.assignment:
            return
        nodes = sorted(self._grid.get_node_ids())
        drawn = np.random.default_rng(self.seed).permutation(len(nodes))
        edges = canonical(nodes, (drawn % min(self.num_clusters, len(nodes))).tolist())
        self.set_clusters(edges, arrays=dict.fromkeys(edges.values(), arrays))

    def welcome(self, nodes: Sequence[int]) -> None:
        """Put newcomers into the smallest edge, one after the other."""
        sizes = dict.fromkeys(self.cluster_arrays, 0) | Counter(self.assignment.values())
        for node in nodes:
            edge = min(sizes, key=lambda each: (sizes[each], each))
            self.assignment[node] = edge
            sizes[edge] += 1

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average within the edges; where it is due, give every edge the mean of all."""
        mean, metrics = super().aggregate_train(server_round, replies)
        if mean is not None and server_round % self.cloud_every == 0:
            self.cluster_arrays = {
                edge: ArrayRecord(dict(mean)) for edge in sorted(self.cluster_arrays)
            }
        return mean, metrics
