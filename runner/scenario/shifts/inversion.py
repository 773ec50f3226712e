"""Group 1 sees negatives."""

import numpy as np
from pydantic import Field

from fedsweep.scenario.shift import SeenShift


class Inversion(SeenShift):
    """Images as they are, and their negatives."""

    groups: int = Field(2, ge=1, le=2, description="number of groups")

    def view(self, x: np.ndarray, group: int, seed: int) -> np.ndarray:
        """Return images uint8 (n, C, H, W) as that group sees them."""
        del seed
        return 255 - x if group else x
