"""Attackers train on wrong labels: each class is turned into another one.

Biggio, Nelson and Laskov 2012, "Poisoning Attacks against Support Vector Machines"
(arXiv:1206.6389); in federated learning: Tolpegin, Truex, Gursoy and Liu 2020, "Data Poisoning
Attacks Against Federated Learning Systems" (arXiv:2007.08432).
"""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fedsweep.scenario.attack import Attacker, require_classes
from fedsweep.strategies.ranges import EXAMPLES


class LabelFlip(Attacker):
    """Label y becomes C - 1 - y; or, where they are given, source becomes target."""

    needs: ClassVar[Literal["", "images", "classes"]] = "classes"

    source: int | None = Field(
        None, ge=0, le=EXAMPLES, description="class that is relabelled; null: all of them"
    )
    target: int | None = Field(
        None, ge=0, le=EXAMPLES, description="class that the source becomes; null: C - 1 - source"
    )

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: key -> the setting that is why."""
        return super().idle() | ({"target": "attack.source=null"} if self.source is None else {})

    def flipped(self, y: np.ndarray, num_classes: int) -> np.ndarray:
        """Return the labels as attackers have them, (n,).

        Raises
        ------
        DataError
            There is no such class.
        """
        if self.source is None:
            return num_classes - 1 - y
        target = num_classes - 1 - self.source if self.target is None else self.target
        require_classes(self.name, (self.source, target), num_classes)
        return np.where(y == self.source, target, y)

    def poison(
        self, x: np.ndarray, y: np.ndarray, num_classes: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the same images, and other labels."""
        del seed
        return x, self.flipped(y, num_classes)

    def goal(self, x: np.ndarray, y: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the examples whose label is turned, with that label."""
        wanted = self.flipped(y, num_classes)
        return x[wanted != y], wanted[wanted != y]
