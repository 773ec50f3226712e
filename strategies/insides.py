"""What strategies take of Flower beyond its public names; the engine's share is in its own file.

Public are ``flwr.app``, ``flwr.serverapp``, ``flwr.serverapp.strategy`` and ``flwr.clientapp``,
which every file may import. All else comes from here or from ``runner/engine/flower.py``, and each
thing in them has a contract test (``tests/contract/test_flower_insides.py``): another release of
Flower is looked at there alone.
"""

from collections.abc import Callable, ValuesView
from typing import Generic, TypeVar

from flwr.serverapp.exception import AggregationError, InconsistentMessageReplies
from flwr.serverapp.strategy.strategy_utils import (
    aggregate_arrayrecords,
    aggregate_metricrecords,
    sample_nodes,
    validate_message_reply_consistency,
)
from flwr.supercore import log

__all__ = [
    "AggregationError",
    "InconsistentMessageReplies",
    "Shared",
    "aggregate_arrayrecords",
    "aggregate_metricrecords",
    "log",
    "sample_nodes",
    "validate_message_reply_consistency",
]

T = TypeVar("T")
V = TypeVar("V")


class Shared(Generic[T, V]):
    """What is made of objects that messages share, once per object.

    Flower's FedAvg puts one content, with one model, into all messages of a round. Objects are
    told apart by identity: records compare by value, which would read all their arrays. They are
    kept, so that no id is used anew.

    Parameters
    ----------
    make : callable
        Makes what stands for an object.
    """

    def __init__(self, make: Callable[[T], V]) -> None:
        self._make = make
        self._known: dict[int, T] = {}
        self._made: dict[int, V] = {}

    def __call__(self, thing: T) -> V:
        """Return what was made of an object."""
        key = id(thing)
        if key not in self._known:
            self._known[key], self._made[key] = thing, self._make(thing)
        return self._made[key]

    def values(self) -> ValuesView[V]:
        """Return what was made so far, in the order of the objects' first use."""
        return self._made.values()
