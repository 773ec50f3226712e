"""Rounds of clients that are worth most for the time that they take.

Lai et al. 2021, "Oort: Efficient Federated Learning via Guided Participant Selection" (OSDI,
arXiv:2010.06081). Deviations: docs/virtual-time.md.
"""

from typing import ClassVar, cast

from pydantic import Field

from fedsweep.pace.clock import DeviceClock
from fedsweep.pace.policies import Policies
from fedsweep.pace.schedule import Scene, Schedule
from fedsweep.pace.selection import ByUtility
from fedsweep.strategies.ranges import SHARE


class Oort(Schedule):
    """Utility = examples x loss x (T / t)^alpha where a client takes t > T."""

    reads_clients: ClassVar[bool] = True

    penalty: float = Field(2.0, ge=0, le=100, description="alpha: of clients that are slow")
    percentile: float = Field(
        50.0, ge=0, le=100, description="T, of the times of the clients that are known"
    )
    explore: float = Field(
        0.9, ge=0, le=1, description="share of clients that were never asked, in round 1"
    )
    explore_decay: float = Field(0.98, ge=SHARE, le=1, description="its factor per round")
    explore_least: float = Field(0.2, ge=0, le=1, description="what it doesn't fall below")
    cut: float = Field(
        0.95,
        ge=SHARE,
        le=1,
        description="clients are drawn from those that are worth so much of the last in question",
    )

    def policies(self, scene: Scene) -> Policies:
        """Return what a round is."""
        cohort = ByUtility(
            scene.presence,
            cast(DeviceClock, scene.clock),
            penalty=self.penalty,
            percentile=self.percentile,
            explore=self.explore,
            decay=self.explore_decay,
            least=self.explore_least,
            cut=self.cut,
        )
        return Policies(cohort=cohort, clock=scene.clock)
