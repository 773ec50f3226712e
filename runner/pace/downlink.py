"""Models on their way to the clients, compressed: differences to the last model that was sent.

With x the server's model and w the last one that it sent, it sends C(x - w), and all clients go on
from the same

    w <- w + s C(x - w)

so that what was lost comes with the next difference (EF21-P: Gruntkowska, Tyurin and Richtarik
2023, ICML, arXiv:2209.15218). s is the best factor, <C, x - w> / ||C||^2, and is sent beside it:
then w never moves away from x, whatever C is; it is 1 where C is a part of the difference. A client
that was not asked for some models is sent the differences since its own one, or all of w where that
is less, as is one that has none (Sattler et al. 2019, arXiv:1903.02891).

What clients moved is taken from w, and given to x: see ``runner/trial/opening.py``. Shapes: P
trained parameters.
"""

from collections.abc import Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedsweep.errors import TrialError
from fedsweep.links import TRAVELS
from fedsweep.pace.clock import OPENED, Size
from fedsweep.pace.policies import AllOfIt, Workload
from fedsweep.scenario.compression import Compressor, Parts, Vector, decoded
from fedsweep.seeding import derive_seed
from fedsweep.strategies.base import Resumable, State, int_keys, string_keys
from fedsweep.strategies.insides import Shared
from fedsweep.strategies.layout import Layout

MODEL = "arrays"
"""Record of a message that holds the model."""


def difference(compressor: Compressor, wanted_P: Vector, seed: int) -> tuple[Parts, Vector]:
    """Return what is sent of a difference (P,), and the one that it stands for, float32."""
    parts = compressor.encode(wanted_P, seed)
    told_P = decoded(compressor, parts, len(wanted_P), seed).astype(np.float64)
    square = float((told_P * told_P).sum())
    scale = np.float32((told_P * wanted_P).sum() / square if square > 0 else 1.0)
    return {**parts, "scale": np.array([scale])}, np.asarray(told_P * scale, np.float32)


class DownLink(Workload):
    """What clients are sent in place of the server's model, and how many bytes of it travel.

    A message keeps the server's model and has beside it what its client makes of what it is sent.

    Parameters
    ----------
    compressor : Compressor
        C.
    layout : Layout
        Trained arrays are compressed, the others travel as they are.
    size : callable
        Returns the bytes of a content's arrays.
    seed : int
        Of what is drawn.
    inner : Workload, optional
        How much of their work clients are asked to do; all of it without one.
    """

    def __init__(
        self,
        compressor: Compressor,
        layout: Layout,
        size: Size,
        seed: int,
        inner: Workload | None = None,
    ) -> None:
        self._compressor, self._layout, self._size, self._seed = compressor, layout, size, seed
        self._inner: Workload = inner or AllOfIt()
        self._version = -1  # of the model that was sent last
        self._sent = ArrayRecord()  # w
        self._total = 0  # bytes of all differences so far
        self._asked: dict[int, int] = {}  # node -> the total as it was asked
        self._has: dict[int, int] = {}  # node -> the total as of the model that it has

    def asked(self, messages: Sequence[Message], version: int) -> Sequence[Message]:
        """Return the messages, with what is made of them by their clients.

        Raises
        ------
        TrialError
            Clients are not all sent one model.
        """
        if messages and version != self._version:
            self._send(_one_model(messages), version)
        whole, state = self._bytes(self._sent), self._bytes(self._layout.state_of(self._sent))
        contents: dict[tuple[int, int], RecordDict] = {}
        found = []
        for message in messages:
            node = message.metadata.dst_node_id
            behind = self._total - self._has[node] + state if node in self._has else whole
            nbytes = min(whole, behind)
            key = id(message.content), nbytes
            if key not in contents:
                travels = ConfigRecord({MODEL: nbytes})
                contents[key] = RecordDict(
                    {**message.content, OPENED: self._sent, TRAVELS: travels}
                )
            found.append(Message(contents[key], node, message.metadata.message_type))
            self._asked[node] = self._total
        return self._inner.asked(found, version)

    def took(self, node: int) -> None:
        """Take in that a client has what it was sent: it replied."""
        self._has[node] = self._asked[node]

    def _send(self, model: ArrayRecord, version: int) -> None:
        """Send all clients the difference to a model; the first one is sent as it is."""
        if self._version < 0:
            self._sent = model
        else:
            last_P = self._layout.vector(self._sent)
            seed = derive_seed(self._seed, "down", version)
            parts, moved_P = difference(self._compressor, self._layout.vector(model) - last_P, seed)
            arrays = {part: Array(np.asarray(values)) for part, values in parts.items()}
            self._total += self._bytes(ArrayRecord(arrays))
            self._sent = self._layout.with_trained(model, last_P + moved_P)
        self._version = version

    def _bytes(self, record: ArrayRecord) -> int:
        return self._size(RecordDict({MODEL: record}))

    def state_dict(self) -> State:
        """Return what a checkpoint keeps."""
        return {
            "version": self._version,
            "sent": self._sent,
            "total": self._total,
            "asked": string_keys(self._asked),
            "has": string_keys(self._has),
            "inner": self._inner.state_dict() if isinstance(self._inner, Resumable) else {},
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        self._version, self._sent, self._total = state["version"], state["sent"], state["total"]
        self._asked, self._has = int_keys(state["asked"]), int_keys(state["has"])
        if isinstance(self._inner, Resumable):
            self._inner.load_state_dict(state["inner"])


def as_opened(messages: Sequence[Message]) -> list[Message]:
    """Return messages with what clients make of what they are sent, for the server's model."""
    opened: Shared[RecordDict, RecordDict] = Shared(_opened)
    return [
        Message(opened(each.content), each.metadata.dst_node_id, each.metadata.message_type)
        for each in messages
    ]


def _opened(content: RecordDict) -> RecordDict:
    records = {name: value for name, value in content.items() if name != OPENED}
    return RecordDict({**records, MODEL: content[OPENED]})


def _one_model(messages: Sequence[Message]) -> ArrayRecord:
    """Return the model that all messages carry."""
    models = {id(found): found for m in messages if (found := m.content.get(MODEL)) is not None}
    first, *others = models.values() or [None]
    if not isinstance(first, ArrayRecord) or any(other != first for other in others):
        raise TrialError(
            "compression.down=true needs clients that are all sent one model, and those of a round "
            "are not; set compression.down=false or another strategy"
        )
    return first
