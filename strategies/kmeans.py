"""The seed workflow: warm up with FedAvg, group the clients by K-means on their updates, train on in clusters.

The idea follows Briggs et al. 2020 (FL+HC, arXiv:2004.11791), with K-means in place of hierarchical clustering:

1. rounds 1 to ``warmup_rounds`` are FedAvg from one common model;
2. in the last of them all clients train, and K-means groups their models;
3. in each cluster the member with the lowest load becomes the server, and averages its members' models;
4. from then on each cluster trains its own model; the global model is the clusters' mean, weighted by examples.
"""

import math
from collections.abc import Iterable, Mapping
from logging import WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords, sample_nodes
from flwr.supercore import log

from strategies.base import arrays_of, int_keys, join_largest, mean_of_clusters, sort_replies, string_keys
from strategies.clustering import Distance, Representation, cluster_models
from strategies.selection import ServerRule
from strategies.servers import ClusterServers


class KMeans(FedAvg):
    """K-means clustered federated learning. ``num_clusters=1`` is FedAvg, bit for bit.

    A client that did not reply in the clustering round, replied with numbers that are not finite, or joined later,
    belongs to the largest cluster. Where fewer usable replies than clusters came, clustering is put off to the next
    round. A cluster without replies in a round keeps its model.

    Parameters
    ----------
    num_clusters : int
        K.
    warmup_rounds : int
        FedAvg rounds; the clients are grouped in the last.
    recluster_every : int
        Group anew every so many rounds after that, all clients starting from the global model; 0: once.
    representation, distance : str
        What stands for a client, and how far apart two are. Cosine needs updates: the angle between weights depends
        on where the origin lies.
    server : ServerRule
        Which member of a cluster is its server.
    seed : int
        Root of K-means' initial centres and of randomly chosen servers.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    def __init__(
        self,
        *,
        num_clusters: int = 4,
        warmup_rounds: int = 1,
        recluster_every: int = 0,
        representation: Representation = "updates",
        distance: Distance = "cosine",
        server: ServerRule | None = None,
        seed: int = 0,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        if representation == "weights" and distance == "cosine":
            raise ValueError(
                "strategy.distance=cosine needs updates, but strategy.representation=weights; "
                "set strategy.distance=euclidean or strategy.representation=updates"
            )
        self.num_clusters = num_clusters
        self.warmup_rounds = warmup_rounds
        self.recluster_every = recluster_every
        self.representation: Representation = representation
        self.distance: Distance = distance
        self.seed = seed
        self.assignment: dict[int, int] = {}
        self.cluster_arrays: dict[int, ArrayRecord] = {}
        self.silhouette = float("nan")
        self.plane: dict[int, tuple[float, float]] = {}  # of the last clustering: node id -> place in its picture
        self.election = ClusterServers(server or ServerRule(), seed)
        self.clustering_round = False  # of the round that was configured last: each reply is read
        self._sent = 0
        self._common = ArrayRecord()
        self._grid: Grid

    @property
    def servers(self) -> dict[int, int]:
        """Node id of each cluster's server."""
        return self.election.servers

    @property
    def scores(self) -> dict[int, float]:
        """Load score of each node."""
        return self.election.scores

    @property
    def tenure(self) -> dict[int, int]:
        """Rounds that each cluster's server has served in a row."""
        return self.election.tenure

    def diagnostics(self) -> dict[str, float]:
        """Return the number of clusters, the handovers so far and, where defined, the last clustering's silhouette."""
        if not self.assignment:
            return {}
        numbers = {"clusters": float(len(self.cluster_arrays)), "handovers": float(self.election.handovers)}
        return numbers if math.isnan(self.silhouette) else {**numbers, "silhouette": self.silhouette}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each sampled client its cluster's model; in a clustering round, send all clients the common one."""
        self._grid = grid
        self.clustering_round = self._is_due(server_round)
        if self.num_clusters == 1 and server_round >= self.warmup_rounds and not self.assignment:
            self.assignment, self.cluster_arrays = dict.fromkeys(sorted(grid.get_node_ids()), 0), {0: arrays}
        if self.clustering_round:
            self._common = arrays
            _, nodes = sample_nodes(grid, self.min_available_nodes, sample_size=0)
            config["server-round"] = server_round
            record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
            messages = list(self._construct_messages(record, sorted(nodes), MessageType.TRAIN))
        else:
            messages = self._to_clusters(super().configure_train(server_round, arrays, config, grid), config)
        self._sent = len(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Have each cluster's server average its members' models; return the mean of the clusters' models."""
        replies = list(replies)
        valid, errors = sort_replies(self, replies, read_arrays=self.clustering_round or not self.assignment)
        if not valid:
            return None, None
        contents = [reply.content for reply in valid]
        metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        one_each = self.clustering_round or len(replies) == self._sent  # else partial means came
        self.election.observe(valid, self.weighted_by_key, one_each)
        if self.clustering_round:
            self._cluster(valid)
        if not self.assignment:
            return aggregate_arrayrecords(contents, self.weighted_by_key), metrics
        failed = {reply.metadata.src_node_id for reply in errors}
        self.cluster_arrays |= self.election.aggregate(
            self._grid, server_round, self.assignment, valid, failed, self.weighted_by_key
        )
        return mean_of_clusters(self.cluster_arrays, self.assignment, self.election.examples), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each sampled client its cluster's model."""
        return self._to_clusters(super().configure_evaluate(server_round, arrays, config, grid), config)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next round depends on: JSON-able values and ArrayRecords."""
        return {
            "assignment": string_keys(self.assignment),
            "cluster_arrays": string_keys(self.cluster_arrays),
            "silhouette": self.silhouette,
            "election": self.election.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` returned."""
        self.assignment = int_keys(state["assignment"])
        self.cluster_arrays = int_keys(state["cluster_arrays"])
        self.silhouette = state["silhouette"]
        self.election.load_state_dict(state["election"])

    def _is_due(self, server_round: int) -> bool:
        """Whether the clients are grouped in this round; one cluster needs no grouping."""
        since = server_round - self.warmup_rounds
        again = self.recluster_every and since % self.recluster_every == 0
        return self.num_clusters > 1 and since >= 0 and bool(again or not self.assignment)

    def _cluster(self, replies: list[Message]) -> None:
        """Group the clients by their replies, which all come from one round and one starting point."""
        models = {reply.metadata.src_node_id: arrays_of(reply) for reply in replies}
        found = cluster_models(models, self._common, self.num_clusters, self.representation, self.distance, self.seed)
        if found is None:
            log(WARNING, "clustering put off: too few usable replies for %d clusters", self.num_clusters)
            return
        self.assignment, self.silhouette, self.cluster_arrays = found.assignment, found.silhouette, {}
        join_largest(self.assignment, self._grid.get_node_ids())
        self.plane = found.plane
        self.election.forget()

    def _to_clusters(self, messages: Iterable[Message], config: ConfigRecord) -> list[Message]:
        """Give each message its cluster's content: one object per cluster, which a grid can send once."""
        messages = list(messages)
        if self.assignment:
            join_largest(self.assignment, (message.metadata.dst_node_id for message in messages))
            contents = {
                cluster: RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
                for cluster, arrays in self.cluster_arrays.items()
            }
            for message in messages:
                message.content = contents[self.assignment[message.metadata.dst_node_id]]
        return messages
