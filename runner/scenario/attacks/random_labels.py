"""Attackers train on labels that are drawn evenly: their data say nothing."""

from typing import ClassVar, Literal

import numpy as np

from fedsweep.scenario.attack import Attacker


class RandomLabels(Attacker):
    """Each label is drawn once, and stays what it is in all rounds."""

    needs: ClassVar[Literal["", "images", "classes"]] = "classes"

    def poison(
        self, x: np.ndarray, y: np.ndarray, num_classes: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the same images, and other labels."""
        return x, np.random.default_rng(seed).integers(0, num_classes, len(y))
