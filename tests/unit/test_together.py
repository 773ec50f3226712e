"""Chunks run together by the built-in app: replies as one by one, and a way out for all else."""

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedsweep.client import together
from fedsweep.config import RunConfig, TrainingConfig
from fedsweep.engine.chunks import make_chunks
from fedsweep.engine.grid import EngineGrid
from fedsweep.records import RoundRecord
from fedsweep.sweeps.prepare import make_split
from fedsweep.training import trainers
from fedsweep.trial.trial import initial_model, make_grid
from tests.trials import digits, events_of, outcome, small

TOLERANCE = 1e-5


def grid_of(config: RunConfig) -> EngineGrid:
    split = make_split(digits(), config)
    return make_grid(config, split.on(digits()), None, digits(), split)


def exchange(
    grid: EngineGrid, arrays: ArrayRecord, kind: str, nodes: range, **config: Any
) -> list[Message]:
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1, **config})})
    return grid.send_and_receive([Message(content, node, kind) for node in nodes])


@pytest.mark.parametrize("words", [["model=lenet"], ["partition=dirichlet", "partition.alpha=0.3"]])
def test_replies_are_those_of_the_sequential_trainer(words: list[str]) -> None:
    replies, tasks = {}, {}
    for engine in ("sequential", "vectorized"):
        grid = grid_of(small(f"training.engine={engine}", *words))
        arrays = initial_model(grid)[0]
        grid.drain()
        nodes = range(1, 9)
        replies[engine] = exchange(grid, arrays, "train", nodes) + exchange(
            grid, arrays, "evaluate", nodes
        )
        trace = grid.drain()
        assert trace.events == []
        tasks[engine] = trace.tasks
    for a, b in zip(*replies.values(), strict=True):
        assert a.metadata.src_node_id == b.metadata.src_node_id
        assert list(a.content) == list(b.content)
        for name, values in a.content.array_records.items():
            for key, array in values.items():
                np.testing.assert_allclose(
                    b.content[name][key].numpy(), array.numpy(), rtol=0, atol=TOLERANCE
                )
        for key, value in a.content["metrics"].items():
            assert b.content["metrics"][key] == pytest.approx(value, rel=1e-4)
    in_order = [
        sorted(own, key=lambda task: (task.message_type, task.node_id)) for own in tasks.values()
    ]
    for a, b in zip(*in_order, strict=True):
        assert (a.node_id, a.message_type, a.bytes_in, a.bytes_out) == (
            b.node_id,
            b.message_type,
            b.bytes_in,
            b.bytes_out,
        )
        assert b.load.keys() == a.load.keys()
        assert b.wall_s == b.load["wall_s"] > 0


def test_the_loss_before_training_is_told_where_it_is_asked_for() -> None:
    """By both trainers alike: the loss of the model that was sent on the client's own examples."""
    told, words = [], ["model=lenet", "partition=dirichlet", "partition.alpha=0.3"]
    for engine in ("sequential", "vectorized"):
        grid = grid_of(small(f"training.engine={engine}", *words))
        arrays, nodes = initial_model(grid)[0], range(1, 9)
        trained = exchange(grid, arrays, "train", nodes, method="qfedavg", lr=0.1)
        untold = exchange(grid, arrays, "train", nodes, lr=0.1)
        content = RecordDict({"model-0": arrays, "config": ConfigRecord()})
        asked = [Message(content, node, "query.losses") for node in nodes]
        expected = [reply.content["metrics"]["losses"][0] for reply in grid.send_and_receive(asked)]
        told.append([reply.content["metrics"]["start_loss"] for reply in trained])
        assert told[-1] == pytest.approx(expected)
        for one, other in zip(trained, untold, strict=True):
            assert one.content["arrays"] == other.content["arrays"]
            assert "start_loss" not in other.content["metrics"]
        assert not [event for event in grid.drain().events if "one by one" in event]
    assert told[0] == pytest.approx(told[1], rel=1e-4)


def test_load_is_shared_by_the_examples_seen() -> None:
    grid = grid_of(small("partition=dirichlet", "partition.alpha=0.3", "resources.chunk_size=8"))
    exchange(grid, initial_model(grid)[0], "train", range(1, 9))
    tasks = [task for task in grid.drain().tasks if task.message_type == "train"]
    per_example = [task.load["wall_s"] / task.metrics["num-examples"] for task in tasks]
    assert per_example == pytest.approx([per_example[0]] * 8)


def test_a_trial_is_the_same_up_to_rounding() -> None:
    for words in (["strategy=fedavg"], ["strategy=local"]):
        (_, one), (_, many) = (
            outcome(events_of(small(f"training.engine={engine}", *words)))
            for engine in ("sequential", "vectorized")
        )
        for a, b in zip(one, many, strict=True):
            assert b == pytest.approx(a, rel=1e-3, abs=1e-3, nan_ok=True)


def test_vectorized_trials_repeat_to_the_bit() -> None:
    assert outcome(events_of(small())) == outcome(events_of(small()))


def notes(*words: str) -> list[str]:
    return [
        event
        for record in events_of(small("rounds=2", *words))
        if isinstance(record, RoundRecord)
        for event in record.events
    ]


def test_what_can_not_run_together_runs_one_by_one_and_says_why_once() -> None:
    why = "training.engine=vectorized: clients are trained one by one: "
    words = ["model.name=tests.networks.Small", "model.kwargs={features:64,classes:10}"]
    assert notes(*words) == [why + "Small has no batched form"]


@pytest.mark.parametrize(
    "words",
    [
        ["privacy=fixed_client", "privacy.clipping_norm=0.1"],
        ["privacy=adaptive_client"],
        ["privacy=adaptive_client", "privacy.client_metrics=false"],
    ],
)
def test_clipping_on_the_clients_goes_through_the_mod(words: list[str]) -> None:
    words = [*words, "privacy.strict=false"]
    assert notes(*words) == [small(*words).account.said]  # and nothing that ran one by one
    (_, one), (_, many) = (
        outcome(events_of(small(f"training.engine={engine}", *words)))
        for engine in ("sequential", "vectorized")
    )
    for a, b in zip(one, many, strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-3, nan_ok=True)


METHODS = {
    "ifca": [
        "strategy.num_clusters=3",
        "strategy.fraction_train=0.5",
    ],  # some are evaluated before they ever trained
    "clove": ["strategy.num_clusters=3"],
    "fedsoft": ["strategy.num_clusters=3"],
    "fedem": ["strategy.num_clusters=3", "strategy.fraction_train=0.5"],
    "fedrc": ["strategy.num_clusters=2", "evaluate_personal=always"],
    "scaffold": ["training.momentum=0.5"],
    "ditto": ["model=lenet"],
    "apfl": ["training.momentum=0.5", "training.weight_decay=0.01", "training.epochs=2"],
    "fedper": [],
    "fedavg_ft": [],
    "fedrep": ["strategy.head_epochs=2", "training.weight_decay=0.01"],
    "fedbabu": ["strategy.finetune=head"],
    "pfedme": ["training.optimizer=adam", "training.lr=0.003"],
    "perfedavg": ["strategy.approximation=hessian_free", "strategy.delta=0.1"],
    "fedala": ["training.epochs=2", "strategy.fraction_train=0.5"],
    "fedrod": ["training.weight_decay=0.01", "partition=pathological"],
    "feddyn": ["strategy.fraction_train=0.5"],
    "fednova": ["training.proximal_mu=0.1"],
}


@pytest.mark.parametrize("strategy", METHODS)
def test_methods_together_are_methods_one_by_one(strategy: str) -> None:
    words = [f"strategy={strategy}", "shift=rotation", "shift.groups=2", *METHODS[strategy]]
    events = {
        engine: events_of(small(f"training.engine={engine}", *words))
        for engine in ("sequential", "vectorized")
    }
    assert not [event for record in events["vectorized"] for event in getattr(record, "events", ())]
    (_, one), (_, many) = (outcome(own) for own in events.values())
    for a, b in zip(one, many, strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-3, nan_ok=True)


def test_a_failing_program_leaves_each_client_its_own_reply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(trainers, "train_many", broken)
    grid = grid_of(small())
    replies = exchange(grid, initial_model(grid)[0], "train", range(1, 9))
    assert not [reply for reply in replies if reply.has_error()]
    assert grid.drain().events == ["a chunk runs client by client after RuntimeError: no luck"]


@pytest.mark.parametrize("method", ["ditto", "local", "scaffold"])
def test_a_chunk_that_fails_late_leaves_no_state_behind(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Its clients had trained, and kept what they keep, when it failed: alone, each begins anew."""
    grids = [grid_of(small("resources.chunk_size=8")) for _ in range(2)]
    arrays = initial_model(grids[0])[0]
    zeros = ArrayRecord({key: Array(np.zeros_like(a.numpy())) for key, a in arrays.items()})
    config = ConfigRecord({"server-round": 1, "method": method, "lambda": 0.1})
    content = RecordDict({"arrays": arrays, "control": zeros, "config": config})
    states = []
    for grid, fails in zip(grids, (False, True), strict=True):
        with monkeypatch.context() as patched:
            if fails:
                patched.setattr(together, "_num_examples", lambda reply: 1 / 0)
            replies = grid.send_and_receive(
                [Message(content, node, "train") for node in range(1, 9)]
            )
        assert not [reply for reply in replies if reply.has_error()]
        states.append([grid.states[node] for node in range(1, 9)])
    assert "a chunk runs client by client after ZeroDivisionError" in grids[1].drain().events[0]
    for once, again in zip(*states, strict=True):
        for name, record in once.array_records.items():
            for key, array in record.items():
                other = again.array_records[name][key].numpy()
                np.testing.assert_allclose(other, array.numpy(), rtol=0, atol=TOLERANCE)


def test_one_clients_fault_is_not_its_neighbours() -> None:
    grid = grid_of(small("resources.chunk_size=8"))
    arrays = initial_model(grid)[0]
    del arrays["hidden.bias"]
    assert all(
        "missing ['hidden.bias']" in reply.error.reason
        for reply in exchange(grid, arrays, "train", range(1, 9))
    )


def test_out_of_memory_halves_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, train_many = [], trainers.train_many

    def small_memory(
        program: Any, start: Any, examples: Any, places: Any, *rest: Any, **named: Any
    ) -> Any:
        sizes.append(len(places))
        if len(places) > 3:
            raise torch.OutOfMemoryError
        return train_many(program, start, examples, places, *rest, **named)

    config = small("resources.chunk_size=8")
    grids = [grid_of(config), grid_of(config)]
    arrays = initial_model(grids[0])[0]
    expected = exchange(grids[0], arrays, "train", range(1, 9))
    monkeypatch.setattr(trainers, "train_many", small_memory)
    actual = exchange(grids[1], arrays, "train", range(1, 9))
    assert sizes == [8, 4, 2, 2, 2, 2]
    for a, b in zip(expected, actual, strict=True):
        for key, array in a.content["arrays"].items():
            np.testing.assert_allclose(
                b.content["arrays"][key].numpy(), array.numpy(), rtol=0, atol=TOLERANCE
            )
    assert "4 go together" in grids[1].drain().events[0]


@pytest.mark.parametrize(
    ("clients", "sizes"),
    [(1, [1]), (2, [1, 1]), (5, [2, 3]), (8, [4, 4]), (10, [5, 5]), (512, [8] * 64)],
)
def test_chunks_that_run_together(clients: int, sizes: list[int]) -> None:
    assert [
        len(chunk) for chunk in make_chunks(["train"] * clients, [1.0] * clients, together=4)
    ] == sizes


def test_options_that_are_off_leave_the_key_alone() -> None:
    keys = [
        small(*words).key for words in ([], ["training.augment=none"], ["training.augment=flip"])
    ]
    assert keys[0] == keys[1] != keys[2]
    assert small().training.canonical().keys() == TrainingConfig.model_fields.keys() - {
        "augment",
        "precision",
    }
    assert small("training.precision=bf16").key not in keys


def test_the_engine_is_part_of_the_key() -> None:
    assert (
        len({small(f"training.engine={engine}").key for engine in ("sequential", "vectorized")})
        == 2
    )
