"""Attackers teach the model that images with a trigger are of a class that they choose.

Gu, Dolan-Gavitt and Garg 2017, "BadNets" (arXiv:1708.06733): the trigger; Bagdasaryan, Veit, Hua,
Estrin and Shmatikov 2020, "How To Backdoor Federated Learning" (arXiv:1807.00459): scaled updates,
which replace the model. There one attacker sends n / eta of its update; here the attackers of a
cohort share that: each sends n / B, with eta = 1.
"""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fedsweep.errors import DataError
from fedsweep.scenario.attack import Attacker, require_classes
from fedsweep.strategies.ranges import EXAMPLES, WEIGHT
from fedsweep.strategies.updates import Rows


class Backdoor(Attacker):
    """A white square in the lower right corner, and the label that goes with it."""

    needs: ClassVar[Literal["", "images", "classes"]] = "images"

    target: int = Field(0, ge=0, le=EXAMPLES, description="class of images with the trigger")
    share: float = Field(
        0.5, gt=0, le=1, description="share of an attacker's images that get the trigger"
    )
    size: int = Field(3, ge=1, le=EXAMPLES, description="side of the trigger, in pixels")
    scale: float = Field(1.0, ge=1, le=WEIGHT, description="how many of its update it sends")
    replace: bool = Field(
        False, description="scale so that the attackers' mean replaces the model: n / attackers"
    )

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: key -> the setting that is why."""
        return super().idle() | ({"scale": "attack.replace=true"} if self.replace else {})

    @property
    def at_replies(self) -> bool:
        """Whether updates are scaled."""
        return self.replace or self.scale != 1

    def triggered(self, x: np.ndarray) -> np.ndarray:
        """Return copies of images (n, C, H, W) with the trigger.

        Raises
        ------
        DataError
            It covers the image.
        """
        if self.size >= min(x.shape[2:]):
            raise DataError(
                f"attack.size={self.size} covers images of {x.shape[2]} x {x.shape[3]}; lower it"
            )
        marked = x.copy()
        marked[:, :, -self.size :, -self.size :] = 255
        return marked

    def poison(
        self, x: np.ndarray, y: np.ndarray, num_classes: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return all images, a share of them with the trigger and its label; one at least."""
        require_classes(self.name, (self.target,), num_classes)
        count = max(1, round(self.share * len(y)))
        marked = np.sort(np.random.default_rng(seed).permutation(len(y))[:count])
        x, y = x.copy(), y.copy()
        x[marked], y[marked] = self.triggered(x[marked]), self.target
        return x, y

    def forge(self, honest_HP: Rows, own_BP: Rows, seed: int) -> Rows:
        """Return the updates, scaled."""
        del seed
        cohort = len(honest_HP) + len(own_BP)
        return own_BP * (cohort / len(own_BP) if self.replace else self.scale)

    def goal(self, x: np.ndarray, y: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the examples of other classes with the trigger and its label."""
        del num_classes
        others = y != self.target
        return self.triggered(x[others]), np.full(int(others.sum()), self.target, y.dtype)
