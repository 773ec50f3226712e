"""What a task should take, by what its client's tasks took: it decides an order, never a result."""

from collections.abc import Callable, Sequence

from cachetools import LRUCache

from fedsweep.records import TaskRecord

CostFn = Callable[[int, str], float]
"""(node id, message type) -> expected cost of a task in any unit, the same in every run."""

CLIENTS = 100_000
"""Clients and message types remembered; a population may be larger."""

NEW = 0.5
"""Weight of the last task: the one before may have met a busy machine, and data may change."""


class LearnedSeconds:
    """Expected seconds of a task: what the client's tasks of its type took;
    else the type's seconds per cost.
    """

    def __init__(self, cost: CostFn) -> None:
        self._cost = cost
        self._clients: LRUCache[tuple[str, int], float] = LRUCache(CLIENTS)
        self._rates: dict[str, float] = {}

    def expect(self, node_id: int, message_type: str) -> float:
        """Return the expected seconds; 0.0 while nothing is known of such tasks."""
        known = self._clients.get((message_type, node_id))
        return (
            self._rates.get(message_type, 0.0) * self._cost(node_id, message_type)
            if known is None
            else known
        )

    def learn(self, tasks: Sequence[TaskRecord]) -> None:
        """Take what tasks took; those that failed say nothing."""
        seconds: dict[str, tuple[float, float]] = {}
        for task in tasks:
            if task.error is not None or task.wall_s <= 0:
                continue
            key = task.message_type, task.node_id
            self._clients[key] = _mix(self._clients.get(key), task.wall_s)
            took, cost = seconds.get(task.message_type, (0.0, 0.0))
            seconds[task.message_type] = (
                took + task.wall_s,
                cost + self._cost(task.node_id, task.message_type),
            )
        for kind, (took, cost) in seconds.items():
            self._rates[kind] = _mix(self._rates.get(kind), took / max(cost, 1e-9))


def _mix(old: float | None, new: float) -> float:
    return new if old is None else (1 - NEW) * old + NEW * new
