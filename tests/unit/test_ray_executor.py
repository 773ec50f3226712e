"""The Ray executor's bookkeeping, on a Ray that answers when the test says so."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from ray.exceptions import OutOfMemoryError, TaskCancelledError

from fedsweep.engine import ray_executor
from fedsweep.engine.executors import Host
from fedsweep.engine.grid import inline_grid
from fedsweep.engine.host import AppSpec
from fedsweep.engine.ray_executor import RayExecutor
from fedsweep.engine.wire import Chunk, ChunkReplies, Task, records_up_to
from fedsweep.records import TaskRecord
from tests.apps import add_app


class FakeRay:
    """Chunks are ready at ``end`` or ``cancel`` of their head, or when their host is pinged."""

    ObjectRef = type("ObjectRef", (), {})

    def __init__(self) -> None:
        self.sent: list[tuple[str, int]] = []  # (host, chunk)
        self.heads: dict[int, Any] = {}
        self.values: dict[Any, Any] = {}
        self.util = SimpleNamespace(list_named_actors=list)

    def host(self, name: str) -> Host:
        def run(key: str, spec: list, chunk: Chunk, num_arrays: int, num_states: int) -> list:
            refs = [self.ObjectRef() for _ in range(1 + num_arrays)]
            self.sent.append((name, chunk.number))
            self.heads[chunk.number] = refs[0]
            return refs

        def ping() -> Any:
            ref = self.ObjectRef()
            self.values[ref] = name
            return ref

        def method(call: Any) -> Any:
            return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=call))

        return Host(name, SimpleNamespace(run=method(run), ping=method(ping)))

    def end(self, number: int, value: Any = None) -> None:
        task = TaskRecord(1, "train", "host", 1.0, 0, 0, {}, {})
        self.values[self.heads[number]] = value or (ChunkReplies((), (task,)), [], [])

    def put(self, value: Any) -> Any:
        return self.ObjectRef()

    def get(self, ref: Any) -> Any:
        if isinstance(self.values[ref], Exception):
            raise self.values[ref]
        return self.values[ref]

    def cancel(self, ref: Any) -> None:
        self.values[ref] = TaskCancelledError()

    def wait(
        self, refs: list, num_returns: int, timeout: float | None, fetch_local: bool
    ) -> tuple[list, list]:
        ready = [ref for ref in refs if ref in self.values][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    inline_grid(
        AppSpec("app", add_app, {}, 4, {})
    )  # a grid makes this process the server, so that it may make messages
    monkeypatch.setattr(ray_executor, "ray", fake)
    monkeypatch.setattr(ray_executor, "out_of_band", lambda: None)
    monkeypatch.setattr(
        ray_executor, "NEAR_S", -1.0
    )  # whatever is behind another chunk is called back
    return fake


def chunk(number: int, seconds: float, cost: float = 1.0) -> Chunk:
    message = Message(RecordDict(), 1, "train")
    task = Task(message.metadata, {}, None)
    return Chunk(number, (task,), (), cost=cost, seconds=seconds)


def executor(fake: FakeRay, *hosts: str) -> RayExecutor:
    return RayExecutor(AppSpec("app", add_app, {}, 4, {}), [fake.host(name) for name in hosts])


def test_a_chunk_that_was_called_back_is_waited_for_where_it_went(fake: FakeRay) -> None:
    """Ray answers the cancelled call too (TaskCancelledError);
    nobody may take it for the chunk's end (KeyError).
    """
    runs = executor(fake, "a", "b")
    runs.submit([chunk(1, 0.4), chunk(2, 0.3), chunk(3, 0.2)])
    assert fake.sent == [("a", 1), ("b", 2), ("b", 3)]  # b is expected to be done first
    fake.end(1)
    assert [result.chunk.number for result in runs.collect(None)] == [1]
    assert runs.collect(0) == []  # a has nothing to do: chunk 3, behind chunk 2, goes there
    assert fake.sent[3:] == [("a", 3)]
    fake.end(3)
    assert [result.chunk.number for result in runs.collect(None)] == [3]


def test_chunks_go_out_by_expected_seconds_then_by_cost(fake: FakeRay) -> None:
    runs = executor(fake, "a")
    runs.submit(
        [chunk(1, 1.0, cost=9.0), chunk(2, 3.0), chunk(3, 0.0, cost=5.0), chunk(4, 0.0, cost=7.0)]
    )
    for number in (2, 1, 4, 3):
        assert fake.sent[-1] == ("a", number)
        fake.end(number)
        runs.collect(None)


def test_long_chunks_are_not_sent_ahead(fake: FakeRay) -> None:
    runs = executor(fake, "a")
    runs.submit([chunk(1, 60.0), chunk(2, 60.0)])
    assert fake.sent == [("a", 1)]


def test_a_host_that_ray_ends_for_its_memory_loses_nothing(fake: FakeRay) -> None:
    """Ray's memory monitor ends the actor: the call fails with OutOfMemoryError and is repeated."""
    runs = executor(fake, "a", "b")
    runs.submit([chunk(1, 0.0)])
    fake.end(1, OutOfMemoryError("the node ran low on memory"))
    assert runs.collect(None) == []
    assert fake.sent == [("a", 1), ("b", 1)]
    fake.end(1)
    [result] = [r for _ in range(2) for r in runs.collect(None)]
    assert result.events[0] == "host a lost (OutOfMemoryError) with 1 client tasks; they run again"


def test_records_are_kept_by_their_bytes() -> None:
    """Of 400 bytes: the one used longest ago leaves for a third, and all leave for a large one."""

    def record(values: int) -> ArrayRecord:
        return ArrayRecord({"w": Array(np.zeros(values, np.uint8))})  # and 128 bytes of header

    kept = records_up_to(400)
    kept["a"], kept["b"] = record(20), record(20)
    assert kept["a"]["w"].shape == (20,)
    kept["c"] = record(20)
    assert set(kept) == {"a", "c"}
    kept["large"] = record(1000)
    assert list(kept) == ["large"]
