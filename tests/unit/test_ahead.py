"""Tasks that are worked on before their replies are sent for, and together whatever their models.

Client ``n`` (node id) adds n to every weight and counts its rounds in its state.
"""

from collections import Counter
from collections.abc import Iterable
from heapq import heapify
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedsweep.engine.chunks import MEANS_BYTES, MIN_CHUNKS
from fedsweep.engine.executors import InlineExecutor
from fedsweep.engine.grid import EngineGrid, inline_grid
from fedsweep.engine.host import AppSpec
from fedsweep.engine.wire import Chunk
from fedsweep.pace.policies import Flight, Underway
from fedsweep.trial import rounds
from fedsweep.trial.checkpoint import decode, encode
from tests.apps import add_app, model
from tests.trials import events_of, outcome, small

NODES = 24
STALE = ["devices=lognormal", "devices.rate_sigma=2", "schedule=fedbuff", "schedule.buffer=4"]
MANY = [f"num_clients={NODES}", "rounds=5", "schedule.concurrency=20"]


def grid_of(together: int = 2, **how: object) -> EngineGrid:
    return inline_grid(AppSpec("ahead", add_app, how, NODES, {}), together=together)


def asked(nodes: Iterable[int], version: int = 0) -> list[Message]:
    """Return training messages that share a content, as FedAvg's do."""
    told = ConfigRecord({"server-round": version + 1})
    content = RecordDict({"arrays": model(float(version)), "config": told})
    return [Message(content, node, "train") for node in nodes]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The nodes of each chunk of training that was submitted in this process, in order."""
    seen: list[list[int]] = []
    submit = InlineExecutor.submit

    def watched(self: InlineExecutor, chunks: Iterable[Chunk]) -> None:
        chunks = list(chunks)
        for chunk in chunks:
            told = [task.metadata for task in chunk.tasks]
            if told[0].message_type == "train" and not chunk.tasks[0].stateless:
                seen.append([each.dst_node_id for each in told])
        submit(self, chunks)

    monkeypatch.setattr(InlineExecutor, "submit", watched)
    return seen


def weight(reply: Message) -> float:
    return float(reply.content["arrays"]["w"].numpy()[0])


# The grid


def test_what_is_due_next_is_begun_in_whole_chunks_and_told_of_once_it_is_sent_for(
    ran: list[list[int]],
) -> None:
    grid = grid_of()
    first, *others = asked(range(1, 7))
    grid.next_due = others
    [reply] = grid.send_and_receive([first])
    grid.early_state()  # until it is done
    assert ran == [[1], [2, 3], [4, 5]]  # 6 is no whole chunk
    assert weight(reply) == 1
    trace = grid.drain()
    assert ([task.node_id for task in trace.tasks], trace.asked) == ([1], Counter(train=1))
    assert list(grid.states) == [1]

    replies = grid.send_and_receive(others[2:])
    assert [weight(reply) for reply in replies] == [4, 5, 6]
    assert ran[3:] == [[6]]
    trace = grid.drain()
    assert sorted(task.node_id for task in trace.tasks) == [4, 5, 6]
    assert trace.asked == Counter(train=3)
    assert list(grid.states) == [1, 4, 5, 6]
    assert [grid.states[node]["count"]["n"] for node in (4, 6)] == [1, 1]


def test_what_was_begun_is_not_begun_again(ran: list[list[int]]) -> None:
    grid = grid_of()
    messages = asked(range(1, 8))
    for message in messages[:2]:
        grid.next_due = [other for other in messages[1:5] if other is not message]
        grid.send_and_receive([message])
    assert ran == [[1], [2, 3], [4, 5]]


def test_a_client_that_is_asked_anew_does_what_it_is_asked_now() -> None:
    """Nobody sends for what it was begun at before, done or not; its state knows nothing of it."""
    for done in (False, True):
        grid = grid_of()
        first, *others = asked([1, 2, 3])
        grid.next_due = others
        grid.send_and_receive([first])
        if done:
            grid.early_state()
        newer = asked([2, 3], version=10)
        grid.next_due = newer
        grid.send_and_receive(asked([4]))
        assert [weight(reply) for reply in grid.send_and_receive(newer)] == [12, 13]
        assert [task.node_id for task in grid.drain().tasks].count(2) == 1
        assert grid.states[2]["count"]["n"] == 1


def test_what_was_given_up_is_begun_again() -> None:
    grid = grid_of()
    first, *others = asked([1, 2, 3])
    grid.next_due = others
    grid.send_and_receive([first])
    grid.receive(grid.push_messages(asked([4])), timeout=0)
    assert [weight(reply) for reply in grid.send_and_receive(others)] == [2, 3]
    assert [grid.states[node]["count"]["n"] for node in (2, 3)] == [1, 1]


def test_replies_that_are_not_sent_for_yet_stay_within_their_bytes(ran: list[list[int]]) -> None:
    grid = grid_of(together=1)
    content = RecordDict({"arrays": model(0.0, MEANS_BYTES // 4 // MIN_CHUNKS)})
    first, *others = [Message(content, node, "query.none") for node in range(1, NODES)]
    grid.next_due = others
    grid.send_and_receive([first])
    assert len(grid._early) == MIN_CHUNKS


def test_a_checkpoint_holds_what_came_of_it(ran: list[list[int]]) -> None:
    grid = grid_of(fail=(2,))  # partition 2 is node 3
    first, *others = asked(range(1, 6))
    grid.next_due = others
    grid.send_and_receive([first])
    saved = decode(encode({"early": grid.early_state(), "clients": grid.states}))
    assert list(saved["clients"]) == ["1"]

    there, again = grid_of(), asked(range(2, 6))
    ran.clear()
    there.load_early_state(saved["early"], {m.metadata.dst_node_id: m for m in again})
    replies = there.send_and_receive(again)
    assert not ran
    assert [reply.metadata.src_node_id for reply in replies] == [2, 3, 4, 5]
    assert "fails on purpose" in replies[1].error.reason
    assert [weight(reply) for reply in replies if reply.has_content()] == [2, 4, 5]
    assert [there.states[node]["count"]["n"] for node in (2, 4, 5)] == [1, 1, 1]
    records = {task.node_id: task for task in there.drain().tasks}
    theirs = {task.node_id: task for task in _told(grid, others)}
    assert records == theirs


def _told(grid: EngineGrid, messages: list[Message]) -> list:
    grid.drain()
    grid.send_and_receive(messages)
    return grid.drain().tasks


def test_what_arrives_next_is_in_the_order_of_time_and_leaves_out_what_is_lost() -> None:
    underway = Underway()
    [one] = asked([1])
    ends = {1: 5.0, 2: 1.0, 3: 3.0, 4: 2.0, 5: float("inf")}
    underway._in_flight = [
        (end, node, Flight(node, node, 0, 0.0, end, one, arrives=node != 4))
        for node, end in ends.items()
    ]
    heapify(underway._in_flight)
    waiting = Flight(9, 9, 0, 0.0, 0.5, one)
    underway.arrived = [waiting]
    assert [flight.node for flight in underway.arriving(3)] == [9, 2]  # 4 would come second
    assert [flight.node for flight in underway.arriving(9)] == [9, 2, 3, 1]
    assert underway.arriving(0) == []


# Trials


@pytest.mark.parametrize("strategy", ["fedavg", "ditto"])
def test_working_ahead_changes_no_bit_where_clients_train_one_by_one(
    strategy: str, monkeypatch: pytest.MonkeyPatch, ran: list[list[int]]
) -> None:
    """Weights, virtual times, and metrics of models that clients keep, in each round."""
    config = small(*MANY, *STALE, "training.engine=sequential", f"strategy={strategy}")
    ahead = outcome(events_of(config))
    tasks = sum(map(len, ran))
    monkeypatch.setattr(rounds, "AHEAD", 0)
    ran.clear()
    assert outcome(events_of(config)) == ahead
    assert sum(map(len, ran)) == 5 * 4  # those that made the models
    assert 5 * 4 < tasks <= 2 * 5 * 4


def test_a_trials_last_model_waits_for_nothing_else(ran: list[list[int]]) -> None:
    config = small(*MANY, *STALE, "rounds=1", "evaluate_every=1")
    events_of(config)
    assert sum(map(len, ran)) == 4


def test_clients_of_several_models_train_together(ran: list[list[int]]) -> None:
    """As one by one, up to rounding: each from its own model, in the order of its own round."""
    models = {}
    for engine in ("sequential", "vectorized"):
        ran.clear()
        words = ["model=mlp", f"training.engine={engine}"]
        _, *records, result = events_of(small(*MANY, *STALE, *words))
        models[engine] = result.models["global"]
        said = [line for record in records for line in record.events]
        assert not [line for line in said if "one by one" in line or "client by client" in line]
    for name, array in models["sequential"].items():
        assert models["vectorized"][name] == pytest.approx(array, abs=1e-5), name


def test_rounds_whose_learning_rates_differ_train_apart() -> None:
    words = ["training.lr_decay=0.5", "model=mlp"]
    found = {}
    for engine in ("sequential", "vectorized"):
        config = small(*MANY, *STALE, *words, f"training.engine={engine}")
        _, *records, result = events_of(config)
        found[engine] = result.models["global"]
        assert not [line for r in records for line in r.events if "hyperparameters" in line]
    for name, array in found["sequential"].items():
        assert found["vectorized"][name] == pytest.approx(array, abs=1e-5), name


OWN = """
from fedsweep.strategies.clients import ClientPart, with_method
from fedsweep.strategies.fedavg import FedAvg


class Rounds(FedAvg):
    settings = FedAvg.settings
    any_version = True

    def configure_train(self, server_round, arrays, config, grid):
        config = with_method(config, RoundsClients.method)
        return super().configure_train(server_round, arrays, config, grid)


class RoundsClients(ClientPart):
    method = "rounds"

    def fit(self, work):
        own = work.config["server-round"]
        assert all(config["server-round"] == own for config in work._configs)
        return super().fit(work)
"""


def test_clients_of_somebodys_own_train_as_they_are_asked(
    tmp_path: Path, ran: list[list[int]]
) -> None:
    """What they do may go by the round that they read: a chunk is of one, and nothing is early."""
    (tmp_path / "rounds.py").write_text(OWN)
    events_of(small(*MANY, *STALE, f"strategy={tmp_path}/rounds.py", "model=mlp"))
    assert sum(map(len, ran)) == 5 * 4
