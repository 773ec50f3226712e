"""Devices of a few named classes, each with its share of the clients."""

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from fedsweep.scenario.device import GFLOP, MBIT, DeviceTable, DrawnDevices, stream
from fedsweep.strategies.settings import Settings


class Tier(Settings):
    """A class of devices."""

    share: float = Field(
        1.0, gt=0, le=1e6, description="share of the clients, relative to the other tiers'"
    )
    rate: float = Field(10.0, gt=0, le=1e9, description="GFLOP a second")
    downlink: float = Field(20.0, gt=0, le=1e9, description="Mbit a second to a client")
    uplink: float = Field(5.0, gt=0, le=1e9, description="Mbit a second from a client")
    memory: float = Field(1.0, gt=0, le=1e9, description="relative to the others")
    watt: float = Field(5.0, gt=0, le=1e9, description="power while it computes")


def _usual() -> dict[str, Tier]:
    """Return proposals: sustained rates, links of mobile and fixed networks, power at work."""
    rows: dict[str, tuple[float, ...]] = {
        "phone": (0.5, 5.0, 20.0, 5.0, 1.0, 3.0),
        "tablet": (0.25, 10.0, 40.0, 10.0, 2.0, 6.0),
        "laptop": (0.2, 50.0, 100.0, 40.0, 4.0, 30.0),
        "edge": (0.05, 500.0, 1000.0, 1000.0, 16.0, 150.0),
    }
    keys = [*Tier.model_fields]
    return {name: Tier(**dict(zip(keys, row, strict=True))) for name, row in rows.items()}


class Tiers(DrawnDevices):
    """Each client's class is drawn by the shares; joules are counted, since power is known."""

    tiers: dict[str, Annotated[Tier, Field()]] = Field(
        default_factory=_usual,
        min_length=1,
        description="name -> share, rate, downlink, uplink, memory, watt",
    )

    def canonical(self) -> dict[str, Any]:
        """Return what defines the settings, as plain values."""
        tiers = {name: tier.canonical() for name, tier in self.tiers.items()}
        return super().canonical() | {"tiers": tiers}

    def table(self, num_clients: int, seed: int) -> DeviceTable:
        """Return the clients' devices."""
        tiers = list(self.tiers.values())
        shares = np.array([tier.share for tier in tiers])
        ends = np.cumsum(shares / shares.sum())[:-1]
        drawn_N = np.searchsorted(ends, stream(seed, "tier").random(num_clients), side="right")

        def of(key: str, unit: float = 1.0) -> np.ndarray:
            return np.array([unit * getattr(tier, key) for tier in tiers])[drawn_N]

        presence = self.presence(num_clients, seed)
        links = of("downlink", MBIT), of("uplink", MBIT)
        return DeviceTable(of("rate", GFLOP), *links, presence, of("memory"), of("watt"))
