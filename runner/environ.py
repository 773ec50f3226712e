"""Environment variables set for a while: what other libraries read when they start something."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager


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
