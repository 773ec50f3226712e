"""Chunks and seeds: both depend on what they are for, and on nothing else."""

import random
import threading
import time

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedsweep.engine.chunks import make_chunks
from fedsweep.engine.costs import LearnedSeconds
from fedsweep.engine.grid import inline_grid
from fedsweep.engine.host import AppSpec
from fedsweep.engine.wire import Chunk
from fedsweep.errors import RunnerError, unknown
from fedsweep.records import TaskRecord
from fedsweep.seeding import derive_seed, seeded_globals
from tests.apps import add_app, model


def test_small_rounds_run_client_by_client() -> None:
    assert make_chunks(["a"] * 3, [1, 1, 1]) == [[0], [1], [2]]


def test_large_rounds_make_about_64_chunks_of_equal_cost() -> None:
    chunks = make_chunks(["a"] * 1000, [1.0] * 1000)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(1000))
    assert {len(chunk) for chunk in chunks} == {15, 16}  # 1000 / 64 = 15.6
    assert len(chunks) == 64


def test_a_large_client_is_alone_and_small_ones_share() -> None:
    chunks = make_chunks(["a"] * 65, [64.0] + [1.0] * 64)  # budget 2
    assert chunks[0] == [0]
    assert {len(chunk) for chunk in chunks[1:]} == {2}


def test_chunks_of_equal_tasks_leave_no_small_rest() -> None:
    """100 tasks, 8 together, make 12 chunks of 8.33: two hosts get 50 each, not 52 and 48."""
    chunks = make_chunks(["a"] * 100, [1.0] * 100, together=8)
    assert sorted(len(chunk) for chunk in chunks) == [8] * 8 + [9] * 4
    assert [len(chunk) for chunk in make_chunks(["a"] * 20, [1.0] * 20, together=8)] == [10, 10]


def test_chunks_of_small_tasks_get_smaller_towards_the_end() -> None:
    """35 in six chunks is 5.8 each. 12 is one of its own;
    then 6 of 23 left, 5 of 17 (a third is 5.7), then 4 each.
    """
    chunks = make_chunks(["a"] * 24, [12.0] + [1.0] * 23, together=4)
    assert [len(chunk) for chunk in chunks] == [1, 6, 5, 4, 4, 4]
    assert [i for chunk in chunks for i in chunk] == list(range(24))


def test_groups_never_share_a_chunk() -> None:
    chunks = make_chunks(["a", "b", "a", "b"], [1] * 4, chunk_size=4)
    assert chunks == [[0, 2], [1, 3]]


def task(node_id: int, wall_s: float, error: str | None = None) -> TaskRecord:
    return TaskRecord(node_id, "train", "host", wall_s, 0, 0, {}, {}, error)


def test_expected_seconds_are_learned() -> None:
    """Node 1 takes 2 s, then 4 s; node n costs 10 n.

    A new one takes 3 s per 10 of cost; a failed task says nothing.
    """
    learned = LearnedSeconds(lambda node_id, message_type: 10.0 * node_id)
    assert learned.expect(1, "train") == 0.0
    learned.learn([task(1, 2.0)])
    learned.learn([task(1, 4.0), task(3, 100.0, error="Traceback")])
    assert learned.expect(1, "train") == 3.0  # (2 + 4) / 2
    assert learned.expect(5, "train") == pytest.approx(15.0)
    assert learned.expect(5, "evaluate") == 0.0


def test_measured_seconds_change_the_order_of_chunks_and_not_the_chunks() -> None:
    """Client 1 of four is the slow one, though all cost the same."""
    grid = inline_grid(AppSpec("slow", add_app, {"slow": (1,)}, 4, {}))
    submitted: list[list[Chunk]] = []
    submit = grid._executor.submit
    grid._executor.submit = lambda chunks: submitted.append(list(chunks)) or submit(submitted[-1])  # type: ignore
    for _ in range(2):
        content = RecordDict({"arrays": model(), "config": ConfigRecord()})
        grid.send_and_receive([Message(content, node, "train") for node in range(1, 5)])
    first, second = (
        [[t.metadata.dst_node_id for t in c.tasks] for c in chunks] for chunks in submitted
    )
    assert first == second == [[1], [2], [3], [4]]
    assert [chunk.seconds for chunk in submitted[0]] == [0.0] * 4
    assert max(submitted[1], key=lambda chunk: chunk.seconds).tasks[0].metadata.dst_node_id == 2


def test_seeds_depend_on_the_whole_path() -> None:
    assert derive_seed(0, "train", 1, 2) == derive_seed(0, "train", 1, np.int64(2))
    seeds = {
        derive_seed(0),
        derive_seed(1),
        derive_seed(0, "a"),
        derive_seed(0, 1),
        derive_seed(0, "1"),
    }
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "train", 1, 2) == 7003730994133233933


def test_seeded_globals_puts_the_generators_back() -> None:
    random.seed(5)
    expected = random.random()
    random.seed(5)
    with seeded_globals(1):
        first = random.random(), float(np.random.rand())
    assert random.random() == expected
    with seeded_globals(1):
        assert (random.random(), float(np.random.rand())) == first


def test_numpys_generator_is_put_back_from_within_another_too() -> None:
    np.random.seed(5)
    expected = np.random.rand(4).tolist()
    np.random.seed(5)
    drawn = [np.random.rand()]
    with seeded_globals(1):
        first = np.random.rand(3).tolist()
    drawn.append(np.random.rand())
    with seeded_globals(1):
        again = [np.random.rand()]
        with seeded_globals(1):
            assert np.random.rand(3).tolist() == first
        again += np.random.rand(2).tolist()
    assert again == first
    assert [*drawn, *np.random.rand(2)] == expected
    with seeded_globals(1):
        np.random.normal()  # its second number is not the next one's first
    with seeded_globals(1):
        seeded = np.random.normal()
    assert seeded == np.random.RandomState(1).normal()


def test_seeded_globals_lets_one_thread_in_at_a_time() -> None:
    """Trials in threads of a process drew from each other's generators; Flower's sampling broke."""
    with seeded_globals(1):
        expected = [random.random() for _ in range(20)]
    drawn: list[list[float]] = []

    def draw() -> None:
        with seeded_globals(1):
            values = []
            for _ in range(20):
                values.append(random.random())
                time.sleep(0.001)
            drawn.append(values)

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn == [expected] * 4


def test_errors_are_one_line_and_name_the_nearest() -> None:
    assert str(RunnerError("two\n  lines")) == "two lines"
    assert (
        unknown("model", "lent", ["lenet", "cnn"])
        == "unknown model 'lent'. Did you mean 'lenet'? Valid: cnn, lenet."
    )
