"""What APPFL's simulator and ours are given: the same devices, and how arrivals are told.

No ray, no flwr, no appfl.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 0
"""Of the devices, and of who is asked."""
AT_WORK = 50
"""Clients at a task, of those of the work."""
STEP_S = 0.05
"""Virtual seconds of a step on a device whose factor is 1."""
MIXING, EXPONENT = 0.6, 0.5
"""FedAsync's a, and the exponent of how late a reply is."""

Arrival = tuple[int, float, int]
"""A client from 0, the virtual second at which its reply is there, and how many models late."""


@dataclass(frozen=True)
class Fleet:
    """Devices as APPFL has them.

    Parameters
    ----------
    slower_N : (N,) float
        How many times longer than ``STEP_S`` a step takes.
    mbit_N : (N,) float
        Mbit a second, both ways.
    """

    slower_N: NDArray[np.float64]
    mbit_N: NDArray[np.float64]

    @classmethod
    def drawn(cls, clients: int) -> "Fleet":
        """Return devices with heavy tails, so that nobody's order is that of asking."""
        rng = np.random.default_rng(SEED)
        return cls(rng.lognormal(0, 1, clients), 20 * rng.lognormal(0, 0.5, clients))

    def trace(self, flop: float, steps: int, more: float) -> str:
        """Return them as ``devices=trace`` reads them.

        Parameters
        ----------
        flop, steps : float, int
            Of a task.
        more : float
            How many times the bytes that APPFL counts of a model are sent here.
        """
        rate_N = flop / (steps * STEP_S * self.slower_N) / 1e9
        rows = [
            f"{client},{float(rate)!r},{float(mbit)!r},{float(mbit)!r}"
            for client, (rate, mbit) in enumerate(zip(rate_N, self.mbit_N * more, strict=True))
        ]
        return "\n".join(["id,rate,downlink,uplink", *rows]) + "\n"


def turn(
    arrivals: Iterator[Arrival], cpu_s: Callable[[], float], untimed: int, timed: int
) -> Callable[[], dict[str, Any]]:
    """Return a turn: what arrived, and an arrival's seconds, by the wall and of processors.

    Parameters
    ----------
    cpu_s : callable
        Returns the processor time so far of all that work for it.
    untimed, timed : int
        Arrivals before time is taken, and of which it is. Hosts that worked ahead during another's
        turn have caught up by then.
    """

    def run() -> dict[str, Any]:
        told = list(islice(arrivals, untimed))
        began, used = perf_counter(), cpu_s()
        told += islice(arrivals, timed)
        seconds, used = perf_counter() - began, cpu_s() - used
        return {"seconds": seconds / timed, "cpu_s": used / timed, "arrivals": told}

    return run
