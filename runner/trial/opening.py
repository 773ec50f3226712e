"""Compressed replies are opened before anybody reads them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message

from fedsweep.client.compressing import open_reply
from fedsweep.pace.policies import Delivery, Flight, Replying
from fedsweep.scenario.compression import Compressor
from fedsweep.strategies.base import Resumable, State
from fedsweep.strategies.layout import Layout


@dataclass(frozen=True)
class Opened(Delivery):
    """A delivery whose replies are compressed: each reaches this process, and is opened here."""

    inner: Delivery
    compressor: Compressor
    layout: Layout

    def replies(
        self,
        grid: Replying,
        taken: Sequence[Flight],
        number: int,
        timeout: float | None,
        now: ArrayRecord,
    ) -> list[Message]:
        """Return the replies as the inner delivery has them, of models."""
        grid.weight_key = None  # hosts can't average what they can't read
        opening = _Opening(grid, self.compressor, self.layout)
        return self.inner.replies(opening, taken, number, timeout, now)

    def state_dict(self) -> State:
        """Return what a checkpoint keeps of the inner delivery."""
        return self.inner.state_dict() if isinstance(self.inner, Resumable) else {}

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        if isinstance(self.inner, Resumable):
            self.inner.load_state_dict(state)


class _Opening(Replying):
    """A grid whose replies are opened."""

    def __init__(self, grid: Replying, compressor: Compressor, layout: Layout) -> None:
        self._grid, self._compressor, self._layout = grid, compressor, layout
        self.weight_key = None

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and return their replies, opened."""
        messages = list(messages)
        start = {m.metadata.dst_node_id: m.content.array_records["arrays"] for m in messages}
        came = self._grid.send_and_receive(messages, timeout=timeout)
        for reply in came:
            if reply.has_content():
                sent = start[reply.metadata.src_node_id]
                open_reply(self._compressor, self._layout, sent, reply)
        return came
