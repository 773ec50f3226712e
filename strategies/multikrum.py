"""Multi-Krum: the mean of the replies that are closest to their neighbours.

Blanchard, El Mhamdi, Guerraoui and Stainer 2017, "Machine Learning with Adversaries: Byzantine
Tolerant Gradient Descent" (arXiv:1703.02757). Deviations: docs/strategies/robust.md.
"""

from typing import Any

import numpy as np
from pydantic import Field

from fedsweep.strategies.ranges import CLIENTS
from fedsweep.strategies.robust import Attacked, AttackersSettings, Combine, mean, nearest


def needed(f: int, m: int) -> int:
    """Return how many clients it takes to choose m of them."""
    return max(2 * f + 3, m + f + 2)


class MultiKrumSettings(AttackersSettings):
    """How many attackers there may be, and how many replies are averaged."""

    num_nodes_to_select: int = Field(3, ge=1, le=CLIENTS, description="replies that are averaged")

    @property
    def needed(self) -> int:
        """Clients a round that the choice is defined for."""
        return needed(self.num_malicious_nodes, self.num_nodes_to_select)

    @property
    def told(self) -> str:
        """By which settings so many are needed."""
        return f"{super().told}, num_nodes_to_select={self.num_nodes_to_select}"


class MultiKrum(Attacked):
    """The mean of the m models that are closest to their n - f - 2 nearest; n is 2f + 3 or more.

    Parameters
    ----------
    num_nodes_to_select : int
        m, n - f - 2 at most.
    **attacked
        ``num_malicious_nodes``: f, and the parameters of Flower's FedAvg.
    """

    settings = MultiKrumSettings
    title = "Multi-Krum"
    colour = "#882255"

    def __init__(self, *, num_nodes_to_select: int = 1, **attacked: Any) -> None:
        super().__init__(**attacked)
        self.num_nodes_to_select = num_nodes_to_select

    @property
    def needed(self) -> int:
        """Clients a round that the choice is defined for."""
        return needed(self.num_malicious_nodes, self.num_nodes_to_select)

    @property
    def told(self) -> str:
        """By which settings so many are needed."""
        return f"{super().told}, num_nodes_to_select={self.num_nodes_to_select}"

    def choose(self, distances: np.ndarray) -> tuple[list[int], Combine]:
        """Choose the closest m."""
        return nearest(distances, self.num_malicious_nodes, self.num_nodes_to_select), mean
