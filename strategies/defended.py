"""A method whose replies a defence changes before it takes its mean of them."""

from collections.abc import Callable, Iterable, Sequence
from copy import copy

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsweep.parts.code import check_shape
from fedsweep.strategies.around import Around
from fedsweep.strategies.layout import is_floating
from fedsweep.strategies.updates import Rows, moved, update_rows

Defend = Callable[[Rows], Rows]
"""Makes updates (C, P) of updates (C, P)."""


class Defended(Around):
    """Any Flower strategy that is given, in place of the clients' models, what a defence made.

    Parameters
    ----------
    strategy : Strategy
        One whose clients are sent one model, and send it back.
    defend : callable
        The defence.
    """

    def __init__(self, strategy: Strategy, defend: Defend) -> None:
        super().__init__(strategy)
        self._defend = defend
        self._start = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note what the clients are sent."""
        self._start = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the wrapped strategy aggregate what the defence makes of the replies."""
        names = [name for name, array in self._start.items() if is_floating(array)]
        made = defended(list(replies), self._start, names, self._defend)
        return super().aggregate_train(server_round, made)


def defended(
    replies: Sequence[Message], start: ArrayRecord, names: Sequence[str], defend: Defend
) -> list[Message]:
    """Return replies of the models that a defence makes of those which began with ``start``.

    Errors, and updates that are not finite, stay as they are.
    """
    models = {
        place: next(iter(reply.content.array_records.values()))
        for place, reply in enumerate(replies)
        if reply.has_content() and reply.content.array_records
    }
    made = list(replies)
    if not models:
        return made
    rows_CP = update_rows(list(models.values()), start, names)
    finite_C = np.asarray(np.isfinite(rows_CP).all(axis=1))
    if not finite_C.any():
        return made
    places = [place for place, good in zip(models, finite_C, strict=True) if good]
    updates_CP = rows_CP[finite_C]
    defended_CP = np.asarray(defend(updates_CP))
    check_shape(defend, defended_CP.shape, updates_CP.shape, f"updates {updates_CP.shape}")
    for place, row_P in zip(places, defended_CP, strict=True):
        reply = copy(replies[place])
        key = next(iter(reply.content.array_records))
        arrays = {**models[place], **moved(start, row_P, names)}
        reply.content = RecordDict({**reply.content, key: ArrayRecord(arrays)})
        made[place] = reply
    return made
