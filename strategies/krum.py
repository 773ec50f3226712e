"""Krum: the one reply that is closest to its neighbours.

Blanchard, El Mhamdi, Guerraoui and Stainer 2017, "Machine Learning with Adversaries: Byzantine
Tolerant Gradient Descent" (arXiv:1703.02757). Deviations: docs/strategies/robust.md.
"""

import numpy as np

from fedsweep.strategies.robust import Attacked, AttackersSettings, Combine, mean, nearest


def needed(f: int) -> int:
    """Return how many clients the choice is defined for."""
    return 2 * f + 3


class KrumSettings(AttackersSettings):
    """How many attackers there may be."""

    @property
    def needed(self) -> int:
        """Clients a round that the choice is defined for."""
        return needed(self.num_malicious_nodes)


class Krum(Attacked):
    """The one model that is closest to its n - f - 2 nearest; n must be 2f + 3 or more."""

    settings = KrumSettings
    colour = "#000000"

    @property
    def needed(self) -> int:
        """Clients a round that the choice is defined for."""
        return needed(self.num_malicious_nodes)

    def choose(self, distances: np.ndarray) -> tuple[list[int], Combine]:
        """Choose the closest one."""
        return nearest(distances, self.num_malicious_nodes, 1), mean
