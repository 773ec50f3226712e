"""Replies to older models, as a strategy sees them: as if they had begun at the present one.

A method that takes a mean of replies then steps by the mean of what they moved, scaled by how late
they are; its server's optimizer, its clusters and its metrics stay what they are. With x the
present model, x_i the reply and s_i the model that it began with, a strategy sees

    (1 - share) x + share x_i        FedAsync: share = a s(staleness)
    x + scale (x_i - s_i)            FedBuff: scale = eta_g s(staleness)

where each is x_i itself, to the bit, if nothing is to be changed: share 1, or scale 1 and no
staleness.
"""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from fedsweep.pace.policies import Delivery, Flight, Replying
from fedsweep.strategies.arrays import read_array, records_of, write_array
from fedsweep.strategies.base import State, int_keys, string_keys
from fedsweep.strategies.candidates import CANDIDATE
from fedsweep.strategies.layout import is_floating

WEIGHT = "num-examples"
Staleness = Callable[[int], float]
"""Returns the factor of a reply that is so many models late; 1 of none."""


def polynomial(exponent: float) -> Staleness:
    """Return s(t) = (1 + t) ** -exponent."""
    return lambda late: float((1 + late) ** -exponent)


def hinge(slope: float, most: int) -> Staleness:
    """Return s(t) = 1 up to ``most``, then 1 / (slope (t - most) + 1)."""
    return lambda late: 1.0 if late <= most else 1.0 / (slope * (late - most) + 1)


@dataclass
class Moved(Delivery):
    """Replies moved to the present model.

    Where a method trains a model per cluster, a reply's present model is its cluster's, and it is
    as late as that cluster has made models meanwhile.

    Parameters
    ----------
    strategy : object
        The method.
    equal : bool
        Whether all replies weigh the same; else by examples.
    """

    strategy: object
    equal: bool
    _made: dict[int, list[int]] = field(default_factory=dict, init=False, kw_only=True)
    """Cluster -> the models of the trial in which it had a part."""

    @abstractmethod
    def moved(
        self, now: np.ndarray, start: np.ndarray, reply: np.ndarray, late: int
    ) -> np.ndarray | None:
        """Return an array as the strategy sees it; None: the reply's, as it is."""

    def replies(
        self,
        grid: Replying,
        taken: Sequence[Flight],
        number: int,
        timeout: float | None,
        now: ArrayRecord,
    ) -> list[Message]:
        """Return what comes within the timeout, moved."""
        grid.weight_key = None  # each reply is read
        by_node = {flight.node: flight for flight in taken}
        came = grid.send_and_receive([flight.message for flight in taken], timeout=timeout)
        made: set[int] = set()
        for reply in came:
            if not reply.has_content():
                continue
            flight = by_node[reply.metadata.src_node_id]
            cluster = self._cluster(reply)
            late = number - 1 - flight.version
            if cluster is not None:
                models = self._made.get(cluster, [])
                late = len(models) - bisect_right(models, flight.version)
                made.add(cluster)
            self._move(reply, flight, cluster, late, now)
            _sign(reply)
            if self.equal:
                for metrics in records_of(reply.content, MetricRecord).values():
                    metrics[WEIGHT] = 1
        for cluster in made:
            self._made.setdefault(cluster, []).append(number)
        return came

    def state_dict(self) -> State:
        """Return what a checkpoint keeps."""
        return string_keys(self._made)

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        self._made = int_keys(state)

    def _move(
        self, reply: Message, flight: Flight, cluster: int | None, late: int, now: ArrayRecord
    ) -> None:
        """Put arrays as the strategy is to see them in the place of a reply's."""
        models = records_of(reply.content, ArrayRecord)
        if not models:
            return
        name, told = next(iter(models.items()))
        sent = records_of(flight.message.content, ArrayRecord)
        start = sent.get(CANDIDATE.format(cluster), next(iter(sent.values())))
        clusters: Mapping[int, ArrayRecord] = getattr(self.strategy, "cluster_arrays", {})
        present = now if cluster is None else clusters[cluster]
        arrays = {}
        for key, array in told.items():
            seen = None
            if is_floating(array) and key in start and key in present:
                ours = read_array(array)
                seen = self.moved(read_array(present[key]), read_array(start[key]), ours, late)
                seen = None if seen is None else np.asarray(seen, ours.dtype)
            arrays[key] = array if seen is None else write_array(seen)
        reply.content[name] = ArrayRecord(arrays)

    def _cluster(self, reply: Message) -> int | None:
        """Return the cluster whose model a reply is of: chosen by the client, or its own."""
        told = records_of(reply.content, ConfigRecord)
        choice: Any = told.get("choice", ConfigRecord()).get("cluster")
        if choice is not None:
            return int(choice)
        cluster = getattr(self.strategy, "assignment", {}).get(reply.metadata.src_node_id)
        there = getattr(self.strategy, "cluster_arrays", {})
        return cast(int, cluster) if cluster in there else None


@dataclass
class MixedIn(Moved):
    """Each reply is mixed into the present model (FedAsync).

    Parameters
    ----------
    share : float
        a, of a reply to the present model.
    """

    share: float
    staleness: Staleness

    def moved(
        self, now: np.ndarray, start: np.ndarray, reply: np.ndarray, late: int
    ) -> np.ndarray | None:
        """Return (1 - a s) x + a s x_i."""
        del start
        share = self.share * self.staleness(late)
        return None if share == 1 else np.asarray((1 - share) * now + share * reply)


@dataclass
class Steps(Moved):
    """What each reply moved is a step from the present model (FedBuff).

    Parameters
    ----------
    scale : float
        eta_g, of a reply to the present model.
    """

    scale: float
    staleness: Staleness

    def moved(
        self, now: np.ndarray, start: np.ndarray, reply: np.ndarray, late: int
    ) -> np.ndarray | None:
        """Return x + eta_g s (x_i - s_i)."""
        scale = self.scale * self.staleness(late)
        return None if scale == 1 and not late else np.asarray(now + scale * (reply - start))


def _sign(reply: Message) -> None:
    """Have a reply's load say whose it is: how many were asked at once says nothing here."""
    load = records_of(reply.content, ConfigRecord).get("load")
    if load is not None and "node-ids" not in load:
        lists: dict[str, Any] = {key: [value] for key, value in load.items()}
        weights = [
            float(cast(float, metrics[WEIGHT]))
            for metrics in records_of(reply.content, MetricRecord).values()
            if WEIGHT in metrics
        ]
        nodes = {"node-ids": [reply.metadata.src_node_id], WEIGHT: weights[:1]}
        reply.content["load"] = ConfigRecord(lists | nodes)
