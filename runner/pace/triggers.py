"""When what has arrived becomes a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

from fedsweep.pace.policies import Aggregation, Flight, Trigger, Underway


@dataclass(frozen=True)
class ByDeadline(Trigger):
    """What arrives within so many seconds of being asked makes the model, the rest is dropped.

    Parameters
    ----------
    seconds : float
        Virtual; a round ends earlier where all has arrived.
    wanted : callable
        Returns how many replies suffice; None: all that come.
    """

    seconds: float = inf
    wanted: Callable[[], int | None] = lambda: None

    def decide(self, underway: Underway) -> Aggregation | None:
        """Wait for enough, for the deadline, or for as long as anything will arrive."""
        if not underway.busy:
            return None if underway.waits else Aggregation(underway.now, [])
        enough = self.wanted()
        if enough is not None and len(underway.arrived) >= enough:
            taken, late = underway.arrived[:enough], underway.arrived[enough:]
            return Aggregation(underway.now, taken, [*late, *underway.in_flight])
        end = underway.opened + self.seconds
        if underway.next_arrival < inf and underway.next_arrival <= end:
            return None
        ends_early = not underway.working or end == inf
        at = underway.now if ends_early else end
        return Aggregation(at, list(underway.arrived), underway.in_flight)


@dataclass(frozen=True)
class BufferOf(Trigger):
    """Each K replies that arrived make a model; all else goes on.

    Where fewer will come, because nobody is left that could be asked, what is there makes one.

    Parameters
    ----------
    size : int
        K.
    """

    size: int

    def decide(self, underway: Underway) -> Aggregation | None:
        """Wait for K, or for as long as anything will arrive."""
        if len(underway.arrived) >= self.size:
            return Aggregation(underway.now, underway.arrived[: self.size])
        return None if underway.waits else Aggregation(underway.now, list(underway.arrived))


@dataclass(frozen=True)
class BufferPerCluster(Trigger):
    """Each K replies of one cluster make its model anew; of a smaller cluster, all its clients'.

    Parameters
    ----------
    size : int
        K.
    cluster_of : callable
        Returns the clusters of nodes as they are now.
    """

    size: int
    cluster_of: Callable[[], Mapping[int, int]]

    def decide(self, underway: Underway) -> Aggregation | None:
        """Wait for a cluster's K, or for as long as anything will arrive."""
        cluster_of = self.cluster_of()
        buffers: dict[int, list[Flight]] = {}
        for flight in underway.arrived:
            buffers.setdefault(cluster_of[flight.node], []).append(flight)
        if underway.arrived:
            last = cluster_of[underway.arrived[-1].node]  # the others were looked at before
            members = sum(cluster == last for cluster in cluster_of.values())
            if len(buffers[last]) >= min(self.size, members):
                return Aggregation(underway.now, buffers[last])
        return None if underway.waits else Aggregation(underway.now, list(underway.arrived))
