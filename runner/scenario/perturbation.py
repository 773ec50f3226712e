"""What the min-max and the min-sum attack share: a direction, and how far it may be gone.

Shejwalkar and Houmansadr 2021, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and
Defenses for Federated Learning" (NDSS), section IV. Attackers send mean + gamma p, with the largest
gamma at which they lie no farther from the honest updates than these from each other. The distances
are quadratic in gamma, so it is computed, where the paper halves an interval.
"""

from abc import abstractmethod
from typing import Literal

import numpy as np
from pydantic import Field

from fedsweep.scenario.attack import Attacker
from fedsweep.strategies.updates import Rows


class FarthestAttacker(Attacker):
    """mean + gamma p, the same for all attackers."""

    perturbation: Literal["std", "unit", "sign"] = Field(
        "std",
        description="p: against the deviation, the mean's direction, or its signs",
    )

    @abstractmethod
    def farthest(self, honest_HP: Rows, mean_P: Rows, p_P: Rows) -> float:
        """Return the largest gamma."""

    def forge(self, honest_HP: Rows, own_BP: Rows, seed: int) -> Rows:
        """Return the same for all attackers; their own where there is nobody to hide among."""
        del seed
        if not len(honest_HP):
            return own_BP
        mean_P = honest_HP.mean(axis=0)
        p_P = self._direction(honest_HP, mean_P)
        gamma = self.farthest(honest_HP, mean_P, p_P) if p_P.any() else 0.0
        return np.repeat((mean_P + gamma * p_P)[None], len(own_BP), axis=0)

    def _direction(self, honest_HP: Rows, mean_P: Rows) -> Rows:
        if self.perturbation == "sign":
            return np.asarray(-np.sign(mean_P))
        if self.perturbation == "unit":
            length = float(np.linalg.norm(mean_P))
            return np.asarray(-mean_P / length) if length else np.zeros_like(mean_P)
        return np.asarray(-honest_HP.std(axis=0))


def largest_root(a: float, b: float, c: float) -> float:
    """Return the larger root of a g^2 + b g + c, where a > 0 and c <= 0; never less than 0."""
    return max(0.0, float((-b + np.sqrt(max(b * b - 4 * a * c, 0.0))) / (2 * a)))
