"""CFL: split a cluster whose training stands still but whose clients do not.

Sattler, Müller and Samek 2019 (arXiv:1910.01991).

At a stationary point of the cluster's objective the mean update is small; if single clients still
move far, they pull in different directions. The cluster is then cut in two by the cosines of their
updates. Neither k nor a warm-up model is needed; the splits repeat until no cluster is cut any
more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from pydantic import Field

from fedsweep.strategies.base import State, int_keys, string_keys
from fedsweep.strategies.clustered import ClusterTraining, Plan, WarmupSettings
from fedsweep.strategies.clustering import at_length_one, one_thread, points_of
from fedsweep.strategies.grouping import (
    GateSettings,
    HowMany,
    Points,
    choose_k,
    rotation_p_value,
    silhouette,
    tree_split,
)
from fedsweep.strategies.ranges import CLIENTS, METRIC, ROUNDS
from fedsweep.strategies.settings import inherited


class CFLSettings(GateSettings, WarmupSettings):
    """When a cluster is split."""

    then = 1

    gate: float = inherited(GateSettings, "gate", 0.05)
    warmup_rounds: int = Field(
        1, ge=1, le=ROUNDS, description="FedAvg rounds; no cluster is split before they are over"
    )
    eps1: float = Field(
        0.9, gt=0, le=METRIC, description="split below this length of the mean update"
    )
    eps2: float = Field(
        0.7, ge=0, le=METRIC, description="and above this length of the longest update"
    )
    relative: bool = Field(
        True, description="eps1, eps2 in units of the longest mean update so far"
    )
    min_size: int = Field(2, ge=2, le=CLIENTS, description="split only larger clusters")

    def check(self) -> None:
        """Refuse rounds of some of the clients."""
        super().check()
        check_everybody(self.fraction_train)


def check_everybody(fraction_train: float) -> None:
    """Refuse rounds of some of the clients.

    Raises
    ------
    ValueError
        Not all train in each round.
    """
    if fraction_train < 1:
        raise ValueError(
            f"strategy.fraction_train={fraction_train:g} with strategy=cfl: "
            "the norms of a cluster's updates need every member in every round; "
            "set strategy.fraction_train=1"
        )


class CFL(ClusterTraining):
    """Clustered federated learning by recursive bipartition.

    Partial participation is refused: the norms of a cluster's updates mean nothing where members
    are missing. A cluster that lacks a reply is not split in that round. Newcomers join the largest
    cluster, and leave it by a later split. Clients that leave: as in
    :class:`~fedsweep.strategies.clustered.ClusterTraining`.

    Parameters
    ----------
    eps1, eps2 : float
        Split when ||weighted mean update|| < eps1 and max ||update|| > eps2.
    relative : bool
        Give both norms in units of the longest mean update that the cluster's line has seen (the
        paper's rule of thumb: eps1 a tenth of it, eps2 between eps1 and ten times that; ours, with
        the gate: .9 and .7); else they are absolute, as in the reference.
    min_size : int
        Split only clusters with more members.
    **common
        Parameters of ClusterTraining; no split happens in the first ``warmup_rounds`` rounds, or
        where the gate finds no groups. It is asked again and again: the n-th time that a cluster
        asks, the level is gate / (n (n + 1)), which adds up to ``gate`` over all rounds.
    """

    settings = CFLSettings
    colour = "#025941"
    partial_means = True

    def __init__(
        self,
        *,
        eps1: float = 0.4,
        eps2: float = 1.6,
        relative: bool = False,
        min_size: int = 2,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_everybody(self.fraction_train)
        self.eps1, self.eps2, self.relative, self.min_size = eps1, eps2, relative, min_size
        self.tests: dict[int, int] = {}  # cluster -> how often it asked the gate
        self.longest: dict[
            int, float
        ] = {}  # cluster -> longest mean update so far, of its ancestors too

    def prepare(self, server_round: int, arrays: ArrayRecord) -> None:
        """Begin with all clients in one cluster."""
        if not self.assignment:
            self.set_clusters(
                dict.fromkeys(sorted(self._grid.get_node_ids()), 0), arrays={0: arrays}
            )

    def plan(self, server_round: int) -> Plan:
        """Read each update."""
        return Plan.READ

    def group(self, server_round: int, models: Mapping[int, ArrayRecord]) -> None:
        """Split each cluster that has to be split, once per round."""
        for cluster in sorted(set(self.assignment.values())):
            members = [node for node, c in self.assignment.items() if c == cluster]
            present = sorted(node for node in members if node in models)
            if not present:
                continue
            rows_CP = self.updates([models[node] for node in present], self.cluster_arrays[cluster])
            stuck = self._is_stuck(cluster, present, rows_CP)
            late = server_round > self.warmup_rounds and len(members) > self.min_size
            if not (stuck and late and len(present) == len(members) and np.isfinite(rows_CP).all()):
                continue
            with one_thread():
                points_CD = points_of(rows_CP, "cosine")
                if self.gate and not self._passes(cluster, points_CD, server_round):
                    continue
                _, second = bipartition(present, at_length_one(points_CD))
            self._divide(cluster, second)

    def _is_stuck(self, cluster: int, present: list[int], rows_CP: NDArray[np.float32]) -> bool:
        """Return whether a cluster's mean update is short, and the longest update is long."""
        mean, most = update_norms(rows_CP, [self.election.examples[node] for node in present])
        self.longest[cluster] = max(self.longest.get(cluster, 0.0), mean)
        unit = self.longest[cluster] if self.relative else 1.0
        return mean < self.eps1 * unit and most > self.eps2 * unit

    def _divide(self, cluster: int, second: Sequence[int]) -> None:
        """Give the second half of a cluster's clients a cluster of their own."""
        new = max(self.cluster_arrays) + 1
        self.assignment.update(dict.fromkeys(second, new))
        self.longest[new] = self.longest[cluster]
        self.tests.pop(cluster, None)
        # It is replaced by its members' mean in this very round.
        self.cluster_arrays[new] = self.cluster_arrays[cluster]
        self.election.forget()

    def _passes(self, cluster: int, points_CD: Points, server_round: int) -> bool:
        """Ask the gate whether there are groups among a cluster's clients."""
        n = self.tests[cluster] = self.tests.get(cluster, 0) + 1
        level = self.gate / (n * (n + 1))
        self.p_value = rotation_p_value(points_CD, groups_apart, level, self.seed + server_round)
        return self.p_value <= level

    def state_dict(self) -> State:
        """Return everything that the next round depends on."""
        return {
            **super().state_dict(),
            "longest": string_keys(self.longest),
            "tests": string_keys(self.tests),
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        super().load_state_dict(state)
        self.longest, self.tests = int_keys(state["longest"]), int_keys(state["tests"])


def update_norms(rows_CP: NDArray[np.float32], examples: Sequence[float]) -> tuple[float, float]:
    """Return the lengths of the mean update, weighted by examples, and of the longest update."""
    rows = rows_CP.astype(np.float64)
    mean = np.average(rows, axis=0, weights=examples)
    return float(np.linalg.norm(mean)), float(np.linalg.norm(rows, axis=1).max())


def groups_apart(points_CD: Points) -> float:
    """Return the best silhouette, on the unit sphere, of a complete-linkage tree's 2 to 8 groups.

    The gate asks whether there are groups, not whether there are two: of four equal ones no half is
    further from the other than two halves of one cloud of that shape would be.
    """
    seen, split = at_length_one(points_CD), tree_split("complete")
    return silhouette(
        seen, split(seen, choose_k(seen, split, HowMany(choose_k="silhouette"), seed=0))
    )


def bipartition(nodes: Sequence[int], points_CD: Points) -> tuple[list[int], list[int]]:
    """Cut clients in two by complete linkage; return node ids, the half of the first node first.

    Source: the reference code clusters the rows of a sub-matrix, and after the first split takes
    the row numbers for client ids, so that three or more clusters come out wrong. Here a row is its
    node, whatever the cluster.
    """
    labels = tree_split("complete")(points_CD, 2).tolist()
    halves = [
        [node for node, label in zip(nodes, labels, strict=True) if (label == labels[0]) == same]
        for same in (True, False)
    ]
    return halves[0], halves[1]
