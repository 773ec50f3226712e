"""Attackers send their update the other way round.

Li, Xu, Chen, Giannakis and Ling 2019, "RSA: Byzantine-Robust Stochastic Aggregation Methods"
(arXiv:1811.03761).
"""

from pydantic import Field

from fedsweep.scenario.attack import Attacker
from fedsweep.strategies.ranges import WEIGHT
from fedsweep.strategies.updates import Rows


class SignFlip(Attacker):
    """-s times the attacker's own update."""

    scale: float = Field(1.0, gt=0, le=WEIGHT, description="s: how many of its update it sends")

    def forge(self, honest_HP: Rows, own_BP: Rows, seed: int) -> Rows:
        """Return -s times the updates."""
        del honest_HP, seed
        return -self.scale * own_BP
