"""Images are turned by an angle per group.

IFCA's rotated MNIST: Ghosh et al. 2020, "An Efficient Framework for Clustered Federated Learning",
NeurIPS.
"""

import math
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from fedsweep.scenario.shift import SeenShift


class Rotation(SeenShift):
    """Angles in degrees, counter-clockwise."""

    angles: tuple[Annotated[float, Field(ge=-360, le=360)], ...] | None = Field(
        None,
        strict=False,  # a list makes a tuple; its numbers are as strict as others
        description="degrees per group, counter-clockwise; null spreads 360 degrees evenly",
    )

    @model_validator(mode="after")
    def _one_angle_per_group(self) -> Self:
        if self.angles is not None and len(self.angles) != self.groups:
            raise ValueError(
                f"angles has {len(self.angles)} values for {self.groups} groups; give one angle "
                "per group"
            )
        return self

    def view(self, x: np.ndarray, group: int, seed: int) -> np.ndarray:
        """Return images uint8 (n, C, H, W) as that group sees them."""
        del seed
        return rotate(x, self.angles[group] if self.angles else 360 * group / self.groups)


def rotate(x: np.ndarray, angle: float) -> np.ndarray:
    """Rotate images (n, C, H, W) counter-clockwise about their centre, in degrees.

    Multiples of 90 degrees move pixels and change none of them. Other angles, and quarter turns of
    images that are not square, keep the frame, interpolate bilinearly and fill with black.
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
