"""Clients send their updates compressed, and keep what was lost of them."""

from collections.abc import Sequence
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message

from fedsweep.scenario.compression import Compressor, decoded
from fedsweep.strategies.layout import Layout

STATE = "compression"
"""Record of a client's state that holds its error so far."""
TOLD = "compressed"
"""Record of a reply that holds the seed of what was drawn."""


def compress(
    compressor: Compressor,
    layout: Layout,
    messages: Sequence[Message],
    contexts: Sequence[Context],
    replies: Sequence[Message],
    seeds: Sequence[int],
) -> None:
    """Put what is sent into the place of the models in replies; other arrays stay beside it.

    A model whose update is not finite travels as it is.

    Raises
    ------
    ValueError
        A client was not sent the model that it sends back.
    """
    for message, context, reply, seed in zip(messages, contexts, replies, seeds, strict=True):
        trained = reply.content.array_records.get("arrays")
        start = message.content.array_records.get("arrays")
        if trained is None or start is None or start.keys() != trained.keys():
            raise ValueError("compression needs clients that are sent one model and send it back")
        update_P = layout.vector(trained) - layout.vector(start)
        kept = context.state.array_records.get(STATE)
        if compressor.feedback and kept is not None:
            update_P = update_P + kept["error"].numpy()
        if not np.isfinite(update_P).all():
            continue  # whole, so that it is seen: QSGD would send zeros, top-k what is finite of it
        parts = compressor.encode(update_P, seed)
        if compressor.feedback:
            lost_P = update_P - decoded(compressor, parts, len(update_P), seed)
            context.state[STATE] = ArrayRecord({"error": Array(lost_P)})
        sent = {part: Array(np.asarray(values)) for part, values in parts.items()}
        reply.content["arrays"] = ArrayRecord(sent)
        if layout.has_state:
            reply.content["state"] = layout.state_of(trained)
        reply.content[TOLD] = ConfigRecord({"seed": seed})


def open_reply(compressor: Compressor, layout: Layout, start: ArrayRecord, reply: Message) -> None:
    """Put the model that a compressed reply stands for into its place."""
    if TOLD not in reply.content:
        return
    told = reply.content.array_records["arrays"]
    parts = {part: array.numpy() for part, array in told.items()}
    start_P = layout.vector(start)
    seed = cast(int, reply.content.config_records[TOLD]["seed"])
    model = layout.with_trained(start, start_P + decoded(compressor, parts, len(start_P), seed))
    state = reply.content.array_records.get("state", ArrayRecord())
    reply.content["arrays"] = ArrayRecord({**model, **state})
    for record in ("state", TOLD):
        reply.content.pop(record, None)
