"""Secure aggregation in a trial: masked replies come in, and the method gets means of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fedsweep.catalog import SUM_CLIPPED, SUM_ERROR, SUM_MISSING, SUM_SMALLEST
from fedsweep.engine.flower import CLIENT_RAISED, make_message
from fedsweep.engine.host import told_of_mean
from fedsweep.pace.policies import Delivery, Flight, Replying, Workload
from fedsweep.records import RoundRecord
from fedsweep.scenario.masking import (
    MASKED,
    Masked,
    Masking,
    NoSumError,
    Sums,
    asked_of,
    asked_with,
    summed_names,
)
from fedsweep.strategies.base import arrays_of
from fedsweep.strategies.insides import Shared
from fedsweep.strategies.layout import Layout
from fedsweep.strategies.updates import moved

WEIGHT = "num-examples"


@dataclass(frozen=True)
class Announced(Workload):
    """Clients are told who is asked with them: those that begin with the same models are summed."""

    inner: Workload

    def asked(self, messages: Sequence[Message], version: int) -> Sequence[Message]:
        """Return the messages, with their cohort; what is shared stays shared."""
        messages = self.inner.asked(messages, version)
        cohorts: dict[tuple[int, ...], list[int]] = {}
        for message in messages:
            cohorts.setdefault(_models(message), []).append(message.metadata.dst_node_id)
        contents: dict[tuple[int, ...], Shared[RecordDict, RecordDict]] = {
            models: Shared(partial(asked_with, nodes)) for models, nodes in cohorts.items()
        }
        return [
            Message(
                contents[_models(message)](message.content),
                message.metadata.dst_node_id,
                message.metadata.message_type,
            )
            for message in messages
        ]


def _models(message: Message) -> tuple[int, ...]:
    """Return which models a client is sent; records compare by value, which would read them."""
    return tuple(id(record) for record in message.content.array_records.values())


@dataclass
class Summed(Delivery):
    """A delivery that opens the sum of masked replies, and gives a method their mean.

    Where clients choose among K models there is a mean for each that somebody chose. A sum that
    can't be opened leaves errors in the place of its replies, and what was not to be seen unseen.

    Parameters
    ----------
    inner : Delivery
        How the masked replies come in.
    masking : Masking
        How they are masked.
    layout : Layout
        Of the models.
    """

    inner: Delivery
    masking: Masking
    layout: Layout
    _metrics: dict[str, float] = field(default_factory=dict, init=False)
    _events: list[str] = field(default_factory=list, init=False)

    def replies(
        self,
        grid: Replying,
        taken: Sequence[Flight],
        number: int,
        timeout: float | None,
        now: ArrayRecord,
    ) -> list[Message]:
        """Return a reply for each sum, and the errors."""
        grid.weight_key = None  # hosts can't average what they can't read
        self._metrics, self._events = {}, []
        sent = {flight.node: flight.message.content for flight in taken}
        came = self.inner.replies(grid, taken, number, timeout, now)
        cohorts: dict[tuple[int, ...], list[Message]] = {}
        for reply in came:
            if reply.has_content():
                node = reply.metadata.src_node_id
                cohorts.setdefault(asked_of(sent[node], node)[0], []).append(reply)
        found: list[Message] = []
        for nodes, replies in cohorts.items():
            found += self._opened(nodes, replies, sent[replies[0].metadata.src_node_id])
        return [*found, *(reply for reply in came if reply.has_error())]

    def settled(self, record: RoundRecord) -> RoundRecord:
        """Return a round's record with what is to be said of its sums."""
        metrics = {**record.metrics, **self._metrics}
        return replace(record, metrics=metrics, events=(*record.events, *self._events))

    def _opened(
        self, nodes: Sequence[int], replies: Sequence[Message], sent: RecordDict
    ) -> list[Message]:
        """Return the means of a cohort, or why there is none."""
        names = list(sent.array_records)
        number = asked_of(sent, nodes[0])[1]
        masked: dict[int, Masked] = {
            reply.metadata.src_node_id: arrays_of(reply)[MASKED].numpy() for reply in replies
        }
        try:
            sums = self.masking.opened(masked, nodes, len(names), number)
        except NoSumError as error:
            why = Error(CLIENT_RAISED, str(error))
            return [make_message(reply.metadata, error=why) for reply in replies]

        by_model: dict[int, list[Message]] = {}
        for reply in replies:
            choice = reply.content.config_records.get("choice", ConfigRecord())
            by_model.setdefault(int(choice.get("cluster", 0)), []).append(reply)  # type: ignore[arg-type]
        self._note(sums, {model: len(of) for model, of in by_model.items()})
        return [
            self._mean(sums, model, of, sent.array_records[names[model]])
            for model, of in sorted(by_model.items())
        ]

    def _mean(
        self, sums: Sums, model: int, replies: Sequence[Message], start: ArrayRecord
    ) -> Message:
        """Return the reply that stands for those of one model."""
        summed = summed_names(self.layout, start)
        arrays = ArrayRecord({**start, **moved(start, sums.means_KP[model], summed)})
        first = replies[0]
        contents = {reply.metadata.src_node_id: reply.content for reply in replies}
        content = RecordDict({next(iter(first.content.array_records)): arrays})
        content.update(told_of_mean(contents, WEIGHT))
        if "choice" in first.content:
            content["choice"] = ConfigRecord({"cluster": model})
        return make_message(first.metadata, content=content)

    def _note(self, sums: Sums, sizes: Mapping[int, int]) -> None:
        """Take in what a cohort's sum tells of itself; of several, the worst and the total."""
        weights_K = sums.weights_K / sums.weights_K.sum()
        mean_P = weights_K @ sums.means_KP
        length = float(np.sqrt(np.mean(mean_P**2)))
        new = {SUM_CLIPPED: sums.clipped} | ({SUM_ERROR: sums.error / length} if length else {})
        for key, value in new.items():
            self._metrics[key] = max(value, self._metrics.get(key, 0.0))
        smallest = float(min(sizes.values()))
        self._metrics[SUM_SMALLEST] = min(smallest, self._metrics.get(SUM_SMALLEST, smallest))
        self._metrics[SUM_MISSING] = self._metrics.get(SUM_MISSING, 0.0) + sums.missing
        if sums.clipped:
            self._events.append(
                f"secure aggregation: {sums.clipped:.2g} of the numbers that clients sent lay "
                "outside the range and were cut off; raise secagg.clipping_range"
            )
        for model, size in sorted(sizes.items()):
            if size == 1:
                self._events.append(
                    f"secure aggregation: one client alone chose model {model}, whose sum is its "
                    "update"
                )
