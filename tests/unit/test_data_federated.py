"""A data set of twelve images, split and shifted: who gets what, and how it travels."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsweep.config import RunConfig
from fedsweep.data.federated import FederatedData
from fedsweep.data.sources import ImageData

NUMBERS = np.arange(48, dtype=np.uint8).reshape(12, 1, 2, 2)  # image i holds 4i .. 4i + 3
IMAGES = ImageData(
    name="numbers",
    fingerprint="f",
    source="made here",
    class_names=("a", "b", "c"),
    train_x=NUMBERS,
    train_y=np.arange(12) % 3,
    test_x=NUMBERS[:4],
    test_y=np.array([0, 1, 2, 0]),
    mean=(0.5,),
    std=(0.25,),
)


def trial(cache: Path, **settings: Any) -> RunConfig:
    """Four clients with three examples each, one of them held out."""
    defaults = {
        "num_clients": 4,
        "partition": {"eval_fraction": 0.34},
        "data": {"cache": str(cache)},
    }
    return RunConfig.model_validate(defaults | settings)


def test_clients_hold_their_rows(tmp_path: Path) -> None:
    data = FederatedData.build(IMAGES, trial(tmp_path))
    assert data.num_examples().tolist() == [2, 2, 2, 2]
    assert [len(rows) for rows in data.eval_rows] == [1, 1, 1, 1]
    assert sorted(np.concatenate([*data.train_rows, *data.eval_rows]).tolist()) == list(range(12))
    for client in range(4):
        for rows, (x, y) in (
            (data.train_rows[client], data.client(client, "train")),
            (data.eval_rows[client], data.client(client, "eval")),
        ):
            assert x[:, 0, 0, 0].tolist() == [4 * row for row in rows]
            assert y.tolist() == [row % 3 for row in rows]


def test_examples_that_are_no_clients_are_counted(tmp_path: Path) -> None:
    """Two groups have a class each: four images of the third one, held-out ones apart."""
    sets = {"name": "label_groups", "groups": 2, "classes_per_group": 1}
    [told] = FederatedData.build(IMAGES, trial(tmp_path, shift=sets)).told()
    assert told == "4 of 12 training examples are no client's"
    assert FederatedData.build(IMAGES, trial(tmp_path)).told() == ()
    everybody = trial(tmp_path, shift={"name": "rotation", "groups": 2, "replicate": True})
    assert FederatedData.build(IMAGES, everybody).told() == ()


def test_rotated_groups_see_rotated_images(tmp_path: Path) -> None:
    """Client 3 is in group 1, turned by 180 degrees: its images begin with their last number."""
    data = FederatedData.build(IMAGES, trial(tmp_path, shift={"name": "rotation", "groups": 2}))
    assert data.groups.tolist() == [0, 1, 0, 1]
    assert data.client(3, "train")[0][:, 0, 0, 0].tolist() == [
        4 * row + 3 for row in data.train_rows[3]
    ]
    assert data.test(1, 1, 3)[0][:, 0, 0, 0].tolist() == [7, 11]
    assert data.test(0)[0].tolist() == NUMBERS[:4].tolist()
    assert data.test(1)[1].tolist() == [0, 1, 2, 0]


def test_a_permutation_renames_labels_and_their_counts(tmp_path: Path) -> None:
    cfg = trial(tmp_path, shift={"name": "label_permutation", "groups": 2})
    data = FederatedData.build(IMAGES, cfg)
    renamed = data.shift.permutations[1]
    assert data.test(1)[1].tolist() == [renamed[0], renamed[1], renamed[2], renamed[0]]
    assert data.client(1, "eval")[1].tolist() == [renamed[row % 3] for row in data.eval_rows[1]]
    counts = data.summary(cfg).label_counts
    assert counts.shape == (4, 3)
    for client in range(4):
        assert (
            counts[client].tolist()
            == np.bincount(data.client(client, "train")[1], minlength=3).tolist()
        )


def test_the_summary_shows_examples_of_each_group(tmp_path: Path) -> None:
    cfg = trial(
        tmp_path,
        shift={"name": "rotation", "groups": 2},
        partition={"name": "shard", "shards_per_client": 1},
    )
    summary = FederatedData.build(IMAGES, cfg).summary(cfg)
    assert (summary.dataset, summary.partition, summary.shift) == ("numbers", "shard", "rotation")
    assert (summary.num_train, summary.num_test, summary.fingerprint, summary.source) == (
        12,
        4,
        "f",
        "made here",
    )
    assert set(summary.examples) == {0, 1}
    x, y = summary.examples[1]
    assert x.shape == (4, 1, 2, 2)  # all that its two clients train on
    assert (x[:, 0, 0, 0] % 4).tolist() == [3] * 4  # turned
    assert y.tolist() == [(number // 4) % 3 for number in x[:, 0, 0, 0]]


def test_the_seed_fixes_everything(tmp_path: Path) -> None:
    first, again, other = (
        FederatedData.build(IMAGES, trial(tmp_path / str(i), seed=seed))
        for i, seed in enumerate((0, 0, 1))
    )
    rows = [
        np.concatenate([*data.train_rows, *data.eval_rows]).tolist()
        for data in (first, again, other)
    ]
    assert rows[0] == rows[1] != rows[2]


def test_strategies_and_shifts_share_a_partition(tmp_path: Path) -> None:
    plain = FederatedData.build(IMAGES, trial(tmp_path))
    turned = FederatedData.build(
        IMAGES, trial(tmp_path, shift={"name": "rotation", "groups": 2}, rounds=3)
    )
    assert [rows.tolist() for rows in plain.train_rows] == [
        rows.tolist() for rows in turned.train_rows
    ]


@pytest.mark.parametrize("eval_fraction", [0.34, 0.0])
def test_it_pickles_as_a_few_buffers(tmp_path: Path, eval_fraction: float) -> None:
    data = FederatedData.build(IMAGES, trial(tmp_path, partition={"eval_fraction": eval_fraction}))
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(data, protocol=5, buffer_callback=buffers.append)
    back = pickle.loads(body, buffers=buffers)
    # Four of images, two per set of rows, two of the shift, however many clients there are.
    assert len(buffers) <= 10
    for field in ("train_rows", "eval_rows"):
        assert [rows.tolist() for rows in getattr(back, field)] == [
            rows.tolist() for rows in getattr(data, field)
        ]
    assert np.shares_memory(back.images.train_x, NUMBERS)


def test_hosts_import_little() -> None:
    # Flower comes with the settings of methods, which stand beside its classes
    heavy = {"torch", "ray", "mlflow", "datasets", "sklearn"}
    program = f"import sys, fedsweep.data.federated; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
