"""Rounds that wait for all that were asked: as long as their slowest."""

from fedsweep.pace.cohorts import SampledThere
from fedsweep.pace.policies import Policies
from fedsweep.pace.schedule import Scene, Schedule


class Sync(Schedule):
    """Everybody is waited for, but for clients that are lost."""

    timeless = True

    def policies(self, scene: Scene) -> Policies:
        """Return what a round is."""
        return Policies(cohort=SampledThere(scene.presence), clock=scene.clock)
