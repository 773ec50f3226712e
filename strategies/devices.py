"""Simulated devices: what training would cost on a phone or server that this machine is not.

On identical hosts the measured load mostly says how much data a client has. A device, drawn once
per client from the strategy's seed, makes clients differ. Ranges and nominal costs are proposals,
made to compare rules, not to predict.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fedsweep.strategies.selection import Load, LoadMode

SPREAD = 4.0
"""Devices are 1 / SPREAD to SPREAD times the reference device, uniformly on a log scale."""

S_PER_EXAMPLE, MB_AT_REST, MB_PER_EXAMPLE, NODE_LOAD = 1e-3, 50.0, 0.1, 50.0
"""Training on the reference device: CPU seconds and memory by examples, its node's load (%)."""

_STREAM = 0xDE71CE  # keeps the draws apart from those of other uses of the seed


class Device(NamedTuple):
    """A client's device, each property relative to the reference device (1)."""

    speed: float
    memory: float
    bandwidth: float

    def scaled(self, load: Load) -> Load:
        """Return a load as this device has it: CPU by speed, memory by memory, node by link."""
        return Load(load.cpu_s / self.speed, load.rss_mb / self.memory, load.node / self.bandwidth)


@lru_cache(maxsize=100_000)
def device_of(seed: int, node: int) -> Device:
    """Return the device of a client.

    It depends on the seed and the client's own id: newcomers change no other's.
    """
    draws_3 = np.random.default_rng([_STREAM, seed, node]).uniform(-1.0, 1.0, 3)
    return Device(*(SPREAD**draws_3).tolist())


def nominal(examples: float) -> Load:
    """Return what training on so many examples costs the reference device."""
    return Load(S_PER_EXAMPLE * examples, MB_AT_REST + MB_PER_EXAMPLE * examples, NODE_LOAD)


def load_on_device(
    mode: LoadMode,
    device: Callable[[], Device],
    measured: Load | None,
    examples: float | None,
) -> Load | None:
    """Return a client's load in a round, or None where it is unknown.

    Parameters
    ----------
    mode : str
        ``measured``: as measured; ``simulated``: the nominal cost of the client's examples on its
        device; ``hybrid``: the measured load scaled by the device.
    device : callable
        Returns the client's device.
    measured : Load, optional
        What the host measured.
    examples : float, optional
        The client's training examples.
    """
    if mode == "measured":
        return measured
    load = (None if examples is None else nominal(examples)) if mode == "simulated" else measured
    return None if load is None else device().scaled(load)
