"""Clients that tell nothing of their data beside their updates."""

from copy import copy

from flwr.app import Context, Message, MetricRecord, RecordDict

from fedsweep.engine.flower import ClientAppCallable
from fedsweep.strategies.privacy import WITHIN_KEY


def silence_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Leave losses, accuracies and the number of examples out of a training reply.

    All clients weigh 1. Whether an update had to be clipped stays, where the server asks: the noise
    is for that too.
    """
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    told = reply.content.metric_records["metrics"]
    kept = {key: told[key] for key in (WITHIN_KEY,) if key in told}
    silent = copy(reply)  # the one that is silent is not the one whose work is measured
    metrics = MetricRecord({"num-examples": 1, **kept})
    silent.content = RecordDict({**reply.content, "metrics": metrics})
    return silent
