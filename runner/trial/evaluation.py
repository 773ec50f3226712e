"""Models on the central test set, by the client hosts in slices;
a client's group decides on which test set.

Nothing here chooses anything: a cluster's model is scored on the groups of its members, whichever
those are. A model that one client alone holds is scored by that client, in its evaluation.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedsweep.catalog import ClassCounts, Predictions, RealSums
from fedsweep.engine.grid import EngineGrid
from fedsweep.errors import TrialError
from fedsweep.predictions import confusion_of, is_counts

QUERY = "query.test"

KEYS = ("loss_sum", "correct", "num-examples")

SLICE = 2_000
"""Test examples per message: enough hosts get work, and the sums have one order."""


@dataclass(frozen=True)
class Score:
    """A model on one group's test set."""

    loss: float
    acc: float
    table: np.ndarray | None = None
    """What is counted of the predictions: see ``fedsweep.training.targets.full_table_of``."""


@dataclass(frozen=True)
class TestScores:
    """Every model on the test sets that matter to it."""

    of: Mapping[tuple[str, int], Score] = field(default_factory=dict)  # (model, group)
    clients: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """Model -> group -> clients that its mean is over."""
    own: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """Model -> group -> clients that use it."""
    alone: Mapping[int, Score] = field(default_factory=dict)
    """Node -> the model that it alone has, on the test set of its group."""
    held_out: Predictions | None = None
    """The clients' own models on what they hold out, summed over the clients."""
    goal: "TestScores | None" = None
    """The same models on what attackers want of them; None where nothing is aimed at."""

    __test__ = False  # its name is no test's

    @property
    def has_accuracies(self) -> bool:
        """Whether classes are learnt, and not numbers, which are right or wrong by degrees."""
        tables = [score.table for score in (*self.of.values(), *self.alone.values())]
        return all(table is None or is_counts(table) for table in tables)

    def with_alone(self, own: "TestScores") -> "TestScores":
        """Return these scores, and those of others of the models that clients alone have."""
        goal = (self.goal or TestScores()).with_alone(own.goal) if own.goal else self.goal
        return replace(self, alone=own.alone, goal=goal)

    def mean(self, model: str, what: str = "acc") -> float:
        """Return a model's loss or accuracy, averaged over the groups of its clients."""
        counts = self.clients[model]
        total = sum(counts.values())
        if not total:
            return nan
        return (
            sum(n * float(getattr(self.of[model, group], what)) for group, n in counts.items())
            / total
        )

    def of_clients(self, what: str = "acc") -> np.ndarray:
        """Return the loss or accuracy of each client's own model, float (clients,), in no order."""
        shared = [
            np.full(n, float(getattr(self.of[model, group], what)))
            for model, counts in self.own.items()
            for group, n in counts.items()
        ]
        return np.concatenate([*shared, [float(getattr(s, what)) for s in self.alone.values()]])

    def of_client(self, node_id: int, model: str, group: int) -> Score | None:
        """Return the score of a client's own model, be it its alone or one that it shares."""
        if node_id in self.alone or group not in self.own.get(model, {}):
            return self.alone.get(node_id)
        return self.of[model, group]

    def confusion(self) -> np.ndarray | None:
        """Return the confusion matrix of the clients' own models, summed over the clients.

        (classes, classes): true x predicted. Numbers that are learnt have none.
        """
        table = self._own_table()
        return None if table is None or not is_counts(table) else confusion_of(table)

    def classes(self) -> dict[str, Predictions]:
        """Return all predictions and whose they are, as the catalog's ``Observed``."""
        users = {name: counts for name, counts in self.clients.items() if name == "global"}
        tables = {"global": _summed(self._tables(users)), "own": self._own_table()}
        found: dict[str, Predictions] = {
            whose: ClassCounts.of_full_table(table) if is_counts(table) else RealSums(table)
            for whose, table in tables.items()
            if table is not None
        }
        return found if self.held_out is None else {**found, "held_out": self.held_out}

    def _own_table(self) -> np.ndarray | None:
        """Return the table of the clients' own models, summed over the clients."""
        alone = [score.table for score in self.alone.values() if score.table is not None]
        return _summed([*self._tables(self.own), *alone])

    def _tables(self, users: Mapping[str, Mapping[int, int]]) -> list[np.ndarray]:
        """Return the tables of models, each times the clients that a group has."""
        return [
            n * table
            for model, counts in users.items()
            for group, n in counts.items()
            if (table := self.of[model, group].table) is not None
        ]


def _summed(parts: Sequence[np.ndarray]) -> np.ndarray | None:
    return sum(parts[1:], parts[0]) if parts else None


def ask_scores(
    grid: EngineGrid,
    models: Mapping[str, ArrayRecord],
    users: Mapping[str, Sequence[int]],
    groups: np.ndarray,
    num_test: int,
    *,
    own: Mapping[str, Sequence[int]] | None = None,
    confusion: bool = False,
    goal: bool = False,
) -> Callable[[], TestScores]:
    """Have each model scored on the central test set of each group among its users.

    Parameters
    ----------
    models : mapping
        Name -> arrays; arrays that are references stay so.
    users : mapping
        Name -> partition ids of the clients that the model's mean is over.
    groups : (clients,) int
        Known group of each client.
    num_test : int
        Examples in the test set.
    own : mapping, optional
        Name -> partition ids of the clients whose model it is; those of ``users`` by default.
    goal : bool
        Score them on what attackers want of the test set instead.

    Returns
    -------
    callable
        Waits for the scores and returns them; it raises a TrialError where a host could not give
        them.
    """
    clients = {name: _counts(groups, users.get(name, ())) for name in models}
    owners = (
        clients if own is None else {name: _counts(groups, own.get(name, ())) for name in models}
    )
    asked: list[tuple[str, int]] = []
    messages: list[Message] = []
    nodes = grid.get_node_ids()
    for name, arrays in models.items():
        for group in sorted(clients[name].keys() | owners[name].keys()):
            for start in range(0, num_test, SLICE):
                config = ConfigRecord(
                    {
                        "group": group,
                        "start": start,
                        "stop": min(start + SLICE, num_test),
                        "confusion": confusion,
                        **({"goal": True} if goal else {}),
                    }
                )
                content = RecordDict({"arrays": arrays, "config": config})
                asked.append((name, group))
                messages.append(Message(content, nodes[len(messages) % len(nodes)], QUERY))
    ids = grid.push_messages(messages, stateless=True)

    def scores() -> TestScores:
        replies = grid.receive(ids)
        if len(replies) < len(ids):  # given up when clients missed their deadline
            replies = grid.receive(grid.push_messages(messages, stateless=True))
        found = _sums(asked, replies)
        return TestScores(found, _tested(clients, found), _tested(owners, found))

    return scores


def _tested(
    users: Mapping[str, Mapping[int, int]], found: Mapping[tuple[str, int], Score]
) -> dict[str, dict[int, int]]:
    """Return users without the groups whose test set has no example, or none to be aimed at."""
    return {
        name: {group: n for group, n in counts.items() if (name, group) in found}
        for name, counts in users.items()
    }


def _sums(
    asked: Sequence[tuple[str, int]], replies: Sequence[Message]
) -> dict[tuple[str, int], Score]:
    """Return each pair's score from those of its slices, if these have an example."""
    sums: dict[tuple[str, int], list[float]] = {}
    tables: dict[tuple[str, int], np.ndarray] = {}
    for pair, reply in zip(asked, replies, strict=True):
        if reply.has_error():
            raise TrialError(f"the evaluation on the central test set failed: {reply.error.reason}")
        metrics = reply.content["metrics"]
        part = [float(metrics[key]) for key in KEYS]  # type: ignore[arg-type]
        sums[pair] = [a + b for a, b in zip(sums.get(pair, [0.0, 0.0, 0.0]), part, strict=True)]
        if "confusion" in metrics:
            tables[pair] = tables.get(pair, 0) + np.asarray(metrics["confusion"])
        elif "sums" in metrics:
            tables[pair] = tables.get(pair, 0) + np.asarray(metrics["sums"], float)
    return {pair: _score(s[0], s[1], s[2], tables.get(pair)) for pair, s in sums.items() if s[2]}


def with_told(scores: TestScores | None, replies: Iterable[Message]) -> TestScores | None:
    """Add what evaluated clients tell: scores of models of theirs alone, predictions by class."""
    alone: dict[int, Score] = {}
    aimed: dict[int, Score] = {}
    tables: list[np.ndarray] = []
    for reply in replies:
        told = reply.content.config_records if reply.has_content() else {}
        if "test" in told and told["test"]["num-examples"]:
            alone[reply.metadata.src_node_id] = _own_score(told["test"])
        if "goal" in told and told["goal"]["num-examples"]:
            aimed[reply.metadata.src_node_id] = _own_score(told["goal"])
        if "classes" in told:
            tables.append(_table_in(told["classes"], "counts"))
    if not alone and not tables:
        return scores
    held_out: Predictions | None = None
    if (table := _summed(tables)) is not None:
        held_out = ClassCounts.of_table(table) if is_counts(table) else RealSums(table)
    own = TestScores(alone=alone, goal=TestScores(alone=aimed) if aimed else None)
    return replace((scores or TestScores()).with_alone(own), held_out=held_out)


def _own_score(told: ConfigRecord) -> Score:
    loss, correct, count = (float(told[key]) for key in KEYS)  # type: ignore[arg-type]
    return _score(loss, correct, count, _table_in(told, "confusion"))


def _table_in(told: ConfigRecord, counts: str) -> np.ndarray:
    """Return a reply's table: floats under ``sums``, or whole numbers under a name of theirs."""
    if "sums" in told:
        return np.frombuffer(cast(bytes, told["sums"]), "<f8")
    return np.frombuffer(cast(bytes, told[counts]), "<i8")


def _score(loss_sum: float, correct: float, count: float, table: np.ndarray | None) -> Score:
    """Return the means of sums over examples."""
    return Score(loss_sum / count, correct / count, table)


def _counts(groups: np.ndarray, clients: Sequence[int]) -> dict[int, int]:
    """Return how many of the clients each group has, by group."""
    found, counts = np.unique(groups[np.fromiter(clients, np.int64)], return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
