"""A trial in virtual time: what tasks take by hand, metrics, identities, going on to the bit."""

import gc
from collections import Counter
from heapq import heapify
from itertools import product
from math import inf

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedsweep.catalog import CATALOG
from fedsweep.engine.flower import empty_run, identify
from fedsweep.engine.wire import count_bytes
from fedsweep.pace.clock import AskedBy, DeviceClock, TaskWork
from fedsweep.pace.ledger import TASK_COLUMNS, TimeLedger, gini_of_counts
from fedsweep.pace.policies import Aggregation, Flight, Span, soonest
from fedsweep.scenario.device import DeviceTable
from fedsweep.scenario.presence import Always, Intervals, Presence
from fedsweep.strategies.registry import STRATEGIES
from fedsweep.strategies.selection import gini
from fedsweep.sweeps.prepare import make_split
from fedsweep.training.local import LocalTraining, cut, passes
from fedsweep.trial.checkpoint import CheckpointStore
from fedsweep.trial.trial import make_grid, run_trial
from fedsweep.trial.virtual import network_cost
from tests.trials import digits, events_of, outcome, small

VIRTUAL = "devices=lognormal"
ORACLE = ["strategy=oracle", "strategy.server.mode=simulated"]
DAYS = [VIRTUAL, "devices.availability=periodic"]


HEADER = 128  # bytes before an array's own, in Flower's messages


def message(node: int = 1, floats: int = (1000 - HEADER) // 4, **config: object) -> Message:
    identify(empty_run())
    arrays = ArrayRecord({"w": Array(np.zeros(floats, np.float32))})
    told = ConfigRecord({"epochs": 1, "batch-size": 10, **config})
    return Message(RecordDict({"arrays": arrays, "config": told}), node, "train")


def clock(presence: Presence | None = None, dropout: float = 0.0) -> DeviceClock:
    """Two clients of 20 and 40 examples; the second is half as fast in everything."""
    table = DeviceTable(
        rate_N=np.array([1200.0, 600.0]),
        down_N=np.array([500.0, 250.0]),
        up_N=np.array([200.0, 100.0]),
        presence=presence or Always(2),
        watt_N=np.array([2.0, 3.0]),
    )
    work = TaskWork(10.0, 1, np.array([20, 40]))
    made = DeviceClock(table, work, count_bytes, seed=3, dropout=dropout)
    for asked in made.unknown([message(1), message(2)]):
        made.know(asked, 600)
    return made


# What a task takes


def test_a_tasks_time_by_hand() -> None:
    """1000 bytes at 500 a second; 20 examples x 10 FLOP x 3 at 1200; 600 bytes at 200."""
    assert clock().takes(message(1), 0.0, 0) == Span(2.0 + 0.5 + 3.0)
    assert clock().takes(message(2), 0.0, 0) == Span(4.0 + 2.0 + 6.0)
    assert clock().takes(message(1, epochs=4), 0.0, 0) == Span(2.0 + 2.0 + 3.0)
    assert clock().takes(message(1, steps=3), 0.0, 0) == Span(2.0 + 0.75 + 3.0)


def test_a_task_counts_the_steps_that_its_training_makes() -> None:
    """Of all sizes, batches and networks: steps and examples are those of the trainer."""
    for examples, batch, least, steps in product((1, 2, 9, 21, 25), (0, 2, 10), (1, 2), (0, 1, 7)):
        work = TaskWork(1.0, least, np.array([examples]))
        asked = clock().asked(message(1, **{"batch-size": batch, "epochs": 2, "steps": steps}))
        hp = LocalTraining(batch_size=batch, epochs=2, steps=steps)
        made = [
            len(rows)
            for order in passes(examples, hp, 0, least)
            for rows in cut(order, examples, batch, least)
        ]
        assert work.steps(asked, 1) == len(made)
        assert work.effort(asked, 1).trained == sum(made)


def test_a_batch_that_joins_another_takes_no_step_of_its_own() -> None:
    """With BatchNorm a client of 11 examples takes one step of 11 in each pass, else two."""
    steps = {}
    for model in ("tests.networks.NormedMLP", "mlp"):
        config = small(f"model={model}", VIRTUAL)
        split = make_split(digits(), config)
        grid = make_grid(config, split.on(digits()), None, digits(), split)
        work = TaskWork(*network_cost(grid), np.array([11]))
        steps[model] = work.steps(clock().asked(message(1)), 1)
    assert steps == {"tests.networks.NormedMLP": 1, "mlp": 2}


def test_a_reply_of_each_kind_is_measured_once() -> None:
    both = [message(1), message(2), message(1, floats=3), message(2, method="choose")]
    found = clock().unknown(both)
    assert found == [both[3], both[2]]


def test_what_a_content_asks_is_read_once_and_forgotten_with_it() -> None:
    asked = AskedBy(count_bytes)
    first, other = message(1), message(2, floats=500)
    shared = Message(first.content, 3, "train")
    assert asked(first) is asked(shared)
    assert asked(other) is not asked(first)
    assert len(asked._known) == 2
    del first, shared
    gc.collect()
    assert [known.nbytes for _, known in asked._known.values()] == [asked(other).nbytes]


def test_a_client_that_leaves_during_its_task_is_lost_then() -> None:
    away = clock(Intervals([((0.0, 4.0), (10.0, 20.0)), ((0.0, inf),)], [inf, inf]))
    assert away.takes(message(1), 0.0, 0) == Span(4.0, arrives=False)
    assert away.takes(message(1), 7.0, 0) == Span(0.0, arrives=False)
    assert away.takes(message(1), 10.0, 0) == Span(5.5)


def test_dropout_has_its_chance_and_follows_from_the_task_alone() -> None:
    drops = clock(dropout=0.3)
    spans = [drops.takes(message(1), 0.0, place) for place in range(2000)]
    lost = [span.seconds for span in spans if not span.arrives]
    assert len(lost) / len(spans) == pytest.approx(0.3, abs=0.03)
    assert np.mean(lost) == pytest.approx(5.5 / 2, rel=0.1)
    again = [clock(dropout=0.3).takes(message(1), 0.0, place) for place in (5, 3)]
    assert again == [spans[5], spans[3]]


# FLOP of methods


EFFORTS = {  # (trained, scored) of 20 examples, two epochs, three models sent
    "": (40, 0), "apfl": (80, 0), "choose": (40, 60), "qfedavg": (40, 60), "soft": (40, 60),
    "ditto": (80, 0), "fedper": (40, 0), "finetune": (40, 0), "local": (40, 0), "scaffold": (40, 0),
    "fedrep": (140, 0), "fedbn": (40, 0), "fedbabu": (40, 0), "pfedme": (200, 0),
    "perfedavg": (80, 0), "fedala": (56, 0), "fedrod": (80, 0), "feddyn": (40, 0),
    "fednova": (40, 0), "moon": (40, 80), "fedem": (120, 60), "fedrc": (120, 60),
}  # fmt: skip


@pytest.mark.parametrize("method", EFFORTS)
def test_what_a_methods_clients_compute(method: str) -> None:
    told = {
        "epochs": 2, "head-epochs": 5, "inner-steps": 5, "approximation": "hessian_free",
        "ala-share": 0.8,
    }  # fmt: skip
    effort = STRATEGIES.client_part(method).effort(told, 20, 3)
    assert (effort.trained, effort.scored) == EFFORTS[method]


def test_every_method_says_what_its_clients_compute() -> None:
    assert len(STRATEGIES)  # they are read when somebody asks
    parts = STRATEGIES._client_parts.items()  # other tests bring their own
    ours = {name for name, part in parts if part.__module__.startswith("fedsweep.")}
    assert set(EFFORTS) == ours


# What time was spent on


def flight(place: int, node: int, ends: float, *, began: float = 0.0, **more: object) -> Flight:
    return Flight(place, node, more.pop("version", 0), began, ends, message(node), **more)


def test_a_round_in_virtual_time_by_hand() -> None:
    """At 8.5 s client 0 has replied; of client 1's 2 s of computing, from 4 s on, all is done."""
    ledger = TimeLedger(clock(), stale=True)
    settled = ledger.settle(3, Aggregation(8.5, [flight(0, 1, 5.5)], [flight(1, 2, 12.0)]), 9.0)
    assert settled.metrics == {
        "5_time/virtual_s": 9.0, "5_time/virtual_round_s": 9.0, "3_clients/dropped": 1.0,
        "3_clients/lost": 0.0, "3_clients/wasted": 40 / 60, "3_clients/participation_gini": 0.5,
        "3_clients/staleness": 2.0, "3_clients/staleness_p90": 2.0,
        "5_time/joules": 2 * 0.5 + 3 * 2,
    }  # fmt: skip
    assert list(settled.tasks) == list(TASK_COLUMNS)
    assert [column[1] for column in settled.tasks.values()] == [
        3,
        1,
        0,
        0.0,
        4.0,
        2.0,
        6.0,
        8.5,
        9.0,
        "dropped",
    ]

    lost = flight(2, 2, 14.0, began=9.0, arrives=False)  # a second into its computing
    later = ledger.settle(
        4, Aggregation(14.5, [flight(3, 1, 14.5, began=9.0, version=3)], [lost]), 14.5
    )
    assert later.metrics["3_clients/wasted"] == pytest.approx((40 + 20) / (60 + 40))
    assert later.metrics["3_clients/lost"] == 1.0
    assert later.metrics["3_clients/staleness"] == 0.0
    assert later.metrics["5_time/joules"] == pytest.approx(7 + 2 * 0.5 + 3 * 1)


def test_the_gini_of_counts_is_that_of_the_clients() -> None:
    rng = np.random.default_rng(0)
    for clients in (1, 2, 9, 50):
        counts_N = rng.integers(0, 4, clients)
        having = Counter(counts_N.tolist())
        assert gini_of_counts(having) == pytest.approx(gini(counts_N), abs=1e-12, nan_ok=True)


def test_the_first_of_a_heap_are_those_of_its_order() -> None:
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 7, 100):
        heap = [(float(rng.integers(0, 9)), node, f"task {node}") for node in range(size)]
        ordered = sorted(heap)
        heapify(heap)
        before = heap.copy()
        for most in (0, 1, 5, size, size + 3):
            assert soonest(heap, most) == ordered[:most]
        assert heap == before


def test_a_ledger_goes_on_counting_who_took_part() -> None:
    """Twice client 0, then client 1 after a checkpoint: 2 and 1, a Gini of 1 / 6."""
    ledger = TimeLedger(clock())

    def settle(of: TimeLedger, number: int, node: int) -> float:
        due = Aggregation(float(number), [flight(number, node, float(number))])
        return of.settle(number, due, float(number)).metrics["3_clients/participation_gini"]

    assert [settle(ledger, 1, 1), settle(ledger, 2, 1)] == [0.5, 0.5]
    again = TimeLedger(clock())
    again.load_state_dict(ledger.state_dict())
    assert settle(again, 3, 2) == settle(ledger, 3, 2) == pytest.approx(1 / 6)


def test_a_server_receives_averages_and_sends_on() -> None:
    """Client 1, 600 bytes a model: two others' at 250 a second, 3 x 150 x 2 FLOP, 600 bytes up."""
    assert clock().serving_s(2, [1, 2, 2], 600) == 600 / 250 + 2 * 150 * 3 / 600 + 6
    assert clock().serving_s(2, [2], 600) == 2 * 150 / 600 + 6


def test_the_rule_of_servers_costs_or_saves_time_and_changes_no_weight() -> None:
    words = [VIRTUAL, *ORACLE, "shift=rotation", "shift.groups=2", "model=logreg"]
    words += ["num_clients=20", "evaluate_every=3", "strategy.fraction_train=0.5"]
    found: dict[str, list[float]] = {}
    for seed in (0, 1):
        weights = set()
        for rule in ("load", "random", "round_robin"):
            rules = [f"strategy.server.rule={rule}", f"seed={seed}"]
            *_, result = events_of(small(*words, *rules))
            weights.add(result.weights_sha256)
            found.setdefault(rule, []).append(result.summary["virtual_s"])
        assert len(weights) == 1
    assert sum(found["load"]) < min(sum(found["random"]), sum(found["round_robin"]))


# Trials


def test_waiting_for_all_on_equal_devices_is_having_no_clock() -> None:
    """Weights and metrics to the bit; time is that of the slowest, by hand for a linear model."""
    words = ["model=logreg", "num_clients=4", "rounds=2", "strategy.fraction_train=0.5"]
    plain, timed = (events_of(small(*words, *more)) for more in ([], ["devices=equal"]))
    assert outcome(plain)[0] == outcome(timed)[0]
    for before, after in zip(outcome(plain)[1], outcome(timed)[1], strict=True):
        assert before.items() <= after.items()
    assert not any("virtual" in key for key in outcome(plain)[1][-1])

    model, examples = 4 * (64 * 10 + 10) + 2 * HEADER, max(timed[2].clients["train_examples"])
    flop = 3 * examples * 2 * 64 * 10
    took = model / (20e6 / 8) + flop / 10e9 + model / (5e6 / 8)
    assert timed[2].metrics["5_time/virtual_s"] == pytest.approx(took, rel=1e-12)
    assert timed[-1].summary["virtual_s"] == timed[-2].metrics["5_time/virtual_s"]


def test_the_engine_that_trains_changes_no_virtual_time() -> None:
    words = [VIRTUAL, "devices.dropout=0.2", "model=lenet", "rounds=2", "num_clients=4"]
    found = [
        [record.metrics["5_time/virtual_s"] for record in events_of(small(*words, engine))[2:-1]]
        for engine in ("training.engine=sequential", "training.engine=vectorized")
    ]
    assert found[0] == found[1]


def test_whoever_is_away_is_not_asked_and_time_passes_until_somebody_comes() -> None:
    words = [*DAYS, "devices.day_s=0.9", "devices.day_share=0.1"]
    _, *rounds, _ = events_of(small(*words, "rounds=6", "strategy.min_fit_fraction=0"))
    asked = [record.metrics["3_clients/asked"] for record in rounds[1:]]
    assert all(1 <= count < 8 for count in asked)
    assert all(np.isfinite(record.metrics["5_time/virtual_s"]) for record in rounds[1:])


def test_what_is_logged_of_virtual_time_repeats_to_the_bit_and_may_be_watched() -> None:
    for key in ("5_time/virtual_s", "3_clients/wasted", "3_clients/participation_gini"):
        assert CATALOG.follows(key) == "learning"
        assert CATALOG.watched(key).better == "lower"


GOES_ON = {
    "sync": [VIRTUAL, "devices.dropout=0.2", "strategy.min_fit_fraction=0"],
    "stale": [VIRTUAL, "devices.dropout=0.2", "schedule=fedbuff", "schedule.buffer=3",
              "strategy=fedavgm"],
    "worth and speed": [VIRTUAL, "schedule=oort", "strategy.fraction_train=0.25"],
    "tiers": [VIRTUAL, "schedule=tifl", "schedule.tiers=2", "schedule.interval=1"],
    "work ahead of need": [VIRTUAL, "schedule=fedbuff", "schedule.buffer=4", "num_clients=30",
                           "schedule.concurrency=26", "compression=topk"],
    "a client's own model": [VIRTUAL, "schedule=fedasync", "strategy=ditto"],
    "clusters": [VIRTUAL, "schedule=clustered_fedbuff", "schedule.buffer=2", *ORACLE,
                 "shift=rotation", "shift.groups=2"],
    "days": [*DAYS, "devices.day_s=2", "strategy.min_fit_fraction=0"],
    "models sent as differences": ["compression=signsgd", "compression.down=true"],
    "stale replies to differences": [VIRTUAL, "schedule=fedbuff", "schedule.buffer=3",
                                     "compression=topk", "compression.down=true"],
}  # fmt: skip


@pytest.mark.parametrize("name", GOES_ON)
def test_a_killed_trial_goes_on_to_the_bit(name: str, tmp_path) -> None:
    config = small(*GOES_ON[name], "rounds=4", "checkpoint.every=1")
    images, whole = digits(), events_of(config)
    for killed_after in (1, 3):
        store = CheckpointStore(str(tmp_path / f"{killed_after}"), config.key)
        run = run_trial(config, images, make_split(images, config), checkpoints=store)
        for event in run:
            if getattr(event, "round", 0) == killed_after:
                run.close()
        again = list(run_trial(config, images, make_split(images, config), checkpoints=store))
        assert outcome(again) == outcome(whole)
        assert [r.tasks for r in again[1:-1]] == [r.tasks for r in whole[1:-1]]
