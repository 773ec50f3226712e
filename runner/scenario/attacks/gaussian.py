"""Attackers send noise.

Blanchard, El Mhamdi, Guerraoui and Stainer 2017, "Machine Learning with Adversaries: Byzantine
Tolerant Gradient Descent" (arXiv:1703.02757), section 5.
"""

import numpy as np
from pydantic import Field

from fedsweep.scenario.attack import Attacker
from fedsweep.strategies.ranges import WEIGHT
from fedsweep.strategies.updates import Rows


class GaussianNoise(Attacker):
    """Each number is drawn for itself, for each attacker and round."""

    std: float = Field(1.0, gt=0, le=WEIGHT, description="deviation of the noise")

    def forge(self, honest_HP: Rows, own_BP: Rows, seed: int) -> Rows:
        """Return noise in place of the updates."""
        del honest_HP
        return np.random.default_rng(seed).normal(0.0, self.std, own_BP.shape)
