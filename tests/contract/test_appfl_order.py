"""Arrivals beside those of APPFL's virtual-time simulator (``appfl.vsim``, 1.12.0).

It is not installed here: its rules are written out, and held against what it gave.
"""

from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from random import Random

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from benchmarks.appfl_draws import AsAppfl
from benchmarks.appfl_work import STEP_S, Arrival, Fleet
from fedsweep.engine.grid import inline_grid
from fedsweep.engine.host import AppSpec
from fedsweep.pace.clock import DeviceClock, TaskWork
from fedsweep.pace.ledger import Settled
from fedsweep.pace.policies import Aggregation, Clock, Span, Underway
from fedsweep.pace.schedule import Scene
from fedsweep.scenario.devices import devices_of
from fedsweep.scenario.presence import Always
from fedsweep.trial.rounds import Loop, run_rounds
from tests.apps import add_app, model

FIVE = (1.00008, 2.50008, 4.00008, 1.30008, 0.70008)
GIVEN = [
    (4, 0.70008, 0), (0, 1.00008, 1), (3, 1.30008, 2), (4, 1.70016, 1), (3, 3.00024, 0),
    (1, 3.80016, 2), (3, 4.30032, 1), (2, 4.70016, 6), (4, 5.40024, 0), (3, 5.6004, 2),
    (1, 6.30024, 4), (4, 6.30048, 1), (0, 6.40032, 3), (0, 7.4004, 0), (3, 7.60056, 2),
    (4, 8.30064, 0),
]  # fmt: skip
"""What its ``AsyncSimDriver`` gave for five clients whose tasks take ``FIVE`` seconds, three at
work, seed 0: client, time, staleness."""


def as_appfl(takes: tuple[float, ...], at_work: int, seed: int, arrivals: int) -> list[Arrival]:
    """Play its events: a heap of (time, order of pushing), one generator for all draws."""
    rng, order, heap = Random(seed), count(), []
    began: dict[int, int] = {}
    told: list[Arrival] = []
    now = 0.0

    def fill() -> None:
        idle = [client for client in range(len(takes)) if client not in began]
        for client in rng.sample(idle, min(at_work - len(began), len(idle))):
            began[client] = len(told)
            heappush(heap, (now, next(order), "begins", client))

    fill()
    while len(told) < arrivals:
        now, _, what, client = heappop(heap)
        if what == "begins":
            began[client] = len(told)
            heappush(heap, (now + takes[client], next(order), "ends", client))
        else:
            told.append((client, now, len(told) - began.pop(client)))
            fill()
    return told


class Takes(Clock):
    def __init__(self, takes: tuple[float, ...]) -> None:
        self._takes = takes

    def takes(self, message: Message, now: float, place: int) -> Span:
        return Span(self._takes[message.metadata.dst_node_id - 1])


def ours(takes: tuple[float, ...], at_work: int, seed: int, arrivals: int) -> list[Arrival]:
    """Play FedAsync over clients that add a number, with the draws of the benchmark."""
    told: list[Arrival] = []

    def settle(number: int, due: Aggregation, underway: Underway) -> Settled:
        [flight] = due.taken
        told.append((flight.node - 1, due.at, number - 1 - flight.version))
        return Settled({}, {})

    strategy = FedAvg(fraction_train=1.0, min_train_nodes=1, min_available_nodes=1)
    grid = inline_grid(AppSpec("appfl", add_app, {}, len(takes), {}))
    scene = Scene(Always(len(takes)), Takes(takes), strategy, 1)
    policies = AsAppfl(concurrency=at_work, draws=seed).policies(scene)
    never = arrivals + 1
    loop = Loop(arrivals, 0, ConfigRecord(), evaluate_every=never, policies=policies, settle=settle)
    for _ in run_rounds(strategy, grid, model(), loop):
        pass
    return told


def test_its_rules_are_those_that_are_written_here() -> None:
    played = as_appfl(FIVE, 3, 0, len(GIVEN))

    assert [(c, late) for c, _, late in played] == [(c, late) for c, _, late in GIVEN]
    assert [at for _, at, _ in played] == pytest.approx([at for _, at, _ in GIVEN], rel=1e-12)


@pytest.mark.parametrize(("clients", "at_work"), [(5, 3), (40, 12), (40, 40)])
def test_who_arrives_when_and_how_late_is_the_same(clients: int, at_work: int) -> None:
    takes = tuple(np.random.default_rng(clients).lognormal(0, 1, clients).tolist())

    assert ours(takes, at_work, 7, 300) == as_appfl(takes, at_work, 7, 300)


def test_of_those_that_arrive_at_once_ours_take_the_lower_client_and_its_the_first_asked() -> None:
    alike = (1.0, 1.0, 1.0)

    # What its driver gave, too.
    assert [client for client, *_ in as_appfl(alike, 3, 0, 6)] == [1, 2, 0, 1, 2, 0]
    assert [client for client, *_ in ours(alike, 3, 0, 6)] == [0, 1, 2, 0, 1, 2]


def test_a_trace_of_its_devices_takes_what_its_profiles_say(tmp_path: Path) -> None:
    fleet = Fleet(np.array([1.0, 3.0]), np.array([8.0, 2.0]))
    numbers, flop, steps = 1000, 6e6, 4
    arrays = RecordDict({"arrays": ArrayRecord([np.zeros(numbers, np.float32)])})
    path = tmp_path / "devices.csv"
    path.write_text(fleet.trace(flop, steps, more=2.0))
    table = devices_of("trace", path=str(path)).table(2, 0)
    clock = DeviceClock(table, TaskWork(flop / 30, 1, np.full(2, 10)), lambda _: 2 * 4 * numbers)

    seconds = []
    for node in (1, 2):
        message = Message(arrays, node, "train")
        clock.know(message, 2 * 4 * numbers)
        seconds.append(clock.parts(message).seconds)

    # steps x seconds of a step x factor, and bytes x 8 / Mbit both ways
    by_hand = [4 * STEP_S * 1 + 2 * 0.004, 4 * STEP_S * 3 + 2 * 0.016]
    assert seconds == pytest.approx(by_hand, rel=1e-12)
