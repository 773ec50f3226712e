"""Schedules: events of three clients by hand, identities to the bit, what is refused.

Client ``n`` (node id) adds n to every weight and has 10 n examples; models begin at zero.
"""

import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg

from fedsweep.engine.grid import inline_grid
from fedsweep.engine.host import AppSpec
from fedsweep.errors import ConfigError
from fedsweep.pace.cohorts import AlwaysAtWork
from fedsweep.pace.policies import Clock, Flight, Span, Underway
from fedsweep.pace.schedule import Scene
from fedsweep.pace.schedules import SCHEDULES, schedule_of
from fedsweep.pace.selection import ByUtility, Tiered, chances_by, draw_by, tiers_by
from fedsweep.pace.triggers import BufferPerCluster
from fedsweep.pace.workloads import StepsThatFit
from fedsweep.records import TaskRecord
from fedsweep.scenario.presence import Always, Intervals, Presence
from fedsweep.seeding import seeded_globals
from fedsweep.sweeps.compose import compose, expand_grids, load_sweep, remarks
from fedsweep.trial.rounds import Loop, Round, run_rounds
from tests.apps import add_app, model
from tests.trials import events_of, outcome, small
from tests.unit.test_virtual_time import ORACLE, clock, message


@dataclass(frozen=True)
class Takes(Clock):
    """Nodes 1, 2, 3 take 1, 2.5 and 4 s; some tasks, by their place, are lost instead."""

    lost: tuple[int, ...] = ()

    def takes(self, message: Message, now: float, place: int) -> Span:
        seconds = (1.0, 2.5, 4.0)[message.metadata.dst_node_id - 1]
        return Span(seconds, arrives=place not in self.lost)


class Alike(Clock):
    """Every task takes a second."""

    def takes(self, message: Message, now: float, place: int) -> Span:
        return Span(1.0)


def play(
    name: str,
    count: int,
    *,
    presence: Presence | None = None,
    lost: tuple[int, ...] = (),
    fraction: float = 1.0,
    **settings: Any,
) -> list[Round]:
    """Run rounds of three clients under a schedule."""
    strategy = FedAvg(fraction_train=fraction, min_train_nodes=1, min_available_nodes=1)
    grid = inline_grid(AppSpec(name, add_app, {}, 3, {}))
    scene = Scene(presence or Always(3), Takes(lost), strategy, 3)
    policies = schedule_of(name, **settings).policies(scene)
    loop = Loop(count, 0, ConfigRecord(), evaluate_every=count + 1, policies=policies)
    return list(run_rounds(strategy, grid, model(), loop))


def told(done: Sequence[Round]) -> list[tuple[float, float]]:
    """Return the virtual time and the weight of each model."""
    return [(each.virtual_s, float(each.arrays["w"].numpy()[0])) for each in done]


def close(expected: list[tuple[float, float]]) -> Any:
    return [pytest.approx(pair, rel=1e-6) for pair in expected]


# By hand


def test_more_are_asked_while_fewer_are_at_work_and_once_a_moment_is_over() -> None:
    """A full house opens for nobody; of two that arrive at one moment both come first."""
    two, underway = AlwaysAtWork(Always(2), 2), Underway()
    begun = [message(1), message(2)]
    assert two.opens(underway)
    underway.begin(begun[:1], 0, Alike())
    assert two.opens(underway)
    underway.begin(begun[1:], 0, Alike())
    assert not two.opens(underway)

    underway.advance()
    assert (underway.working, underway.now) == (1, 1.0)
    assert not two.opens(underway)
    underway.advance()
    assert two.opens(underway)


def test_sync_waits_for_the_slowest() -> None:
    """(1 * 10 + 2 * 20 + 3 * 30) / 60 = 7 / 3 a round, every 4 s."""
    assert told(play("sync", 2)) == close([(4, 7 / 3), (8, 14 / 3)])


def test_a_lost_client_is_waited_for_until_it_is_known_to_be_lost() -> None:
    assert told(play("sync", 1, lost=(2,))) == close([(4, 5 / 3)])
    assert told(play("sync", 2, lost=(0, 1, 2))) == close([(4, 0), (8, 7 / 3)])


def test_sync_asks_those_that_are_there_and_waits_for_somebody() -> None:
    """Node 1 from 2 s on, node 3 from 9 s on: one round each of node 1, then of both."""
    presence = Intervals([((2.0, inf),), (), ((3.5, inf),)], [inf] * 3)
    assert told(play("sync", 3, presence=presence)) == close([(3, 1), (4, 2), (8, 4.5)])


def test_a_deadline() -> None:
    """Nodes 1 and 2 within 3 s: (10 + 40) / 30 a round; within half a second nobody."""
    assert told(play("deadline", 2, seconds=3.0)) == close([(3, 5 / 3), (6, 10 / 3)])
    assert told(play("deadline", 2, seconds=0.5)) == close([(0.5, 0), (1, 0)])
    assert told(play("deadline", 1, seconds=9.0)) == close([(4, 7 / 3)])


def test_a_deadline_counts_from_when_somebody_could_be_asked() -> None:
    presence = Intervals([((5.0, inf),)] * 3, [inf] * 3)
    assert told(play("deadline", 2, seconds=3.0, presence=presence)) == close(
        [(8, 5 / 3), (11, 10 / 3)]
    )


def test_over_selection_takes_the_first() -> None:
    """Of two that are wanted three are asked: nodes 1 and 2 are first."""
    done = play("over_selection", 2, over=0.5, fraction=2 / 3)
    assert told(done) == close([(2.5, 5 / 3), (5, 10 / 3)])
    assert [(each.asked, each.used) for each in done] == [(3, 2), (3, 2)]
    few = play("over_selection", 1, over=0.5, fraction=2 / 3, lost=(0, 1))
    assert (few[0].virtual_s, few[0].used) == (4.0, 1)  # as many as will come
    timely = play("over_selection", 1, over=0.5, fraction=2 / 3, seconds=2.0)
    assert told(timely) == close([(2, 1)])


def test_fedasync_by_hand() -> None:
    """a = 1/2, s(t) = 1 / (1 + t), all three at work.

    ====  ===============================================  ================================
    time  event                                            model
    ====  ===============================================  ================================
    0     1, 2, 3 begin, from model 0
    1     1 arrives: 0 + 1                                 1: 1/2
    2     1, from model 1, arrives: 1/2 + 1                2: 1/4 + 3/4 = 1
    2.5   2, from model 0, arrives: 2; 2 models late       3: 5/6 * 1 + 1/6 * 2 = 7/6
    3     1, from model 2, arrives: 2; 1 late              4: 3/4 * 7/6 + 1/4 * 2 = 11/8
    4     1, from model 4, arrives before 3: 19/8          5: 1/2 * 11/8 + 1/2 * 19/8 = 15/8
    4     3, from model 0, arrives: 3; 5 late              6: 11/12 * 15/8 + 1/12 * 3 = 63/32
    ====  ===============================================  ================================
    """
    done = play("fedasync", 6, mixing=0.5, exponent=1.0)
    expected = [(1, 1 / 2), (2, 1), (2.5, 7 / 6), (3, 11 / 8), (4, 15 / 8), (4, 63 / 32)]
    assert told(done) == close(expected)
    assert [each.asked for each in done] == [3, 1, 1, 1, 1, 0]


def test_fedasync_has_three_kinds_of_staleness() -> None:
    constant = play("fedasync", 3, mixing=0.5, staleness="constant")
    assert told(constant)[-1] == close([(2.5, 3 / 2)])[0]
    hinged = play("fedasync", 3, mixing=0.5, staleness="hinge", hinge_slope=3.0, hinge_after=1)
    assert told(hinged)[-1] == close([(2.5, 7 / 8 + 1 / 4)])[0]  # 1 / (3 (2 - 1) + 1)


def test_fedbuff_by_hand() -> None:
    """K = 2, s(t) = 1 / (1 + t), all three at work, eta_g = 2.

    ====  ======================================================  =============================
    time  event                                                   model
    ====  ======================================================  =============================
    0     1, 2, 3 begin, from model 0
    1     1 arrives: nobody is left to be asked
    2.5   2 arrives; then 1 and 2 begin, from model 1             1: 2 (1 + 2) / 2 = 3
    3.5   1 arrives
    4     3 arrives, a model late; then 1 and 3 begin             2: 3 + 2 (1 + 3/2) / 2 = 11/2
    5     1 arrives, then 2, from model 1: a model late           3: 11/2 + 2 (1 + 1) / 2
    ====  ======================================================  =============================
    """
    done = play("fedbuff", 3, buffer=2, exponent=1.0, global_lr=2.0)
    assert told(done) == close([(2.5, 3), (4, 5.5), (5, 7.5)])
    assert [each.used for each in done] == [2, 2, 2]


def test_fedbuff_asks_another_client_for_one_that_is_lost() -> None:
    """Node 1's first task is lost at 1 s; it is asked again only when a model is made."""
    done = play("fedbuff", 2, buffer=2, exponent=0.0, lost=(0,))
    assert told(done) == close([(4, 2.5), (6.5, 4.0)])


def test_fedbuff_weighs_by_examples_where_it_is_asked_to() -> None:
    assert told(play("fedbuff", 1, buffer=2, weights="examples")) == close([(2.5, 5 / 3)])


def test_a_buffer_that_nobody_can_fill_makes_a_model_of_what_is_there() -> None:
    """After 4 s nobody is there any more."""
    presence = Intervals([((0.0, 3.9),)] * 3, [inf] * 3)
    done = play("fedbuff", 1, buffer=3, presence=presence, lost=(2,))
    assert (done[0].virtual_s, done[0].used) == (4.0, 2)


def test_a_buffer_per_cluster_is_full_with_k_or_with_all_of_a_small_cluster() -> None:
    trigger = BufferPerCluster(2, lambda: {1: 0, 2: 0, 3: 0, 4: 1})
    underway = Underway()

    def arrive(node: int) -> list[int] | None:
        underway.more_at = 99.0
        underway.arrived.append(Flight(node, node, 0, 0.0, float(node), message(node)))
        due = trigger.decide(underway)
        return None if due is None else [flight.node for flight in due.taken]

    assert [arrive(node) for node in (1, 4)] == [None, [4]]
    del underway.arrived[-1]
    assert arrive(3) == [1, 3]


def test_partial_work_by_hand() -> None:
    """Client 2 takes 4 + 6 s for its bytes and half a second for each of its four steps."""
    asked = [message(1), message(2)]
    for seconds, steps, takes in ((11.2, 2, 11.0), (11.5, 3, 11.5), (10.2, 1, 10.5)):
        one, two = StepsThatFit(clock(), seconds).asked(asked, 0)
        assert one is asked[0]
        assert two.content["config"]["steps"] == steps
        assert two.content["arrays"] is asked[1].content["arrays"]
        assert clock().parts(two).seconds == pytest.approx(takes)
    assert StepsThatFit(clock(), 12.0).asked(asked, 0)[1] is asked[1]


# Who is asked, by speed and worth


def test_tiers_by_hand() -> None:
    assert tiers_by(np.array([3.0, 1.0, 9.0, 2.0, 1.0]), 2) == [1, 0, 1, 0, 0]
    assert chances_by([0.5, 0.2, 0.9]) == pytest.approx([2 / 6, 3 / 6, 1 / 6])


def record(node: int, kind: str, **metrics: float) -> TaskRecord:
    return TaskRecord(node, kind, "", 0.0, 0, 0, {"num-examples": 10, **metrics}, {})


def test_a_tier_that_gets_no_better_changes_the_chances() -> None:
    """Two clients, two tiers: client 0 is faster, and its accuracy stays as it is."""
    known = clock()
    known.takes(message(1), 0.0, 0)
    assert known.expected_s().tolist() == [5.5, 12.0]
    cohort = Tiered(Always(2), known, tiers=2, interval=2)
    with seeded_globals(0):
        drawn = {tuple(cohort.choose(Underway(), [1, 2], 2)) for _ in range(30)}
        assert drawn == {(1,), (2,)}
        while cohort.choose(Underway(), [1, 2], 2) != [1]:
            pass
    for number in range(1, 5):
        slow = 0.1 * number
        told = [record(1, "evaluate", eval_acc=0.5), record(2, "evaluate", eval_acc=slow)]
        cohort.told(number, told)
        state = cohort.state_dict()
        assert state["chances"] == ([1, 1] if number < 4 else pytest.approx([1 / 3, 2 / 3]))
    again = Tiered(Always(2), known, tiers=2, interval=2)
    again.load_state_dict(state)
    assert again.state_dict() == state


@pytest.mark.parametrize("every", [1, 3, 4])
def test_tiers_are_compared_over_rounds_however_often_they_are_evaluated(every: int) -> None:
    """Ten rounds apart: with every third one evaluated, chances changed in each thirtieth at most.

    Until then no round is evaluated that lies ten back; later the two tiers get no better.
    """
    known = clock()
    known.takes(message(1), 0.0, 0)
    cohort = Tiered(Always(2), known, tiers=2, interval=10)
    with seeded_globals(0):
        cohort.choose(Underway(), [1, 2], 2)
    changed = []
    for number in range(1, 50):
        before = cohort.state_dict()["chances"]
        both = [record(1, "evaluate", eval_acc=0.5), record(2, "evaluate", eval_acc=0.1)]
        cohort.told(number, [] if number % every else both)
        state = cohort.state_dict()
        if state["chances"] != before:
            changed.append(number)
        assert len(state["accuracies"]) <= 10 // every + 2
    assert changed == [{1: 20, 3: 21, 4: 20}[every]]


def oort(**settings: float) -> ByUtility:
    usual = {"penalty": 2.0, "percentile": 0.0, "explore": 0.0, "decay": 1.0, "least": 0.0}
    known = clock()
    known.takes(message(1), 0.0, 0)
    return ByUtility(Always(2), known, **{**usual, "cut": 1.0, **settings})


def test_utility_by_hand() -> None:
    """10 examples x loss; T is 5.5 s, client 1 takes 12; both were seen in the last round, 1."""
    cohort = oort()
    cohort.told(1, [record(1, "train", train_loss=0.5), record(2, "train", train_loss=4.0)])
    bonus = (0.1 * np.log(2)) ** 0.5
    assert cohort.utilities([1, 2], np.array([5.5, 12.0])) == pytest.approx(
        {1: 5 + bonus, 2: (40 + bonus) * (5.5 / 12) ** 2}
    )
    with seeded_globals(0):
        assert cohort.choose(Underway(), [1, 2], 1) == [2]


def test_clients_that_were_never_asked_are_explored() -> None:
    cohort = oort(explore=1.0, decay=0.5)
    cohort.told(1, [record(1, "train", train_loss=9.0)])
    with seeded_globals(0):
        assert cohort.choose(Underway(), [1, 2], 1) == [2]  # half of one is one
        cohort.told(3, [])
        assert cohort.choose(Underway(), [1, 2], 1) == [1]


def test_draws_follow_their_weights() -> None:
    with seeded_globals(1):
        first = [draw_by({1: 1.0, 2: 3.0}, 1)[0] for _ in range(4000)]
        assert sorted(draw_by({1: 1.0, 2: 3.0, 5: 0.0}, 2)) == [1, 2]
    assert first.count(2) / 4000 == pytest.approx(0.75, abs=0.03)


# Identities, to the bit


TIMED = ["devices=lognormal", "strategy.fraction_train=0.5"]
EQUAL = ["devices=equal", "num_clients=3", "resources.chunk_size=1"]  # 479 images each
SAME = {
    "a deadline far away is none": (
        TIMED, [*TIMED, "schedule=deadline", "schedule.seconds=1e6"],
    ),
    "all work fits before a deadline far away": (
        TIMED, [*TIMED, "schedule=partial", "schedule.seconds=1e6"],
    ),
    "a buffer of the whole cohort on equal devices is FedAvg with equal weights": (
        [*EQUAL, "strategy.fraction_train=0.67"],
        [*EQUAL, "strategy.fraction_train=0.67", "schedule=fedbuff", "schedule.buffer=2"],
    ),
    "also under a server's optimizer": (
        [*EQUAL, "strategy=fedavgm"], [*EQUAL, "strategy=fedavgm", "schedule=fedbuff",
                                       "schedule.buffer=3"],
    ),
    "a buffer of the whole cluster is a synchronous round of it": (
        [*EQUAL, *ORACLE, "shift=rotation", "shift.groups=1"],
        [*EQUAL, *ORACLE, "shift=rotation", "shift.groups=1",
         "schedule=clustered_fedbuff", "schedule.buffer=3"],
    ),
    "FedAsync with a = 1 and one client at work is sequential": (
        [*EQUAL, "strategy.fraction_train=0.34"],
        [*EQUAL, "schedule=fedasync", "schedule.mixing=1", "schedule.concurrency=1"],
    ),
}  # fmt: skip
STALENESS = {"3_clients/staleness", "3_clients/staleness_p90"}


@pytest.mark.parametrize("name", SAME)
def test_the_same(name: str) -> None:
    (plain, before), (other, after) = (outcome(events_of(small(*words))) for words in SAME[name])
    assert plain == other
    assert before == [
        {key: value for key, value in record.items() if key not in STALENESS} for record in after
    ]


def test_that_a_choice_may_be_stale_is_said_in_one_line() -> None:
    """IFCA's clients choose among models that others move; they do not where all are waited for."""
    words = ["strategy=ifca", "strategy.num_clusters=2", "model=logreg", "rounds=1"]
    words += ["devices=lognormal", "strategy.server.rule=random"]
    late = ["schedule=fedbuff", "schedule.buffer=3", "schedule.weights=examples"]
    said = []
    for schedule in (["schedule=sync"], late):
        config = small(*words, *schedule)
        _, first, *_ = events_of(config)
        assert set(config.told) <= set(first.events)
        said.append([line for line in first.events if "may be stale" in line])
    assert said[0] == []
    [line] = said[1]
    assert line.startswith("schedule=fedbuff: clients of strategy=ifca choose among the models")
    trials = expand_grids([load_sweep("")], [*words, *late, "seed=0,1"])
    assert remarks(trials).count(line) == 1  # before anything starts, too


# Of one's own


def test_the_pages_own_devices_schedule_and_compression(registries: None, tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "virtual-time.md").read_text()
    texts = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    for name, text in zip(("night", "half", "halves"), texts, strict=True):
        (tmp_path / f"{name}.py").write_text(text)
    words = [f"devices={tmp_path}/night.py", "devices.fast=0.4"]
    words += [f"schedule={tmp_path}/half.py", f"compression={tmp_path}/halves.py"]
    config = small(*words, "model=logreg", "rounds=2")
    assert set(config.code) == {"devices", "schedule", "compression"}
    assert pickle.loads(pickle.dumps(config)).key == config.key
    *_, last, result = events_of(config)
    assert (last.metrics["3_clients/trained"], last.metrics["3_clients/dropped"]) == (4, 4)
    assert np.isfinite(result.summary["virtual_s"])


# What is refused


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["devices=none", "schedule=fedbuff"], "fedbuff with devices=none: no time passes"),
        (["devices=none", "schedule=deadline"], "set devices=equal, lognormal, tiers, trace, or"),
        (["strategy=kmeans"], "mode=measured with devices=lognormal: virtual time"),
        (["schedule=fedbuf"], "unknown schedule 'fedbuf'. Did you mean 'fedbuff'"),
        (["schedule=fedbuff", "strategy=bulyan"],
         "strategy=bulyan needs replies to the last one; set strategy=.*fedavg.*schedule=sync"),
        (["schedule=fedasync", "strategy=cfl"], "strategy=cfl needs replies to the last one"),
        (["schedule=fedbuff", "strategy=kmeans", "strategy.server.rule=random"],
         "strategy=kmeans needs replies to the last one"),
        (["schedule=clustered_fedbuff"], "schedule=clustered_fedbuff has a buffer per cluster"),
        (["schedule=fedbuff", *ORACLE, "shift=rotation"],
         "strategy=oracle with schedule.weights=equal: .*set schedule.weights=examples"),
        (["schedule=fedbuff", "privacy=fixed_server"], "privacy=fixed_server with schedule"),
        (["schedule=fedbuff", "schedule.buffer=11"], "schedule.buffer=11 is more than the 10"),
        (["schedule=fedbuff", "schedule.concurrency=11"], "concurrency=11 is more than the 10"),
        (["schedule=fedasync", "schedule.exponent=1", "schedule.staleness=hinge"],
         "schedule.exponent.*schedule.staleness=hinge"),
        (["schedule=fedasync", "schedule.concurrency=2", "strategy.fraction_train=0.5"],
         "strategy.fraction_train.*schedule.concurrency=2"),
        (["schedule=over_selection"], "schedule.over=0.3 asks 13 clients for 10 replies"),
        (["schedule=deadline", "schedule.buffer=3"], "schedule.buffer"),
        (["schedule=tifl", "schedule.tiers=11"], "schedule.tiers=11 is more than the 10 clients"),
        (["schedule=tifl", "partition.eval_fraction=0"], "eval_fraction=0 there are none"),
        (["schedule=tifl", "strategy.fraction_evaluate=0"], "fraction_evaluate=0 there are none"),
        (["schedule=deadline", "schedule.seconds=0"], "schedule.seconds"),
    ],
)  # fmt: skip
def test_refused(words: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        compose(["devices=lognormal", *words])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_the_defaults_of_every_schedule_run(name: str) -> None:
    words = [
        "devices=lognormal",
        f"schedule={name}",
        "num_clients=12",
        "strategy.fraction_train=0.5",
    ]
    if SCHEDULES[name].clustered:
        words += [*ORACLE, "shift=rotation", "shift.groups=2"]
    *_, result = events_of(small(*words))
    assert np.isfinite(result.summary["virtual_s"])
