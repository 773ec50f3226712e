"""StoCFL: merge clusters of clients as they turn up, by the cosine of their updates.

Zeng et al. 2023 (arXiv:2303.00897).

A client that is sampled for the first time trains from the anchor, the initial model; its update
there represents its data. It begins as a cluster of its own. The two clusters with the largest
cosine between their mean representations are merged while that is at least ``merge_cosine``. Each
cluster trains its model, drawn towards the global one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray
from pydantic import Field

from fedsweep.strategies.base import State
from fedsweep.strategies.clustered import ClusterTraining, Plan
from fedsweep.strategies.clustering import one_thread, unit_rows
from fedsweep.strategies.layout import joined, weighted_mean
from fedsweep.strategies.ranges import WEIGHT
from fedsweep.strategies.selection import ServerSettings


class StoCFLSettings(ServerSettings):
    """When clusters are merged, and how near they stay to each other."""

    merge_cosine: float = Field(0.45, gt=-1, le=1, description="clusters this similar are merged")
    proximal_mu: float = Field(0.05, ge=0, le=WEIGHT, description="weight of the proximal term")


class StoCFL(ClusterTraining):
    """Stochastic clustered federated learning.

    Partial participation and newcomers are what the method is made for: nobody has to take part in
    a first round. A client's first model is averaged only into a cluster that has no model yet.
    Until a client was sampled it belongs to no cluster and evaluates the global model. Clients that
    leave: as in :class:`~fedsweep.strategies.clustered.ClusterTraining`; what they told about their
    cluster stays.

    Parameters
    ----------
    merge_cosine : float
        tau: clusters this similar are one.
    proximal_mu : float
        mu: after a round in which its clients trained, a cluster's model is the minimiser of
        ||w - w_k||^2 / 2 + mu ||w - w_global||^2 / 2.
    **common
        Parameters of ClusterTraining.
    """

    settings = StoCFLSettings
    colour = "#531B37"
    partial_means = True

    def __init__(
        self, *, merge_cosine: float = 0.45, proximal_mu: float = 0.05, **common: Any
    ) -> None:
        super().__init__(**common)
        self.merge_cosine, self.proximal_mu = merge_cosine, proximal_mu
        self.means: dict[int, NDArray[np.float32]] = {}  # cluster -> mean representation (P,)
        self.sizes: dict[int, int] = {}  # cluster -> clients that it stands for

    def plan(self, server_round: int) -> Plan:
        """Read replies only where newcomers are among them, as the common part does;
        before that, all are new.
        """
        return Plan.APART if self.assignment else Plan.READ

    def prepare(self, server_round: int, arrays: ArrayRecord) -> None:
        """Keep the initial model as the anchor of all representations."""
        if self.anchor is None:
            self.anchor = arrays

    def welcome(self, nodes: Sequence[int]) -> None:
        """Let newcomers train from the anchor first."""

    def group(self, server_round: int, models: Mapping[int, ArrayRecord]) -> None:
        """Make each newcomer a cluster, then merge clusters."""
        assert self.anchor is not None
        new = [node for node in models if node not in self.assignment]
        rows_CP = self.updates([models[node] for node in new], self.anchor)
        first = 1 + max(self.means, default=-1)
        for own, (node, row) in enumerate(zip(new, rows_CP, strict=True), start=first):
            if np.isfinite(row).all():
                self.assignment[node], self.means[own], self.sizes[own] = own, row, 1
        with one_thread():
            renamed = merge(self.means, self.sizes, self.merge_cosine)
        number = {cluster: i for i, cluster in enumerate(sorted(self.means))}
        renamed = {old: number[kept] for old, kept in renamed.items()}
        self.means = {number[c]: mean for c, mean in self.means.items()}
        self.sizes = {number[c]: size for c, size in self.sizes.items()}
        self.cluster_arrays = self._merged_models(renamed)
        self.assignment = {node: renamed[cluster] for node, cluster in self.assignment.items()}
        if any(old != kept for old, kept in renamed.items()):
            self.election.forget()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average as ever, then draw the models that this made towards the global one.

        A cluster that nobody trained in the round is left alone: else it would end at the global
        model, the sooner the fewer clients take part.
        """
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is not None and self.proximal_mu and len(self.cluster_arrays) > 1:
            self.cluster_arrays |= {
                c: self._pulled(self.cluster_arrays[c], arrays) for c in sorted(self.made)
            }
        return arrays, metrics

    def _pulled(self, model: ArrayRecord, towards: ArrayRecord) -> ArrayRecord:
        """Return a cluster's model whose trained arrays are drawn towards the global one's."""
        layout = self.laid_out(model)
        pair = [layout.trained_of(model), layout.trained_of(towards)]
        return joined(model, model, weighted_mean(pair, [1.0, self.proximal_mu]))

    def _merged_models(self, renamed: Mapping[int, int]) -> dict[int, ArrayRecord]:
        """Return the merged clusters' models: means of those that have one, weighted by clients."""
        parts: dict[int, list[int]] = {}
        for old in sorted(self.cluster_arrays):
            parts.setdefault(renamed[old], []).append(old)
        assert self.anchor is not None
        layout = self.laid_out(self.anchor)
        members = {
            old: sum(1 for c in self.assignment.values() if c == old) for old in self.cluster_arrays
        }
        return {
            kept: layout.mean(
                [self.cluster_arrays[o] for o in olds], [max(members[o], 1) for o in olds]
            )
            if len(olds) > 1
            else self.cluster_arrays[olds[0]]
            for kept, olds in parts.items()
        }

    def state_dict(self) -> State:
        """Return everything that the next round depends on."""
        means = ArrayRecord({str(cluster): Array(row) for cluster, row in self.means.items()})
        return {
            **super().state_dict(),
            "cluster_means": means,
            "sizes": {str(c): n for c, n in self.sizes.items()},
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        super().load_state_dict(state)
        self.means = {
            int(cluster): array.numpy() for cluster, array in state["cluster_means"].items()
        }
        self.sizes = {int(cluster): n for cluster, n in state["sizes"].items()}


def merge(
    means: dict[int, NDArray[np.float32]], sizes: dict[int, int], tau: float
) -> dict[int, int]:
    """Merge, in place, the two most similar clusters while their cosine is tau or more.

    Parameters
    ----------
    means : dict
        Cluster -> mean representation (P,).
    sizes : dict
        Cluster -> clients.

    Returns
    -------
    dict
        Each old cluster -> the cluster that it is in now: the smallest number of those merged.
    """
    renamed = {cluster: cluster for cluster in means}
    clusters = sorted(means)
    if not clusters:
        return renamed
    units = unit_rows(np.stack([means[c] for c in clusters])).astype(np.float64)
    cosines = units @ units.T
    np.fill_diagonal(cosines, -np.inf)
    while len(means) > 1:
        i, j = sorted(int(n) for n in np.unravel_index(np.argmax(cosines), cosines.shape))
        if not cosines[i, j] >= tau:
            break
        kept, gone = clusters[i], clusters[j]
        total = sizes[kept] + sizes[gone]
        means[kept] = ((sizes[kept] * means[kept] + sizes[gone] * means[gone]) / total).astype(
            np.float32
        )
        sizes[kept] = total
        del means[gone], sizes[gone]
        renamed = {old: kept if now == gone else now for old, now in renamed.items()}
        units[i] = unit_rows(means[kept][None])[0]
        cosines[i], cosines[:, i] = units @ units[i], units @ units[i]
        cosines[[i, j], [i, j]] = cosines[j] = cosines[:, j] = -np.inf
        done = [k for k, c in enumerate(clusters) if c not in means]
        cosines[i, done] = cosines[done, i] = -np.inf
    return renamed
