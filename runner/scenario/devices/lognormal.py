"""Devices drawn from lognormal distributions, whose medians and sigmas are given.

Measured speeds and links of phones are heavy-tailed: Lai et al. 2022, "FedScale" (ICML,
arXiv:2105.11367), figure 4.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsweep.scenario.device import EqualDevices, stream


class Lognormal(EqualDevices):
    """Each property is its median times exp(sigma z), z normal and a client's own."""

    rate_sigma: float = Field(0.8, ge=0, le=5, description="spread of the rates")
    downlink_sigma: float = Field(0.8, ge=0, le=5, description="spread of the downlinks")
    uplink_sigma: float = Field(0.8, ge=0, le=5, description="spread of the uplinks")
    memory_sigma: float = Field(
        0.5, ge=0, le=5, description="spread of the memories, which servers are chosen by"
    )

    def spread(self, what: str, num_clients: int, seed: int) -> NDArray[np.float64]:
        """Return exp(sigma z) of each client, (N,)."""
        sigma: float = getattr(self, f"{what}_sigma")
        return np.exp(sigma * stream(seed, what).standard_normal(num_clients))
