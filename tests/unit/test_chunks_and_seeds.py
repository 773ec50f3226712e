"""Chunks and seeds: both depend on what they are for, and on nothing else."""

import random

import numpy as np

from runner.engine.chunks import make_chunks
from runner.errors import RunnerError, unknown
from runner.seeding import derive_seed, seeded_globals


def test_small_rounds_run_client_by_client() -> None:
    assert make_chunks(["a"] * 3, [1, 1, 1]) == [[0], [1], [2]]


def test_large_rounds_make_about_64_chunks_of_equal_cost() -> None:
    chunks = make_chunks(["a"] * 1000, [1.0] * 1000)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(1000))
    assert {len(chunk) for chunk in chunks} <= {10, 15}  # 1000 / 64 = 15.6, so 15 fit the budget
    assert len(chunks) == 67


def test_a_large_client_is_alone_and_small_ones_share() -> None:
    chunks = make_chunks(["a"] * 65, [64.0] + [1.0] * 64)  # budget 2
    assert chunks[0] == [0]
    assert {len(chunk) for chunk in chunks[1:]} == {2}


def test_groups_never_share_a_chunk() -> None:
    chunks = make_chunks(["a", "b", "a", "b"], [1] * 4, chunk_size=4)
    assert chunks == [[0, 2], [1, 3]]


def test_seeds_depend_on_the_whole_path() -> None:
    assert derive_seed(0, "train", 1, 2) == derive_seed(0, "train", 1, np.int64(2))
    seeds = {derive_seed(0), derive_seed(1), derive_seed(0, "a"), derive_seed(0, 1), derive_seed(0, "1")}
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


def test_errors_are_one_line_and_name_the_nearest() -> None:
    assert str(RunnerError("two\n  lines")) == "two lines"
    assert (
        unknown("model", "lent", ["lenet", "cnn"]) == "unknown model 'lent'. Did you mean 'lenet'? Valid: cnn, lenet."
    )
