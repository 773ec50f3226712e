"""What a round is, said by small policies; the round loop (``rounds.py``) follows them.

Who is asked and when (:class:`Cohort`), how much of its work (:class:`Workload`), how long a task
takes (:class:`Clock`), when what has arrived becomes a new model (:class:`Trigger`), and how the
replies of tasks come in (:class:`Delivery`). The defaults are synchronous rounds without a clock:
the strategy's own sample is asked, everything arrives at once, and the round waits for all of it.

Time here is virtual: a task's result is a function of the model it starts from, the client and the
seed, so a machine may compute it whenever it likes, and the clock alone says when it arrives. Tasks
arrive in the order of (virtual time, node id), never in that of this machine.

The loop, for the model of each round::

    while True:
        if due := trigger.decide(underway):    # what has arrived makes the next model, before
            break                              # anybody is asked to start from this one
        if cohort.opens(underway):             # ask: each task names the version it starts from
            underway.begin(messages, number - 1, clock)
        underway.advance()                     # time passes, to the next arrival, or until more
                                               # clients can be asked
    due = underway.settle(due)                 # the rest is thrown away, or goes on
    strategy.aggregate_train(number, delivery.replies(grid, taken, number, timeout))
"""

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, Protocol

from flwr.app import ArrayRecord, Message, RecordDict

from fedsweep.errors import TrialError
from fedsweep.records import TaskRecord
from fedsweep.strategies.base import Resumable, State
from fedsweep.strategies.insides import Shared


@dataclass(frozen=True)
class Span:
    """How long a task takes, and whether a reply comes of it."""

    seconds: float  # virtual; inf: it goes on for ever, and nobody waits for it
    arrives: bool = True  # False: then its client is known to be lost


@dataclass(frozen=True)
class Flight:
    """A client's task from when it is asked until its reply is used or thrown away."""

    place: int  # in the order of asking, over the whole trial
    node: int
    version: int  # models made before the one that it starts from
    began: float  # virtual seconds
    ends: float  # virtual seconds at which the reply arrives; inf: never
    message: Message = field(repr=False)
    arrives: bool = True  # False: then the client is lost, and its work with it


Entry = tuple[float, int, Flight]
"""Of a heap of tasks that have not arrived: when that will be, whose each is."""


@dataclass(frozen=True)
class Aggregation:
    """Which tasks make the next model.

    The strategy gets their replies in the order in which they were asked, so that sums do not
    depend on who was fast. Tasks that are neither taken nor dropped go on, from where they began.
    """

    at: float  # virtual seconds
    taken: Collection[Flight]
    dropped: Collection[Flight] = ()  # thrown away: the clients worked for nothing


class Underway:
    """All tasks under way, and the virtual time; part of a checkpoint.

    Attributes
    ----------
    now : float
        Virtual seconds since the trial began.
    since : float
        When the last model was made.
    arrived : list of Flight
        Tasks that are done and in no model yet, in order of arrival.
    lost : list of Flight
        Tasks of clients that vanished since the last model was made; an aggregation drops them.
    opened : float
        When clients were asked last while nobody was at a task.
    more_at : float
        When the cohort asks again though nothing arrives; inf: never.
    """

    def __init__(self) -> None:
        self.now = self.since = 0.0
        self.arrived: list[Flight] = []
        self.lost: list[Flight] = []
        self.more_at = inf
        self.opened = 0.0
        self._in_flight: list[Entry] = []  # a heap
        self._busy: set[int] = set()
        self._asked = 0

    @property
    def busy(self) -> Collection[int]:
        """Nodes that are at a task, or whose reply waits for a model."""
        return self._busy

    @property
    def working(self) -> int:
        """How many tasks have not arrived yet."""
        return len(self._in_flight)

    @property
    def in_flight(self) -> Sequence[Flight]:
        """Tasks that have not arrived yet, in order of arrival."""
        return [flight for *_, flight in sorted(self._in_flight, key=_by_arrival)]

    @property
    def messages(self) -> dict[int, Message]:
        """What the nodes are at, or were whose replies wait for a model."""
        flights = (*self.arrived, *(flight for *_, flight in self._in_flight))
        return {flight.node: flight.message for flight in flights}

    def arriving(self, most: int) -> list[Flight]:
        """Return the tasks that are in no model yet and will arrive, the soonest first."""
        there = self.arrived[:most]
        coming = soonest(self._in_flight, most - len(there))  # no two are of one node
        return [*there, *(flight for *_, flight in coming if flight.arrives and flight.ends < inf)]

    @property
    def next_arrival(self) -> float:
        """Virtual seconds at which the next task arrives; inf where none will."""
        return self._in_flight[0][0] if self._in_flight else inf

    @property
    def waits(self) -> bool:
        """Whether time has to pass until a task arrives or clients are asked."""
        return min(self.next_arrival, self.more_at) < inf

    def begin(self, messages: Iterable[Message], version: int, clock: "Clock") -> None:
        """Begin a task now for each message, from the model of a version.

        Raises
        ------
        TrialError
            A node is asked while it is at another task.
        """
        if not self._busy:
            self.opened = self.now
        for message in messages:
            node = message.metadata.dst_node_id
            if node in self._busy:
                raise TrialError(f"client {node - 1} was asked while it is at another task")
            self._busy.add(node)
            span = clock.takes(message, self.now, self._asked)
            ends = self.now + span.seconds
            flight = Flight(self._asked, node, version, self.now, ends, message, span.arrives)
            heappush(self._in_flight, (ends, node, flight))
            self._asked += 1

    def advance(self) -> None:
        """Let time pass until the next task arrives or is lost, or more clients can be asked.

        Raises
        ------
        TrialError
            Nothing will arrive any more: the trigger waits for what can't come.
        """
        if self.more_at < self.next_arrival:
            self.now, self.more_at = self.more_at, inf
            return
        if self.next_arrival == inf:
            raise TrialError(
                f"no task arrives after {self.now:g} virtual seconds, and {len(self.arrived)} "
                "replies are too few for a model"
            )
        ends, _, flight = heappop(self._in_flight)
        self.now = max(self.now, ends)  # it may have arrived while the last model was made
        (self.arrived if flight.arrives else self.lost).append(flight)

    def settle(self, due: Aggregation) -> Aggregation:
        """Let go of what an aggregation took or dropped; time goes on from there.

        Returns
        -------
        Aggregation
            The same, with the tasks that were lost among those that are dropped.
        """
        due = replace(due, dropped=(*due.dropped, *self.lost))
        self.lost = []
        gone = {flight.node for flight in (*due.taken, *due.dropped)}  # a node is at one task
        self._busy -= gone
        self.arrived = [flight for flight in self.arrived if flight.node not in gone]
        if due.dropped:
            self._in_flight = [entry for entry in self._in_flight if entry[1] not in gone]
            heapify(self._in_flight)
        self.now = self.since = due.at
        return due

    def state_dict(self) -> State:
        """Return all of it as a checkpoint holds it; what tasks share is held once."""
        models: list[ArrayRecord] = []
        contents: list[list[tuple[str, Any]]] = []

        def keep_model(model: ArrayRecord) -> int:
            models.append(model)
            return len(models) - 1

        def keep_content(content: RecordDict) -> int:
            contents.append(
                [(k, model(v) if isinstance(v, ArrayRecord) else v) for k, v in content.items()]
            )
            return len(contents) - 1

        model, content = Shared(keep_model), Shared(keep_content)
        flights = [
            {
                **{name: getattr(flight, name) for name in _PLAIN},
                "type": flight.message.metadata.message_type,
                "content": content(flight.message.content),
            }
            for flight in (*self.arrived, *self.in_flight)
        ]  # none is lost: a state is that after a model was made
        return {
            "now": self.now,
            "since": self.since,
            "asked": self._asked,
            "arrived": len(self.arrived),
            "flights": flights,
            "contents": contents,
            "models": models,
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        self.now, self.since, self._asked = state["now"], state["since"], state["asked"]
        models = state["models"]
        contents = [
            RecordDict({k: models[v] if isinstance(v, int) else v for k, v in content})
            for content in state["contents"]
        ]
        flights = [
            Flight(
                **{name: flight[name] for name in _PLAIN},
                message=Message(contents[flight["content"]], flight["node"], flight["type"]),
            )
            for flight in state["flights"]
        ]
        self.arrived = flights[: state["arrived"]]
        self._in_flight = [(f.ends, f.node, f) for f in flights[state["arrived"] :]]
        heapify(self._in_flight)
        self._busy = {flight.node for flight in flights}


def soonest(heap: Sequence[Entry], most: int) -> list[Entry]:
    """Return the first of a heap in their order, in a time that does not grow with the heap.

    ``heapq.nsmallest`` looks at each entry.
    """
    found: list[Entry] = []
    near = [(heap[0], 0)] if heap else []  # the smallest that is left is one of these
    while near and len(found) < most:
        entry, place = heappop(near)
        found.append(entry)
        for child in (2 * place + 1, 2 * place + 2):
            if child < len(heap):
                heappush(near, (heap[child], child))
    return found


def _by_arrival(entry: Entry) -> tuple[float, int]:
    return entry[:2]


_PLAIN = ("place", "node", "version", "began", "ends", "arrives")


class Cohort(Protocol):
    """Who is asked, and when."""

    def opens(self, underway: Underway) -> bool:
        """Return whether clients are asked now; looked at after each arrival."""

    def choose(self, underway: Underway, nodes: Sequence[int], size: int) -> Sequence[int]:
        """Return the nodes to ask, where the strategy wants so many of these.

        Draws are from the global ``random``, which is seeded for each time that clients are asked.
        """

    def more_at(self, underway: Underway) -> float:
        """Return when clients come that could be asked; inf where nobody will.

        It is looked at where the cohort is still open after all were asked that could be.
        """
        return inf

    def told(self, number: int, tasks: Sequence[TaskRecord]) -> None:
        """Take in what the clients' tasks of a round told, in training and evaluation."""
        return None


class Clock(Protocol):
    """How long tasks take.

    A clock that goes by the bytes of replies is told them: before tasks begin, a message of each
    kind that it does not know is tried on its client, without changing the client's state.
    """

    def unknown(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return a message of each kind whose reply it has to be told of."""
        return ()

    def know(self, message: Message, reply_bytes: int) -> None:
        """Take in how many bytes the arrays of replies to such messages have."""
        return None

    def takes(self, message: Message, now: float, place: int) -> Span:
        """Return how long a task takes that begins now.

        Parameters
        ----------
        message : Message
            What the client is asked.
        now : float
            Virtual seconds since the trial began.
        place : int
            Of the task in the order of asking, over the whole trial: what is drawn for it follows
            from that.
        """


class Workload(Protocol):
    """What clients are sent, and how much of their work they are asked to do."""

    def asked(self, messages: Sequence[Message], version: int) -> Sequence[Message]:
        """Return the messages that are sent in place of the strategy's own.

        Parameters
        ----------
        messages : sequence of Message
            To clients that are asked now.
        version : int
            Models made before the one that they start from.
        """


class Trigger(Protocol):
    """When what has arrived becomes a new model."""

    def decide(self, underway: Underway) -> Aggregation | None:
        """Return what makes the next model; None: wait.

        It is asked before and after clients are: where ``underway.waits``, something is to come.
        """


class Replying(Protocol):
    """What delivers replies: the engine's Grid."""

    weight_key: str | None

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and wait for their replies, which come in their order."""


class Delivery(Protocol):
    """How the replies of tasks that are taken come in, and as what the strategy sees them."""

    def replies(
        self,
        grid: Replying,
        taken: Sequence[Flight],
        number: int,
        timeout: float | None,
        now: ArrayRecord,
    ) -> list[Message]:
        """Return the replies that count, for the model of a round, which follows ``now``.

        Their staleness is ``number - 1 - flight.version`` models. Where ``grid.weight_key`` is set
        hosts average replies to tasks of one content; who has to see each reply sets it to None.
        """


@dataclass(frozen=True)
class Sampled(Cohort):
    """The strategy's own sample, drawn evenly, once for each model."""

    def opens(self, underway: Underway) -> bool:
        """Return whether nobody is at a task."""
        return not underway.busy

    def choose(self, underway: Underway, nodes: Sequence[int], size: int) -> Sequence[int]:
        """Return a sample of the size, as Flower draws it."""
        del underway
        return random.sample(nodes, size)


@dataclass(frozen=True)
class NoClock(Clock):
    """No time passes."""

    def takes(self, message: Message, now: float, place: int) -> Span:
        """Return 0 seconds."""
        del message, now, place
        return Span(0.0)


@dataclass(frozen=True)
class AllOfIt:
    """Clients do what the strategy asks."""

    def asked(self, messages: Sequence[Message], version: int) -> Sequence[Message]:
        """Return the messages as they are."""
        del version
        return messages


@dataclass(frozen=True)
class WaitForAll:
    """A model is made of everything that was asked for, once it is there."""

    def decide(self, underway: Underway) -> Aggregation | None:
        """Wait while anything will arrive; what never will is dropped."""
        if underway.waits:
            return None
        return Aggregation(underway.now, list(underway.arrived), underway.in_flight)


@dataclass(frozen=True)
class WhenTaken:
    """Clients work when their replies are taken: what is thrown away is never computed."""

    def replies(
        self,
        grid: Replying,
        taken: Sequence[Flight],
        number: int,
        timeout: float | None,
        now: ArrayRecord,
    ) -> list[Message]:
        """Return what comes within the timeout, as it comes."""
        del number, now
        return grid.send_and_receive([flight.message for flight in taken], timeout=timeout)


@dataclass(frozen=True)
class Policies:
    """What a round is."""

    cohort: Cohort = Sampled()
    clock: Clock = NoClock()
    workload: Workload = AllOfIt()
    trigger: Trigger = WaitForAll()
    delivery: Delivery = WhenTaken()
    ahead: bool = False
    """Whether tasks go on until they are taken, so that machines may work on those that come."""

    def state_dict(self) -> State:
        """Return what a checkpoint keeps of those policies that remember something."""
        return {name: policy.state_dict() for name, policy in self._lasting()}

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        for name, policy in self._lasting():
            policy.load_state_dict(state[name])

    def _lasting(self) -> Iterator[tuple[str, Resumable]]:
        for name in ("cohort", "workload", "trigger", "delivery"):
            policy = getattr(self, name)
            if isinstance(policy, Resumable):
                yield name, policy
