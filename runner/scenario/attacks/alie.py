"""A little is enough: attackers hide within the spread of the honest updates.

Baruch, Baruch and Goldberg 2019, "A Little Is Enough: Circumventing Defenses For Distributed
Learning" (arXiv:1902.06156), algorithm 3. Deviations are those of a sample (over H - 1).
"""

from math import floor
from statistics import NormalDist

import numpy as np
from pydantic import Field

from fedsweep.scenario.attack import Attacker
from fedsweep.strategies.ranges import WEIGHT
from fedsweep.strategies.updates import Rows


class ALIE(Attacker):
    """mean - z deviations of the honest updates, number by number."""

    z: float | None = Field(
        None,
        gt=0,
        le=WEIGHT,
        description="deviations from the honest mean; null: the paper's, of clients and attackers",
    )

    def forge(self, honest_HP: Rows, own_BP: Rows, seed: int) -> Rows:
        """Return the same for all attackers; their own where there is nobody to hide among."""
        del seed
        if not len(honest_HP):
            return own_BP
        n, f = len(honest_HP) + len(own_BP), len(own_BP)
        z = largest_z(n, f) if self.z is None else self.z
        row_P = honest_HP.mean(axis=0) - z * deviation(honest_HP)
        return np.repeat(row_P[None], f, axis=0)


def largest_z(n: int, f: int) -> float:
    """Return z of f attackers among n clients.

    s = floor(n / 2 + 1) - f honest clients, one at least, have to lie farther out than the
    attackers, so that these are in the majority: z is the quantile (n - f - s) / (n - f) of the
    normal distribution, and 0 where that is negative.
    """
    honest = n - f
    needed = max(1, floor(n / 2 + 1) - f)
    share = (honest - needed) / honest
    return max(0.0, NormalDist().inv_cdf(share)) if share > 0 else 0.0


def deviation(rows_HP: Rows) -> Rows:
    """Return each number's deviation over rows, (P,); 0 of one row."""
    return rows_HP.std(axis=0, ddof=1) if len(rows_HP) > 1 else np.zeros(rows_HP.shape[1])
