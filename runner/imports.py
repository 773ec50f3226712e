"""What a process imports for its whole life, kept out of the garbage collector's way."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting() -> Iterator[None]:
    """Import without collections meanwhile, and leave out of later ones all that is there then.

    PyTorch, MLflow and scikit-learn make a million objects. Looking through them again and again
    took a seventh of the driver's time in a sweep of short trials.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
