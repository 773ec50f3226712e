"""The seed workflow: warm up with FedAvg, group by K-means on updates, train on in clusters.

The idea follows Briggs et al. 2020 (FL+HC, arXiv:2004.11791), with K-means in place of hierarchical
clustering:

1. rounds 1 to ``warmup_rounds`` are FedAvg from one common model;
2. in the last of them all clients train, and K-means groups them by what stands for each: its
   update, its weights, its last layer, its losses under models of its peers (concept shift), or a
   signature of its data (feature shift);
3. in each cluster the member with the lowest load becomes the server, and averages its members'
   models;
4. from then on each cluster trains its own model; the global model is the clusters' mean, weighted
   by examples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, ConfigRecordValues, RecordDict
from numpy.typing import NDArray
from pydantic import Field

from fedsweep.strategies.base import State, int_keys, join_largest, string_keys
from fedsweep.strategies.clustered import ClusterTraining, Plan, WarmupSettings
from fedsweep.strategies.clustering import (
    Distance,
    Representation,
    check_angles,
    kmeans_split,
    nearest,
    points_of,
    view_of,
)
from fedsweep.strategies.grouping import Found, GroupSettings, find_groups
from fedsweep.strategies.layout import is_finite
from fedsweep.strategies.ranges import EXAMPLES, ROUNDS
from fedsweep.strategies.settings import Setting

MODELS_PER_CLUSTER = 3
"""Peers' models per wanted cluster in a vector of losses: few enough for every client."""


class KMeansSettings(GroupSettings, WarmupSettings):
    """How many clusters, when they are formed, and what the clients are told apart by."""

    cuts = ("gate", "representation", "distance", "sketch", "recluster_every", "stable_after")

    recluster_every: int = Field(
        0,
        ge=0,
        le=ROUNDS,
        description="cluster anew every so many rounds after the warm-up; 0: once",
    )
    stable_after: int = Field(
        0,
        ge=0,
        le=ROUNDS,
        description="end that once the same clusters came so many times in a row; 0: never",
    )
    representation: Representation = Field("updates", description="what stands for a client")
    distance: Distance = Field(
        "cosine", description="how far apart two clients are; cosine needs updates"
    )
    sketch: int = Field(
        0,
        ge=0,
        le=EXAMPLES,
        description=(
            "numbers that a client sends of its update in place of its model, to be grouped by; "
            "0: the model"
        ),
    )

    def check(self) -> None:
        """Refuse distances and sketches that mean nothing for what stands for a client."""
        super().check()
        check_angles(self.representation, self.distance)
        check_points(self.representation, self.distance, self.sketch)

    def check_in(self, setting: Setting) -> None:
        """Refuse to cluster anew where no round is left for it."""
        super().check_in(setting)
        if setting.rounds is None or not self.recluster_every:
            return
        rounds = setting.rounds
        times = (rounds - self.warmup_rounds) // self.recluster_every
        if not times:
            raise ValueError(
                f"strategy.recluster_every={self.recluster_every} with rounds={rounds} and "
                f"warmup_rounds={self.warmup_rounds}: the clients would be grouped once; lower it, "
                "or set it to 0"
            )
        if self.stable_after == 1 or self.stable_after > times:
            raise ValueError(
                f"strategy.stable_after={self.stable_after} with {times + 1} clusterings in "
                f"rounds={rounds}: it takes 2 at least, and {times} at most to leave one out; "
                "change it, or set it to 0"
            )

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: key -> the setting that is why."""
        once = {} if self.recluster_every else {"stable_after": "strategy.recluster_every=0"}
        return super().idle() | once


def check_points(representation: str, distance: str, sketch: int) -> None:
    """Refuse what K-means can't group by.

    Raises
    ------
    ValueError
        A sketch of what is no update, or a distance that has no means.
    """
    if sketch and representation not in ("updates", "last_layer"):
        raise ValueError(
            f"strategy.sketch={sketch} with strategy.representation={representation}: sketches are "
            "of updates; set strategy.representation=updates or last_layer, or strategy.sketch=0"
        )
    if distance == "manhattan":
        raise ValueError(
            "strategy.distance=manhattan has no K-means; it goes with strategy=flhc: set "
            "strategy.distance=euclidean or cosine"
        )


class KMeans(ClusterTraining):
    """K-means clustered federated learning. ``num_clusters=1`` is FedAvg, bit for bit.

    Partial participation, newcomers and clients that leave: as in
    :class:`~fedsweep.strategies.clustered.ClusterTraining`.

    Parameters
    ----------
    recluster_every : int
        Group anew every so many rounds after the warm-up, all clients starting from the global
        model; 0: once.
    stable_after : int
        Stop that when the same clusters came out so many times in a row; 0: never.
    sketch : int
        Clients send so many numbers of a random sketch of their updates before the round in which
        they are grouped, and hosts may average its models already: the server never holds the
        clients' models. 0: they send the models.
    **common
        Parameters of ClusterTraining. ``cosine`` is K-means on rows of unit length. It needs
        updates: the angle between weights depends on where the origin lies.
    """

    settings = KMeansSettings
    title = "K-means"
    colour = "#009E73"
    partial_means = True

    def __init__(
        self, *, recluster_every: int = 0, stable_after: int = 0, sketch: int = 0, **common: Any
    ) -> None:
        super().__init__(**common)
        check_points(self.representation, self.distance, sketch)
        self.recluster_every, self.stable_after, self.sketch = recluster_every, stable_after, sketch
        self.times_same = 1
        self.peers: dict[int, ArrayRecord] = {}  # whose models make up the vectors of losses

    def prepare(self, server_round: int, arrays: ArrayRecord) -> None:
        """Put all clients into the one cluster where one is wanted;
        group them by their sketches.
        """
        if self._one:
            if server_round >= self.warmup_rounds and not self.assignment:
                self.assignment, self.cluster_arrays = (
                    dict.fromkeys(sorted(self._grid.get_node_ids()), 0),
                    {0: arrays},
                )
        elif self.sketch and self._due(server_round):
            self.anchor = arrays
            self._count(lambda: self._group_sketches(arrays))

    def plan(self, server_round: int) -> Plan:
        """Cluster after the warm-up, and again as often as wanted."""
        return (
            Plan.TOGETHER
            if self._due(server_round) and not self.sketch and not self._one
            else Plan.APART
        )

    @property
    def _one(self) -> bool:
        return self.choose_k == "given" and self.num_clusters == 1

    def _due(self, server_round: int) -> bool:
        """Whether the clients are to be grouped in a round."""
        since = server_round - self.warmup_rounds
        settled = 0 < self.stable_after <= self.times_same
        again = (
            since > 0 and self.recluster_every and since % self.recluster_every == 0 and not settled
        )
        return bool(again) or (since >= 0 and not self.assignment)

    def group(self, server_round: int, models: Mapping[int, ArrayRecord]) -> None:
        """Group as ever, and count how often the same clusters came out."""
        self._count(lambda: super(KMeans, self).group(server_round, models))

    def _count(self, group: Callable[[], None]) -> None:
        before = self.assignment
        group()
        if self.assignment is not before:
            self.times_same = self.times_same + 1 if self.assignment == before else 1

    def _group_sketches(self, arrays: ArrayRecord) -> None:
        nodes, rows_CS = self._sketches(self._grid.get_node_ids())
        if self.group_rows(nodes, rows_CS):
            self.cluster_arrays = {
                c: ArrayRecord(dict(arrays)) for c in sorted(set(self.assignment.values()))
            }
            self.welcome(sorted(set(self._grid.get_node_ids()) - self.assignment.keys()))

    def _sketches(
        self, nodes: Iterable[int], needed: bool = True
    ) -> tuple[list[int], NDArray[np.float32]]:
        """Return clients that answered and their updates' sketches from the anchor, (C, sketch)."""
        assert self.anchor is not None
        layout = self.laid_out(self.anchor)
        keys = layout.last_layer() if self.representation == "last_layer" else list(layout.trained)
        seed = self.seed % 2**31
        asked: dict[str, ConfigRecordValues] = {
            "sketch": self.sketch,
            "sketch-seed": seed,
            "sketch-of": keys,
        }
        config = ConfigRecord({**self._config, **asked})
        content = RecordDict({"arrays": self.anchor, "config": config})
        answers = self.ask("query.sketch", dict.fromkeys(nodes, content), needed)
        sent = b"".join(
            cast(bytes, answer.config_records["sketch"]["float32"]) for answer in answers.values()
        )
        return list(answers), np.frombuffer(sent, "<f4").reshape(len(answers), self.sketch)

    def welcome(self, nodes: Sequence[int]) -> None:
        """Place newcomers by their sketches;
        else they train once from the anchor, as everywhere.
        """
        if self.sketch and self.means_KP is not None and nodes:
            new, rows_CS = self._sketches(nodes, needed=False)
            finite = np.isfinite(rows_CS).all(axis=1)
            labels = nearest(rows_CS[finite], self.means_KP, self.distance).tolist()
            self.assignment.update(zip(np.array(new)[finite].tolist(), labels, strict=True))
            join_largest(self.assignment, nodes)
        else:
            super().welcome(nodes)

    def rows(self, models: Mapping[int, ArrayRecord]) -> NDArray[np.float32]:
        """Return what stands for each client.

        One that gives no answer, or whose model is not finite, gets a row that is not finite.
        """
        if self.representation not in ("losses", "data"):
            return super().rows(models)
        everybody = self._plan is Plan.TOGETHER
        # A model that is no number has no place in a cluster's mean, whatever its client's data
        # are, and under it every client's losses would be none.
        finite = [node for node in models if is_finite(models[node])]
        vectors: dict[int, NDArray[np.float32]]
        if self.representation == "losses":
            if everybody:
                wanted = MODELS_PER_CLUSTER * (
                    self.num_clusters if self.choose_k == "given" else self.max_clusters
                )
                drawn = np.random.default_rng(self.seed).permutation(finite)[:wanted]
                self.peers = {int(node): models[int(node)] for node in sorted(drawn)}
            content = RecordDict({f"model-{node}": arrays for node, arrays in self.peers.items()})
            answers = self.ask("query.losses", dict.fromkeys(finite, content), everybody)
            vectors = {
                n: np.array(a.metric_records["metrics"]["losses"], np.float32)
                for n, a in answers.items()
            }
        else:
            answers = self.ask("query.signature", dict.fromkeys(finite, RecordDict()), everybody)
            vectors = {
                n: a.array_records["arrays"]["signature"].numpy().ravel()
                for n, a in answers.items()
            }
        missing = np.full_like(next(iter(vectors.values()), np.zeros(1, np.float32)), np.nan)
        return np.stack([vectors.get(node, missing) for node in models])

    def find(self, rows_CP: NDArray[np.float32]) -> Found:
        """Run K-means."""
        split, view = kmeans_split(self.seed), view_of(self.distance)
        return find_groups(points_of(rows_CP, self.distance), split, self.how, self.seed, view)

    def state_dict(self) -> State:
        """Return everything that the next round depends on."""
        return {
            **super().state_dict(),
            "times_same": self.times_same,
            "peers": string_keys(self.peers),
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        super().load_state_dict(state)
        self.times_same, self.peers = state["times_same"], int_keys(state["peers"])
