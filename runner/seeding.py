"""Every random choice of a trial comes from its root seed and the path of what is being chosen."""

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.random.mtrand import get_bit_generator, set_bit_generator

_BITS = 63

_GLOBALS = threading.RLock()
"""Whose turn it is with the process-global generators: trials in threads take turns."""

_STREAMS: list[np.random.MT19937] = []
"""Streams of bits that nobody draws from now."""


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
    """Seed the process-global generators of Flower's strategies; put them back later.

    Flower samples nodes with the global ``random``; privacy noise is drawn from the global
    ``numpy.random``. Another thread that enters waits until this one has left.

    NumPy's has a stream of bits of its own meanwhile: to copy the state of the usual one and put it
    back takes twenty times as long, at each arrival of an asynchronous trial. The second of a pair
    of normal numbers, which ``numpy.random`` keeps beside its stream, is lost.
    """
    with _GLOBALS:
        state, stream = random.getstate(), get_bit_generator()
        own = _STREAMS.pop() if _STREAMS else np.random.MT19937(0)
        random.seed(seed)
        set_bit_generator(own)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(state)
            set_bit_generator(stream)
            _STREAMS.append(own)
