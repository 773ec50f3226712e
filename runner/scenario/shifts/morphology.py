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
    """Return images (n, C, H, W) with each pixel at the least of its 3 x 3 square in the frame."""
    from scipy.ndimage import grey_erosion

    eroded: np.ndarray = grey_erosion(x, size=(1, 1, 3, 3), mode="nearest")
    return eroded


def dilate(x: np.ndarray) -> np.ndarray:
    """Return images (n, C, H, W) with each pixel at the most of its 3 x 3 square in the frame."""
    from scipy.ndimage import grey_dilation

    dilated: np.ndarray = grey_dilation(x, size=(1, 1, 3, 3), mode="nearest")
    return dilated
