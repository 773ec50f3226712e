"""Compressed models and replies are opened before anybody reads them."""

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import Message

from fedsweep.client.compressing import open_reply
from fedsweep.pace.changing import Changing, Sent
from fedsweep.pace.downlink import DownLink, as_opened
from fedsweep.scenario.compression import Compressor
from fedsweep.strategies.layout import Layout


@dataclass(frozen=True)
class Opened(Changing):
    """A delivery whose replies are compressed: hosts can't average what they can't read.

    Where models are compressed on their way down too, clients begin with what they make of them,
    and what they moved is added to the server's own model: its errors are none of theirs.
    """

    compressor: Compressor
    layout: Layout
    down: DownLink | None = None

    def sending(self, messages: list[Message]) -> list[Message]:
        """Return the messages with the models that clients have."""
        return as_opened(messages) if self.down else messages

    def change(self, number: int, sent: Sent, replies: Sequence[Message]) -> None:
        """Put models into the place of what was sent of them."""
        del number
        for reply in replies:
            if reply.has_content():
                node = reply.metadata.src_node_id
                start = sent[node].array_records["arrays"]
                open_reply(self.compressor, self.layout, start, reply)
                if self.down:
                    self.down.took(node)
