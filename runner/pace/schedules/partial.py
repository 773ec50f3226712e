"""Slow clients do as many steps as fit before a deadline.

Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (FedProx, MLSys,
arXiv:1812.06127): partial work in place of dropped clients.
"""

from typing import cast

from pydantic import Field

from fedsweep.pace.clock import DeviceClock
from fedsweep.pace.cohorts import SampledThere
from fedsweep.pace.policies import Policies
from fedsweep.pace.schedule import Scene, Schedule
from fedsweep.pace.triggers import ByDeadline
from fedsweep.pace.workloads import StepsThatFit
from fedsweep.strategies.ranges import YEAR_S


class Partial(Schedule):
    """A client for which not even one step fits is late, and its work thrown away."""

    seconds: float = Field(
        60.0, gt=0, le=YEAR_S, description="virtual seconds from asking clients to the deadline"
    )

    def policies(self, scene: Scene) -> Policies:
        """Return what a round is."""
        return Policies(
            cohort=SampledThere(scene.presence),
            clock=scene.clock,
            workload=StepsThatFit(cast(DeviceClock, scene.clock), self.seconds),
            trigger=ByDeadline(self.seconds),
        )
