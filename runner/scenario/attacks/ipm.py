"""Inner product manipulation: attackers pull against the honest mean, by a little.

Xie, Koyejo and Gupta 2020, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
Manipulation" (arXiv:1903.03936).
"""

import numpy as np
from pydantic import Field

from fedsweep.scenario.attack import Attacker
from fedsweep.strategies.ranges import WEIGHT
from fedsweep.strategies.updates import Rows


class IPM(Attacker):
    """-eps times the mean of the honest updates."""

    eps: float = Field(0.5, gt=0, le=WEIGHT, description="how many of the honest mean it sends")

    def forge(self, honest_HP: Rows, own_BP: Rows, seed: int) -> Rows:
        """Return the same for all attackers; their own where there is no mean."""
        del seed
        if not len(honest_HP):
            return own_BP
        return np.repeat(-self.eps * honest_HP.mean(axis=0)[None], len(own_BP), axis=0)
