"""CLoVE: clients are grouped by their losses under K models, and groups matched to models.

Bhatia, Papadis, Kodialam, Lakshman and Chakrabarty 2025, "CLoVE: Personalized Federated Learning
through Clustering of Loss Vector Embeddings" (arXiv:2506.22427). Deviations:
docs/strategies/clove.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from pydantic import Field

from fedsweep.strategies.base import (
    State,
    arrays_of,
    ask,
    int_keys,
    join_largest,
    mean_of_clusters,
    metrics_of,
    sort_replies,
    string_keys,
)
from fedsweep.strategies.candidates import (
    Candidates,
    all_models,
    changed,
    group_losses,
    initial_models,
    match_models,
    to_own_or_all,
)
from fedsweep.strategies.selection import ServerRule, ServerSettings
from fedsweep.strategies.servers import ClusterServers, WithServers
from fedsweep.strategies.settings import NumClustersSettings

QUERY = "query.losses"
STABLE_ROUNDS = 3  # times in a row that a settled client was put into the same cluster


class CLoVESettings(ServerSettings, NumClustersSettings):
    """How many models there are, and who averages each."""

    auto_k: bool = Field(
        False, description="choose the clusters' number, from 2 to num_clusters, by silhouette"
    )


class CLoVE(WithServers, Candidates):
    """Hard clusters from K-means on loss vectors, until the clients of a round have settled.

    They have when each was put into the same cluster the last three times that it was grouped. A
    client without a loss vector (its query failed) keeps its cluster; one without either joins the
    largest. Once the clusters are frozen, for good, only newcomers are asked for their losses: they
    take the model with the lowest.

    Parameters
    ----------
    num_clusters : int
        K, models; with ``auto_k`` the most clusters there can be.
    auto_k : bool
        Choose the number of clusters from 2 to K by silhouette, each round until the clusters are
        frozen.
    server : ServerRule
        Which member of a cluster is its server.
    seed : int
        Root of the initial models, of K-means' centres and of randomly chosen servers.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = CLoVESettings
    colour = "#73465F"

    def __init__(
        self,
        *,
        num_clusters: int = 4,
        auto_k: bool = False,
        server: ServerRule | None = None,
        seed: int = 0,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        self.num_clusters = num_clusters
        self.auto_k = auto_k
        self.seed = seed
        self.assignment: dict[int, int] = {}
        self.cluster_arrays: dict[int, ArrayRecord] = {}
        self.silhouette = float("nan")
        self.frozen = False
        self.same: dict[int, int] = {}  # node -> times in a row that it was put into its cluster
        self.churn = 0
        self.clustering_s = 0.0  # of the last round, without the clients' answers
        self.election = ClusterServers(server or ServerRule(), seed)
        self.guests: dict[
            int, int
        ] = {}  # node -> model that a client without a cluster was evaluated under
        self._grid: Grid

    def diagnostics(self) -> dict[str, float]:
        """Return clusters with members, churn, silhouette and whether the clusters are frozen."""
        if not self.assignment:
            return {}
        numbers: dict[str, float] = {
            "clusters": len(set(self.assignment.values())),
            "churn": self.churn,
        }
        numbers |= {"frozen": self.frozen, **self.election.diagnostics(self.assignment)}
        numbers |= {} if np.isnan(self.silhouette) else {"silhouette": self.silhouette}
        return {name: float(value) for name, value in numbers.items()}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask sampled clients for their loss vectors, group them, send each its cluster's model."""
        self._grid = grid
        layout = self.laid_out(arrays)
        if not self.cluster_arrays:
            self.cluster_arrays = initial_models(arrays, self.num_clusters, self.seed, layout)
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._group([message.metadata.dst_node_id for message in messages], config)
        contents = {
            cluster: RecordDict({self.arrayrecord_key: model, self.configrecord_key: config})
            for cluster, model in self.cluster_arrays.items()
        }
        for message in messages:
            message.content = contents[self.assignment[message.metadata.dst_node_id]]
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Have each cluster's server average its members' models;
        return the mean of the clusters' models.
        """
        valid, errors = sort_replies(self, replies, read_arrays=False)
        if not valid:
            return None, None
        self.election.observe(valid, self.weighted_by_key, one_each=True)
        failed = {reply.metadata.src_node_id for reply in errors}
        layout = self.laid_out(arrays_of(valid[0]))
        self.cluster_arrays |= self.election.aggregate(
            self._grid, server_round, self.assignment, valid, failed, self.weighted_by_key, layout
        )
        metrics = metrics_of(self, valid)
        examples = self.election.examples
        return mean_of_clusters(self.cluster_arrays, self.assignment, examples, layout), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each sampled client its cluster's model."""
        messages = super().configure_evaluate(server_round, arrays, config, grid)
        names = (self.arrayrecord_key, self.configrecord_key)
        return to_own_or_all(messages, self.assignment, self.cluster_arrays, config, names)

    def chosen(self, choices: Mapping[int, int]) -> None:
        """Note what clients without a cluster chose: the server assigns them when they train."""
        self.guests.update(choices)

    def state_dict(self) -> State:
        """Return everything that the next round depends on: JSON-able values and ArrayRecords."""
        plain = {name: getattr(self, name) for name in ("silhouette", "frozen", "churn")}
        names = ("assignment", "same", "cluster_arrays")
        tables = {name: string_keys(getattr(self, name)) for name in names}
        return {**plain, **tables, "election": self.election.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        for name in ("silhouette", "frozen", "churn"):
            setattr(self, name, state[name])
        for name in ("assignment", "same", "cluster_arrays"):
            setattr(self, name, int_keys(state[name]))
        self.election.load_state_dict(state["election"])

    def _group(self, nodes: Sequence[int], config: ConfigRecord) -> None:
        """Assign the sampled nodes to clusters; where nobody is there to be asked, nothing is."""
        if not nodes:
            return
        self.frozen = self.frozen or all(self.same.get(node, 0) >= STABLE_ROUNDS for node in nodes)
        asked = [node for node in nodes if not self.frozen or node not in self.assignment]
        content = all_models(self.cluster_arrays, config, self.configrecord_key)
        answers = ask(self._grid, QUERY, dict.fromkeys(asked, content))
        losses = {
            node: np.array(answer.metric_records["metrics"]["losses"])
            for node, answer in answers.items()
        }
        vectors = {node: own for node, own in losses.items() if np.isfinite(own).all()}
        began = perf_counter()
        before = dict(self.assignment)
        known = sorted(vectors)
        if known:
            losses_CK = np.stack([vectors[node] for node in known])
            if self.frozen:
                matched = losses_CK.argmin(axis=1)
            else:
                labels, self.silhouette = group_losses(
                    losses_CK, self.num_clusters, self.seed, auto=self.auto_k
                )
                matched = match_models(losses_CK, labels)
            for node, cluster in zip(known, matched.tolist(), strict=True):
                self.same[node] = self.same.get(node, 0) + 1 if before.get(node) == cluster else 1
                self.assignment[node] = cluster
        if not self.assignment:  # nobody answered in the first round
            self.assignment = dict.fromkeys(nodes, 0)
        join_largest(self.assignment, nodes)
        self.churn = changed(before, self.assignment)
        self.clustering_s = perf_counter() - began
