"""What a client's device is: how fast it computes and is reached, and when it is there.

Ranges and medians are proposals, made to compare methods, not to predict a phone. Shapes: N
clients.
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from math import nan
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsweep.scenario.presence import Always, Periodic, Presence
from fedsweep.seeding import derive_seed
from fedsweep.strategies.ranges import SHARE, YEAR_S
from fedsweep.strategies.settings import Settings

GFLOP = 1e9
MBIT = 1e6 / 8
"""Bytes in a megabit."""


@dataclass(frozen=True, eq=False)
class DeviceTable:
    """The devices of N clients.

    Parameters
    ----------
    rate_N : (N,) float
        FLOP a second.
    down_N, up_N : (N,) float
        Bytes a second, to the client and from it.
    memory_N : (N,) float
        Relative to the others; 1 where nothing is known.
    watt_N : (N,) float
        Power while it computes; nan where it is not known.
    presence : Presence
        Who is there when.
    """

    rate_N: NDArray[np.float64]
    down_N: NDArray[np.float64]
    up_N: NDArray[np.float64]
    presence: Presence
    memory_N: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    watt_N: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        for name, missing in (("memory_N", 1.0), ("watt_N", nan)):
            if not len(getattr(self, name)):
                object.__setattr__(self, name, np.full(len(self), missing))

    def __len__(self) -> int:
        return len(self.rate_N)

    @cached_property
    def tells_power(self) -> bool:
        """Whether the power of every device is known."""
        return bool(np.isfinite(self.watt_N).all())


class Devices(Settings):
    """What the clients' devices are; as it stands nothing is simulated, and no time passes."""

    timed: ClassVar[bool] = False
    """Whether there are devices, and so a virtual clock."""

    name: str = Field("none", description="the kind of devices")

    def check_in(self, num_clients: int) -> None:
        """Refuse devices that can't be those of so many clients.

        Raises
        ------
        ValueError
            In one line: what was given, and what to change.
        """

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: key -> the setting that is why."""
        return {}


class TimedDevices(Devices):
    """Devices, and with them a virtual clock.

    Devices of one's own are a class derived from this or from :class:`DrawnDevices`, in a file:
    its fields are its settings.
    """

    timed: ClassVar[bool] = True

    dropout: float = Field(
        0.0, ge=0, lt=1, description="chance that a client vanishes during a task"
    )

    @property
    def may_be_away(self) -> bool:
        """Whether clients may be away when somebody is asked."""
        return False

    @abstractmethod
    def table(self, num_clients: int, seed: int) -> DeviceTable:
        """Return the clients' devices.

        Parameters
        ----------
        num_clients : int
            N.
        seed : int
            The trial's: what is drawn follows from it and the client's number alone, so that more
            clients change nobody else's device. :func:`stream` gives such draws.

        Raises
        ------
        DataError
            There are not as many devices as clients.
        """


class DrawnDevices(TimedDevices):
    """Devices that are drawn, and are there always or by day."""

    availability: Literal["always", "periodic"] = Field(
        "always", description="when clients are there: periodic is a part of a day of their own"
    )
    day_s: float = Field(86_400.0, gt=0, le=YEAR_S, description="virtual seconds of a day")
    day_share: float = Field(
        0.5, ge=SHARE, lt=1, description="share of its day in which a client is there"
    )

    @property
    def may_be_away(self) -> bool:
        """Whether clients may be away when somebody is asked."""
        return self.availability != "always"

    def presence(self, num_clients: int, seed: int) -> Presence:
        """Return who is there when: days begin at a time of each client's own."""
        if self.availability == "always":
            return Always(num_clients)
        phases_N = stream(seed, "phase").random(num_clients) * self.day_s
        return Periodic(phases_N, self.day_s, self.day_share * self.day_s)

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: key -> the setting that is why."""
        always = dict.fromkeys(("day_s", "day_share"), "devices.availability=always")
        return super().idle() | (always if self.availability == "always" else {})


class EqualDevices(DrawnDevices):
    """Devices that are all alike."""

    rate: float = Field(10.0, gt=0, le=1e9, description="GFLOP a second that a client computes")
    downlink: float = Field(20.0, gt=0, le=1e9, description="Mbit a second to a client")
    uplink: float = Field(5.0, gt=0, le=1e9, description="Mbit a second from a client")

    def table(self, num_clients: int, seed: int) -> DeviceTable:
        """Return the clients' devices: each draw times the median."""
        rate_N, down_N, up_N = (
            unit * median * self.spread(what, num_clients, seed)
            for what, unit, median in (
                ("rate", GFLOP, self.rate),
                ("downlink", MBIT, self.downlink),
                ("uplink", MBIT, self.uplink),
            )
        )
        memory_N = self.spread("memory", num_clients, seed)
        return DeviceTable(rate_N, down_N, up_N, self.presence(num_clients, seed), memory_N)

    def spread(self, what: str, num_clients: int, seed: int) -> NDArray[np.float64]:
        """Return how many times the median each client's share of something is, (N,)."""
        del what, seed
        return np.ones(num_clients)


def stream(seed: int, what: str) -> np.random.Generator:
    """Return the generator of one property of the clients' devices.

    It is to be drawn from once a client, in their order: then a client's draw depends on those
    before it alone, and newcomers change nobody's.
    """
    return np.random.default_rng(derive_seed(seed, "device", what))
