"""Each reply makes a model as it arrives.

Xie, Koyejo and Gupta 2019, "Asynchronous Federated Optimization" (FedAsync, arXiv:1903.03934).
"""

from typing import Literal

from pydantic import Field

from fedsweep.pace.deliveries import MixedIn, Staleness, hinge, polynomial
from fedsweep.pace.policies import Policies
from fedsweep.pace.schedule import AsynchronousSchedule, Scene
from fedsweep.pace.triggers import BufferOf
from fedsweep.strategies.ranges import ROUNDS, SHARE, WEIGHT


class FedAsync(AsynchronousSchedule):
    """x <- (1 - a s) x + a s x_i, s by how many models late the reply is."""

    mixing: float = Field(0.6, ge=SHARE, le=1, description="a: share of a reply that is not late")
    staleness: Literal["constant", "polynomial", "hinge"] = Field(
        "polynomial", description="how a late reply counts for less"
    )
    exponent: float = Field(0.5, ge=0, le=WEIGHT, description="of polynomial: (1 + t)^-exponent")
    hinge_slope: float = Field(10.0, ge=SHARE, le=WEIGHT, description="a of hinge")
    hinge_after: int = Field(4, ge=0, le=ROUNDS, description="b of hinge: models late without loss")

    def policies(self, scene: Scene) -> Policies:
        """Return what a round is."""
        delivery = MixedIn(scene.strategy, True, self.mixing, self._factor())
        return self.asynchronous(scene, BufferOf(1), delivery)

    def _factor(self) -> Staleness:
        if self.staleness == "hinge":
            return hinge(self.hinge_slope, self.hinge_after)
        return polynomial(self.exponent if self.staleness == "polynomial" else 0.0)

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: key -> the setting that is why."""
        keys = {"polynomial": ["exponent"], "hinge": ["hinge_slope", "hinge_after"]}
        others = [key for rule, own in keys.items() if rule != self.staleness for key in own]
        return super().idle() | dict.fromkeys(others, f"schedule.staleness={self.staleness}")
