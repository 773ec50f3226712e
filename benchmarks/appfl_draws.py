"""FedAsync whose clients are drawn as APPFL's simulator draws them: a schedule of one's own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from pydantic import Field

from fedsweep.pace.cohorts import AlwaysAtWork
from fedsweep.pace.policies import Policies, Underway
from fedsweep.pace.schedule import Scene
from fedsweep.pace.schedules.fedasync import FedAsync


class AsAppfl(FedAsync):
    """Replies are mixed in as under ``fedasync``."""

    draws: int = Field(0, description="seed of the one generator that all are drawn from")

    def policies(self, scene: Scene) -> Policies:
        """Return what a round is."""
        size = self.concurrency or scene.cohort
        cohort = OneStream(scene.presence, size, Random(self.draws))
        return replace(super().policies(scene), cohort=cohort)


@dataclass(frozen=True)
class OneStream(AlwaysAtWork):
    """Whoever is missing is drawn of all that are idle, in their order.

    It is for benchmarks: no checkpoint holds where its generator is.
    """

    draws: Random

    def choose(self, underway: Underway, nodes: Sequence[int], size: int) -> Sequence[int]:
        """Return as many as are missing."""
        del size
        idle = [node for node in nodes if node not in underway.busy]
        return self.draws.sample(idle, min(self.size - underway.working, len(idle)))
