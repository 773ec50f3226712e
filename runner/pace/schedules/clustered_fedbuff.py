"""FedBuff with a buffer per cluster: a cluster of fast clients does not wait for slow ones."""

from collections.abc import Mapping
from typing import ClassVar, Literal, cast

from fedsweep.pace.policies import Policies
from fedsweep.pace.schedule import BufferedSchedule, Scene
from fedsweep.pace.triggers import BufferPerCluster
from fedsweep.strategies.base import Clustered
from fedsweep.strategies.settings import inherited


class ClusteredFedBuff(BufferedSchedule):
    """Each K replies of a cluster make its model; a cluster of fewer waits for all its clients."""

    clustered: ClassVar[bool] = True

    weights: Literal["equal", "examples"] = inherited(BufferedSchedule, "weights", "examples")

    def policies(self, scene: Scene) -> Policies:
        """Return what a round is."""
        strategy = cast(Clustered, scene.strategy)

        def cluster_of() -> Mapping[int, int]:
            return strategy.assignment

        trigger = BufferPerCluster(self.buffer, cluster_of)
        return self.asynchronous(scene, trigger, self.delivery(scene))
