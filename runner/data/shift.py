"""Shifts between known groups of clients, so that the true clusters are known and their recovery can be scored.

``rotation`` turns the images of a group by an angle (IFCA's rotated MNIST), ``label_permutation`` renames its classes
(concept shift). Client i belongs to group i mod groups.
"""

import math
from dataclasses import dataclass

import numpy as np

from runner.config import ShiftConfig
from runner.errors import DataError
from runner.seeding import derive_seed


@dataclass(frozen=True, eq=False)
class Shift:
    """What happens to the data of each group."""

    name: str
    groups: np.ndarray  # int64 (clients,), group of each client
    angles: tuple[float, ...]  # degrees counter-clockwise per group; empty without a rotation
    permutations: np.ndarray  # int64 (groups, classes), the class that each class becomes; empty without one

    @property
    def num_groups(self) -> int:
        """Number of groups; 1 without a shift."""
        return max(1, len(self.angles), len(self.permutations))

    def apply(self, x: np.ndarray, y: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 (n, C, H, W) and labels (n,) as that group sees them."""
        return (rotate(x, self.angles[group]) if self.angles else x), self.relabel(y, group)

    def relabel(self, y: np.ndarray, group: int) -> np.ndarray:
        """Return labels (n,) as that group sees them."""
        return self.permutations[group][y] if len(self.permutations) else y


def make_shift(cfg: ShiftConfig, num_clients: int, num_classes: int, seed: int) -> Shift:
    """Return the shift of a trial; group 0 keeps its data, unless ``angles`` says otherwise.

    Raises
    ------
    DataError
        There are more groups than permutations of the classes.
    """
    num_groups = 1 if cfg.name == "none" else cfg.groups
    angles: tuple[float, ...] = ()
    permutations = np.empty((0, num_classes), np.int64)
    if cfg.name == "rotation":
        angles = cfg.angles or tuple(360 * group / num_groups for group in range(num_groups))
    elif cfg.name == "label_permutation":
        permutations = _distinct_permutations(num_groups, num_classes, derive_seed(seed, "shift", "permutations"))
    return Shift(cfg.name, np.arange(num_clients) % num_groups, angles, permutations)


def _distinct_permutations(num_groups: int, num_classes: int, seed: int) -> np.ndarray:
    """Return the identity and random permutations, all different: equal groups could not be told apart."""
    if num_groups > math.factorial(num_classes):
        raise DataError(
            f"shift.groups={num_groups} is more than the {math.factorial(num_classes)} permutations of {num_classes} "
            "classes; lower shift.groups"
        )
    rng = np.random.default_rng(seed)
    drawn = dict.fromkeys([tuple(range(num_classes))])
    while len(drawn) < num_groups:
        drawn[tuple(rng.permutation(num_classes).tolist())] = None
    return np.array(list(drawn), np.int64)


def rotate(x: np.ndarray, angle: float) -> np.ndarray:
    """Rotate images (n, C, H, W) counter-clockwise about their centre, in degrees.

    Multiples of 90 degrees move pixels and change none of them. Other angles, and quarter turns of images that are not
    square, keep the frame, interpolate bilinearly and fill with black.
    """
    angle %= 360
    height, width = x.shape[2:]
    if angle % (90 if height == width else 180) == 0:
        return np.rot90(x, int(angle // 90), axes=(2, 3))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    down, right = np.mgrid[:height, :width].astype(np.float32)
    down -= (height - 1) / 2
    right -= (width - 1) / 2
    # Where each pixel comes from: the inverse rotation, in an image whose rows grow downwards.
    row = (height - 1) / 2 + cos * down + sin * right
    column = (width - 1) / 2 - sin * down + cos * right
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    turned = np.zeros(x.shape, np.float32)
    for i, by_row in ((top, top + 1 - row), (top + 1, row - top)):
        for j, by_column in ((left, left + 1 - column), (left + 1, column - left)):
            inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
            weight = np.where(inside, by_row * by_column, 0).astype(np.float32)
            turned += weight * x[:, :, i.clip(0, height - 1), j.clip(0, width - 1)]
    return np.rint(turned).astype(np.uint8)
