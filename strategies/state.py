"""The state of any strategy between two rounds, taken out and put back."""

import pickle
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedsweep.strategies.base import Resumable, State


def strategy_state(strategy: Strategy) -> State:
    """Return everything that the next round of a strategy depends on.

    A strategy of ours says it itself (:class:`Resumable`). Flower's own keep their momentum,
    moments, last model and clipping norm in plain attributes, so all attributes that are data are
    taken, the wrapped strategy's too.

    Returns
    -------
    dict
        Nested dicts with string keys, lists, plain values, NumPy arrays and ArrayRecords.
    """
    if isinstance(strategy, Resumable):
        return strategy.state_dict()
    state = {}
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            state[name] = strategy_state(value)
        elif _is_data(value):
            state[name] = value
    return state


def load_strategy_state(strategy: Strategy, state: State) -> None:
    """Put back what :func:`strategy_state` returned into a strategy of the same settings."""
    if isinstance(strategy, Resumable):
        strategy.load_state_dict(state)
        return
    for name, value in state.items():
        inner = getattr(strategy, name, None)  # a method may first set one in a round
        if isinstance(inner, Strategy):
            load_strategy_state(inner, value)
        else:
            setattr(strategy, name, value)


class Unkept:
    """Finds what a strategy changes in its rounds and no checkpoint holds.

    Attributes of a strategy of somebody's own that are no plain data, such as sets, generators, or
    dicts whose keys are numbers: a trial that is gone on with would begin without them.

    Parameters
    ----------
    strategy : Strategy
        Before its first round.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._seen = dict(_others(strategy))
        self._told: set[str] = set()

    def found(self) -> list[str]:
        """Return the attributes that changed since they were looked at, and were not named yet."""
        now = dict(_others(self._strategy))
        changed = [name for name in now if self._seen.get(name) != now[name]]
        new = [name for name in changed if name not in self._told]
        self._seen |= now
        self._told.update(new)
        return new


def _others(strategy: Strategy, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield the attributes that :func:`strategy_state` leaves out, with what they hold now.

    Functions, classes and what can't be written down at all are no state.
    """
    if isinstance(strategy, Resumable):
        return
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            yield from _others(value, f"{prefix}{name}.")
        elif not (_is_data(value) or callable(value)):
            with suppress(Exception):  # whatever somebody's objects raise
                yield f"{prefix}{name}", pickle.dumps(value)


def _is_data(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_data(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_data, value))
    return value is None or isinstance(
        value, bool | int | float | str | np.generic | np.ndarray | ArrayRecord
    )
