"""Clipping on the clients: what leaves a client is an update of length S at most.

It stands in place of Flower's mods, which divide by zero where an update is zero, and leave arrays
of no dimension as they are.
"""

import numpy as np
from flwr.app import ArrayRecord, Context, Message

from fedsweep.client.messages import message_config
from fedsweep.engine.flower import ClientAppCallable
from fedsweep.strategies.arrays import write_array
from fedsweep.strategies.privacy import NORM_KEY, WITHIN_KEY, clip


def clipping_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Clip the update of a training reply to the norm that the server sent, and tell if it fitted.

    Raises
    ------
    ValueError
        If the server sent no norm.
    """
    config = message_config(message)
    if NORM_KEY not in config:
        raise ValueError(f"clipping on the clients needs '{NORM_KEY}' in the config; send it")
    norm = float(config[NORM_KEY])  # type: ignore[arg-type]
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    sent, trained = (m.content.array_records["arrays"] for m in (message, reply))
    update, length = clip(sent, trained, norm)
    clipped = ArrayRecord({**trained})
    for key, value in update.items():
        start = sent[key].numpy()
        clipped[key] = write_array(np.asarray(start + value, start.dtype))
    reply.content["arrays"] = clipped
    reply.content.metric_records["metrics"][WITHIN_KEY] = int(length <= norm)
    return reply
