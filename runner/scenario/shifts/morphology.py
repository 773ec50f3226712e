"""Group 1 sees images eroded, group 2 dilated, by a 3 x 3 square."""

import numpy as np
from pydantic import Field

from fedsweep.scenario.shift import SeenShift


class Morphology(SeenShift):
    """Images as they are, eroded, and dilated."""

    groups: int = Field(3, ge=1, le=3, description="number of groups")

    def view(self, x: np.ndarray, group: int, seed: int) -> np.ndarray:
        """Return images uint8 (n, C, H, W) as that group sees them."""
        del seed
        return (x, erode(x), dilate(x))[group] if group else x


def erode(x: np.ndarray) -> np.ndarray:
    """Return images (n, C, H, W), each pixel the least of its 3 x 3 square inside the frame."""
    return _neighbourhood(x, np.minimum)


def dilate(x: np.ndarray) -> np.ndarray:
    """Return images (n, C, H, W), each pixel the largest of its 3 x 3 square inside the frame."""
    return _neighbourhood(x, np.maximum)


def _neighbourhood(x: np.ndarray, extreme: np.ufunc) -> np.ndarray:
    """Return the least or largest over 3 x 3 squares: along rows, then columns; edges repeated."""
    for axis in (2, 3):
        padded = np.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode="edge")
        size = x.shape[axis]
        before, here, after = (padded.take(range(start, start + size), axis) for start in range(3))
        x = extreme(extreme(before, here), after)
    return x
