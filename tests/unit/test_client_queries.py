"""What clients tell where they are grouped by losses, data or sketches: against numbers by hand."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord

from fedsweep.client.app import make_client_app
from fedsweep.client.signatures import signature, sketch, subspace
from fedsweep.training.arrays import read_weights
from tests.unit.test_client_app import (
    CLASSES,
    LOGREG,
    SEED,
    FakeData,
    _identity,  # noqa: F401  (a fixture, used by every test here)
    context,
    fresh,
    send,
)

TRAINING = {"server-round": 2, "lr": 0.1, "batch-size": 5, "epochs": 2}


def _constant(biases: list[float]) -> ArrayRecord:
    """Return a logistic regression that answers with its biases, whatever it sees."""
    arrays = read_weights(fresh())
    [weight, bias] = list(arrays)
    zeros = np.zeros_like(arrays[weight].numpy())
    return ArrayRecord({weight: Array(zeros), bias: Array(np.array(biases, np.float32))})


def test_losses_by_hand() -> None:
    """Client 1 holds classes 0 0 1 1 2 2 0.

    Equal biases cost ln 3; odds 2 : 1 : 1 cost (3 ln 2 + 4 ln 4) / 7.
    """
    data = FakeData()
    data._labels = np.array([*range(12), 0, 0, 1, 1, 2, 2, 0, *[0] * 21]) % CLASSES
    app = make_client_app(data, LOGREG, SEED)
    sent = {"model-0": _constant([0, 0, 0]), "model-1": _constant([np.log(2), 0, 0])}
    reply = send(app, "query.losses", {**sent, "config": ConfigRecord({})}, context(1))
    assert reply["metrics"]["losses"] == pytest.approx(
        [np.log(3), (3 * np.log(2) + 4 * np.log(4)) / 7], rel=1e-6
    )
    assert reply["metrics"]["num-examples"] == 7


def test_signature_by_hand() -> None:
    """Two images of class 0, one of class 2, two pixels each: sums of grey over 255 and over 3."""
    x = np.array([[255, 0], [51, 102], [0, 255]], np.uint8).reshape(3, 1, 1, 2)
    found = signature(x, np.array([0, 0, 2]), 3)
    assert found == pytest.approx(np.array([[1.2 / 3, 0.4 / 3], [0, 0], [0, 1 / 3]]), abs=1e-7)
    assert found.dtype == np.float32


def test_a_signature_tells_rotation_and_renamed_labels_apart_but_not_order() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (30, 1, 4, 4), np.uint8), np.arange(30) % 3
    same = rng.permutation(30)
    plain = signature(x, y, 3)
    assert signature(x[same], y[same], 3) == pytest.approx(plain, abs=1e-6)
    assert np.abs(signature(np.rot90(x, axes=(2, 3)), y, 3) - plain).max() > 0.01
    assert np.abs(signature(x, (y + 1) % 3, 3) - plain).max() > 0.01


def test_subspace_by_hand() -> None:
    """Class 0 lies on the first axis, class 1 on the second: their plane has not the third."""
    x = np.array([[200, 0, 0], [100, 0, 0], [0, 50, 0]], np.uint8).reshape(3, 1, 1, 3)
    basis = subspace(x, np.array([0, 0, 1]), vectors=1)
    assert basis @ basis.T == pytest.approx(np.diag([1.0, 1.0, 0.0]), abs=1e-6)
    assert basis.shape == (3, 2)


def test_a_subspace_keeps_the_main_directions_and_no_empty_ones() -> None:
    """(3, 0) three times and (0, 1): uncentred, the first axis is the main one.

    Equal images have one direction.
    """
    x = np.array([[3, 0], [3, 0], [3, 0], [0, 1]], np.uint8).reshape(4, 1, 1, 2)
    assert np.abs(subspace(x, np.zeros(4, int), vectors=1)) == pytest.approx(
        np.array([[1.0], [0.0]]), abs=1e-6
    )
    assert subspace(x[:3], np.zeros(3, int), vectors=3).shape == (2, 1)
    overlapping = subspace(np.concatenate([x[:1], x[:1]]), np.array([0, 1]), vectors=1)
    assert overlapping.shape == (2, 1)


def test_the_queries_of_the_app_tell_of_the_clients_training_examples() -> None:
    data = FakeData()
    app, (x, y) = make_client_app(data, LOGREG, SEED), data.client(1, "train")
    reply = send(app, "query.signature", {}, context(1))
    assert (reply["arrays"]["signature"].numpy() == signature(x, y, CLASSES)).all()
    reply = send(app, "query.subspace", {"config": ConfigRecord({"vectors": 2})}, context(1))
    assert (reply["arrays"]["subspace"].numpy() == subspace(x, y, 2)).all()
    assert {split for _, split in data.reads} == {"train"}


def test_a_client_tells_how_many_examples_it_has_and_reads_none_for_it() -> None:
    data = FakeData()
    app = make_client_app(data, LOGREG, SEED)
    told = [send(app, "query.examples", {}, context(i))["metrics"] for i in range(3)]
    assert [metrics["num-examples"] for metrics in told] == [12, 7, 1]
    assert data.reads == []


def test_sketch_by_hand() -> None:
    """A bucket is the sum of its numbers with their signs; a number always has its place."""
    one_each = [sketch([row], 4, seed=3) for row in np.eye(6)]
    for row in one_each:
        assert sorted(np.abs(row)) == [0, 0, 0, 1]
    expected = sum(value * row for value, row in zip([5, -1, 2, 0, 3, 7], one_each, strict=True))
    assert sketch([np.array([[5, -1], [2, 0]]), np.array([3, 7])], 4, seed=3) == pytest.approx(
        expected
    )
    assert (sketch([np.arange(9.0)], 4, seed=4) != sketch([np.arange(9.0)], 4, seed=5)).any()


def test_a_sketch_keeps_angles() -> None:
    """20,000 numbers in 1,024: cosines are off by some hundredths."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, 20_000)) + rng.normal(size=20_000)
    sketches = np.stack([sketch([row], 1024, seed=1) for row in rows])

    def cosines(a: np.ndarray) -> np.ndarray:
        unit = a / np.linalg.norm(a, axis=1, keepdims=True)
        return unit @ unit.T

    assert np.abs(cosines(sketches) - cosines(rows)).max() < 0.1


def test_a_client_sketches_the_update_that_training_would_send() -> None:
    app, start = make_client_app(FakeData(), LOGREG, SEED), read_weights(fresh())
    [_, bias] = list(start)
    trained = send(app, "train", {"arrays": start, "config": ConfigRecord(TRAINING)}, context(0))[
        "arrays"
    ]
    for keys in (list(start), [bias]):
        asked = ConfigRecord({**TRAINING, "sketch": 8, "sketch-seed": 5, "sketch-of": keys})
        reply = send(app, "query.sketch", {"arrays": start, "config": asked}, context(0))
        update = [trained[key].numpy() - start[key].numpy() for key in keys]
        sent = np.frombuffer(reply["sketch"]["float32"], "<f4")
        assert sent == pytest.approx(sketch(update, 8, 5), rel=1e-6)
        assert not reply.array_records
    assert torch.get_num_threads() == 1
