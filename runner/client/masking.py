"""Clients send what they trained as masked integers: a server can read nothing but their sum."""

from copy import copy
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict

from fedsweep.client.process import ClientProcess
from fedsweep.engine.flower import ClientAppCallable, Mod
from fedsweep.scenario.masking import MASKED, Masking, asked_of, summed_names
from fedsweep.strategies.arrays import write_array
from fedsweep.strategies.candidates import began_with
from fedsweep.strategies.updates import update_rows


def masking_mod(masking: Masking, client: ClientProcess) -> Mod:
    """Return the mod that puts masked integers into the place of a training reply's model.

    It has to be the outermost around training: what other mods make of a reply is masked.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        sent, told = message.content, reply.content
        [(name, trained)] = told.array_records.items()
        began = began_with(sent, told)
        start = sent.array_records[began]
        if start.keys() != trained.keys():
            raise ValueError("secure aggregation needs clients that send back what they were sent")
        node, models = message.metadata.dst_node_id, list(sent.array_records)
        nodes, number = asked_of(sent, node)
        update_P = update_rows([trained], start, summed_names(client.layout, start))[0]
        weight = float(cast(float, told.metric_records["metrics"]["num-examples"]))
        which = models.index(began), len(models)
        numbers = masking.numbers(update_P, weight, *which, node, number)
        hidden = masking.masked(numbers, node, nodes, number)
        other = copy(reply)
        arrays = ArrayRecord({MASKED: write_array(np.asarray(hidden))})
        other.content = RecordDict({**told, name: arrays})
        return other

    return mod
