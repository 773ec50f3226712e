"""Classes are renamed per group: concept shift."""

import math
from typing import ClassVar, Literal

import numpy as np

from fedsweep.errors import DataError
from fedsweep.scenario.shift import SeenShift
from fedsweep.seeding import derive_seed


class LabelPermutation(SeenShift):
    """The identity and random permutations, all different: equal groups could not be told apart."""

    needs: ClassVar[Literal["", "images", "classes"]] = "classes"

    def permutations(self, num_classes: int, seed: int) -> np.ndarray:
        """Return the class that each class becomes, int64 (groups, classes).

        Raises
        ------
        DataError
            There are more groups than permutations.
        """
        if self.groups > math.factorial(num_classes):
            raise DataError(
                f"shift.groups={self.groups} is more than the {math.factorial(num_classes)} "
                f"permutations of {num_classes} classes; lower shift.groups"
            )
        rng = np.random.default_rng(derive_seed(seed, "shift", "permutations"))
        drawn = dict.fromkeys([tuple(range(num_classes))])
        while len(drawn) < self.groups:
            drawn[tuple(rng.permutation(num_classes).tolist())] = None
        return np.array(list(drawn), np.int64)
