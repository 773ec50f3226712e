"""Models on the central test set, by the client hosts in slices; a client's group decides on which test set.

Nothing here chooses anything: a cluster's model is scored on the groups of its members, whichever those are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from runner.engine.grid import EngineGrid
from runner.errors import TrialError

QUERY = "query.test"

SLICE = 2_000
"""Test examples per message: enough hosts get work, and the sums have one order."""


@dataclass(frozen=True)
class Score:
    """A model on one group's test set."""

    loss: float
    acc: float
    confusion: np.ndarray | None = None  # (classes, classes): true x predicted


@dataclass(frozen=True)
class TestScores:
    """Every model on the test sets that matter to it."""

    of: Mapping[tuple[str, int], Score]  # (model, group)
    clients: Mapping[str, Mapping[int, int]]  # model -> group -> clients that use it

    __test__ = False  # its name is no test's

    def mean(self, model: str, what: str = "acc") -> float:
        """Return a model's loss or accuracy, averaged over the clients that use it."""
        counts = self.clients[model]
        total = sum(counts.values())
        if not total:
            return nan
        return sum(n * float(getattr(self.of[model, group], what)) for group, n in counts.items()) / total

    def confusion(self, models: Sequence[str]) -> np.ndarray | None:
        """Return the confusion matrix summed over the clients that use these models."""
        parts = [
            n * matrix
            for model in models
            for group, n in self.clients[model].items()
            if (matrix := self.of[model, group].confusion) is not None
        ]
        return sum(parts[1:], parts[0]) if parts else None


def ask_scores(
    grid: EngineGrid,
    models: Mapping[str, ArrayRecord],
    users: Mapping[str, Sequence[int]],
    groups: np.ndarray,
    num_test: int,
    *,
    confusion: bool = False,
) -> Callable[[], TestScores]:
    """Have each model scored on the central test set of each group among its users.

    Parameters
    ----------
    models : mapping
        Name -> arrays; arrays that are references stay so.
    users : mapping
        Name -> partition ids of the clients that use the model.
    groups : (clients,) int
        Known group of each client.
    num_test : int
        Examples in the test set.

    Returns
    -------
    callable
        Waits for the scores and returns them; it raises a TrialError where a host could not give them.
    """
    clients = {name: _counts(groups[np.fromiter(users[name], np.int64)]) for name in models}
    asked: list[tuple[str, int]] = []
    messages: list[Message] = []
    nodes = grid.get_node_ids()
    for name, arrays in models.items():
        for group in clients[name]:
            for start in range(0, num_test, SLICE):
                config = ConfigRecord(
                    {"group": group, "start": start, "stop": min(start + SLICE, num_test), "confusion": confusion}
                )
                content = RecordDict({"arrays": arrays, "config": config})
                asked.append((name, group))
                messages.append(Message(content, nodes[len(messages) % len(nodes)], QUERY))
    ids = grid.push_messages(messages, stateless=True)

    def scores() -> TestScores:
        replies = grid.receive(ids)
        if len(replies) < len(ids):  # given up when clients missed their deadline
            replies = grid.receive(grid.push_messages(messages, stateless=True))
        return TestScores(_sums(asked, replies), clients)

    return scores


def _sums(asked: Sequence[tuple[str, int]], replies: Sequence[Message]) -> dict[tuple[str, int], Score]:
    """Return each pair's score from those of its slices."""
    sums: dict[tuple[str, int], list[float]] = {}
    matrices: dict[tuple[str, int], np.ndarray] = {}
    for pair, reply in zip(asked, replies, strict=True):
        if reply.has_error():
            raise TrialError(f"the evaluation on the central test set failed: {reply.error.reason}")
        metrics = reply.content["metrics"]
        part = [float(metrics[key]) for key in ("loss_sum", "correct", "num-examples")]  # type: ignore[arg-type]
        sums[pair] = [a + b for a, b in zip(sums.get(pair, [0.0, 0.0, 0.0]), part, strict=True)]
        if "confusion" in metrics:
            flat = np.asarray(metrics["confusion"])
            side = round(len(flat) ** 0.5)
            matrices[pair] = matrices.get(pair, 0) + flat.reshape(side, side)
    return {pair: Score(s[0] / s[2], s[1] / s[2], matrices.get(pair)) for pair, s in sums.items()}


def _counts(groups: np.ndarray) -> dict[int, int]:
    """Return how many clients each group has, by group."""
    found, counts = np.unique(groups, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
