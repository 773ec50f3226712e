"""The seed workflow: warm up with FedAvg, group the clients by K-means on their updates, train on in clusters.

The idea follows Briggs et al. 2020 (FL+HC, arXiv:2004.11791), with K-means in place of hierarchical clustering:

1. rounds 1 to ``warmup_rounds`` are FedAvg from one common model;
2. in the last of them all clients train, and K-means groups them by what stands for each: its update, its weights, its
   last layer, its losses under models of its peers (concept shift), or a signature of its data (feature shift);
3. in each cluster the member with the lowest load becomes the server, and averages its members' models;
4. from then on each cluster trains its own model; the global model is the clusters' mean, weighted by examples.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from strategies.base import int_keys, string_keys
from strategies.clustered import ClusterTraining, Plan
from strategies.clustering import kmeans_split, points_of
from strategies.grouping import Found, find_groups

MODELS_PER_CLUSTER = 3
"""Peers' models per wanted cluster that make up a vector of losses: few enough to send to every client."""


class KMeans(ClusterTraining):
    """K-means clustered federated learning. ``num_clusters=1`` is FedAvg, bit for bit.

    Partial participation, newcomers and clients that leave: as in :class:`~strategies.clustered.ClusterTraining`.

    Parameters
    ----------
    recluster_every : int
        Group anew every so many rounds after the warm-up, all clients starting from the global model; 0: once.
    stable_after : int
        Stop that when the same clusters came out so many times in a row; 0: never.
    **common
        Parameters of ClusterTraining. ``cosine`` is K-means on rows of unit length. It needs updates: the angle
        between weights depends on where the origin lies.
    """

    def __init__(self, *, recluster_every: int = 0, stable_after: int = 0, **common: Any) -> None:
        super().__init__(**common)
        if self.distance == "manhattan":
            raise ValueError("strategy.distance=manhattan has no K-means; set strategy.distance=euclidean or cosine")
        self.recluster_every, self.stable_after = recluster_every, stable_after
        self.times_same = 1
        self.peers: dict[int, ArrayRecord] = {}  # whose models make up the vectors of losses

    def prepare(self, server_round: int, arrays: ArrayRecord) -> None:
        """Put all clients into the one cluster where one is wanted: no clustering round is needed."""
        one = self.choose_k == "given" and self.num_clusters == 1
        if one and server_round >= self.warmup_rounds and not self.assignment:
            self.assignment, self.cluster_arrays = dict.fromkeys(sorted(self._grid.get_node_ids()), 0), {0: arrays}

    def plan(self, server_round: int) -> Plan:
        """Cluster after the warm-up, and again as often as wanted."""
        since = server_round - self.warmup_rounds
        if self.choose_k == "given" and self.num_clusters == 1:
            return Plan.APART
        settled = 0 < self.stable_after <= self.times_same
        again = since > 0 and self.recluster_every and since % self.recluster_every == 0 and not settled
        return Plan.TOGETHER if again else super().plan(server_round)

    def group(self, server_round: int, models: Mapping[int, ArrayRecord]) -> None:
        """Group as ever, and count how often the same clusters came out."""
        before = self.assignment
        super().group(server_round, models)
        if self._plan is Plan.TOGETHER:
            self.times_same = self.times_same + 1 if self.assignment == before else 1

    def rows(self, models: Mapping[int, ArrayRecord]) -> NDArray[np.float32]:
        """Return what stands for each client; a client that gives no answer gets a row that is not finite."""
        if self.representation == "losses":
            if self._plan is Plan.TOGETHER:
                wanted = MODELS_PER_CLUSTER * (self.num_clusters if self.choose_k == "given" else self.max_clusters)
                drawn = np.random.default_rng(self.seed).permutation(list(models))[:wanted]
                self.peers = {int(node): models[int(node)] for node in sorted(drawn)}
            content = RecordDict({f"model-{node}": arrays for node, arrays in self.peers.items()})
            answers = self.ask("query.losses", dict.fromkeys(models, content))
            vectors = {n: np.array(a.metric_records["metrics"]["losses"], np.float32) for n, a in answers.items()}
        elif self.representation == "data":
            answers = self.ask("query.signature", dict.fromkeys(models, RecordDict()))
            vectors = {n: a.array_records["arrays"]["signature"].numpy().ravel() for n, a in answers.items()}
        else:
            return super().rows(models)
        missing = np.full_like(next(iter(vectors.values())), np.nan)
        return np.stack([vectors.get(node, missing) for node in models])

    def find(self, rows_CP: NDArray[np.float32]) -> Found:
        """Run K-means."""
        return find_groups(points_of(rows_CP, self.distance), kmeans_split(self.seed), self.how, self.seed)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next round depends on."""
        return {**super().state_dict(), "times_same": self.times_same, "peers": string_keys(self.peers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` returned."""
        super().load_state_dict(state)
        self.times_same, self.peers = state["times_same"], int_keys(state["peers"])
