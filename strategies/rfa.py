"""RFA: the geometric median of the updates.

Pillutla, Kakade and Harchaoui 2022, "Robust Aggregation for Federated Learning"
(arXiv:1912.13445), algorithm 2. Deviations: docs/strategies/robust.md.
"""

from typing import Any

import numpy as np
from pydantic import Field

from fedsweep.strategies.ranges import METRIC
from fedsweep.strategies.settings import FedAvgSettings
from fedsweep.strategies.updates import OfUpdates, Rows


class RFASettings(FedAvgSettings):
    """How exactly the median is computed."""

    steps: int = Field(3, ge=1, le=1000, description="Weiszfeld's steps in a round")
    smoothing: float = Field(
        1e-6, gt=0, le=METRIC, description="nu: nearer updates count as if they were so far away"
    )


class RFA(OfUpdates):
    """The point of least summed distances to the updates, by the smoothed Weiszfeld algorithm.

    Parameters
    ----------
    steps : int
        R.
    smoothing : float
        nu.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = RFASettings
    colour = "#C8102E"

    def __init__(self, *, steps: int = 3, smoothing: float = 1e-6, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.steps, self.smoothing = steps, smoothing

    def combine(self, rows_CP: Rows) -> tuple[Rows, tuple[int, ...]]:
        """Return the geometric median; nobody is left out."""
        return geometric_median(rows_CP, self.steps, self.smoothing), ()


def geometric_median(rows_CP: Rows, steps: int, smoothing: float) -> Rows:
    """Return z (P,) after so many steps from 0: the rows' mean, weighted by 1 / max(nu, ||x - z||).

    Its objective never grows from step to step.
    """
    z_P = np.zeros(rows_CP.shape[1])
    for _ in range(steps):
        weights_C = 1 / np.maximum(np.linalg.norm(rows_CP - z_P, axis=1), smoothing)
        z_P = weights_C @ rows_CP / weights_C.sum()
    return z_P
