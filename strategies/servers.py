"""The servers of clusters: elected by load, asked to average their members, replaced when lost.

Any clustered strategy can own a :class:`ClusterServers`; it knows nothing about how clusters are
formed. Which member is the server never changes what is computed: it averages with FedAvg's own
arithmetic, in the order of the replies.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from logging import WARNING
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedsweep.strategies.base import (
    TIMEOUT_S,
    State,
    arrays_of,
    heaviest,
    int_keys,
    mean_of_replies,
    string_keys,
    weight_of,
)
from fedsweep.strategies.devices import Device, device_of, load_on_device
from fedsweep.strategies.insides import log
from fedsweep.strategies.layout import Layout
from fedsweep.strategies.selection import (
    Load,
    ServerRule,
    gini,
    load_scores,
    rank,
    regret,
    smooth,
    spearman,
)

QUERY = "query.aggregate"
TRIES = 2  # the elected server and one successor; then the aggregation is done here

_TABLES = ("examples", "scores", "servers", "tenure", "served")  # by node or by cluster
_NUMBERS = ("handovers", "terms", "regret")


class ClusterServers:
    """The server of each cluster, and what is known about the clients that may become one.

    Parameters
    ----------
    rule : ServerRule
        How servers are chosen.
    seed : int
        Root of the ``random`` rule's choices, and of the simulated devices.
    """

    def __init__(self, rule: ServerRule, seed: int) -> None:
        self.rule = rule
        self.seed = seed
        self.device_of: Callable[[int], Device] = partial(device_of, seed)  # of a node
        self.loads: dict[int, Load] = {}  # node -> moving average
        self.examples: dict[int, float] = {}  # node -> training examples
        self.scores: dict[int, float] = {}  # node -> score in its cluster; the lowest is the best
        self.servers: dict[int, int] = {}  # cluster -> node
        self.tenure: dict[int, int] = {}  # cluster -> rounds that its server has served in a row
        self.served: dict[int, int] = {}  # node -> aggregations that it has done
        self.handovers = 0
        self.terms = 0  # times that a member took over a cluster, the first server's included
        self.regret = 0.0  # sum over all aggregations

    def observe(self, replies: Sequence[Message], weighted_by_key: str, one_each: bool) -> None:
        """Take in the load and the examples that the replies of a training round report.

        A client's reply reports its load as scalars in the ConfigRecord ``load``. A reply that
        stands for several clients reports theirs as lists of equal length, with their ids under
        ``node-ids`` and, where known, their examples under ``num-examples``. Without ``node-ids``
        it says nothing about single clients.

        Parameters
        ----------
        replies : sequence of Message
            Replies with content.
        weighted_by_key : str
            Where a client's reply has its number of examples.
        one_each : bool
            Every reply stands for one client.
        """
        for reply in replies:
            load = reply.content.config_records.get("load", ConfigRecord())
            if "node-ids" in load:
                nodes = [int(node) for node in load["node-ids"]]  # type: ignore[union-attr]
                examples = cast(list[float], load.get("num-examples", []))
                self.examples.update(zip(nodes, map(float, examples), strict=False))
            elif one_each:
                nodes = [reply.metadata.src_node_id]
                self.examples[nodes[0]] = weight_of(reply, weighted_by_key)
            else:
                continue
            for node, measured in zip(nodes, _measured(load, len(nodes)), strict=True):
                new = load_on_device(
                    self.rule.mode, partial(self.device_of, node), measured, self.examples.get(node)
                )
                if new is not None:
                    self.loads[node] = smooth(self.loads.get(node), new, self.rule.ewma)

    def diagnostics(self, assignment: Mapping[int, int]) -> dict[str, float]:
        """Return numbers about the servers so far, without those that are undefined.

        Returns
        -------
        dict
            ``handovers``; ``server_tenure``: mean rounds from taking a cluster over to losing it,
            or until now; ``server_gini``: of the aggregations done per client; ``server_regret``:
            mean over all aggregations of the score above the lowest in the cluster;
            ``server_spearman``: of the last scores and the examples, mean over the clusters.
        """
        members: dict[int, list[int]] = {}
        for node, cluster in assignment.items():
            if node in self.scores and node in self.examples:
                members.setdefault(cluster, []).append(node)
        found = [
            spearman([self.scores[n] for n in m], [self.examples[n] for n in m])
            for m in members.values()
        ]
        defined = [value for value in found if not math.isnan(value)]
        numbers = {"handovers": float(self.handovers)}
        if total := sum(self.served.values()):
            numbers |= {"server_tenure": total / self.terms, "server_regret": self.regret / total}
            numbers["server_gini"] = gini([self.served.get(node, 0) for node in assignment])
        if defined:
            numbers["server_spearman"] = sum(defined) / len(defined)
        return {name: value for name, value in numbers.items() if not math.isnan(value)}

    def forget(self) -> None:
        """Dismiss all servers, because the clusters are not what they were."""
        self.servers.clear()
        self.tenure.clear()
        self.scores.clear()

    def aggregate(
        self,
        grid: Grid,
        server_round: int,
        assignment: Mapping[int, int],
        replies: Sequence[Message],
        failed: Collection[int],
        weighted_by_key: str,
        layout: Layout,
    ) -> dict[int, ArrayRecord]:
        """Return the weighted mean of each cluster's replies, computed by the cluster's server.

        Parameters
        ----------
        grid : Grid
            Carries the query to the servers, with the received ArrayRecords untouched.
        server_round : int
            The round.
        assignment : mapping
            Cluster of each node.
        replies : sequence of Message
            Replies with content; a reply belongs to the cluster of its sender, and may stand for
            several members.
        failed : collection of int
            Nodes whose task failed in this round; they are not elected.
        weighted_by_key : str
            Where a reply has its weight; "" for a plain mean.
        layout : Layout
            Of the models.

        Returns
        -------
        dict
            Cluster -> model, for the clusters that replied.
        """
        by_cluster: dict[int, list[Message]] = {}
        for reply in replies:
            by_cluster.setdefault(assignment[reply.metadata.src_node_id], []).append(reply)
        gone = assignment.keys() - set(grid.get_node_ids())  # some methods remember who left
        rankings = self._elect(server_round, assignment, {*failed, *gone})
        contents = {
            cluster: _query(by_cluster[cluster], weighted_by_key) for cluster in sorted(by_cluster)
        }
        models: dict[int, ArrayRecord] = {}
        for attempt in range(TRIES):
            messages = [
                Message(contents[cluster], rankings[cluster][attempt], QUERY)
                for cluster in contents
                if cluster not in models and attempt < len(rankings[cluster])
            ]
            for answer in grid.send_and_receive(messages, timeout=TIMEOUT_S) if messages else ():
                node = answer.metadata.src_node_id
                if answer.has_error():
                    log(
                        WARNING,
                        "server %d of cluster %d failed: %s",
                        node,
                        assignment[node],
                        answer.error.reason,
                    )
                else:
                    models[assignment[node]] = arrays_of(answer)
                    self._served(assignment[node], node, rankings[assignment[node]])
        for cluster in contents.keys() - models.keys():
            models[cluster] = mean_of_replies(by_cluster[cluster], weighted_by_key, layout)
            self.servers.pop(cluster, None)
            self.tenure.pop(cluster, None)
        return dict(sorted(models.items()))

    def _elect(
        self, server_round: int, assignment: Mapping[int, int], failed: Collection[int]
    ) -> dict[int, list[int]]:
        """Score all members and return each cluster's candidates, the best first."""
        members: dict[int, list[int]] = {}
        for node, cluster in sorted(assignment.items()):
            members.setdefault(cluster, []).append(node)
        rankings = {}
        for cluster, nodes in members.items():
            scores = load_scores(nodes, self.loads, self.rule)
            self.scores.update(scores)
            ranking = rank(
                nodes,
                scores,
                self.examples,
                self.rule,
                incumbent=self.servers.get(cluster),
                tenure=self.tenure.get(cluster, 0),
                turn=server_round,
                seed=(self.seed, server_round, cluster),
            )
            rankings[cluster] = [node for node in ranking if node not in failed]
        return rankings

    def _served(self, cluster: int, node: int, candidates: Sequence[int]) -> None:
        before = self.servers.get(cluster)
        self.handovers += before is not None and before != node
        self.terms += before != node
        self.served[node] = self.served.get(node, 0) + 1
        self.regret += regret(node, candidates, self.scores)
        self.tenure[cluster] = self.tenure.get(cluster, 0) + 1 if before == node else 1
        self.servers[cluster] = node

    def state_dict(self) -> State:
        """Return everything that the next round depends on, JSON-able."""
        return {
            "loads": {str(node): list(load) for node, load in self.loads.items()},
            **{name: getattr(self, name) for name in _NUMBERS},
            **{name: string_keys(getattr(self, name)) for name in _TABLES},
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        self.loads = {int(node): Load(*load) for node, load in state["loads"].items()}
        for name in _NUMBERS:
            setattr(self, name, state[name])
        for name in _TABLES:
            setattr(self, name, int_keys(state[name]))


class WithServers:
    """What the round loop reads of a strategy that has a :class:`ClusterServers`: ``Clustered``."""

    election: ClusterServers

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


def _measured(load: ConfigRecord, count: int) -> list[Load | None]:
    """Return the loads that a reply reports of so many clients; None where it reports none."""
    if "cpu_s" not in load:
        return [None] * count
    cpu, rss, node_cpu, node_mem = (
        np.atleast_1d(load[key]).tolist() for key in ("cpu_s", "rss_mb", "node_cpu", "node_mem")
    )
    return [Load(*new) for new in zip(cpu, rss, np.add(node_cpu, node_mem).tolist(), strict=True)]


def _query(replies: Sequence[Message], weighted_by_key: str) -> RecordDict:
    """Return a cluster's query: its members' arrays as received, their weights, the heaviest."""
    names = [f"member-{reply.metadata.src_node_id}" for reply in replies]
    content = RecordDict(
        {name: arrays_of(reply) for name, reply in zip(names, replies, strict=True)}
    )
    weights = [weight_of(reply, weighted_by_key) for reply in replies]
    content["weights"] = MetricRecord(dict(zip(names, weights, strict=True)))
    content["config"] = ConfigRecord({"heaviest": names[heaviest(replies, weighted_by_key)]})
    return content
