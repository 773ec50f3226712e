"""Nearest-neighbour mixing: each update becomes the mean of those that are nearest to it.

Allouah, Farhadkhani, Guerraoui, Gupta, Pinot and Stephan 2023, "Fixing by Mixing: A Recipe for
Optimal Byzantine ML under Heterogeneity" (AISTATS, arXiv:2302.01772), algorithm 2.
"""

import numpy as np
from pydantic import Field

from fedsweep.scenario.defence import Defender
from fedsweep.strategies.ranges import CLIENTS
from fedsweep.strategies.updates import Rows, squared_distances


class Mixing(Defender):
    """The mean of its n - f nearest, itself among them; of equally far ones the first."""

    attackers: int = Field(1, ge=1, le=CLIENTS, description="f: attackers to withstand")

    def check_in(self, cohort: int) -> None:
        """Refuse as many attackers as half of the clients."""
        if 2 * self.attackers >= cohort:
            raise ValueError(
                f"defence={self.name} with defence.attackers={self.attackers} needs more than "
                f"{2 * self.attackers} training clients a round, but there are {cohort}; train "
                "more clients or lower it"
            )

    def defend(self, updates_CP: Rows) -> Rows:
        """Return the mixed updates; of f or fewer each stays as it is."""
        nearest = max(1, len(updates_CP) - self.attackers)
        order_CC = np.argsort(squared_distances(updates_CP), axis=1, kind="stable")[:, :nearest]
        return np.stack([updates_CP[np.sort(rows)].mean(axis=0) for rows in order_CC])
