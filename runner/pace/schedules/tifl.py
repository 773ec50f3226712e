"""Rounds of clients that are alike fast.

Chai et al. 2020, "TiFL: A Tier-based Federated Learning System" (HPDC, arXiv:2001.09249).
"""

from typing import ClassVar, cast

from pydantic import Field

from fedsweep.pace.clock import DeviceClock
from fedsweep.pace.policies import Policies
from fedsweep.pace.schedule import Scene, Schedule
from fedsweep.pace.selection import Tiered
from fedsweep.strategies.ranges import ROUNDS
from fedsweep.strategies.settings import Setting


class TiFL(Schedule):
    """Each round waits for all of one tier's clients that it asked."""

    reads_clients: ClassVar[bool] = True

    tiers: int = Field(5, ge=2, le=1000, description="m: tiers of equal size, by speed")
    interval: int = Field(
        20,
        ge=0,
        le=ROUNDS,
        description="every so many rounds, if the tier drawn last got no better, the worst tiers "
        "get the highest chances; 0: all have the same",
    )

    @property
    def reads_accuracy(self) -> bool:
        """Whether tiers are drawn by how accurate they are."""
        return self.interval > 0

    def policies(self, scene: Scene) -> Policies:
        """Return what a round is."""
        clock = cast(DeviceClock, scene.clock)
        cohort = Tiered(scene.presence, clock, tiers=self.tiers, interval=self.interval)
        return Policies(cohort=cohort, clock=scene.clock)

    def check_in(self, setting: Setting) -> None:
        """Refuse more tiers than clients."""
        super().check_in(setting)
        if self.tiers > setting.num_clients:
            raise ValueError(
                f"schedule.tiers={self.tiers} is more than the {setting.num_clients} clients there "
                "are; lower it or add clients"
            )
