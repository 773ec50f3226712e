"""Bulyan: Krum's choice again and again, then a trimmed mean around the median.

El Mhamdi, Guerraoui and Rouault 2018, "The Hidden Vulnerability of Distributed Learning in
Byzantium" (arXiv:1802.07927). Deviations: docs/strategies/robust.md.
"""

from functools import partial

import numpy as np

from fedsweep.strategies.robust import (
    Attacked,
    AttackersSettings,
    Combine,
    around_the_median,
    one_by_one,
)


def needed(f: int) -> int:
    """Return how many clients the choice is defined for."""
    return 4 * f + 3


class BulyanSettings(AttackersSettings):
    """How many attackers there may be."""

    @property
    def needed(self) -> int:
        """Clients a round that the choice is defined for."""
        return needed(self.num_malicious_nodes)


class Bulyan(Attacked):
    """Krum's choice again and again, then each number's mean of those nearest to its median.

    n must be 4f + 3 or more.
    """

    settings = BulyanSettings
    colour = "#888888"

    @property
    def needed(self) -> int:
        """Clients a round that the choice is defined for."""
        return needed(self.num_malicious_nodes)

    def choose(self, distances: np.ndarray) -> tuple[list[int], Combine]:
        """Choose as often as the paper says; the nearest to the median are theta - 2f."""
        f = self.num_malicious_nodes
        chosen = one_by_one(distances, f)
        return chosen, partial(around_the_median, beta=len(chosen) - 2 * f)
