"""Replies that are changed on their way, before anybody else reads them."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from flwr.app import ArrayRecord, Message, RecordDict

from fedsweep.pace.policies import Delivery, Flight, Replying
from fedsweep.strategies.base import Resumable, State

Sent = Mapping[int, RecordDict]
"""Node -> what it was sent."""


@dataclass(frozen=True)
class Changing(Delivery):
    """A delivery whose replies are changed first: each of them reaches this process."""

    inner: Delivery

    def sending(self, messages: list[Message]) -> list[Message]:
        """Return what is sent to the clients in place of the tasks' messages."""
        return messages

    @abstractmethod
    def change(self, number: int, sent: Sent, replies: Sequence[Message]) -> None:
        """Change the replies of a round in place."""

    def replies(
        self,
        grid: Replying,
        taken: Sequence[Flight],
        number: int,
        timeout: float | None,
        now: ArrayRecord,
    ) -> list[Message]:
        """Return the replies as the inner delivery has them, of those that were changed."""
        grid.weight_key = None  # hosts average none: each is read here
        changing = _ChangingGrid(grid, self.sending, partial(self.change, number))
        return self.inner.replies(changing, taken, number, timeout, now)

    def state_dict(self) -> State:
        """Return what a checkpoint keeps of the inner delivery."""
        return self.inner.state_dict() if isinstance(self.inner, Resumable) else {}

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        if isinstance(self.inner, Resumable):
            self.inner.load_state_dict(state)


class _ChangingGrid(Replying):
    """A grid whose replies are changed as they come."""

    def __init__(
        self,
        grid: Replying,
        sending: Callable[[list[Message]], list[Message]],
        change: Callable[[Sent, Sequence[Message]], None],
    ) -> None:
        self._grid, self._sending, self._change = grid, sending, change
        self.weight_key = None

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and return their replies, changed."""
        messages = list(messages)
        sent = {message.metadata.dst_node_id: message.content for message in messages}
        came = self._grid.send_and_receive(self._sending(messages), timeout=timeout)
        self._change(sent, came)
        return came
