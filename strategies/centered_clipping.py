"""Centered clipping: updates are clipped around the last round's.

Karimireddy, He and Jaggi 2021, "Learning from History for Byzantine Robust Optimization" (ICML,
arXiv:2012.10333), equation 10. Deviations: docs/strategies/robust.md.
"""

from typing import Any

import numpy as np
from pydantic import Field

from fedsweep.strategies.base import State
from fedsweep.strategies.ranges import METRIC
from fedsweep.strategies.settings import FedAvgSettings
from fedsweep.strategies.updates import OfUpdates, Rows, clipped


class CenteredClippingSettings(FedAvgSettings):
    """How far from the last round's update a client may go."""

    radius: float = Field(1.0, gt=0, le=METRIC, description="tau: longest step of an update")
    steps: int = Field(1, ge=1, le=1000, description="steps in a round")


class CenteredClipping(OfUpdates):
    """v <- v + mean_i clip(x_i - v, tau), from the last round's v.

    Parameters
    ----------
    radius : float
        tau.
    steps : int
        L.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = CenteredClippingSettings
    title = "Centered clipping"
    colour = "#12A35B"

    def __init__(self, *, radius: float = 1.0, steps: int = 1, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.radius, self.steps = radius, steps
        self._last_P: Rows | None = None

    def combine(self, rows_CP: Rows) -> tuple[Rows, tuple[int, ...]]:
        """Return v; nobody is left out."""
        v_P = np.zeros(rows_CP.shape[1]) if self._last_P is None else self._last_P
        for _ in range(self.steps):
            v_P = v_P + clipped(rows_CP - v_P, self.radius).mean(axis=0)
        self._last_P = v_P
        return v_P, ()

    def state_dict(self) -> State:
        """Return the last round's v."""
        return {"last": self._last_P}

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        self._last_P = state["last"]
