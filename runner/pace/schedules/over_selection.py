"""More clients are asked than are needed, and the first ones make the model.

Bonawitz et al. 2019, "Towards Federated Learning at Scale: System Design" (MLSys,
arXiv:1902.01046): 130 % of the wanted clients.
"""

from math import ceil, inf

from pydantic import Field

from fedsweep.pace.cohorts import OverSampled
from fedsweep.pace.policies import Policies
from fedsweep.pace.schedule import Scene, Schedule
from fedsweep.pace.triggers import ByDeadline
from fedsweep.strategies.ranges import CLIENTS, YEAR_S
from fedsweep.strategies.settings import Setting


class OverSelection(Schedule):
    """Of (1 + over) m clients the first m are taken; the others have worked for nothing."""

    over: float = Field(
        0.3, gt=0, le=CLIENTS, description="clients asked beyond those wanted, as a share of them"
    )
    seconds: float | None = Field(
        None, gt=0, le=YEAR_S, description="virtual seconds to a deadline; null: there is none"
    )

    def policies(self, scene: Scene) -> Policies:
        """Return what a round is."""
        cohort = OverSampled(scene.presence, self.over)
        seconds = inf if self.seconds is None else self.seconds
        trigger = ByDeadline(seconds, lambda: cohort.wanted)
        return Policies(cohort=cohort, clock=scene.clock, trigger=trigger)

    def check_in(self, setting: Setting) -> None:
        """Refuse to ask for more than there are."""
        super().check_in(setting)
        asked = ceil((1 + self.over) * setting.cohort - 1e-9)
        if asked > setting.num_clients:
            raise ValueError(
                f"schedule.over={self.over:g} asks {asked} clients for {setting.cohort} replies, "
                f"and there are {setting.num_clients}; lower it or strategy.fraction_train"
            )
