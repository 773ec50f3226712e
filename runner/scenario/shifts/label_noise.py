"""Clients whose training labels are partly wrong, each group at a rate that is known.

Symmetric noise: a wrong label is any of the others; pair noise: it is the next class. Source: Han
et al. 2018, "Co-teaching" (arXiv:1804.06872), section 4. What clients hold out and the test set
keep their labels.
"""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fedsweep.scenario.shift import SeenShift


class LabelNoise(SeenShift):
    """Rates grow evenly from group to group: group 0 has none; one group has the whole rate."""

    needs: ClassVar[Literal["", "images", "classes"]] = "classes"

    noise: Literal["symmetric", "pair"] = Field(
        "symmetric", description="what a wrong label is: any other class, or the next one"
    )
    rate: float = Field(
        0.4, gt=0, le=1, description="share of wrong labels in the last group; group 0 has none"
    )

    def rate_of(self, group: int) -> float:
        """Return the share of a group's training labels that are wrong."""
        return self.rate * (group / (self.groups - 1) if self.groups > 1 else 1.0)

    def mislabel(self, y: np.ndarray, group: int, num_classes: int, seed: int) -> np.ndarray:
        """Return a client's labels (n,), the share of them wrong to the nearest example."""
        rng = np.random.default_rng(seed)
        wrong = rng.permutation(len(y))[: round(self.rate_of(group) * len(y))]
        step = 1 if self.noise == "pair" else rng.integers(1, max(num_classes, 2), len(wrong))
        noisy = y.copy()
        noisy[wrong] = (y[wrong] + step) % num_classes
        return noisy
