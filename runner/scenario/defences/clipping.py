"""Updates are clipped: none is longer than the others.

Sun, Kairouz, Suresh and McMahan 2019, "Can You Really Backdoor Federated Learning?"
(arXiv:1911.07963), section 4.
"""

import numpy as np
from pydantic import Field

from fedsweep.scenario.defence import Defender
from fedsweep.strategies.ranges import METRIC
from fedsweep.strategies.updates import Rows, clipped


class Clipping(Defender):
    """Each keeps its direction."""

    norm: float | None = Field(
        None, gt=0, le=METRIC, description="longest update; null: the median of their lengths"
    )

    def defend(self, updates_CP: Rows) -> Rows:
        """Return the clipped updates."""
        lengths_C = np.linalg.norm(updates_CP, axis=1)
        norm = float(np.median(lengths_C)) if self.norm is None else self.norm
        return clipped(updates_CP, norm)
