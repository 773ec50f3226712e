"""The environment of this process: what is read of it, and what is set for libraries that read it.

Nobody else looks there, but the registry of parts, which stands below this and reads
``FEDSWEEP_PARTS``.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

Variable = Literal[
    "FEDSWEEP_CACHE", "FEDSWEEP_CONFIG", "FEDSWEEP_DATA", "MLFLOW_TRACKING_URI",
    "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_TMPDIR", "TMPDIR", "PYTHONPATH",
]  # fmt: skip
"""All that is read."""


def variable(name: Variable) -> str:
    """Return what a variable says; nothing where it is not set, or empty."""
    return os.environ.get(name, "")


def cache_folder() -> str:
    """Return the folder of what is made once for all of a user's runs; it may begin with ~."""
    return variable("FEDSWEEP_CACHE") or "~/.cache/fedsweep"


def keep(values: Mapping[str, str], *, unless_set: bool = False) -> None:
    """Set variables for this process's life, and for those that it starts."""
    for name, value in values.items():
        if not (unless_set and name in os.environ):
            os.environ[name] = value


@contextmanager
def environ(values: Mapping[str, str], without: Sequence[str] = ()) -> Iterator[None]:
    """Set environment variables, and unset others, for as long as the context lasts."""
    before = {name: os.environ.get(name) for name in (*values, *without)}
    for name in without:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
