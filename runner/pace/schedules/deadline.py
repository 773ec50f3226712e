"""Rounds that end at a deadline: who is late has worked for nothing."""

from pydantic import Field

from fedsweep.pace.cohorts import SampledThere
from fedsweep.pace.policies import Policies
from fedsweep.pace.schedule import Scene, Schedule
from fedsweep.pace.triggers import ByDeadline
from fedsweep.strategies.ranges import YEAR_S


class Deadline(Schedule):
    """What arrives in time makes the model; where nothing does, the one before stays."""

    seconds: float = Field(
        60.0, gt=0, le=YEAR_S, description="virtual seconds from asking clients to the deadline"
    )

    def policies(self, scene: Scene) -> Policies:
        """Return what a round is."""
        return Policies(
            cohort=SampledThere(scene.presence),
            clock=scene.clock,
            trigger=ByDeadline(self.seconds),
        )
