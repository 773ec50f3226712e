"""Soft clusters: K models, and of each client a share in each (FedSoft, FedEM, FedRC)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fedsweep.strategies.base import State, int_keys, string_keys, weight_of
from fedsweep.strategies.candidates import (
    Candidates,
    all_models,
    changed,
    initial_models,
    to_all,
)
from fedsweep.strategies.clients import ClientPart, Work, with_method

CHOICE = "choice"
"""The record of a reply in which a client tells its shares."""


class SoftClusters(Candidates):
    """K models in which clients have shares; a client counts to the cluster of its largest one.

    Parameters
    ----------
    num_clusters : int
        K, models.
    seed : int
        Root of the initial models.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    clients: ClassVar[type[ClientPart]]
    """What the clients do."""

    _kept: tuple[str, ...] = ("assignment", "cluster_arrays", "shares", "examples")
    """Tables by node or by cluster that the next round depends on."""

    def __init__(self, *, num_clusters: int = 4, seed: int = 0, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.num_clusters = num_clusters
        self.seed = seed
        self.assignment: dict[int, int] = {}
        self.cluster_arrays: dict[int, ArrayRecord] = {}
        self.shares: dict[int, list[float]] = {}  # node -> (K,)
        self.examples: dict[int, float] = {}
        self.churn = 0
        self._before: dict[int, int] = {}  # the assignment at the round's start
        self.servers: dict[
            int, int
        ] = {}  # a reply belongs to every cluster: nobody's server could have it alone
        self.scores: dict[int, float] = {}
        self.tenure: dict[int, int] = {}

    def sent_beside(self, server_round: int) -> dict[str, Any]:
        """Return what the clients are told in training beside the models, by name."""
        del server_round
        return {}

    def with_all(
        self, messages: Iterable[Message], config: ConfigRecord, **told: Any
    ) -> list[Message]:
        """Give all messages all models, with what the clients are told beside them."""
        named = with_method(config, self.clients.method, **told)
        return to_all(messages, all_models(self.cluster_arrays, named, self.configrecord_key))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send every sampled client all models."""
        self._before = dict(self.assignment)
        layout = self.laid_out(arrays)
        if not self.cluster_arrays:
            self.cluster_arrays = initial_models(arrays, self.num_clusters, self.seed, layout)
        messages = super().configure_train(server_round, arrays, config, grid)
        return self.with_all(messages, config, **self.sent_beside(server_round))

    def diagnostics(self) -> dict[str, float]:
        """Return clusters with members, churn, and the mean of clients' largest shares (1 hard)."""
        if not self.assignment:
            return {}
        largest = float(np.mean([max(u) / sum(u) for u in self.shares.values()]))
        used = len(set(self.assignment.values()))
        return {"clusters": float(used), "churn": float(self.churn), "largest_share": largest}

    def read_shares(self, replies: Sequence[Message]) -> None:
        """Take in the shares and the examples of clients that trained."""
        choices: dict[int, int] = {}
        for reply in replies:
            node, choice = reply.metadata.src_node_id, reply.content[CHOICE]
            choices[node] = int(choice["cluster"])  # type: ignore[arg-type]
            self.shares[node] = [float(u) for u in choice["weights"]]  # type: ignore[union-attr]
            self.examples[node] = weight_of(reply, self.weighted_by_key)
        self.chosen(choices)

    def chosen(self, choices: Mapping[int, int]) -> None:
        """Note each client's cluster, and how many changed theirs since the round's start."""
        self.assignment.update(choices)
        self.churn = changed(self._before, self.assignment)

    def state_dict(self) -> State:
        """Return everything that the next round depends on;
        the clients keep their shares themselves.
        """
        tables = {name: string_keys(getattr(self, name)) for name in self._kept}
        return {**tables, "churn": self.churn}

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        for name in self._kept:
            setattr(self, name, int_keys(state[name]))
        self.churn = state["churn"]


def tell_shares(work: Work, shares: Sequence[Sequence[float]], **more: Sequence[Any]) -> None:
    """Have each client tell its shares (K,), its cluster, and what else there is of each."""
    told = []
    for c, own in enumerate(shares):
        beside = {name: values[c] for name, values in more.items()}
        told.append({"cluster": int(np.argmax(own)), "weights": list(own), **beside})
    work.tell(CHOICE, told)
