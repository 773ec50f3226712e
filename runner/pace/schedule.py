"""What a schedule is: how a trial's rounds pass in virtual time, and its settings."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import Field

from fedsweep.pace.cohorts import AlwaysAtWork
from fedsweep.pace.deliveries import Steps, polynomial
from fedsweep.pace.policies import Clock, Delivery, NoClock, Policies, Trigger
from fedsweep.scenario.presence import Presence
from fedsweep.strategies.ranges import CLIENTS, SHARE, WEIGHT
from fedsweep.strategies.settings import Setting, Settings


@dataclass(frozen=True)
class Scene:
    """What a schedule is played in.

    Parameters
    ----------
    presence : Presence
        Who is there when.
    clock : Clock
        How long tasks take.
    strategy : object
        The method.
    cohort : int
        Clients that a synchronous round trains, in the smallest one.
    """

    presence: Presence
    clock: Clock = field(default_factory=NoClock)
    strategy: object = None
    cohort: int = 1


class Schedule(Settings):
    """Who is asked when, and when what has arrived becomes a model.

    A schedule of one's own is a class derived from this one, in a file: its fields are its
    settings. ``runner/pace/policies.py`` says what its policies are.
    """

    timeless: ClassVar[bool] = False
    """Whether it means something where no time passes."""
    stale: ClassVar[bool] = False
    """Whether replies to older models may be among those that make a model."""
    clustered: ClassVar[bool] = False
    """Whether it is for methods that train a model per cluster."""

    reads_clients: ClassVar[bool] = False
    """Whether it asks clients by what they told of their data, such as losses."""

    name: str = Field("sync", description="the schedule")

    @property
    def reads_accuracy(self) -> bool:
        """Whether who is asked depends on accuracies, which a trial that learns numbers has not."""
        return False

    @abstractmethod
    def policies(self, scene: Scene) -> Policies:
        """Return what a round is."""

    def check_in(self, setting: Setting) -> None:
        """Refuse settings that can't work, or do nothing, in a trial.

        Raises
        ------
        ValueError
            In one line: what was given, and what to change.
        """

    def unfit(self, strategy: str, *, clusters: bool) -> str:
        """Return why it can't be played with a method, in one line; empty where it can.

        Parameters
        ----------
        strategy : str
            The method's name.
        clusters : bool
            Whether it trains a model per cluster.
        """
        del strategy, clusters
        return ""

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: key -> the setting that is why."""
        return {}

    def rules_out(self) -> dict[str, str]:
        """Return other sections' keys that have no effect: full key -> the setting that is why."""
        return {}


class AsynchronousSchedule(Schedule):
    """Clients are always at work, and nobody waits for the slow ones."""

    stale: ClassVar[bool] = True

    concurrency: int | None = Field(
        None,
        ge=1,
        le=CLIENTS,
        description="clients that are always at work; null: as many as a round of sync asks",
    )

    def asynchronous(self, scene: Scene, trigger: Trigger, delivery: Delivery) -> Policies:
        """Return policies that have so many clients always at work."""
        return Policies(
            cohort=AlwaysAtWork(scene.presence, self.concurrency or scene.cohort),
            clock=scene.clock,
            trigger=trigger,
            delivery=delivery,
            ahead=True,
        )

    def check_in(self, setting: Setting) -> None:
        """Refuse more clients at work than there are."""
        super().check_in(setting)
        if self.concurrency is not None and self.concurrency > setting.num_clients:
            raise ValueError(
                f"schedule.concurrency={self.concurrency} is more than the {setting.num_clients} "
                "clients there are; lower it or add clients"
            )

    def rules_out(self) -> dict[str, str]:
        """Return other sections' keys that have no effect: full key -> the setting that is why."""
        if self.concurrency is None:
            return {}
        keys = ("strategy.fraction_train", "strategy.min_train_nodes")
        return dict.fromkeys(keys, f"schedule.concurrency={self.concurrency}")


class BufferedSchedule(AsynchronousSchedule):
    """An asynchronous schedule whose replies are gathered before they make a model."""

    buffer: int = Field(10, ge=1, le=CLIENTS, description="K: replies that make a model")
    global_lr: float = Field(
        1.0, ge=SHARE, le=1000, description="eta_g: factor of the mean step of the replies"
    )
    exponent: float = Field(
        0.5, ge=0, le=WEIGHT, description="a step that is t models late counts (1 + t)^-exponent"
    )
    weights: Literal["equal", "examples"] = Field(
        "equal", description="what replies weigh in the mean: the same, or by examples"
    )

    def delivery(self, scene: Scene) -> Delivery:
        """Return how replies are seen."""
        factor = polynomial(self.exponent)
        return Steps(scene.strategy, self.weights == "equal", self.global_lr, factor)

    def unfit(self, strategy: str, *, clusters: bool) -> str:
        """Return why a clustered method can't do without its clients' examples."""
        if not clusters or self.weights == "examples":
            return ""
        return (
            f"strategy={strategy} with schedule.weights=equal: the clusters and their servers go "
            "by examples; set schedule.weights=examples"
        )

    def check_in(self, setting: Setting) -> None:
        """Refuse a buffer that would never be full."""
        super().check_in(setting)
        if self.buffer > setting.num_clients:
            raise ValueError(
                f"schedule.buffer={self.buffer} is more than the {setting.num_clients} clients "
                "there are, each of which is in it once; lower it or add clients"
            )
