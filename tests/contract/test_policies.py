"""The round loop under policies of a test's own: models and virtual times by hand, on both grids.

Client ``n`` (node id) adds n to every weight and has 10 n examples; models begin at zero.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsweep.engine.flower import empty_run, identify
from fedsweep.engine.grid import EngineGrid, inline_grid, ray_grid
from fedsweep.engine.host import AppSpec
from fedsweep.errors import TrialError
from fedsweep.pace.policies import (
    Aggregation,
    Clock,
    Cohort,
    Delivery,
    Flight,
    Policies,
    Replying,
    Sampled,
    Span,
    Trigger,
    Underway,
    WaitForAll,
)
from fedsweep.trial.checkpoint import decode, encode
from fedsweep.trial.rounds import Loop, Round, run_rounds
from tests.apps import add_app, model

NODES = 4
TAKES = {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0}


@pytest.fixture(params=["inline", "ray"])
def grid(request: pytest.FixtureRequest) -> EngineGrid:
    spec = AppSpec("policies", add_app, {}, NODES, {})
    if request.param == "inline":
        return inline_grid(spec)
    return ray_grid(spec, request.getfixturevalue("ray_hosts"))


# Policies as an issue on stragglers or asynchrony would write them


@dataclass(frozen=True)
class Takes(Clock):
    """A node's tasks take so long."""

    of: Mapping[int, float]

    def takes(self, message: Message, now: float, place: int) -> Span:
        return Span(self.of[message.metadata.dst_node_id])


@dataclass(frozen=True)
class First(Trigger):
    """The first m make the model, the rest is thrown away."""

    m: int

    def decide(self, underway: Underway) -> Aggregation | None:
        if len(underway.arrived) < self.m:
            return None
        return Aggregation(underway.now, underway.arrived[: self.m], underway.in_flight)


@dataclass(frozen=True)
class Deadline(Trigger):
    """What arrives within so many seconds makes the model, the rest is thrown away."""

    seconds: float

    def decide(self, underway: Underway) -> Aggregation | None:
        if not underway.busy:
            return None
        end = underway.since + self.seconds
        if underway.next_arrival <= end and underway.working:
            return None
        at = end if underway.working else underway.now
        return Aggregation(at, list(underway.arrived), underway.in_flight)


@dataclass(frozen=True)
class Buffer(Trigger):
    """Each k that arrived make a model, and the rest goes on."""

    k: int

    def decide(self, underway: Underway) -> Aggregation | None:
        if len(underway.arrived) < self.k:
            return None
        return Aggregation(underway.now, underway.arrived[: self.k])


@dataclass(frozen=True)
class Busy(Cohort):
    """So many clients are always at work: those of the lowest ids."""

    size: int

    def opens(self, underway: Underway) -> bool:
        return underway.working < self.size

    def choose(self, underway: Underway, nodes: Sequence[int], size: int) -> Sequence[int]:
        idle = [node for node in nodes if node not in underway.busy]
        return idle[: self.size - underway.working]


@dataclass(frozen=True)
class Stale(Delivery):
    """A reply weighs its examples / (1 + staleness)."""

    def replies(
        self,
        grid: Replying,
        taken: Sequence[Flight],
        number: int,
        timeout: float | None,
        now: ArrayRecord,
    ) -> list[Message]:
        grid.weight_key = None
        came = grid.send_and_receive([flight.message for flight in taken], timeout=timeout)
        for flight, reply in zip(taken, came, strict=True):
            metrics: MetricRecord = reply.content["metrics"]
            metrics["num-examples"] /= number - flight.version
        return came


@dataclass(frozen=True)
class More(Sampled):
    """A share of clients more than the strategy wants."""

    share: float

    def choose(self, underway: Underway, nodes: Sequence[int], size: int) -> Sequence[int]:
        return super().choose(underway, nodes, round((1 + self.share) * size))


@dataclass(frozen=True)
class Told(Sampled):
    """Those that it is told, round after round."""

    whom: list[list[int]] = field(default_factory=list)

    def choose(self, underway: Underway, nodes: Sequence[int], size: int) -> Sequence[int]:
        return self.whom.pop(0)


def rounds(
    grid: EngineGrid, policies: Policies, count: int, strategy: FedAvg | None = None
) -> list[Round]:
    loop = Loop(count, 0, ConfigRecord(), evaluate_every=count + 1, policies=policies)
    return list(run_rounds(strategy or FedAvg(), grid, model(), loop))


def weights(done: Sequence[Round]) -> list[float]:
    return [float(each.arrays["w"].numpy()[0]) for each in done]


# By hand


def test_the_first_m_make_the_model_and_the_rest_is_thrown_away(grid: EngineGrid) -> None:
    """Nodes 2 and 3 are first: (2 * 20 + 3 * 30) / 50 = 2.6 a round, every 2 s."""
    done = rounds(grid, Policies(clock=Takes(TAKES), trigger=First(2)), 2)
    assert weights(done) == pytest.approx([2.6, 5.2], rel=1e-6)
    assert [each.virtual_s for each in done] == [2.0, 4.0]
    assert [(each.asked, each.used) for each in done] == [(4, 2), (4, 2)]
    assert done[0].train.events == ["the work of 2 clients was thrown away"]
    trained = [node for node, state in grid.states.items() if state and "count" in state]
    assert trained == [2, 3]  # what is thrown away is never computed


def test_a_deadline_takes_what_came_by_then(grid: EngineGrid) -> None:
    """Nodes 1 to 3 within 3 s: (1 * 10 + 2 * 20 + 3 * 30) / 60 = 7 / 3 a round."""
    done = rounds(grid, Policies(clock=Takes(TAKES), trigger=Deadline(3.0)), 2)
    assert weights(done) == pytest.approx([7 / 3, 14 / 3], rel=1e-6)
    assert [each.virtual_s for each in done] == [3.0, 6.0]


def test_a_client_whose_reply_never_arrives_is_not_waited_for(grid: EngineGrid) -> None:
    """Node 4 vanishes: the round lasts until node 1 is there."""
    done = rounds(grid, Policies(clock=Takes(TAKES | {4: inf})), 1)
    assert weights(done) == pytest.approx([7 / 3], rel=1e-6)
    assert done[0].virtual_s == 3.0
    assert done[0].train.events == ["the work of 1 clients was thrown away"]


BUFFERED = Policies(
    cohort=Busy(3),
    clock=Takes({1: 1.0, 2: 2.5, 3: 4.0, 4: 1.5}),
    trigger=Buffer(2),
    delivery=Stale(),
)
"""As FedBuff: 3 clients at work, 2 replies a model, weighed by examples / (1 + staleness).

=====  ==============================================  =====================================
time   event                                           model
=====  ==============================================  =====================================
0      1, 2 and 3 begin, from model 0
1      1 arrives; 4 begins, from model 0
2.5    2 arrives (before 4: the lower id)              1: (1 * 10 + 2 * 20) / 30 = 5 / 3
2.5    1 begins, from model 1; 4 arrives; 2 begins
3.5    1 arrives: 5 / 3 + 1; 4 is one model late       2: (8 / 3 * 10 + 4 * 20) / 30 = 32 / 9
3.5    1 begins, from model 2
4      3 arrives, two models late; 4 begins
4.5    1 arrives: 32 / 9 + 1                           3: (3 * 10 + 41 / 9 * 10) / 20 = 34 / 9
=====  ==============================================  =====================================
"""


def test_a_buffer_of_stale_replies_by_hand(grid: EngineGrid) -> None:
    done = rounds(grid, BUFFERED, 3)
    assert weights(done) == pytest.approx([5 / 3, 32 / 9, 34 / 9], rel=1e-6)
    assert [each.virtual_s for each in done] == [2.5, 3.5, 4.5]
    assert [(each.asked, each.used) for each in done] == [(4, 2), (2, 2), (2, 2)]


def test_what_is_under_way_goes_on_from_a_checkpoint_to_the_bit(grid: EngineGrid) -> None:
    whole = rounds(inline_grid(AppSpec("whole", add_app, {}, NODES, {})), BUFFERED, 3)
    loop = Loop(3, 0, ConfigRecord(), evaluate_every=4, policies=BUFFERED)
    underway = Underway()
    run = run_rounds(FedAvg(), grid, model(), loop, underway=underway)
    next(run)
    done = next(run)
    state = {"arrays": done.arrays, "underway": underway.state_dict(), "clients": grid.states}
    saved = decode(encode(state))
    models = saved["underway"]["models"]
    assert len(models) == 2  # of versions 0 and 1: each once

    there = inline_grid(AppSpec("there", add_app, {}, NODES, {}))
    there.states = {int(node): kept for node, kept in saved["clients"].items()}
    again = Underway()
    again.load_state_dict(saved["underway"])
    assert (again.now, again.working, sorted(again.busy)) == (3.5, 2, [2, 3])
    [last] = run_rounds(FedAvg(), there, saved["arrays"], loop, 3, underway=again)
    assert last.arrays == whole[-1].arrays
    assert last.virtual_s == 4.5


def test_a_task_keeps_the_configuration_of_the_round_it_was_asked_in(grid: EngineGrid) -> None:
    """FedAvg writes the round into one ConfigRecord, for all messages of all rounds."""
    underway = Underway()
    loop = Loop(2, 0, ConfigRecord(), evaluate_every=3, policies=BUFFERED)
    list(run_rounds(FedAvg(), grid, model(), loop, underway=underway))
    asked = {
        flight.version: flight.message.content["config"]["server-round"]
        for flight in underway.in_flight
    }
    assert asked == {0: 1, 1: 2}


# Identities


def test_waiting_for_all_is_the_same_with_any_clock(grid: EngineGrid) -> None:
    """Replies are summed in the order of asking, whoever was fast."""
    half = {"fraction_train": 0.75, "min_train_nodes": 1}
    plain = rounds(grid, Policies(), 3, FedAvg(**half))
    timed = rounds(
        inline_grid(AppSpec("timed", add_app, {}, NODES, {})),
        Policies(clock=Takes(TAKES)),
        3,
        FedAvg(**half),
    )
    endless = Policies(clock=Takes(TAKES), trigger=Deadline(inf))
    unlimited = rounds(grid, endless, 3, FedAvg(**half))
    assert [each.arrays for each in plain] == [each.arrays for each in timed]
    assert [each.arrays for each in plain] == [each.arrays for each in unlimited]
    assert [each.virtual_s for each in plain] == [0.0, 0.0, 0.0]
    assert timed[-1].virtual_s == unlimited[-1].virtual_s > 3.0


def test_a_buffer_that_waits_for_a_whole_cohort_is_waiting_for_all(grid: EngineGrid) -> None:
    whole = rounds(grid, Policies(cohort=Busy(4), trigger=Buffer(4)), 2)
    plain = rounds(grid, Policies(cohort=Busy(4)), 2)
    assert [each.arrays for each in whole] == [each.arrays for each in plain]


def test_a_cohort_may_ask_more_than_the_strategy_wants(grid: EngineGrid) -> None:
    strategy = FedAvg(fraction_train=0.5)
    policies = Policies(cohort=More(0.5), clock=Takes(TAKES), trigger=First(2))
    [done] = rounds(grid, policies, 1, strategy)
    assert (done.asked, done.used) == (3, 2)


# What can't be


def test_a_client_is_at_one_task_at_a_time(grid: EngineGrid) -> None:
    with pytest.raises(TrialError, match="client 1 was asked while it is at another task"):
        rounds(grid, Policies(cohort=Told([[2, 2]])), 1)


def test_waiting_for_more_than_will_come_ends_the_trial(grid: EngineGrid) -> None:
    match = "no task arrives after 4 virtual seconds, and 4 replies are too few for a model"
    with pytest.raises(TrialError, match=match):
        rounds(grid, Policies(clock=Takes(TAKES), trigger=First(5)), 1)


# The time of many tasks


def test_arrivals_are_in_the_order_of_time_then_node() -> None:
    draws = random.Random(0)
    nodes = draws.sample(range(1, 1001), 1000)
    takes = {node: draws.choice([1.0, 2.0, 3.0]) for node in nodes}
    identify(empty_run())
    underway, content = Underway(), RecordDict({"arrays": ArrayRecord()})
    messages = [Message(content, node, "train") for node in nodes]
    underway.begin(messages, 0, Takes(takes))
    while WaitForAll().decide(underway) is None:
        underway.advance()
    order = [flight.node for flight in underway.arrived]
    assert order == sorted(nodes, key=lambda node: (takes[node], node))
