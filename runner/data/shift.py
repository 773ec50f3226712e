"""Shifts between known groups of clients, so that the true clusters are known and their recovery can be scored.

=====================  =========================================================================
``rotation``           images are turned by an angle per group (IFCA's rotated MNIST)
``inversion``          group 1 sees negatives
``noise``              Gaussian noise that grows from group to group
``morphology``         group 1 sees images eroded, group 2 dilated, by a 3 x 3 square
``label_permutation``  classes are renamed per group (concept shift)
``label_groups``       a group has some of the classes only; :mod:`fedsweep.data.partition` deals out the rows
=====================  =========================================================================

Client i belongs to group i mod groups; after a drift some belong to the next one.
"""

import math
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from fedsweep.config import ShiftConfig
from fedsweep.errors import DataError
from fedsweep.seeding import derive_seed


@dataclass(frozen=True, eq=False)
class Shift:
    """What happens to the data of each group."""

    name: str
    groups: np.ndarray  # int64 (clients,), group of each client
    num_groups: int  # 1 without a shift
    seed: int
    angles: tuple[float, ...]  # degrees counter-clockwise per group; empty without a rotation
    noise: tuple[float, ...]  # standard deviation per group in grey levels; empty without noise
    permutations: (
        np.ndarray
    )  # int64 (groups, classes), the class that each class becomes; empty without one
    class_sets: tuple[tuple[int, ...], ...]  # classes per group; empty where every group has all
    drift_round: int  # from this round on, ``drifted`` holds in place of ``groups``; 0: never
    drifted: np.ndarray  # int64 (clients,)

    def apply(self, x: np.ndarray, y: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 (n, C, H, W) and labels (n,) as that group sees them."""
        return self.view(x, group), self.relabel(y, group)

    def view(self, x: np.ndarray, group: int) -> np.ndarray:
        """Return images uint8 (n, C, H, W) as that group sees them."""
        match self.name:
            case "rotation":
                return rotate(x, self.angles[group])
            case "inversion":
                return 255 - x if group else x
            case "noise":
                return add_noise(
                    x, self.noise[group], derive_seed(self.seed, "shift", "noise", group)
                )
            case "morphology":
                return (x, erode(x), dilate(x))[group] if group else x
        return x

    def relabel(self, y: np.ndarray, group: int) -> np.ndarray:
        """Return labels (n,) as that group sees them."""
        return self.permutations[group][y] if len(self.permutations) else y

    def has(self, y: np.ndarray, group: int) -> np.ndarray:
        """Return which labels (n,) a group has at all, bool (n,)."""
        return np.isin(y, self.class_sets[group]) if self.class_sets else np.ones(len(y), bool)


def make_shift(cfg: ShiftConfig, num_clients: int, num_classes: int, seed: int) -> Shift:
    """Return the shift of a trial; group 0 keeps its data, unless ``angles`` or ``label_groups`` say otherwise.

    Raises
    ------
    DataError
        There are more groups than permutations or shares of the classes.
    """
    num_groups = 1 if cfg.name == "none" else cfg.groups
    groups = np.arange(num_clients) % num_groups
    angles: tuple[float, ...] = ()
    noise: tuple[float, ...] = ()
    permutations = np.empty((0, num_classes), np.int64)
    class_sets: tuple[tuple[int, ...], ...] = ()
    if cfg.name == "rotation":
        angles = cfg.angles or tuple(360 * group / num_groups for group in range(num_groups))
    elif cfg.name == "noise":
        noise = tuple(cfg.noise_std * group / max(1, num_groups - 1) for group in range(num_groups))
    elif cfg.name == "label_permutation":
        permutations = _distinct_permutations(
            num_groups, num_classes, derive_seed(seed, "shift", "permutations")
        )
    elif cfg.name == "label_groups":
        order = np.random.default_rng(derive_seed(seed, "shift", "classes")).permutation(
            num_classes
        )
        class_sets = _class_sets(order, num_groups, cfg.classes_per_group)
    return Shift(
        name=cfg.name,
        groups=groups,
        num_groups=num_groups,
        seed=seed,
        angles=angles,
        noise=noise,
        permutations=permutations,
        class_sets=class_sets,
        drift_round=cfg.drift_round,
        drifted=_drift(groups, num_groups, cfg.drift_fraction, seed) if cfg.drift_round else groups,
    )


def _drift(groups: np.ndarray, num_groups: int, fraction: float, seed: int) -> np.ndarray:
    """Return the groups after the drift: of each group the same share of clients, drawn by chance, moves to the next.

    If all moved, the same clients would still belong together, and no clustering would have to change.
    """
    drifted = groups.copy()
    for group in range(num_groups):
        members = np.flatnonzero(groups == group)
        rng = np.random.default_rng(derive_seed(seed, "shift", "drift", group))
        moving = rng.permutation(members)[: round(fraction * len(members))]
        drifted[moving] = (group + 1) % num_groups
    return drifted


def _class_sets(
    order: np.ndarray, num_groups: int, per_group: int | None
) -> tuple[tuple[int, ...], ...]:
    """Return the classes of each group: equal shares of the order, or so many from evenly spaced places on a ring."""
    num_classes = len(order)
    if num_groups > num_classes or (per_group or 1) > num_classes:
        raise DataError(
            f"shift=label_groups with groups={num_groups}, classes_per_group={per_group}: the data set has "
            f"{num_classes} classes; lower shift.groups or shift.classes_per_group"
        )
    if per_group is None:
        parts = np.array_split(order, num_groups)
    else:
        starts = [group * num_classes // num_groups for group in range(num_groups)]
        parts = [np.take(order, range(start, start + per_group), mode="wrap") for start in starts]
    return tuple(tuple(sorted(part.tolist())) for part in parts)


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


def erode(x: np.ndarray) -> np.ndarray:
    """Return images (n, C, H, W) with each pixel at the minimum of its 3 x 3 neighbourhood, inside the frame."""
    return _neighbourhood(x, np.minimum)


def dilate(x: np.ndarray) -> np.ndarray:
    """Return images (n, C, H, W) with each pixel at the maximum of its 3 x 3 neighbourhood, inside the frame."""
    return _neighbourhood(x, np.maximum)


def _neighbourhood(x: np.ndarray, extreme: np.ufunc) -> np.ndarray:
    """Return the minimum or maximum over 3 x 3 squares: along rows, then along columns. The edge is repeated."""
    for axis in (2, 3):
        padded = np.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode="edge")
        size = x.shape[axis]
        before, here, after = (padded.take(range(start, start + size), axis) for start in range(3))
        x = extreme(extreme(before, here), after)
    return x


def add_noise(x: np.ndarray, std: float, seed: int) -> np.ndarray:
    """Return images uint8 (n, C, H, W) with Gaussian noise of ``std`` grey levels, clipped to 0..255.

    An image's noise follows from its pixels and the seed, so it is the same in any slice, order and process.
    """
    if std == 0:
        return x
    noisy = np.empty_like(x)
    for image, out in zip(x, noisy, strict=True):
        rng = np.random.default_rng([seed, crc32(image.tobytes())])
        out[:] = np.rint(image + std * rng.standard_normal(image.shape, np.float32)).clip(0, 255)
    return noisy
