"""The virtual clock: how long a client's task takes on its device, and whether a reply comes of it.

A task takes ``bytes down / downlink + FLOP / rate + bytes up / uplink``. Bytes are those of the
arrays in the message and in its reply; FLOP are the forward pass's, counted once, times 3 for an
example that is trained on. Evaluation takes no virtual time: it is a measurement.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast
from weakref import ReferenceType, ref

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from fedsweep.links import TRAVELS
from fedsweep.pace.policies import Span
from fedsweep.scenario.device import DeviceTable
from fedsweep.seeding import derive_seed
from fedsweep.strategies.arrays import records_of
from fedsweep.strategies.base import State
from fedsweep.strategies.clients import LEAST, METHOD, Effort, Values, training_steps
from fedsweep.strategies.registry import STRATEGIES

TRAINING_PASSES = 3
"""Forward passes that a step on an example costs: itself, and a backward pass of two."""

OPENED = "opened"
"""Record of a message in which its client finds the model that it makes of what it is sent."""

Size = Callable[[RecordDict], int]
"""Returns the bytes of a content's arrays."""


@dataclass(frozen=True)
class Parts:
    """What a task's time is made of, in virtual seconds."""

    down_s: float
    compute_s: float
    up_s: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.down_s + self.compute_s + self.up_s


@dataclass(frozen=True)
class Asked:
    """What a content asks of whoever gets it; read once: Flower's records are slow to read."""

    kind: str  # decides how large a reply is: the method, and what is sent
    nbytes: int
    config: Values
    models: int


class AskedBy:
    """What contents ask, by the object: the messages of a round share one.

    Parameters
    ----------
    size : callable
        Returns the bytes of a content's arrays, without fetching them.
    """

    def __init__(self, size: Size) -> None:
        self._size = size
        self._known: dict[int, tuple[ReferenceType[RecordDict], Asked]] = {}

    def __call__(self, message: Message) -> Asked:
        """Return what a message asks."""
        content, key = message.content, id(message.content)
        known = self._known.get(key)
        if known is None:
            gone = ref(content, lambda _: self._known.pop(key, None))
            known = self._known[key] = gone, self._read(content)
        return known[1]

    def _read(self, content: RecordDict) -> Asked:
        configs = records_of(content, ConfigRecord)
        config = dict(configs.get("config", ConfigRecord()))
        arrays = records_of(content, ArrayRecord)
        arrays.pop(OPENED, None)
        sizes = {name: self._size(RecordDict({"": own})) for name, own in arrays.items()}
        kind = " ".join(map(str, [config.get(METHOD, ""), *sizes.values()]))
        travels = configs.get(TRAVELS, ConfigRecord())
        nbytes = sum(int(cast(int, travels.get(name, size))) for name, size in sizes.items())
        return Asked(kind, nbytes, config, len(arrays))


@dataclass(frozen=True, eq=False)
class TaskWork:
    """What clients' tasks have them compute.

    Parameters
    ----------
    forward_flop : float
        FLOP of the network's forward pass on one example.
    least : int
        Examples that a batch of the network has at least.
    examples_N : (N,) int
        Training examples of each client.
    """

    forward_flop: float
    least: int
    examples_N: NDArray[np.int64]

    def effort(self, asked: Asked, node: int) -> Effort:
        """Return the examples that a task trains on and scores, by what its method says."""
        part = STRATEGIES.client_part(str(asked.config.get(METHOD, "")))
        return part.effort(self._told(asked), int(self.examples_N[node - 1]), asked.models)

    def steps(self, asked: Asked, node: int) -> int:
        """Return the optimizer's steps of a task."""
        return training_steps(self._told(asked), int(self.examples_N[node - 1]))

    def flop(self, asked: Asked, node: int) -> float:
        """Return the FLOP of a task."""
        return self._flop(self.effort(asked, node))

    def flop_of_all(self, asked: Asked) -> NDArray[np.float64]:
        """Return the FLOP of a task that asks this for each client, (N,)."""
        _, first, places_N = np.unique(self.examples_N, return_index=True, return_inverse=True)
        flop = [self.flop(asked, int(client) + 1) for client in first]
        return np.array(flop)[places_N]

    def _told(self, asked: Asked) -> Values:
        return asked.config if self.least == 1 else {**asked.config, LEAST: self.least}

    def _flop(self, effort: Effort) -> float:
        return self.forward_flop * (TRAINING_PASSES * effort.trained + effort.scored)


class DeviceClock:
    """The clock of clients' devices.

    Parameters
    ----------
    table : DeviceTable
        The devices.
    work : TaskWork
        What tasks have them compute.
    size : callable
        Returns the bytes of a content's arrays, without fetching them.
    seed : int
        The trial's: of who vanishes.
    dropout : float
        Chance that a client vanishes during a task.
    """

    def __init__(
        self,
        table: DeviceTable,
        work: TaskWork,
        size: Size,
        *,
        seed: int = 0,
        dropout: float = 0.0,
    ) -> None:
        self.table, self.work = table, work
        self.asked, self._seed, self._dropout = AskedBy(size), seed, dropout
        self._reply_bytes: dict[str, int] = {}
        self._usual: Asked | None = None  # by the last task

    # What replies hold: known by trying one of each kind

    def unknown(self, messages: Sequence[Message]) -> list[Message]:
        """Return a message of each kind whose reply's bytes are not known yet."""
        kinds = {self.asked(message).kind: message for message in reversed(messages)}
        return [message for kind, message in kinds.items() if kind not in self._reply_bytes]

    def know(self, message: Message, reply_bytes: int) -> None:
        """Take in how many bytes the replies to messages of a kind have."""
        self._reply_bytes[self.asked(message).kind] = reply_bytes

    # Time

    def parts(self, message: Message) -> Parts:
        """Return what the time of a task is made of, if nothing interrupts it."""
        asked, node = self.asked(message), message.metadata.dst_node_id
        return Parts(
            asked.nbytes / float(self.table.down_N[node - 1]),
            self.work.flop(asked, node) / float(self.table.rate_N[node - 1]),
            self._reply_bytes[asked.kind] / float(self.table.up_N[node - 1]),
        )

    def trained(self, message: Message) -> float:
        """Return the examples that a task trains on."""
        return self.work.effort(self.asked(message), message.metadata.dst_node_id).trained

    def steps(self, message: Message) -> int:
        """Return the optimizer's steps of a task."""
        return self.work.steps(self.asked(message), message.metadata.dst_node_id)

    def takes(self, message: Message, now: float, place: int) -> Span:
        """Return how long a task takes that begins now, or until its client vanishes.

        A client vanishes when its time to be there is over; one that is asked while it is away is
        lost at once. Beside that it drops out by chance, anywhere in its task.
        """
        client, seconds = message.metadata.dst_node_id - 1, self.parts(message).seconds
        self._usual = self.asked(message)
        leaves = self.table.presence.until(client, now)
        if self._dropout:
            draws = np.random.default_rng(derive_seed(self._seed, "dropout", place)).random(2)
            if draws[0] < self._dropout:
                leaves = min(leaves, now + float(draws[1]) * seconds)
        if leaves < now + seconds:
            return Span(leaves - now, arrives=False)
        return Span(seconds)

    @property
    def knows(self) -> bool:
        """Whether there was a task yet, from which others' times are known."""
        return self._usual is not None

    def expected_s(self) -> NDArray[np.float64]:
        """Return how long a task as the last one takes each client, (N,): its latency."""
        assert self._usual is not None
        compute_N = self.work.flop_of_all(self._usual) / self.table.rate_N
        up_N = self._reply_bytes[self._usual.kind] / self.table.up_N
        return np.asarray(self._usual.nbytes / self.table.down_N + compute_N + up_N)

    # A cluster's server

    def serving_s(self, server: int, members: Sequence[int], nbytes: int) -> float:
        """Return how long a client takes to serve its cluster once.

        It receives its members' updates over its downlink, one after the other, averages them (2
        FLOP for a number of 4 bytes, and member), and sends the mean up.

        Parameters
        ----------
        server, members : int, sequence of int
            Node ids; the server's own update stays at home.
        nbytes : int
            Of a model.
        """
        client, others = server - 1, len(set(members) - {server})
        return (
            others * nbytes / float(self.table.down_N[client])
            + 2 * (nbytes / 4) * len(members) / float(self.table.rate_N[client])
            + nbytes / float(self.table.up_N[client])
        )

    def state_dict(self) -> State:
        """Return what a checkpoint keeps."""
        usual = None if self._usual is None else vars(self._usual)
        return {"reply_bytes": dict(self._reply_bytes), "usual": usual}

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        self._reply_bytes, usual = dict(state["reply_bytes"]), state["usual"]
        self._usual = None if usual is None else Asked(**usual)
