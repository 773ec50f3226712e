"""Compressed replies are opened before anybody reads them."""

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import Message

from fedsweep.client.compressing import open_reply
from fedsweep.pace.changing import Changing, Sent
from fedsweep.scenario.compression import Compressor
from fedsweep.strategies.layout import Layout


@dataclass(frozen=True)
class Opened(Changing):
    """A delivery whose replies are compressed: hosts can't average what they can't read."""

    compressor: Compressor
    layout: Layout

    def change(self, number: int, sent: Sent, replies: Sequence[Message]) -> None:
        """Put models into the place of what was sent of them."""
        del number
        for reply in replies:
            if reply.has_content():
                start = sent[reply.metadata.src_node_id].array_records["arrays"]
                open_reply(self.compressor, self.layout, start, reply)
