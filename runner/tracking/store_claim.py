"""Who writes to a server: one driver at a time runs something, from any machine and folder.

A lock in an output folder meets nobody who writes from another one. On a server each driver sets a
tag of its own on the experiment, and then looks for those of others: of two that start at once, at
least the one that came later sees the other, however long either takes.
"""

import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from fedsweep.environ import environ
from fedsweep.errors import RunnerError
from fedsweep.tracking.store import AT_ONCE, Store, unusable

_log = logging.getLogger("fedsweep.tracking")
_PREFIX = "fedsweep.claim"
_WAIT_S, _LOOK_S = 5.0, 0.2
"""How long one that came first waits for others to withdraw, and how often it looks."""


@contextmanager
def claim_in_store(
    store: Store, what: str, driver: str, refuse: Callable[[str, str], None]
) -> Iterator[None]:
    """Be the only one who runs something in a store, for as long as the context lasts.

    Where several see each other, the one with the smallest tag stays and the others withdraw. One
    that runs already does not: then all others do. A tag whose driver is gone is removed.

    Parameters
    ----------
    what : str
        What is run, such as ``sweep 'default'``.
    driver : str
        This process: see :func:`fedsweep.drivers.driver_name`.
    refuse : Callable[[str, str], None]
        Raises the RunnerError for a driver that runs it since a time; returns if that one is gone.

    Raises
    ------
    RunnerError
        Another driver runs it.
    TrackingError
        The store does not take the tag.
    """
    prefix = f"{_PREFIX}.{hashlib.sha256(what.encode()).hexdigest()[:12]}."
    ours = f"{prefix}{uuid.uuid4().hex[:16]}"
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    try:
        with environ(AT_ONCE):
            _set(store, ours, f"{driver}\n{since}")
            _wait_for_turn(store, prefix, ours, refuse)
        yield
    finally:
        with environ(AT_ONCE):
            _drop(store, ours)


def _wait_for_turn(
    store: Store, prefix: str, ours: str, refuse: Callable[[str, str], None]
) -> None:
    """Return once nobody else claims what we claim."""
    deadline = time.monotonic() + _WAIT_S
    while others := _others(store, prefix, ours):
        for tag, value in others.items():
            driver, _, since = value.partition("\n")
            try:
                refuse(driver, since)
            except RunnerError:
                if tag < ours or time.monotonic() > deadline:
                    raise
            else:
                _drop(store, tag)
        time.sleep(_LOOK_S)


def _others(store: Store, prefix: str, ours: str) -> dict[str, str]:
    try:
        tags = store.client.get_experiment(store.experiment_id).tags
    except Exception as error:  # whatever the server said
        raise unusable(store, error) from error
    return {
        tag: value
        for tag, value in tags.items()
        if tag.startswith(prefix) and tag != ours and value
    }


def _set(store: Store, tag: str, value: str) -> None:
    try:
        store.client.set_experiment_tag(store.experiment_id, tag, value)
    except Exception as error:  # whatever the server said
        raise unusable(store, error) from error


def _drop(store: Store, tag: str) -> None:
    """Remove a tag; where the store is silent, who comes next sees that its driver is gone."""
    for remove in (
        lambda: store.client.delete_experiment_tag(store.experiment_id, tag),
        lambda: store.client.set_experiment_tag(store.experiment_id, tag, ""),  # older servers
    ):
        try:
            remove()
        except Exception as error:  # whatever the server said
            _log.debug("tag %s stays", tag, exc_info=error)
        else:
            return
