"""Flower's Grid over chunks of client tasks, on Ray's actors or inline, in this process."""

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from itertools import count

from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from ray.exceptions import ObjectLostError

from fedsweep.engine.chunks import MEANS_BYTES, MIN_CHUNKS, TARGET_CHUNKS, make_chunks
from fedsweep.engine.costs import CostFn, LearnedSeconds
from fedsweep.engine.executors import Executor, Host, InlineExecutor
from fedsweep.engine.flower import (
    ArrayRef,
    Run,
    empty_run,
    identify,
    make_message,
    reference_of,
    remote_record,
    set_message_id,
)
from fedsweep.engine.host import AppSpec
from fedsweep.engine.ray_executor import LOSSES_PER_CHUNK, RayExecutor
from fedsweep.engine.wire import (
    Chunk,
    ChunkResult,
    Records,
    Reply,
    Slot,
    StateRef,
    Task,
    count_bytes,
    empty,
)
from fedsweep.errors import TrialError
from fedsweep.records import LoadSample, TaskRecord
from fedsweep.strategies.base import State
from fedsweep.strategies.insides import Shared

Alike = Callable[[RecordDict], Hashable]
"""What contents of ``train`` have in common whose tasks may share a chunk, whatever their model."""


@dataclass
class Trace:
    """What the engine saw since the last :meth:`EngineGrid.drain`."""

    tasks: list[TaskRecord] = field(default_factory=list)
    samples: list[LoadSample] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    asked: Counter[str] = field(
        default_factory=Counter
    )  # messages sent, by type: some get no reply

    def __add__(self, other: "Trace") -> "Trace":
        return Trace(
            *(getattr(self, part.name) + getattr(other, part.name) for part in fields(self))
        )


@dataclass
class _Early:
    """A task that is worked on before its reply is sent for; what it changes waits until then."""

    message: Message
    state: StateRef = None  # of its client, once it is done
    record: TaskRecord | None = None  # once it is done

    @property
    def id(self) -> str:
        """The message's."""
        return self.message.metadata.message_id


class EngineGrid(Grid):
    """A Flower Grid whose client tasks run in chunks on an executor.

    Node ids are partition ids + 1. Replies come back in the order of their messages, whatever
    finished first. A client that raises, and a host that dies again and again under it, become
    Flower error replies; messages without a reply at the timeout get none, as in Flower.

    Parameters
    ----------
    executor : Executor
        Runs chunks.
    num_nodes : int
        Clients.
    cost : CostFn, optional
        Balances the chunks; all tasks count the same without it.
    chunk_size : int, optional
        Tasks per chunk; by default about 64 chunks of equal cost a round.
    together : int
        Clients that a chunk of training or evaluation should have at least, where the app runs
        chunks together.
    alike : Alike, optional
        Has tasks share chunks that begin with different models; without it none do.

    Attributes
    ----------
    weight_key : str | None
        While set, a chunk's replies are replaced by their mean weighted by this metric.
    carried : frozenset of str
        Arrays that such a mean leaves out: those of the heaviest reply stand for all.
    online : int
        So many nodes, the first ones, are there now; the others have not joined yet.
    next_due : sequence of Message
        What will be sent for next, the soonest first. Work on it begins behind that of the next
        messages that are waited for, as far as it fills whole chunks: by these counts alone.
    """

    def __init__(
        self,
        executor: Executor,
        num_nodes: int,
        cost: CostFn | None = None,
        chunk_size: int | None = None,
        together: int = 1,
        alike: Alike | None = None,
    ) -> None:
        self.next_due: Sequence[Message] = ()
        self.weight_key: str | None = None
        self.carried: frozenset[str] = frozenset()
        self._executor = executor
        self._num_nodes = self.online = num_nodes
        self._cost = cost or (lambda node_id, message_type: 1.0)
        self._learned = LearnedSeconds(self._cost)
        self._chunk_size, self._together, self._alike = chunk_size, together, alike
        self._early: dict[int, _Early] = {}  # by node: each is at one task at a time
        self._unwanted: set[str] = set()  # messages under way whose replies nobody will send for
        self._noted: set[str] = set()
        self._states: dict[int, StateRef] = {}
        self._replies: dict[str, list[Message]] = {}
        self._again: dict[
            tuple[int, int], ArrayRef
        ] = {}  # (chunk, index) -> arrays that took the place of lost ones
        self._unanswered: set[str] = set()
        self._message_ids, self._reply_ids, self._chunk_numbers = count(1), count(1), count()
        self._trace = Trace()
        self._run = empty_run()
        identify(self._run)

    def set_run(self, run: Run) -> None:
        """Set the Flower run that messages belong to."""
        self._run = run
        identify(run)

    @property
    def run(self) -> Run:
        """The Flower run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message, as Flower's deprecated method does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Sequence[int]:
        """Return the ids of the nodes that have joined, without building them."""
        return range(1, self.online + 1)

    def push_messages(self, messages: Iterable[Message], *, stateless: bool = False) -> list[str]:
        """Send messages off in chunks; return their ids.

        Where they are ``stateless``, ``Context.state`` is empty and stays what it was: their nodes
        may be at other messages meanwhile.
        """
        messages = list(messages)
        self._again.clear()
        begun = set() if stateless else self._claimed(messages)
        self._begin([m for m in messages if id(m) not in begun], stateless=stateless)
        self._trace.asked.update(message.metadata.message_type for message in messages)
        return [message.metadata.message_id for message in messages]

    def _begin(
        self, messages: Sequence[Message], *, stateless: bool = False, ahead: bool = False
    ) -> None:
        """Number messages and have the executor run them in chunks."""
        # Each distinct record is put where hosts find it, and each content emptied, once.
        arrays: list[ArrayRef] = []  # what stands for each ArrayRecord of the messages

        def keep(record: ArrayRecord) -> int:
            ref = reference_of(record)
            arrays.append(self._executor.put(record) if ref is None else ref)
            return len(arrays) - 1

        place = Shared(keep)
        emptied: Shared[RecordDict, Records] = Shared(lambda content: empty(content, place))
        for message in messages:
            self._check(message)
            set_message_id(message, self._next_id())
        contents = [emptied(message.content) for message in messages]

        # What decides which tasks share a chunk.
        slots_of: Shared[Records, tuple[int, ...]] = Shared(_slots)
        kinds = [message.metadata.message_type for message in messages]
        costs = [self._cost(m.metadata.dst_node_id, m.metadata.message_type) for m in messages]
        places = [slots_of(records) for records in contents]
        kin: Sequence[Hashable] = places
        if self._alike is not None:
            shared: Shared[RecordDict, Hashable] = Shared(self._alike)
            kin = [
                shared(message.content) if len(slots) == 1 and kind == "train" else slots
                for message, kind, slots in zip(messages, kinds, places, strict=True)
            ]
        groups = list(zip(kinds, kin, strict=True))
        clients = all(kind.split(".")[0] in ("train", "evaluate") for kind in kinds)
        together = self._together if clients else 1
        target = _target_chunks(emptied.values()) if self.weight_key else self.target(messages)
        size = self._together if ahead and self._chunk_size is None else self._chunk_size

        # The chunks.
        states = {} if stateless else self._states
        chunks = []
        for indices in make_chunks(groups, costs, size, together, target):
            slots = (slot for i in indices for slot in slots_of(contents[i]))
            own = {key: i for i, key in enumerate(dict.fromkeys(slots))}
            local = Shared(partial(_moved, own))  # a content that tasks share is pickled once
            told = [messages[i].metadata for i in indices]
            chunks.append(
                self._chunk(
                    tuple(
                        Task(m, local(contents[i]), states.get(m.dst_node_id), stateless)
                        for i, m in zip(indices, told, strict=True)
                    ),
                    tuple(arrays[key] for key in own),
                    sum(costs[i] for i in indices),
                    ahead=ahead,
                )
            )

        # Off they go.
        self._unanswered.update(message.metadata.message_id for message in messages)
        self._executor.submit(chunks)

    def target(self, messages: Sequence[Message]) -> int:
        """Return how many chunks to make of messages whose replies stay apart."""
        del messages
        return TARGET_CHUNKS

    def _chunk(
        self, tasks: tuple[Task, ...], arrays: tuple[ArrayRef, ...], cost: float, *, ahead: bool
    ) -> Chunk:
        """Return the next chunk, with the seconds that such tasks should take."""
        seconds = sum(
            self._learned.expect(t.metadata.dst_node_id, t.metadata.message_type) for t in tasks
        )
        mean = self.weight_key, self.carried
        return Chunk(next(self._chunk_numbers), tasks, arrays, *mean, cost, seconds, ahead)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages that are there by now, each once."""
        self._collect(timeout=0)
        return [reply for message_id in message_ids for reply in self._replies.pop(message_id, [])]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and wait for their replies, at most ``timeout`` seconds.

        Returns
        -------
        list of Message
            In the order of the messages. Under ``weight_key`` one reply per chunk, at the place of
            its first message.
        """
        ids = self.push_messages(messages)
        self._begin_ahead()
        return self.receive(ids, timeout=timeout)

    # What is worked on before its reply is sent for

    def _begin_ahead(self) -> None:
        """Begin what will be sent for next, in whole chunks, within the bytes for its replies."""
        due, self.next_due = self.next_due, ()
        new = [m for m in due if not self._is_early(m)]
        if not new:
            return
        size = Shared(count_bytes)
        largest = max(size(message.content) for message in new)
        room = max(MIN_CHUNKS, MEANS_BYTES // max(largest, 1)) - len(self._early)
        room = max(0, min(room, len(new)))
        new = new[: room - room % self._together]
        for message in new:
            self._forget(message.metadata.dst_node_id)
            self._early[message.metadata.dst_node_id] = _Early(message)
        if new:
            self._begin(new, ahead=True)

    def _is_early(self, message: Message) -> bool:
        """Return whether a message is worked on ahead."""
        early = self._early.get(message.metadata.dst_node_id)
        return early is not None and early.message is message

    def _claimed(self, messages: Sequence[Message]) -> set[int]:
        """Return which messages were begun ahead, by identity; from now on they are as others."""
        found = set()
        for message in messages if self._early else ():
            node = message.metadata.dst_node_id
            if not self._is_early(message):
                continue
            early = self._early.pop(node)
            if early.record is not None:
                self._keep_state(node, early.state)
                self._trace.tasks.append(early.record)
            elif early.id not in self._unanswered:  # given up at a deadline that others missed
                continue
            found.add(id(message))
        return found

    def _forget(self, node: int) -> None:
        """Let go of what a node was begun at ahead, which nobody will send for."""
        early = self._early.pop(node, None)
        if early is None:
            return
        self._replies.pop(early.id, None)
        if early.id in self._unanswered:
            self._unanswered.discard(early.id)
            self._unwanted.add(early.id)

    def early_state(self, timeout: float | None = None) -> list[State]:
        """Wait for what was begun ahead; return what came of it, as a checkpoint holds it."""
        self._wait({early.id for early in self._early.values()}, timeout)
        found: list[State] = []
        for node, early in sorted(self._early.items()):
            if early.record is None:
                continue
            replies = [
                {"content": reply.content}
                if reply.has_content()
                else {"error": [reply.error.code, reply.error.reason]}
                for reply in self._replies.get(early.id, [])
            ]
            state = self._executor.get(early.state)
            kept = {"state": state} if state else {}
            found.append({"node": node, "record": asdict(early.record), "replies": replies, **kept})
        return found

    def load_early_state(self, state: Sequence[State], messages: Mapping[int, Message]) -> None:
        """Put back what ``early_state`` returned, of tasks under way by their nodes."""
        self._early.clear()
        for entry in state:
            message = messages[entry["node"]]
            set_message_id(message, self._next_id())
            early = _Early(message, entry.get("state"), TaskRecord(**entry["record"]))
            self._early[entry["node"]] = early
            for told in entry["replies"]:
                content = Error(*told["error"]) if "error" in told else told["content"]
                reply = Message(content, reply_to=message)
                set_message_id(reply, self._reply_id())
                self._replies.setdefault(early.id, []).append(reply)

    def receive(self, ids: Sequence[str], *, timeout: float | None = None) -> list[Message]:
        """Wait for the replies to pushed messages, as ``send_and_receive`` does.

        At the timeout all that is under way is given up, other messages too.
        """
        self._wait(set(ids), timeout)
        return [reply for message_id in ids for reply in self._replies.pop(message_id, [])]

    def _wait(self, ids: set[str], timeout: float | None) -> None:
        """Wait for the replies to pushed messages; at the timeout give up all under way."""
        deadline = None if timeout is None else time.monotonic() + timeout
        missing = ids
        while missing := missing & self._unanswered:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                self._trace.events.append(
                    f"{len(missing)} of {len(ids)} replies were missing after {timeout:g} s"
                )
                self._unanswered.clear()
                self._unwanted.clear()
                self._executor.abandon()
                break
            self._collect(left)

    def drain(self) -> Trace:
        """Return the tasks, load samples and events since the last call."""
        trace, self._trace = self._trace, Trace()
        return trace

    @property
    def states(self) -> dict[int, RecordDict]:
        """Every client's ``Context.state`` that is not empty, by node id; for checkpoints."""
        found = {node: self._executor.get(state) for node, state in sorted(self._states.items())}
        return {node: state for node, state in found.items() if state}  # or it is kept empty

    @states.setter
    def states(self, states: dict[int, RecordDict]) -> None:
        self._states = dict(states)

    def _next_id(self) -> str:
        """Return the id of a message: the n-th that is sent has the same in each run."""
        return f"{self._run.run_id}-{next(self._message_ids)}"

    def _reply_id(self) -> str:
        return f"{self._run.run_id}-reply-{next(self._reply_ids)}"

    def _check(self, message: Message) -> None:
        node_id = message.metadata.dst_node_id
        if not 1 <= node_id <= self._num_nodes:
            raise ValueError(
                f"a message goes to node {node_id}; node ids are 1 to {self._num_nodes}"
            )
        if message.metadata.reply_to_message_id:
            raise ValueError(f"a reply was sent to node {node_id}; a Grid sends instructions")

    def _collect(self, timeout: float | None) -> None:
        for result in self._executor.collect(timeout):
            self._accept(result)

    def _accept(self, result: ChunkResult) -> None:
        later: set[int] = set()  # nodes of whose tasks nothing is said before they are sent for
        for task, state in zip(result.chunk.tasks, result.states, strict=True):
            node_id, message_id = task.metadata.dst_node_id, task.metadata.message_id
            early = self._early.get(node_id)
            if message_id in self._unwanted:
                self._unwanted.discard(message_id)
                later.add(node_id)
            elif early is not None and early.id == message_id:
                early.state = state
                [early.record] = [t for t in result.replies.tasks if t.node_id == node_id]
                later.add(node_id)
            elif not task.stateless:
                self._keep_state(node_id, state)
        for reply in result.replies.replies:
            if reply.metadata.reply_to_message_id in self._unanswered:
                message = self._message(reply, result)
                self._replies.setdefault(reply.metadata.reply_to_message_id, []).append(message)
        self._unanswered.difference_update(task.metadata.message_id for task in result.chunk.tasks)
        self._learned.learn(result.replies.tasks)
        self._trace.tasks += [task for task in result.replies.tasks if task.node_id not in later]
        self._trace.samples += result.replies.samples
        self._trace.events += result.events
        new = [
            note for note in result.replies.notes if note not in self._noted
        ]  # each host may say it
        self._noted.update(new)
        self._trace.events += new

    def _keep_state(self, node: int, state: StateRef) -> None:
        if state is not None:
            self._states[node] = state
        else:
            self._states.pop(node, None)

    def _fetch(self, chunk: Chunk, index: int, ref: ArrayRef) -> ArrayRecord:
        """Read a reply's arrays; where they were lost with their node, run their chunk again."""
        for _ in range(LOSSES_PER_CHUNK):
            try:
                where = self._again.get((chunk.number, index), ref)
                record: ArrayRecord = self._executor.get(where)
                return record
            except ObjectLostError:
                self._repeat(chunk)
        raise TrialError(
            f"results of {len(chunk.tasks)} clients were lost {LOSSES_PER_CHUNK} times with their "
            "nodes"
        )

    def _repeat(self, chunk: Chunk) -> None:
        """Run a chunk again for its arrays alone: its replies and states were taken before."""
        self._trace.events.append(
            f"results of {len(chunk.tasks)} client tasks were lost with a node; they run again"
        )
        waiting = {task.metadata.message_id for task in chunk.tasks}
        self._executor.submit([chunk])
        while waiting:
            for result in self._executor.collect(None):
                ids = {task.metadata.message_id for task in result.chunk.tasks}
                if not ids & waiting:
                    self._accept(result)
                elif len(result.chunk.tasks) == len(chunk.tasks):
                    self._again |= {
                        (chunk.number, index): arrays for index, arrays in enumerate(result.arrays)
                    }
                waiting -= ids

    def _message(self, reply: Reply, result: ChunkResult) -> Message:
        set_message_id(reply.metadata, self._reply_id())
        if reply.records is None:
            return make_message(reply.metadata, error=reply.error)
        content = RecordDict()
        for name, record in reply.records.items():
            if isinstance(record, Slot):
                arrays = result.arrays[record.index]
                if not isinstance(arrays, ArrayRecord):
                    arrays = remote_record(
                        arrays, partial(self._fetch, result.chunk, record.index), record.nbytes
                    )
                content[name] = arrays
            else:
                content[name] = record
        return make_message(reply.metadata, content=content)


def ray_grid(
    spec: AppSpec,
    hosts: list[Host],
    cost: CostFn | None = None,
    chunk_size: int | None = None,
    together: int = 1,
    alike: Alike | None = None,
) -> EngineGrid:
    """Return RayGrid: the Grid whose clients run on Ray actors."""
    executor = RayExecutor(spec, hosts)
    return EngineGrid(executor, spec.num_partitions, cost, chunk_size, together, alike)


def inline_grid(
    spec: AppSpec,
    cost: CostFn | None = None,
    chunk_size: int | None = None,
    together: int = 1,
    alike: Alike | None = None,
) -> EngineGrid:
    """Return the Grid whose clients run in this process, without Ray."""
    executor = InlineExecutor(spec)
    return EngineGrid(executor, spec.num_partitions, cost, chunk_size, together, alike)


def _target_chunks(contents: Iterable[Records]) -> int:
    """Return the chunks of a round of partial means, so many that these stay within MEANS_BYTES."""
    sizes = [
        record.nbytes
        for records in contents
        for record in records.values()
        if isinstance(record, Slot)
    ]
    return min(TARGET_CHUNKS, max(MIN_CHUNKS, MEANS_BYTES // max(sizes, default=1)))


def _slots(records: Records) -> tuple[int, ...]:
    return tuple(record.index for record in records.values() if isinstance(record, Slot))


def _moved(places: Mapping[int, int], records: Records) -> Records:
    """Return a content whose slots have other places."""
    return {
        key: Slot(places[record.index], record.nbytes) if isinstance(record, Slot) else record
        for key, record in records.items()
    }
