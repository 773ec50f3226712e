"""The one round loop there is: it drives any Flower Strategy over an engine grid, a round at a time.

Its rounds are those of Flower's own ``Strategy.start``: configure, send, aggregate, first for training, then for
evaluation. It adds what ``start`` lacks: a seed per round, a hook per round, a first round other than 1, a lowest
share of clients that must reply, and a test of the models while clients evaluate them.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy, fedavg

from runner.engine.grid import EngineGrid, Trace
from runner.errors import TrialError
from runner.evaluation import QUERY, TestScores
from runner.seeding import derive_seed, seeded_globals
from strategies import Layout, is_weighted_mean

AskScores = Callable[[int, ArrayRecord], Callable[[], TestScores] | None]


@dataclass(frozen=True)
class Loop:
    """How many rounds, how often they are evaluated, and when they fail."""

    num_rounds: int
    seed: int
    train_config: ConfigRecord
    evaluate_config: ConfigRecord = field(default_factory=ConfigRecord)
    evaluate_every: int = 1
    timeout: float | None = 3600.0
    min_fit_fraction: float = 0.0
    online: Callable[[int], int] | None = None  # how many clients there are in a round; None: all, always
    partial_means: bool = True  # False: every reply reaches the strategy, as in Strategy.start

    def evaluates(self, server_round: int) -> bool:
        """Return whether a round is evaluated: every so many, and the last."""
        return server_round % self.evaluate_every == 0 or server_round == self.num_rounds


@dataclass(frozen=True)
class Round:
    """What one round gave: the model after it, the strategy's own metrics, and what the engine saw."""

    number: int
    arrays: ArrayRecord
    train_metrics: MetricRecord | None
    evaluate_metrics: MetricRecord | None
    train: Trace
    evaluate: Trace
    seconds: dict[str, float]  # train (to the last reply), aggregate, evaluate
    scores: TestScores | None = None  # of the central test


def run_rounds(
    strategy: Strategy,
    grid: EngineGrid,
    arrays: ArrayRecord,
    loop: Loop,
    first_round: int = 1,
    ask_scores: AskScores | None = None,
) -> Iterator[Round]:
    """Yield each round as it ends.

    Parameters
    ----------
    strategy : Strategy
        Any Flower strategy; one of ours that resumes has been given its state.
    grid : EngineGrid
        Runs the clients.
    arrays : ArrayRecord
        The model that ``first_round`` starts from.
    ask_scores : callable, optional
        Has a round's models tested, given the round and its arrays: it sends them, and returns what waits for their
        scores. Hosts that have no client left to evaluate go on with it.

    Raises
    ------
    TrialError
        When fewer than ``min_fit_fraction`` of a round's clients trained; it carries their errors.
    """
    grid.drain()
    for number in range(first_round, loop.num_rounds + 1):
        clock = _Clock()
        if loop.online:
            grid.online = loop.online(number)
        with seeded_globals(derive_seed(loop.seed, "round", number, "train")), _sampling_from_a_range():
            messages = list(strategy.configure_train(number, arrays, loop.train_config, grid))
        grid.weight_key = "num-examples" if loop.partial_means and is_weighted_mean(strategy) else None
        layout: Layout | None = getattr(strategy, "layout", None)
        grid.carried = frozenset(layout.carried if layout else ())
        try:
            replies = grid.send_and_receive(messages, timeout=loop.timeout)
        finally:
            grid.weight_key = None
        train = grid.drain()
        clock.lap("train")
        _enough(number, train, len(messages), loop.min_fit_fraction)
        with seeded_globals(derive_seed(loop.seed, "round", number, "aggregate")):
            new_arrays, train_metrics = strategy.aggregate_train(number, replies)
        arrays = arrays if new_arrays is None else new_arrays
        del messages, replies, new_arrays  # they hold the round's arrays in the object store
        train += grid.drain()
        clock.lap("aggregate")
        evaluate_metrics = scores = None
        if loop.evaluates(number):
            with seeded_globals(derive_seed(loop.seed, "round", number, "evaluate")), _sampling_from_a_range():
                asked = list(strategy.configure_evaluate(number, arrays, loop.evaluate_config, grid))
            ids = grid.push_messages(asked)
            wait = ask_scores(number, arrays) if ask_scores else None
            evaluate_metrics = strategy.aggregate_evaluate(number, grid.receive(ids, timeout=loop.timeout))
            scores = wait() if wait else None
        evaluate = grid.drain()
        evaluate = replace(evaluate, tasks=[task for task in evaluate.tasks if task.message_type != QUERY])
        clock.lap("evaluate")
        yield Round(number, arrays, train_metrics, evaluate_metrics, train, evaluate, clock.laps, scores)


@contextmanager
def _sampling_from_a_range() -> Iterator[None]:
    """Have Flower's strategies sample from the grid's range of nodes: Flower lists all nodes twice, a million a round.

    ``random.sample`` draws the same nodes from a range as from a list. Only within ``seeded_globals``, which lets one
    thread in at a time: Flower's module is the process's too.
    """
    names = vars(fedavg)
    ours = {"sample_nodes": _sample_nodes, "list": _Nodes}
    theirs = {name: names[name] for name in ours if name in names}
    names.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del names[name]
        names.update(theirs)


class _Nodes(list[int]):
    """What ``list`` means in the module of Flower's FedAvg meanwhile: a range stays one."""

    def __new__(cls, nodes: Iterable[int]) -> Any:
        """Return the nodes as they are, if they are a range."""
        return nodes if isinstance(nodes, range) else list(nodes)


def _sample_nodes(grid: Grid, min_available_nodes: int, sample_size: int) -> tuple[Sequence[int], Sequence[int]]:
    """Do what Flower's ``sample_nodes`` does, but refuse at once where it would wait for ever."""
    nodes = grid.get_node_ids()
    assert isinstance(nodes, Sequence)
    if len(nodes) < max(min_available_nodes, sample_size):
        raise TrialError(
            f"the strategy samples {sample_size} of {min_available_nodes} clients or more, but there are {len(nodes)}; "
            "lower strategy.min_train_nodes, min_evaluate_nodes or min_available_nodes, or raise num_clients"
        )
    return random.sample(nodes, sample_size), nodes


def _enough(number: int, trace: Trace, asked: int, share: float) -> None:
    """Fail the trial where too few clients trained."""
    trained = sum(1 for task in trace.tasks if task.error is None and task.message_type.startswith("train"))
    if not asked or trained >= share * asked * (1 - 1e-12):  # .07 of 100 is 7, not a little more
        return
    errors = [f"client {task.node_id - 1}: {task.error}" for task in trace.tasks if task.error]
    error = TrialError(
        f"round {number}: {trained} of {asked} clients trained, fewer than strategy.min_fit_fraction={share:g}; "
        f"first error: {errors[0].strip().splitlines()[-1] if errors else 'no reply before the deadline'}"
    )
    error.add_note("\n".join(errors))
    raise error


class _Clock:
    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._last = now, now()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = self._now()
        self.laps[name], self._last = now - self._last, now
