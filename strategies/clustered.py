"""Training in clusters: what all methods here share, so that one says only when and how it groups.

A method overrides some of five hooks of :class:`ClusterTraining`: :meth:`~ClusterTraining.prepare`
(before a round's messages), :meth:`~ClusterTraining.plan` (what the round is),
:meth:`~ClusterTraining.find` or :meth:`~ClusterTraining.group` (who belongs together) and
:meth:`~ClusterTraining.welcome` (where a newcomer goes).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from logging import WARNING
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray
from pydantic import Field

from fedsweep.strategies.base import (
    State,
    arrays_of,
    ask,
    int_keys,
    join_largest,
    mean_of_clusters,
    mean_of_replies,
    metrics_of,
    sort_replies,
    string_keys,
)
from fedsweep.strategies.candidates import changed
from fedsweep.strategies.clustering import (
    Distance,
    Representation,
    canonical,
    check_angles,
    group_means,
    nearest,
    one_thread,
    plane_of,
    represent,
)
from fedsweep.strategies.defended import Defend, defended
from fedsweep.strategies.grouping import ChooseK, Found, HowMany
from fedsweep.strategies.insides import log, sample_nodes
from fedsweep.strategies.layout import Layout, WithLayout
from fedsweep.strategies.ranges import ROUNDS
from fedsweep.strategies.selection import ServerRule
from fedsweep.strategies.servers import ClusterServers, WithServers
from fedsweep.strategies.settings import FedAvgSettings, Setting

PICTURED = 1_000
"""Clients up to which a clustering is drawn: the picture's axes cost the cube of their number."""


class WarmupSettings(FedAvgSettings):
    """Of a method that groups the clients after rounds of FedAvg."""

    then: ClassVar[int] = 0
    """Rounds after the warm-up in which the clients are grouped for the first time."""

    warmup_rounds: int = Field(
        1, ge=1, le=ROUNDS, description="FedAvg rounds; the clients are grouped in the last"
    )

    def check_in(self, setting: Setting) -> None:
        """Refuse a warm-up after which no round is left to group the clients."""
        super().check_in(setting)
        rounds = setting.rounds
        if rounds is None or self.warmup_rounds <= rounds - self.then:
            return
        if rounds > self.then:
            raise ValueError(
                f"strategy.warmup_rounds={self.warmup_rounds} with rounds={rounds}: "
                f"strategy={self.name} would never cluster; set it to {rounds - self.then} at "
                "most, or raise rounds"
            )
        raise ValueError(
            f"rounds={rounds}: strategy={self.name} splits after its warm-up; "
            f"set rounds={self.then + 1}"
        )


class Plan(Enum):
    """What a round is."""

    APART = "the sampled clients train their clusters' models; hosts may average the replies"
    READ = "the same, and each reply is read"
    TOGETHER = "all clients train the common model, and each reply is read"


class ClusterTraining(WithServers, WithLayout, FedAvg):
    """FedAvg in clusters of clients, each with a server of its own.

    As it stands a method groups the clients once: ``warmup_rounds`` of FedAvg, in the last of which
    all clients train from the common model and :meth:`find` groups what they send back. From then
    on each cluster trains its own model; the global model is the clusters' mean, weighted by
    examples.

    - **Partial participation**: outside the clustering round the sampled clients train; a cluster
      without replies keeps its model. Where fewer usable replies than clusters came, clustering is
      put off to the next round.
    - **Newcomers**, and clients whose reply was missing or not finite, train once from the model
      that the others were grouped from, and join the cluster whose mean is nearest; that first
      model is not averaged (FedGroup's cold start). Until then they evaluate the global model.
    - **Clients that leave** are taken out of their clusters before the next round;
      an empty cluster keeps its model.

    Parameters
    ----------
    num_clusters, choose_k, max_clusters, gate
        How many clusters: see :class:`~fedsweep.strategies.grouping.HowMany`.
    warmup_rounds : int
        FedAvg rounds; the clients are grouped in the last.
    representation, distance : str
        What stands for a client, and how far apart two are.
    server : ServerRule
        Which member of a cluster is its server.
    seed : int
        Root of all random choices.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    clusters_clients = True
    threshold: float | None = None  # of methods that can cut at a distance
    defend: Defend | None = None  # what is done to a cluster's updates before their mean
    plain_mean = False  # True: every reply of a cluster weighs the same, whatever its examples

    def __init__(
        self,
        *,
        num_clusters: int = 4,
        choose_k: ChooseK = "given",
        max_clusters: int = 8,
        gate: float = 0.0,
        warmup_rounds: int = 1,
        representation: Representation = "updates",
        distance: Distance = "cosine",
        server: ServerRule | None = None,
        seed: int = 0,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        check_angles(representation, distance)
        self.num_clusters, self.choose_k, self.max_clusters, self.gate = (
            num_clusters,
            choose_k,
            max_clusters,
            gate,
        )
        self.how = HowMany(num_clusters, choose_k, max_clusters, gate)
        self.warmup_rounds = warmup_rounds
        self.representation: Representation = representation
        self.distance: Distance = distance
        self.seed = seed
        self.assignment: dict[int, int] = {}
        self.cluster_arrays: dict[int, ArrayRecord] = {}
        self.election = ClusterServers(server or ServerRule(), seed)
        self.silhouette = self.p_value = float("nan")
        self.anchor: ArrayRecord | None = (
            None  # the model that the clients were grouped from; newcomers start there
        )
        self.plane: dict[
            int, tuple[float, float]
        ] = {}  # of the last clustering: node id -> place in its picture
        self.means_KP: NDArray[np.float32] | None = (
            None  # of each cluster in the space of the representation
        )
        self.clustering_round = False  # of the round that was configured last: each reply is read
        self.churn = 0  # clients that had a cluster and changed it in the last round
        self.made: frozenset[int] = frozenset()  # clusters that got a new model in the last round
        self.clustering_s = (
            0.0  # of the last round: what grouping took here, without the clients' answers
        )
        self._asked_s = 0.0  # of all rounds: waiting for answers
        self._before: dict[int, int] = {}
        self._newcomers: set[int] = set()
        self._starts: dict[int, ArrayRecord] = {}  # what each node was sent in the last round
        self._plan = Plan.APART
        self._sent = 0
        self._grid: Grid
        self._config: ConfigRecord  # of the round's training

    # What a method says

    def prepare(self, server_round: int, arrays: ArrayRecord) -> None:
        """Do what comes before a round's messages: ask clients, or group them untrained."""

    def plan(self, server_round: int) -> Plan:
        """Return what a round is."""
        return Plan.APART if self.assignment or server_round < self.warmup_rounds else Plan.TOGETHER

    def pool(self, nodes: list[int]) -> list[int]:
        """Return the clients, of all, that a TOGETHER round asks."""
        return nodes

    def updates(self, models: Sequence[ArrayRecord], start: ArrayRecord) -> NDArray[np.float32]:
        """Return how far each model's trained arrays moved from their common start, (C, P)."""
        return represent(models, start, "updates", self.laid_out(start))

    def rows(self, models: Mapping[int, ArrayRecord]) -> NDArray[np.float32]:
        """Return what stands for each client, (C, P), in the order of ``models``."""
        assert self.anchor is not None
        layout = self.laid_out(self.anchor)
        return represent(list(models.values()), self.anchor, self.representation, layout)

    def find(self, rows_CP: NDArray[np.float32]) -> Found:
        """Group the clients of a TOGETHER round."""
        raise NotImplementedError

    def group(self, server_round: int, models: Mapping[int, ArrayRecord]) -> None:
        """Group the clients by the models that they sent, or place newcomers among the clusters;
        in order of ids.
        """
        del server_round
        nodes, rows_CP = _usable(list(models), self.rows(models))
        if self._plan is Plan.APART:
            new = [i for i, node in enumerate(nodes) if node in self._newcomers]
            if new and self.means_KP is not None:
                labels = nearest(rows_CP[new], self.means_KP, self.distance).tolist()
                self.assignment.update(zip([nodes[i] for i in new], labels, strict=True))
        else:
            self.group_rows(nodes, rows_CP)

    def group_rows(self, nodes: list[int], rows_CP: NDArray[np.float32]) -> bool:
        """Group clients by what stands for them; say whether there were enough that can be used."""
        nodes, rows_CP = _usable(nodes, rows_CP)
        known = self.choose_k == "given" and self.threshold is None
        if len(nodes) < (self.num_clusters if known else 2):
            log(WARNING, "clustering put off: %d usable replies are too few", len(nodes))
            return False
        with one_thread():
            found = self.find(rows_CP)
        self.set_clusters(canonical(nodes, found.labels.tolist()), found)
        labels_C = np.array([self.assignment[node] for node in nodes])
        self.means_KP = group_means(rows_CP, labels_C, self.distance)
        if len(nodes) <= PICTURED:
            self.plane = dict(zip(nodes, plane_of(rows_CP, self.distance), strict=True))
        return True

    def welcome(self, nodes: Sequence[int]) -> None:
        """Assign clients that no cluster has.

        Those that it leaves out train once from the anchor.
        """
        if self.anchor is None:
            join_largest(self.assignment, nodes)

    # What all methods share

    def set_clusters(
        self,
        assignment: dict[int, int],
        found: Found | None = None,
        arrays: Mapping[int, ArrayRecord] | None = None,
    ) -> None:
        """Begin new clusters, with a model each or one that this round's replies will give."""
        self.assignment = assignment
        # A record of its own per cluster, even of equal models: hosts average the replies to one
        # record, unasked whose.
        self.cluster_arrays = {
            cluster: ArrayRecord(dict(model)) for cluster, model in (arrays or {}).items()
        }
        if found is not None:
            self.silhouette, self.p_value = found.silhouette, found.p_value
        self.election.forget()

    def ask(
        self, query: str, contents: Mapping[int, RecordDict], needed: bool = True
    ) -> dict[int, RecordDict]:
        """Send each node a query and return the answers: :func:`~fedsweep.strategies.base.ask`."""
        began = perf_counter()
        answers = ask(self._grid, query, contents, needed_by=type(self).__name__ if needed else "")
        self._asked_s += perf_counter() - began
        return answers

    def diagnostics(self) -> dict[str, float]:
        """Return clusters, churn, numbers of servers and, where defined, silhouette and p-value."""
        if not self.assignment:
            return {}
        numbers = {"clusters": float(len(self.cluster_arrays)), "churn": float(self.churn)}
        numbers |= self.election.diagnostics(self.assignment)
        defined = {"silhouette": self.silhouette, "gate_p": self.p_value}
        return numbers | {name: value for name, value in defined.items() if not math.isnan(value)}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each sampled client its cluster's model;
        in a TOGETHER round, send all clients the common one.
        """
        self._grid, self._newcomers = grid, set()
        self.laid_out(arrays)
        config["server-round"] = server_round
        self._config = config
        if gone := self.assignment.keys() - set(grid.get_node_ids()):
            self.assignment = {node: c for node, c in self.assignment.items() if node not in gone}
        self._before, self.clustering_s = dict(self.assignment), 0.0
        self.made = frozenset()
        with self._timed():
            self.prepare(server_round, arrays)
        self._plan = self.plan(server_round)
        if self._plan is Plan.TOGETHER:
            self.anchor = arrays
            _, nodes = sample_nodes(grid, self.min_available_nodes, sample_size=0)
            record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
            pool = self.pool(sorted(nodes))
            messages = [Message(record, node, MessageType.TRAIN) for node in pool]
        else:
            messages = self._to_clusters(
                super().configure_train(server_round, arrays, config, grid), config
            )
            self._newcomers = self._unplaced(messages)
            self._readdress(messages, self._newcomers, self.anchor or arrays, config)
        self.clustering_round = self._plan is not Plan.APART or bool(self._newcomers)
        self._sent = len(messages)
        self._starts = {
            message.metadata.dst_node_id: message.content.array_records[self.arrayrecord_key]
            for message in messages
        }
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Have each cluster's server average its members' models;
        return the mean of the clusters' models.
        """
        replies = list(replies)
        valid, errors = sort_replies(
            self, replies, read_arrays=self.clustering_round or not self.assignment
        )
        if not valid:
            return None, None
        metrics = metrics_of(self, valid)
        one_each = self.clustering_round or len(replies) == self._sent  # else partial means came
        self.election.observe(valid, self.weighted_by_key, one_each)
        if self.clustering_round:
            by_node = {reply.metadata.src_node_id: arrays_of(reply) for reply in valid}
            with self._timed():
                self.group(server_round, dict(sorted(by_node.items())))
        self.churn = changed(self._before, self.assignment)
        layout = self.laid_out(arrays_of(valid[0]))
        if not self.assignment:
            read = self._defended(valid, layout)
            return mean_of_replies(read, self.weighted_by_key, layout), metrics
        counted = [reply for reply in valid if self._counts(reply.metadata.src_node_id)]
        made = self.election.aggregate(
            self._grid,
            server_round,
            self.assignment,
            self._defended(counted, layout),
            {reply.metadata.src_node_id for reply in errors},
            "" if self.plain_mean else self.weighted_by_key,
            layout,
        )
        self.cluster_arrays |= made
        self.made = frozenset(made)
        examples = self.election.examples
        return mean_of_clusters(self.cluster_arrays, self.assignment, examples, layout), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each sampled client its cluster's model, or the global one where it has none."""
        return self._to_clusters(
            super().configure_evaluate(server_round, arrays, config, grid), config
        )

    def state_dict(self) -> State:
        """Return everything that the next round depends on: JSON-able values and ArrayRecords."""
        return {
            "assignment": string_keys(self.assignment),
            "cluster_arrays": string_keys(self.cluster_arrays),
            "numbers": {"silhouette": self.silhouette, "p_value": self.p_value},
            "election": self.election.state_dict(),
            "anchor": self.anchor,
            "means": None
            if self.means_KP is None
            else ArrayRecord({"means": Array(self.means_KP)}),
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        self.assignment = int_keys(state["assignment"])
        self.cluster_arrays = int_keys(state["cluster_arrays"])
        self.silhouette, self.p_value = state["numbers"]["silhouette"], state["numbers"]["p_value"]
        self.election.load_state_dict(state["election"])
        self.anchor = state["anchor"]
        self.means_KP = None if state["means"] is None else state["means"]["means"].numpy()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Add the seconds spent here to the clustering's, less those that clients took."""
        began = perf_counter() - self._asked_s
        yield
        self.clustering_s += perf_counter() - self._asked_s - began

    def _defended(self, replies: list[Message], layout: Layout) -> list[Message]:
        """Return replies as the defence has them: it sees each cluster for itself.

        Those of a cluster that began with another model, as newcomers do, are apart too.
        """
        if self.defend is None:
            return replies
        together: dict[tuple[int, int], list[int]] = {}
        for place, reply in enumerate(replies):
            node = reply.metadata.src_node_id
            group = self.assignment.get(node, -1), id(self._starts[node])
            together.setdefault(group, []).append(place)
        made = list(replies)
        for places in together.values():
            start = self._starts[replies[places[0]].metadata.src_node_id]
            some = defended([replies[p] for p in places], start, layout.trained, self.defend)
            for place, reply in zip(places, some, strict=True):
                made[place] = reply
        return made

    def _counts(self, node: int) -> bool:
        """Whether a reply is averaged: a newcomer's only where a cluster has no model."""
        cluster = self.assignment.get(node)
        return cluster is not None and (
            node not in self._newcomers or cluster not in self.cluster_arrays
        )

    def _unplaced(self, messages: Iterable[Message]) -> set[int]:
        if not self.assignment:
            return set()
        return {message.metadata.dst_node_id for message in messages} - self.assignment.keys()

    def _to_clusters(self, messages: Iterable[Message], config: ConfigRecord) -> list[Message]:
        """Give each message its cluster's content: one object a cluster, which is sent once."""
        messages = list(messages)
        if self.assignment:
            self.welcome(sorted(self._unplaced(messages)))
            for cluster, arrays in self.cluster_arrays.items():
                members = {node for node, c in self.assignment.items() if c == cluster}
                self._readdress(messages, members, arrays, config)
        return messages

    def _readdress(
        self,
        messages: Iterable[Message],
        nodes: set[int],
        arrays: ArrayRecord,
        config: ConfigRecord,
    ) -> None:
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        for message in messages:
            if message.metadata.dst_node_id in nodes:
                message.content = content


def _usable(
    nodes: list[int], rows_CP: NDArray[np.float32]
) -> tuple[list[int], NDArray[np.float32]]:
    """Return the clients whose rows are finite."""
    finite = np.isfinite(rows_CP).all(axis=1)
    return (
        (nodes, rows_CP)
        if finite.all()
        else ([nodes[i] for i in np.flatnonzero(finite)], rows_CP[finite])
    )
