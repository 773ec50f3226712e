"""Min-max: attackers are no farther from any honest update than these are from each other.

Shejwalkar and Houmansadr 2021 (NDSS), equation 8: see :mod:`fedsweep.scenario.perturbation`.
"""

from fedsweep.scenario.perturbation import FarthestAttacker, largest_root
from fedsweep.strategies.updates import Rows, squared_distances


class MinMax(FarthestAttacker):
    """max_i ||mean + gamma p - x_i|| <= max_ij ||x_i - x_j||."""

    def farthest(self, honest_HP: Rows, mean_P: Rows, p_P: Rows) -> float:
        """Return the largest gamma: the smallest that one of the honest updates allows."""
        most = float(squared_distances(honest_HP).max())
        away_HP = mean_P - honest_HP
        length = float(p_P @ p_P)
        return min(
            largest_root(length, 2 * float(p_P @ away_P), float(away_P @ away_P) - most)
            for away_P in away_HP
        )
