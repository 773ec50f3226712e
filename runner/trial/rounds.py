"""The one round loop there is: it drives any Flower Strategy over an engine's grid.

Its rounds are those of Flower's own ``Strategy.start``: configure, send, aggregate, first for
training, then for evaluation. It adds what ``start`` lacks: a seed per round, a hook per round, a
first round other than 1, a lowest share of clients that must reply, a count of the replies that
were used, and a test of the models while clients evaluate them.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from typing import Any, Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from fedsweep.engine.chunks import TOGETHER
from fedsweep.engine.flower import Choose, sampling
from fedsweep.engine.grid import EngineGrid, Trace
from fedsweep.engine.wire import count_bytes
from fedsweep.errors import TrialError
from fedsweep.links import CLUSTERING_QUERIES
from fedsweep.pace.ledger import Settled
from fedsweep.pace.policies import Aggregation, Clock, Policies, Underway
from fedsweep.parts.code import own_place, place_of
from fedsweep.seeding import derive_seed, seeded_globals
from fedsweep.strategies import Layout, is_weighted_mean
from fedsweep.strategies.base import models_of, senders_of
from fedsweep.trial.evaluation import QUERY, SLICE, TestScores, with_told

Settle = Callable[[int, Aggregation, Underway], Settled]

AHEAD = 4 * TOGETHER
"""Tasks that hosts may work on before their replies are sent for, at most: hosts find something to
do while a model is made, and little is in vain at a trial's end."""

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
    online: Callable[[int], int] | None = (
        None  # how many clients there are in a round; None: all, always
    )
    held_out: bool = True  # whether any client has examples to be evaluated on
    evaluate_personal: Literal["last", "always"] = "last"
    partial_means: bool = True  # False: every reply reaches the strategy, as in Strategy.start
    policies: Policies = field(default_factory=Policies)
    attackers: frozenset[int] = frozenset()
    """Nodes of which nothing is said: what they tell of their own examples counts for nobody."""
    aims: bool = False  # whether attackers want what models can be scored on
    settle: Settle | None = None
    """Told of each round's aggregation once its model is made: what it meant in virtual time."""

    def evaluates(self, server_round: int) -> bool:
        """Return whether a round is evaluated: every so many, and the last."""
        return server_round % self.evaluate_every == 0 or server_round == self.num_rounds

    def tests_personal(self, server_round: int) -> bool:
        """Return whether clients score models that they alone have on the central test set."""
        return self.evaluate_personal == "always" or server_round == self.num_rounds


@dataclass(frozen=True)
class Round:
    """What one round gave: the model after it, the strategy's metrics, and what the engine saw."""

    number: int
    arrays: ArrayRecord
    train_metrics: MetricRecord | None
    evaluate_metrics: MetricRecord | None
    train: Trace
    evaluate: Trace
    seconds: dict[str, float]  # train (to the last reply), aggregate, evaluate
    scores: TestScores | None = None  # of the central test
    asked: int = 0  # clients that were asked to train
    used: int = 0  # clients whose replies made the new model
    virtual_s: float = 0.0  # since the trial began; no time passes without a clock
    settled: Settled | None = None  # what the round was in virtual time, where there is a clock


def run_rounds(
    strategy: Strategy,
    grid: EngineGrid,
    arrays: ArrayRecord,
    loop: Loop,
    first_round: int = 1,
    ask_scores: AskScores | None = None,
    underway: Underway | None = None,
) -> Iterator[Round]:
    """Yield each round as it ends: what a round is, the loop's policies say.

    Parameters
    ----------
    strategy : Strategy
        Any Flower strategy; one of ours that resumes has been given its state.
    grid : EngineGrid
        Runs the clients.
    arrays : ArrayRecord
        The model that ``first_round`` starts from.
    ask_scores : callable, optional
        Has a round's models tested, given the round and its arrays: it sends them, and returns what
        waits for their scores. Hosts that have no client left to evaluate go on with it.
    underway : Underway, optional
        The tasks that are under way, changed in place; nothing at first.

    Raises
    ------
    TrialError
        When fewer than ``min_fit_fraction`` of a round's clients trained, or answered a query for
        the clustering, or when the strategy made no model of what came; it carries their errors.
    """
    grid.drain()
    underway = underway or Underway()
    models = models_of(strategy)
    for number in range(first_round, loop.num_rounds + 1):
        clock = _Laps()
        if loop.online:
            grid.online = loop.online(number)

        # Train: ask clients until what arrives makes a model, and read their replies.
        due, asked, train = _until_due(strategy, grid, arrays, loop, number, underway)
        replies = _replies(strategy, grid, due, loop, number, arrays, underway)
        train += grid.drain()
        clock.lap("train")

        # Aggregate, if enough of them can be used.
        used, errors = _senders(replies), _errors(train, replies)
        failed = {task.node_id for task in train.tasks if task.error}
        train.events += [f"client {n - 1}: {why}" for n, why in errors.items() if n not in failed]
        if due.dropped:
            train.events.append(f"the work of {len(due.dropped)} clients was thrown away")
        share, taken = loop.min_fit_fraction, len(due.taken)
        _check_share(number, len(used), taken, share, errors)
        with seeded_globals(derive_seed(loop.seed, "round", number, "aggregate")):
            new_arrays, train_metrics = _two(strategy.aggregate_train(number, replies), strategy)
        if new_arrays is None and used and models.averages_models:
            why = f"the strategy made no model of {len(used)} replies"
            train.events.append(f"{why}; the one before stays")
            used = []
            _check_share(number, 0, taken, share, errors, "were used", why)
        arrays = arrays if new_arrays is None else new_arrays
        settled = loop.settle(number, due, underway) if loop.settle else None
        del due, replies, new_arrays  # they hold the round's arrays in the object store
        more = grid.drain()
        _answered(number, more, share)
        train += more
        clock.lap("aggregate")

        # Evaluate
        evaluate_metrics = scores = None
        if loop.evaluates(number):
            personal = models.personal_models and loop.tests_personal(number)
            evaluate_metrics, scores = evaluate_round(
                strategy, grid, arrays, loop, number, ask_scores, personal=personal
            )
        evaluate = grid.drain()
        evaluate = replace(
            evaluate, tasks=[task for task in evaluate.tasks if task.message_type != QUERY]
        )
        loop.policies.cohort.told(number, train.tasks + evaluate.tasks)
        clock.lap("evaluate")
        yield Round(
            number,
            arrays,
            train_metrics,
            evaluate_metrics,
            train,
            evaluate,
            clock.laps,
            scores,
            asked,
            len(used),
            underway.now,
            settled,
        )


def _until_due(
    strategy: Strategy,
    grid: EngineGrid,
    arrays: ArrayRecord,
    loop: Loop,
    number: int,
    underway: Underway,
) -> tuple[Aggregation, int, Trace]:
    """Ask clients, as the policies say, until what has arrived makes the model of a round.

    Returns
    -------
    (Aggregation, int, Trace)
        What makes it, how many clients were asked meanwhile, and what the grid saw of it.
    """
    policies = loop.policies
    asked, times, trace = 0, 0, Trace()

    def configured(choose: Choose) -> list[Message]:
        again = (times,) if times else ()
        seed = derive_seed(loop.seed, "round", number, "train", *again)
        config = ConfigRecord(dict(loop.train_config))  # a task keeps its own while rounds pass
        with seeded_globals(seed), sampling(choose):
            return list(strategy.configure_train(number, arrays, config, grid))

    while True:
        # What has arrived comes first: whoever is asked then starts from the model that it makes.
        opens = policies.cohort.opens(underway)
        underway.more_at = underway.now if opens else inf
        if due := policies.trigger.decide(underway):
            if not times:  # it aggregates nothing in a round that it did not hear of
                configured(lambda nodes, size: [])
            return underway.settle(due), asked, trace
        if opens:
            messages = configured(partial(policies.cohort.choose, underway))
            seen = grid.drain()
            _answered(number, seen, loop.min_fit_fraction)
            _try_unknown(grid, policies.clock, messages, loop.timeout)
            messages = list(policies.workload.asked(messages, number - 1))
            underway.begin(messages, number - 1, policies.clock)
            asked, times, trace = asked + len(messages), times + 1, trace + seen
            opens = policies.cohort.opens(underway)  # nobody else could be asked now
            underway.more_at = policies.cohort.more_at(underway) if opens else inf
            if due := policies.trigger.decide(underway):
                return underway.settle(due), asked, trace
        underway.advance()


def _try_unknown(
    grid: EngineGrid, clock: Clock, messages: Sequence[Message], timeout: float | None
) -> None:
    """Tell a clock how large replies are of a kind that it does not know; nobody else learns of it.

    A client that gives no reply is taken to send back what it was sent.
    """
    for message in clock.unknown(messages):
        told = message.metadata
        tried = Message(message.content, told.dst_node_id, told.message_type)
        grid.receive(grid.push_messages([tried], stateless=True), timeout=timeout)
        sizes = [task.bytes_out for task in grid.drain().tasks if not task.error]
        clock.know(message, sizes[0] if sizes else count_bytes(message.content))


def _replies(
    strategy: Strategy,
    grid: EngineGrid,
    due: Aggregation,
    loop: Loop,
    number: int,
    now: ArrayRecord,
    underway: Underway,
) -> list[Message]:
    """Return the replies of the tasks that make the model of a round, in the order of asking.

    Those that arrive next may be worked on meanwhile: as many as the models that are left to be
    made could be of.
    """
    averages = loop.partial_means and is_weighted_mean(strategy)
    grid.weight_key = "num-examples" if averages else None
    layout: Layout | None = getattr(strategy, "layout", None)
    grid.carried = frozenset(layout.carried if layout else ())
    taken = sorted(due.taken, key=lambda flight: flight.place)
    if loop.policies.ahead:
        most = min(AHEAD, (loop.num_rounds - number) * len(taken))
        grid.next_due = [flight.message for flight in underway.arriving(most)]
    try:
        return loop.policies.delivery.replies(grid, taken, number, loop.timeout, now)
    finally:
        grid.weight_key = None


def evaluate_round(
    strategy: Strategy,
    grid: EngineGrid,
    arrays: ArrayRecord,
    loop: Loop,
    number: int,
    ask_scores: AskScores | None = None,
    *,
    personal: bool = False,
) -> tuple[MetricRecord | None, TestScores | None]:
    """Have the clients evaluate a round's models, and the models tested meanwhile.

    Nobody is asked what says nothing: where no client holds out examples, or tests its own model,
    only those that choose among several models are.

    Parameters
    ----------
    personal : bool
        Whether the clients score their own models on the central test set.

    Returns
    -------
    (MetricRecord, TestScores)
        Each None where there is none.
    """
    models = models_of(strategy)
    tests = {"test-own": SLICE, **({"goal": True} if loop.aims else {})} if personal else {}
    config = ConfigRecord({**loop.evaluate_config, **tests})
    with (
        seeded_globals(derive_seed(loop.seed, "round", number, "evaluate")),
        sampling(),
    ):
        asked = list(strategy.configure_evaluate(number, arrays, config, grid))
    if not (loop.held_out or personal):  # what is left to be said is which of several models fits
        asked = [message for message in asked if len(message.content.array_records) > 1]
    ids = grid.push_messages(asked)
    early = ask_scores and not models.assigns_in_evaluation
    wait = ask_scores(number, arrays) if early and ask_scores else None
    replies = grid.receive(ids, timeout=loop.timeout)
    metrics = strategy.aggregate_evaluate(number, replies)
    if ask_scores and not early:
        wait = ask_scores(number, arrays)
    scores = wait() if wait else None
    told = [reply for reply in replies if reply.metadata.src_node_id not in loop.attackers]
    return metrics, with_told(scores, told)


def _senders(replies: Iterable[Message]) -> list[int]:
    """Return the clients whose replies can be used; a partial mean says for whom it stands."""
    return [node for reply in replies if reply.has_content() for node in senders_of(reply)]


def _errors(trace: Trace, replies: Iterable[Message]) -> dict[int, str]:
    """Return why clients failed, by node: a traceback, or why the reply was refused afterwards."""
    refused = {r.metadata.src_node_id: str(r.error.reason) for r in replies if r.has_error()}
    trained = [task for task in trace.tasks if task.message_type == "train"]
    return refused | {task.node_id: task.error for task in trained if task.error}


def _two(made: Any, strategy: Strategy) -> tuple[ArrayRecord | None, MetricRecord | None]:
    """Return what a strategy made of replies, or refuse it by where that is written."""
    if not isinstance(made, tuple) or len(made) != 2:
        raise TypeError(
            f"{place_of(strategy.aggregate_train)} returns {type(made).__name__}; return the "
            "arrays and the metrics, None for what there is not"
        )
    return made


def _answered(number: int, trace: Trace, share: float) -> None:
    """Fail the trial where too few clients answered what a clustering asks."""
    for query in CLUSTERING_QUERIES:
        answered = [task for task in trace.tasks if task.message_type == query and not task.error]
        errors = {t.node_id: t.error for t in trace.tasks if t.message_type == query and t.error}
        _check_share(number, len(answered), trace.asked[query], share, errors, f"answered {query}")


def _check_share(
    number: int,
    done: int,
    asked: int,
    share: float,
    errors: Mapping[int, str],
    did: str = "trained",
    otherwise: str = "no reply before the deadline",
) -> None:
    """Fail the trial where too few of the clients that were asked did what they should."""
    if not asked or done >= share * asked * (1 - 1e-12):  # .07 of 100 is 7, not a little more
        return
    lines = [f"client {node - 1}: {reason}" for node, reason in errors.items()]
    first = otherwise
    if lines:
        place = own_place(lines[0])
        first = f"{place}: " * bool(place) + lines[0].strip().splitlines()[-1]
    error = TrialError(
        f"round {number}: {done} of {asked} clients {did}, fewer than "
        f"strategy.min_fit_fraction={share:g}; first error: {first}"
    )
    error.add_note("\n".join(lines))
    raise error


class _Laps:
    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._last = now, now()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = self._now()
        self.laps[name], self._last = now - self._last, now
