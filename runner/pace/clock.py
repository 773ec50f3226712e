"""The virtual clock: how long a client's task takes on its device, and whether a reply comes of it.

A task takes ``bytes down / downlink + FLOP / rate + bytes up / uplink``. Bytes are those of the
arrays in the message and in its reply; FLOP are the forward pass's, counted once, times 3 for an
example that is trained on. Evaluation takes no virtual time: it is a measurement.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from fedsweep.pace.policies import Span
from fedsweep.scenario.device import DeviceTable
from fedsweep.seeding import derive_seed
from fedsweep.strategies.base import State
from fedsweep.strategies.clients import METHOD, Effort, Values, training_steps
from fedsweep.strategies.registry import STRATEGIES

TRAINING_PASSES = 3
"""Forward passes that a step on an example costs: itself, and a backward pass of two."""

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


@dataclass(frozen=True, eq=False)
class TaskWork:
    """What clients' tasks have them compute.

    Parameters
    ----------
    forward_flop : float
        FLOP of the network's forward pass on one example.
    examples_N : (N,) int
        Training examples of each client.
    """

    forward_flop: float
    examples_N: NDArray[np.int64]

    def effort(self, message: Message) -> Effort:
        """Return the examples that a task trains on and scores, by what its method says."""
        config = message.content.config_records.get("config", ConfigRecord())
        part = STRATEGIES.client_part(str(config.get(METHOD, "")))
        examples = int(self.examples_N[message.metadata.dst_node_id - 1])
        return part.effort(config, examples, len(message.content.array_records))

    def steps(self, message: Message) -> int:
        """Return the optimizer's steps of a task."""
        config = message.content.config_records.get("config", ConfigRecord())
        return training_steps(config, int(self.examples_N[message.metadata.dst_node_id - 1]))

    def flop(self, message: Message) -> float:
        """Return the FLOP of a task."""
        return self._flop(self.effort(message))

    def flop_of_all(self, config: Values, models: int) -> NDArray[np.float64]:
        """Return the FLOP of a task of this config and so many models for each client, (N,)."""
        part = STRATEGIES.client_part(str(config.get(METHOD, "")))
        sizes, places_N = np.unique(self.examples_N, return_inverse=True)
        flop = [self._flop(part.effort(config, int(size), models)) for size in sizes]
        return np.array(flop)[places_N]

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
        self._size, self._seed, self._dropout = size, seed, dropout
        self._reply_bytes: dict[str, int] = {}
        self._usual: dict[str, Any] = {}  # of the last task: bytes down and up, config, models

    # What replies hold: known by trying one of each kind

    def unknown(self, messages: Sequence[Message]) -> list[Message]:
        """Return a message of each kind whose reply's bytes are not known yet."""
        kinds = {self._kind(message): message for message in reversed(messages)}
        return [message for kind, message in kinds.items() if kind not in self._reply_bytes]

    def know(self, message: Message, reply_bytes: int) -> None:
        """Take in how many bytes the replies to messages of a kind have."""
        self._reply_bytes[self._kind(message)] = reply_bytes

    def reply_bytes(self, message: Message) -> int:
        """Return how many bytes the arrays of a message's reply have."""
        return self._reply_bytes[self._kind(message)]

    def _kind(self, message: Message) -> str:
        """Return what decides how large a reply is: the method, and what it is sent."""
        content = message.content
        method = content.config_records.get("config", ConfigRecord()).get(METHOD, "")
        sizes = [self._size(RecordDict({"": own})) for own in content.array_records.values()]
        return " ".join(map(str, [method, *sizes]))

    # Time

    def parts(self, message: Message) -> Parts:
        """Return what the time of a task is made of, if nothing interrupts it."""
        client = message.metadata.dst_node_id - 1
        return Parts(
            self._size(message.content) / float(self.table.down_N[client]),
            self.work.flop(message) / float(self.table.rate_N[client]),
            self.reply_bytes(message) / float(self.table.up_N[client]),
        )

    def takes(self, message: Message, now: float, place: int) -> Span:
        """Return how long a task takes that begins now, or until its client vanishes.

        A client vanishes when its time to be there is over; one that is asked while it is away is
        lost at once. Beside that it drops out by chance, anywhere in its task.
        """
        client, seconds = message.metadata.dst_node_id - 1, self.parts(message).seconds
        self._usual = {
            "down": self._size(message.content),
            "up": self.reply_bytes(message),
            "config": dict(message.content.config_records.get("config", ConfigRecord())),
            "models": len(message.content.array_records),
        }
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
        return bool(self._usual)

    def expected_s(self) -> NDArray[np.float64]:
        """Return how long a task as the last one takes each client, (N,): its latency."""
        usual = self._usual
        flop_N = self.work.flop_of_all(usual["config"], usual["models"])
        compute_N = flop_N / self.table.rate_N
        sent_N = usual["down"] / self.table.down_N + usual["up"] / self.table.up_N
        return np.asarray(sent_N + compute_N)

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
        return {"reply_bytes": dict(self._reply_bytes), "usual": dict(self._usual)}

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        self._reply_bytes, self._usual = dict(state["reply_bytes"]), dict(state["usual"])
