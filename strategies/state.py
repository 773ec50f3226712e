"""The state of any strategy between two rounds, taken out and put back."""

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


def _is_data(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_data(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_data, value))
    return value is None or isinstance(
        value, bool | int | float | str | np.generic | np.ndarray | ArrayRecord
    )
