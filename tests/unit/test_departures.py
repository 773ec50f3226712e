"""What the pages say of the authors' code rests on: the benchmark's copies of its rules."""

import numpy as np
import pytest

from benchmarks.departures import ANGLES, bases, ours, theirs


def test_stocfls_code_joins_a_chain_where_ours_looks_at_the_mean() -> None:
    """Directions at 0, 39 and 80 degrees: cosines .777, .755; the first two's mean has .492."""
    angles = np.radians([0.0, 39.0, 80.0])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert theirs(rows, 0.7) == [0, 0, 0]
    assert ours(rows, 0.7) == [0, 0, 2]
    assert len(set(theirs(rows, 0.8))) == len(set(ours(rows, 0.8))) == 3


def test_stocfls_code_merges_the_means_of_a_later_round() -> None:
    """Directions at 0, 40 and 84: the first two merge (.766), their mean has .438."""
    angles = np.radians([0.0, 40.0, 84.0])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert theirs(rows, 0.75) == [0, 0, 1]


def test_pacfls_angles_by_hand() -> None:
    """One plane in two bases, turned by 30 degrees: one subspace, but 30 element by element."""
    e = np.eye(3)[:, :2]
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    turn = np.array([[cos, -sin], [sin, cos]])
    assert ANGLES["elementwise"](e, e @ turn) == pytest.approx(30)
    assert ANGLES["mean"](e, e @ turn) == pytest.approx(0, abs=0.1)
    assert ANGLES["smallest"](e, e @ turn) == pytest.approx(0, abs=0.1)


def test_pacfls_bases_are_three_vectors_a_label() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (12, 1, 4, 4)).astype(np.uint8)
    labels = np.array([0, 1] * 6)
    found = bases(images, labels)
    assert found.shape == (16, 6)
    for part in (found[:, :3], found[:, 3:]):
        assert part.T @ part == pytest.approx(np.eye(3), abs=1e-9)
