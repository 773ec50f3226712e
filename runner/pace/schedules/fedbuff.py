"""Replies are gathered in a buffer, and each time that it is full they make a model.

Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation" (FedBuff, AISTATS,
arXiv:2106.06639).
"""

from fedsweep.pace.policies import Policies
from fedsweep.pace.schedule import BufferedSchedule, Scene
from fedsweep.pace.triggers import BufferOf


class FedBuff(BufferedSchedule):
    """x <- x + eta_g / K sum s_i (x_i - the model that i began with)."""

    def policies(self, scene: Scene) -> Policies:
        """Return what a round is."""
        return self.asynchronous(scene, BufferOf(self.buffer), self.delivery(scene))
