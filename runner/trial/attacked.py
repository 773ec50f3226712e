"""Attackers that know all updates put theirs in place, before anybody else reads the replies.

They act between the clients and whatever follows: staleness, privacy, defences and the strategy
treat what they send as an update that was trained. What a client answers to queries for a
clustering is its own: attackers forge updates alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, Message

from fedsweep.data.adversary import Adversary
from fedsweep.pace.changing import Changing, Sent
from fedsweep.strategies.base import arrays_of
from fedsweep.strategies.candidates import CANDIDATE, began_with
from fedsweep.strategies.layout import Layout
from fedsweep.strategies.updates import Rows, moved, update_rows


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
    know; what of a model is not trained stays as it is. Where clients train all K models that
    they were sent, their updates of all are one update.

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
    told = arrays_of(own[0])
    names = [name for name in layout.trained if name in told]

    own_BP = _rows(own, sent, names)
    honest_HP = _rows(honest, sent, names).reshape(-1, own_BP.shape[1])
    honest_HP = honest_HP[np.isfinite(honest_HP).all(axis=1)]

    sent_BP = adversary.forge(number, honest_HP, own_BP)
    for reply, row_P in zip(own, sent_BP, strict=True):
        starts = _starts(reply, sent)
        parts = np.split(row_P, len(starts))
        for (name, start), part in zip(starts.items(), parts, strict=True):
            forged, model = moved(start, part, names), reply.content.array_records[name]
            reply.content[name] = ArrayRecord({key: forged.get(key, model[key]) for key in model})


def _starts(reply: Message, sent: Sent) -> dict[str, ArrayRecord]:
    """Return the models that a client began with, by the names of what it made of them.

    It is one in most methods: of several that it was sent the one it chose. One that trained all
    replied them under the names under which it was sent them.
    """
    given, replied = sent[reply.metadata.src_node_id], reply.content.array_records
    if CANDIDATE.format(0) in replied:
        return {name: given.array_records[name] for name in replied}
    return {next(iter(replied)): given.array_records[began_with(given, reply.content)]}


def _rows(replies: Sequence[Message], sent: Sent, names: Sequence[str]) -> Rows:
    """Return the updates of replies, a row each: from the models that its client began with."""
    return np.array([_row(reply, sent, names) for reply in replies])


def _row(reply: Message, sent: Sent, names: Sequence[str]) -> Rows:
    replied = reply.content.array_records
    each = [
        update_rows([replied[name]], start, names)[0]
        for name, start in _starts(reply, sent).items()
    ]
    return np.concatenate(each)
