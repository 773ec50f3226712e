"""Slow clients do as many steps as fit before a deadline.

Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (FedProx, MLSys,
arXiv:1812.06127): partial work in place of dropped clients.
"""

from dataclasses import replace
from typing import cast

from fedsweep.pace.clock import DeviceClock
from fedsweep.pace.policies import Policies
from fedsweep.pace.schedule import Scene
from fedsweep.pace.schedules.deadline import Deadline
from fedsweep.pace.workloads import StepsThatFit


class Partial(Deadline):
    """A client for which not even one step fits is late, and its work thrown away."""

    def policies(self, scene: Scene) -> Policies:
        """Return what a round is."""
        fits = StepsThatFit(cast(DeviceClock, scene.clock), self.seconds)
        return replace(super().policies(scene), workload=fits)
