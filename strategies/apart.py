"""Any Flower strategy on the trained arrays of a model alone; the model's state goes beside it."""

from collections.abc import Iterable
from copy import copy

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsweep.strategies.around import Around
from fedsweep.strategies.base import mean_of_states
from fedsweep.strategies.insides import Shared
from fedsweep.strategies.layout import Layout, joined, part


class StateApart(Around):
    """Have a strategy see trained arrays only: its maths knows of no running statistics.

    Clients are sent whole models and reply whole models. What the strategy does not see is put back
    here: floating buffers are averaged by examples over all replies, the rest is carried as
    :class:`~fedsweep.strategies.layout.Layout` says.

    Parameters
    ----------
    strategy : Strategy
        One that keeps one model, unmodified; a privacy wrapper around one too.
    layout : Layout
        Of the model.
    """

    def __init__(self, strategy: Strategy, layout: Layout) -> None:
        super().__init__(strategy)
        self.layout = layout
        self._key, self._weight = keys_of(strategy)
        self._arrays = ArrayRecord()  # of the round that was configured last

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy choose what to send, and complete the models."""
        self._arrays = arrays
        trained = self.layout.trained_of(arrays)
        messages = super().configure_train(server_round, trained, config, grid)
        return self._completed(messages, arrays)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy aggregate the trained arrays, and average the state beside them."""
        replies = list(replies)
        arrays, metrics = super().aggregate_train(server_round, [self._reduced(r) for r in replies])
        valid = [reply for reply in replies if not reply.has_error()]
        if arrays is None:
            return None, metrics
        if not valid:  # it made a model of nobody's, as noise may: the state stays
            return joined(self._arrays, self._arrays, arrays), metrics
        states = [
            self.layout.state_of(reply.content.array_records[self._name(reply)]) for reply in valid
        ]
        state = mean_of_states(valid, states, self._weight, self.layout)
        return joined(self._arrays, state, arrays), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy choose what to send, and complete the models."""
        trained = self.layout.trained_of(arrays)
        messages = super().configure_evaluate(server_round, trained, config, grid)
        return self._completed(messages, arrays)

    def _completed(self, messages: Iterable[Message], arrays: ArrayRecord) -> list[Message]:
        """Add the state to each message's model: messages that share a content still share one."""
        messages = list(messages)
        state = self.layout.state_of(arrays)

        def complete(sent: RecordDict) -> RecordDict:
            record = sent.array_records.get(self._key)
            whole = joined(arrays, state, record) if record else None
            return RecordDict({**sent, self._key: whole} if whole else dict(sent))

        completed = Shared(complete)
        for message in messages:
            message.content = completed(message.content)
        return messages

    def _reduced(self, reply: Message) -> Message:
        """Return a reply whose model holds the trained arrays alone."""
        if reply.has_error() or not reply.content.array_records:
            return reply
        reduced, name = copy(reply), self._name(reply)
        record = part(reply.content.array_records[name], self.layout.trained)
        reduced.content = RecordDict({**reply.content, name: record})
        return reduced

    def _name(self, reply: Message) -> str:
        """Return which of a reply's records is its model: an only one may have any name."""
        records = reply.content.array_records
        return self._key if self._key in records else next(iter(records))


def keys_of(strategy: Strategy) -> tuple[str, str]:
    """Return where a strategy, or the one it wraps, has a message's model and a reply's weight."""
    while isinstance(inner := getattr(strategy, "strategy", None), Strategy):
        strategy = inner
    return getattr(strategy, "arrayrecord_key", "arrays"), getattr(
        strategy, "weighted_by_key", "num-examples"
    )
