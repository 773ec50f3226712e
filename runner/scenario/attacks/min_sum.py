"""Min-sum: attackers' squared distances add up to no more than those of an honest update.

Shejwalkar and Houmansadr 2021 (NDSS), equation 9: see :mod:`fedsweep.scenario.perturbation`.
"""

from fedsweep.scenario.perturbation import FarthestAttacker, largest_root
from fedsweep.strategies.updates import Rows, squared_distances


class MinSum(FarthestAttacker):
    """sum_i ||mean + gamma p - x_i||^2 <= max_i sum_j ||x_i - x_j||^2."""

    def farthest(self, honest_HP: Rows, mean_P: Rows, p_P: Rows) -> float:
        """Return the largest gamma; the differences from the mean add up to nothing."""
        most = float(squared_distances(honest_HP).sum(axis=1).max())
        spread = float(((honest_HP - mean_P) ** 2).sum())
        return largest_root(len(honest_HP) * float(p_P @ p_P), 0.0, spread - most)
