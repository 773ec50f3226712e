"""Every random choice of a trial comes from its root seed and the path of what is being chosen."""

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

_BITS = 63

_GLOBALS = threading.RLock()
"""Whose turn it is with the process-global generators: trials in threads take turns."""


def derive_seed(root: int, *path: str | int) -> int:
    """Return a seed in [0, 2**63) that depends on the root seed and the path alone.

    Parameters
    ----------
    root : int
        The trial's seed.
    path : str | int
        What the seed is for, from the general to the particular: ``derive_seed(seed, "train",
        server_round, client)``. ``1`` and ``"1"`` are different paths.
    """
    text = repr(
        (int(root), *[int(p) if isinstance(p, (int, np.integer)) else str(p) for p in path])
    )
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> (64 - _BITS)


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the process-global generators of Flower's strategies; put their states back later.

    Flower samples nodes with the global ``random``; privacy noise is drawn from the global
    ``numpy.random``. Another
    thread that enters waits until this one has left.
    """
    with _GLOBALS:
        states = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
