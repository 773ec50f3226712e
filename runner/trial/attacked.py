"""Attackers that know all updates put theirs in place, before anybody else reads the replies.

They act between the clients and whatever follows: staleness, privacy, defences and the strategy
treat what they send as an update that was trained. What a client answers to queries for a
clustering is its own: attackers forge updates alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedsweep.data.adversary import Adversary
from fedsweep.pace.changing import Changing, Sent
from fedsweep.scenario.attack import Rows
from fedsweep.strategies.layout import Layout


@dataclass(frozen=True)
class Attacked(Changing):
    """A delivery in which attackers send what they make of all replies."""

    adversary: Adversary
    layout: Layout

    def change(self, number: int, sent: Sent, replies: Sequence[Message]) -> None:
        """Forge the attackers' replies."""
        forge(self.adversary, self.layout, number, sent, replies)


def forge(
    adversary: Adversary,
    layout: Layout,
    number: int,
    sent: Sent,
    replies: Sequence[Message],
) -> None:
    """Put forged models into the place of those that attackers trained.

    Each update is that from the model which its client began with, so that attackers in a cluster,
    or with an older model, move that one. Updates that are not finite are no part of what they
    know; what of a model is not trained stays as it is.

    Parameters
    ----------
    number : int
        The round.
    sent : mapping
        What each node was sent.
    replies : sequence of Message
        Of the whole cohort; those of attackers are changed in place.
    """
    usable = [reply for reply in replies if reply.has_content() and reply.content.array_records]
    usable.sort(key=lambda reply: reply.metadata.src_node_id)
    own = [reply for reply in usable if reply.metadata.src_node_id in adversary.nodes]
    if not own:
        return
    honest = [reply for reply in usable if reply.metadata.src_node_id not in adversary.nodes]
    starts = [_start(reply, sent[reply.metadata.src_node_id]) for reply in own]
    told = next(iter(own[0].content.array_records.values()))
    names = [name for name in layout.trained if name in told]

    own_BP = _rows(own, starts, names)
    honest_HP = _rows(
        honest, [_start(reply, sent[reply.metadata.src_node_id]) for reply in honest], names
    ).reshape(-1, own_BP.shape[1])
    honest_HP = honest_HP[np.isfinite(honest_HP).all(axis=1)]

    sent_BP = adversary.forge(number, honest_HP, own_BP)
    for reply, start, row_P in zip(own, starts, sent_BP, strict=True):
        name, model = next(iter(reply.content.array_records.items()))
        forged = _moved(start, names, row_P)
        reply.content[name] = ArrayRecord({key: forged.get(key, model[key]) for key in model})


def _start(reply: Message, sent: RecordDict) -> ArrayRecord:
    """Return the model that a client began with: of several that it was sent, the one it chose."""
    models, told = sent.array_records, reply.content.config_records
    chosen = f"model-{cast(int, told['choice']['cluster'])}" if "choice" in told else ""
    return models.get(chosen, next(iter(models.values())))


def _rows(replies: Sequence[Message], starts: Sequence[ArrayRecord], names: Sequence[str]) -> Rows:
    """Return the updates of replies, float64, a row each."""
    rows = []
    for reply, start in zip(replies, starts, strict=True):
        model = next(iter(reply.content.array_records.values()))
        parts = [_flat(model[name]) - _flat(start[name]) for name in names]
        rows.append(np.concatenate(parts))
    return np.array(rows)


def _flat(array: Array) -> Rows:
    return array.numpy().astype(np.float64).ravel()


def _moved(start: ArrayRecord, names: Sequence[str], update_P: Rows) -> dict[str, Array]:
    """Return the named arrays of a model, moved by an update, in their dtypes."""
    arrays, place = {}, 0
    for name in names:
        shape, size = start[name].shape, prod(start[name].shape)
        values = _flat(start[name]) + update_P[place : place + size]
        arrays[name] = Array(values.reshape(shape).astype(start[name].numpy().dtype))
        place += size
    return arrays
