"""IFCA, iterative federated clustering: clients choose among K models by their training loss.

Ghosh, Chung, Yin and Ramchandran 2020, "An Efficient Framework for Clustered Federated Learning"
(arXiv:2006.04088), algorithm 1 with model averaging. Deviations: docs/strategies/ifca.md.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedsweep.strategies.base import (
    State,
    arrays_of,
    int_keys,
    mean_of_clusters,
    metrics_of,
    senders_of,
    sort_replies,
    string_keys,
)
from fedsweep.strategies.candidates import (
    Candidates,
    Choosing,
    all_models,
    changed,
    initial_models,
    to_all,
)
from fedsweep.strategies.clients import with_method
from fedsweep.strategies.selection import ServerRule, ServerSettings
from fedsweep.strategies.servers import ClusterServers, WithServers
from fedsweep.strategies.settings import NumClustersSettings


class IFCASettings(ServerSettings, NumClustersSettings):
    """How many models there are to choose from, and who averages each."""


class IFCA(WithServers, Candidates):
    """Hard clusters, chosen anew by each client in each round that it trains in.

    A cluster that nobody chose keeps its model. Newcomers, and clients that return, choose like
    everybody else. A client that is evaluated chooses again, by its training loss under the models
    of that round: ``assignment`` is each client's last choice, ``members`` the last that it
    trained.

    Parameters
    ----------
    num_clusters : int
        K, models to choose from.
    server : ServerRule
        Which member of a cluster is its server.
    seed : int
        Root of the initial models and of randomly chosen servers.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = IFCASettings
    colour = "#003F62"
    any_version = True
    sums_suffice = True  # clients choose, and say what they chose

    def __init__(
        self,
        *,
        num_clusters: int = 4,
        server: ServerRule | None = None,
        seed: int = 0,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        self.num_clusters = num_clusters
        self.seed = seed
        self.assignment: dict[int, int] = {}
        self.members: dict[
            int, int
        ] = {}  # node -> cluster that it trained last: who can be a cluster's server
        self.cluster_arrays: dict[int, ArrayRecord] = {}
        self.churn = 0  # clients that changed their cluster in the last round
        self._before: dict[int, int] = {}  # the assignment at the round's start
        self.election = ClusterServers(server or ServerRule(), seed)
        self._grid: Grid

    def diagnostics(self) -> dict[str, float]:
        """Return clusters with members, how many clients changed theirs, and servers' numbers."""
        if not self.assignment:
            return {}
        used = len(set(self.assignment.values()))
        numbers = {"clusters": used, "churn": self.churn, **self.election.diagnostics(self.members)}
        return {name: float(value) for name, value in numbers.items()}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send every sampled client all K models."""
        self._grid = grid
        self._before = dict(self.assignment)
        layout = self.laid_out(arrays)
        if not self.cluster_arrays:
            self.cluster_arrays = initial_models(arrays, self.num_clusters, self.seed, layout)
        messages = super().configure_train(server_round, arrays, config, grid)
        named = with_method(config, Choosing.method)
        return to_all(messages, all_models(self.cluster_arrays, named, self.configrecord_key))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Have each cluster's server average the models of those that chose it;
        return the mean of the clusters.
        """
        valid, errors = sort_replies(self, replies, read_arrays=False)
        if not valid:
            return None, None
        choices = {
            node: int(reply.content["choice"]["cluster"])  # type: ignore[arg-type]
            for reply in valid
            for node in senders_of(reply)
        }
        self.members.update(choices)
        self.chosen(choices)
        self.election.observe(valid, self.weighted_by_key, one_each=True)
        failed = {reply.metadata.src_node_id for reply in errors}
        layout = self.laid_out(arrays_of(valid[0]))
        self.cluster_arrays |= self.election.aggregate(
            self._grid, server_round, self.members, valid, failed, self.weighted_by_key, layout
        )
        metrics = metrics_of(self, valid)
        examples = self.election.examples
        return mean_of_clusters(self.cluster_arrays, self.members, examples, layout), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each sampled client all K models; it is evaluated under the one it chooses now."""
        messages = super().configure_evaluate(server_round, arrays, config, grid)
        named = with_method(config, Choosing.method)
        return to_all(messages, all_models(self.cluster_arrays, named, self.configrecord_key))

    def chosen(self, choices: Mapping[int, int]) -> None:
        """Note each client's choice, and how many changed theirs since the round's start."""
        self.assignment.update(choices)
        self.churn = changed(self._before, self.assignment)

    def state_dict(self) -> State:
        """Return everything that the next round depends on: JSON-able values and ArrayRecords."""
        return {
            "assignment": string_keys(self.assignment),
            "members": string_keys(self.members),
            "cluster_arrays": string_keys(self.cluster_arrays),
            "churn": self.churn,
            "election": self.election.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        self.assignment = int_keys(state["assignment"])
        self.members = int_keys(state["members"])
        self.cluster_arrays = int_keys(state["cluster_arrays"])
        self.churn = state["churn"]
        self.election.load_state_dict(state["election"])
