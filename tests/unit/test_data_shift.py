"""Shifts on images and labels small enough to work out by hand."""

import numpy as np
import pytest

from fedsweep.data.shift import ClientGroups
from fedsweep.errors import ConfigError, DataError
from fedsweep.scenario.shifts import shift_of
from fedsweep.scenario.shifts.rotation import rotate
from fedsweep.sweeps.compose import compose

SQUARE = np.array([[[[1, 2], [3, 4]]]], np.uint8)


@pytest.mark.parametrize(
    ("angle", "expected"),
    [
        (0, [[1, 2], [3, 4]]),
        (90, [[2, 4], [1, 3]]),  # counter-clockwise
        (180, [[4, 3], [2, 1]]),
        (-90, [[3, 1], [4, 2]]),
        (450, [[2, 4], [1, 3]]),
    ],
)
def test_quarter_turns_are_exact(angle: float, expected: list[list[int]]) -> None:
    assert rotate(SQUARE, angle)[0, 0].tolist() == expected


def test_other_angles_are_bilinear() -> None:
    """One pixel right of the centre moves up by 45 degrees.

    The corner comes from row 1, column 1 + sqrt 2: .5858 of the pixel. Its two neighbours come from
    a place that holds .2929 x .7071 of it.
    """
    image = np.zeros((1, 1, 3, 3), np.uint8)
    image[0, 0, 1, 2] = 100
    assert rotate(image, 45)[0, 0].tolist() == [[0, 21, 59], [0, 0, 21], [0, 0, 0]]


def test_the_centre_of_rotation_is_the_same_for_all_angles() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 3, 6, 6), np.uint8)
    nearly, exactly = rotate(image, 90.0001).astype(int), rotate(image, 90).astype(int)
    assert np.abs(nearly - exactly).max() <= 1


def test_oblong_images_keep_their_frame() -> None:
    image = np.arange(6, dtype=np.uint8).reshape(1, 1, 2, 3)
    assert rotate(image, 180)[0, 0].tolist() == [[5, 4, 3], [2, 1, 0]]
    # Each pixel comes from between four others. Of those in the outer columns, two lie outside and
    # count as black.
    assert rotate(image, 90)[0, 0].tolist() == [[1, 3, 2], [0, 2, 2]]


def test_groups_are_dealt_in_turn() -> None:
    shift = ClientGroups.build(shift_of("rotation", groups=3), num_clients=7, num_classes=2, seed=0)
    assert shift.groups.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert shift.num_groups == 3
    for group, angle in enumerate((0, 120, 240)):
        assert np.array_equal(shift.apply(SQUARE, np.array([1]), group)[0], rotate(SQUARE, angle))


def test_no_shift_is_one_group_and_no_copy() -> None:
    shift = ClientGroups.build(shift_of(), num_clients=3, num_classes=2, seed=0)
    y = np.array([1])
    x_seen, y_seen = shift.apply(SQUARE, y, 0)
    assert shift.groups.tolist() == [0, 0, 0]
    assert x_seen is SQUARE
    assert y_seen is y


def test_rotation_turns_images_and_leaves_labels() -> None:
    shift = ClientGroups.build(shift_of("rotation", groups=2, angles=(90, 180)), 2, 2, seed=0)
    x, y = shift.apply(SQUARE, np.array([1]), 1)
    assert x[0, 0].tolist() == [[4, 3], [2, 1]]
    assert y.tolist() == [1]


def test_label_permutations_differ_and_spare_group_0() -> None:
    """All six permutations of three classes are used by six groups."""
    shift = ClientGroups.build(shift_of("label_permutation", groups=6), 6, 3, seed=0)
    seen = [tuple(shift.relabel(np.arange(3), group).tolist()) for group in range(6)]
    assert seen[0] == (0, 1, 2)
    assert len(set(seen)) == 6
    x, y = shift.apply(SQUARE, np.array([2, 0]), 3)
    assert x is SQUARE
    assert y.tolist() == [seen[3][2], seen[3][0]]


def test_the_seed_draws_the_permutations() -> None:
    cfg = shift_of("label_permutation", groups=2)
    drawn = [ClientGroups.build(cfg, 2, 10, seed).permutations.tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_more_groups_than_permutations_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"shift\.groups=3 is more than the 2 permutations of 2 classes"
    ):
        ClientGroups.build(shift_of("label_permutation", groups=3), 3, 2, seed=0)


def test_inversion_shows_negatives_to_group_1() -> None:
    shift = ClientGroups.build(shift_of("inversion", groups=2), 2, 2, seed=0)
    assert shift.view(SQUARE, 0) is SQUARE
    assert shift.view(SQUARE, 1)[0, 0].tolist() == [[254, 253], [252, 251]]


def test_erosion_and_dilation_by_hand() -> None:
    image = np.array([[[[0, 0, 0, 0], [0, 9, 9, 9], [0, 9, 9, 9], [0, 9, 9, 5]]]], np.uint8)
    shift = ClientGroups.build(shift_of("morphology", groups=3), 3, 2, seed=0)
    assert shift.view(image, 0) is image
    assert shift.view(image, 1)[0, 0].tolist() == [
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 5, 5],
        [0, 0, 5, 5],
    ]
    assert shift.view(image, 2)[0, 0].tolist() == [[9, 9, 9, 9]] * 4
    assert shift.view(255 - image, 1).tolist() == (255 - shift.view(image, 2)).tolist()


def test_noise_grows_by_group_and_belongs_to_the_image() -> None:
    """Three groups of 0, 30 and 60 grey levels;
    the same image is noisy in the same way in any slice.
    """
    shift = ClientGroups.build(shift_of("noise", groups=3, noise_std=60), 3, 2, seed=0)
    images = np.full((4, 1, 40, 40), 128, np.uint8)
    images[:, 0, 0, 0] = [1, 2, 3, 4]
    assert shift.view(images, 0) is images
    for group, std in ((1, 30), (2, 60)):
        noisy = shift.view(images, group)
        error = noisy[:, 0, 1:].astype(float) - 128
        assert abs(error.mean()) < 2
        assert error.std() == pytest.approx(std, rel=0.1)  # clipping takes a little off
        assert np.array_equal(noisy[2:3], shift.view(images[2:3], group))
        assert not np.array_equal(noisy[0, 0, 1:], noisy[1, 0, 1:])


def test_label_groups_deal_out_the_classes() -> None:
    """Ten classes: three groups get 4, 3 and 3 of them;
    with six classes each, places 0, 3 and 6 on a ring of ten.
    """
    shift = ClientGroups.build(shift_of("label_groups", groups=3), 6, 10, seed=0)
    assert [len(classes) for classes in shift.class_sets] == [4, 3, 3]
    assert sorted(sum(shift.class_sets, ())) == list(range(10))
    wide = ClientGroups.build(
        shift_of("label_groups", groups=3, classes_per_group=6), 6, 10, seed=0
    )
    a, b, c = (set(classes) for classes in wide.class_sets)
    assert [len(a & b), len(b & c), len(a & c)] == [3, 3, 2]
    assert wide.has(np.arange(10), 0).nonzero()[0].tolist() == sorted(a)
    with pytest.raises(DataError, match="the data set has 2 classes"):
        ClientGroups.build(shift_of("label_groups", groups=3), 6, 2, seed=0)


def test_a_drift_moves_the_same_share_of_each_group_to_the_next() -> None:
    shift = ClientGroups.build(
        shift_of("rotation", groups=3, drift_round=5, drift_fraction=0.5), 12, 2, seed=0
    )
    moved = shift.drifted != shift.groups
    assert [int(moved[shift.groups == group].sum()) for group in range(3)] == [2, 2, 2]
    assert (shift.drifted[moved] == (shift.groups[moved] + 1) % 3).all()
    still = ClientGroups.build(shift_of("rotation", groups=3), 12, 2, seed=0)
    assert still.drifted is still.groups


@pytest.mark.parametrize(("name", "most"), [("inversion", 2), ("morphology", 3)])
def test_more_groups_than_kinds_are_refused(name: str, most: int) -> None:
    assert shift_of(name).num_groups == most
    with pytest.raises(ConfigError, match=f"shift.groups=9: it has to be .* from 1 to {most}"):
        compose([f"shift={name}", "shift.groups=9", "num_clients=20"])
