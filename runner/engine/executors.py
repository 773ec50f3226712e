"""Where chunks run: in this process, or on Ray actors that pull work, heal and are shared by many trials."""

import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Protocol

import ray
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode
from ray.exceptions import RayError, RayTaskError

from runner.engine.host import AppSpec, run_chunk
from runner.engine.wire import Chunk, ChunkReplies, ChunkResult, Reply, Task, size_of
from runner.errors import ResourceError
from runner.load import LoadSampler
from runner.records import TaskRecord

LOSSES_PER_CHUNK = 3
"""A chunk whose host died so often is run client by client, so that only the client that kills hosts fails."""

READ_BYTES = 64 * 2**20
"""Arrays kept of the replies that were read last; a reply is read some times in a row, then hardly again."""

QUICK_S = 0.05
"""A host is sent a second chunk ahead only where chunks are shorter than this: a long one could not be given away."""

STUCK_S = 0.25
"""A chunk that was sent ahead is called back where the one before it runs longer than this and another host is free."""


class Executor(Protocol):
    """Runs chunks. The grid submits, then collects until it has what it waits for."""

    def submit(self, chunks: Iterable[Chunk]) -> None:
        """Accept chunks to run."""

    def collect(self, timeout: float | None) -> list[ChunkResult]:
        """Return chunks that finished, waiting up to ``timeout`` seconds for the first (None: for ever)."""

    def abandon(self) -> None:
        """Give up every chunk that is not finished; hosts still busy with one are restarted."""

    def put(self, record: ArrayRecord) -> Any:
        """Keep an ArrayRecord where hosts can read it; return what stands for it in a chunk."""

    def get(self, ref: Any) -> Any:
        """Return what a reference stands for."""


class InlineExecutor:
    """Runs chunks in this process when they are collected; for debugging, unit tests and machines without Ray."""

    def __init__(self, spec: AppSpec) -> None:
        self._spec = spec
        self._app = spec.factory(**spec.kwargs)
        self._waiting: deque[Chunk] = deque()
        self._sampler = LoadSampler("inline", "inline")

    def submit(self, chunks: Iterable[Chunk]) -> None:
        """Queue chunks."""
        self._waiting.extend(chunks)

    def collect(self, timeout: float | None) -> list[ChunkResult]:
        """Run the next chunk; it can't be interrupted, so the timeout holds between chunks."""
        if not self._waiting:
            return []
        chunk, started = self._waiting.popleft(), time.time()
        states = [task.state if task.state is not None else RecordDict() for task in chunk.tasks]
        replies, kept, after = run_chunk(self._app, self._spec, chunk, chunk.arrays, states, "inline")
        replies = replace(replies, samples=tuple(self._sampler.drain(started)))
        return [ChunkResult(chunk, replies, tuple(kept), tuple(s if len(s) else None for s in after))]

    def abandon(self) -> None:
        """Forget the queue."""
        self._waiting.clear()

    def put(self, record: ArrayRecord) -> ArrayRecord:
        """Return the record itself."""
        return record

    def get(self, ref: Any) -> Any:
        """Return the value itself."""
        return ref


@dataclass(frozen=True)
class Host:
    """A client host as a trial sees it: a Ray actor that Ray restarts when it dies."""

    name: str
    actor: Any
    num_cpus: float = 1.0
    num_gpus: float = 0.0


@dataclass
class _Running:
    chunk: Chunk
    host: Host
    refs: list[Any]
    num_arrays: int
    started: float = field(default_factory=time.perf_counter)


class RayExecutor:
    """Gives chunks to hosts as they become free, largest expected cost first; runs lost chunks again (contract 6)."""

    def __init__(self, spec: AppSpec, hosts: list[Host]) -> None:
        kwargs = {name: v if isinstance(v, ray.ObjectRef) else ray.put(v) for name, v in spec.kwargs.items()}
        self._spec = AppSpec(spec.key, spec.factory, kwargs, spec.num_partitions, spec.run_config)
        self._spec_ref = ray.put(self._spec)
        self._hosts = {host.name: host for host in hosts}
        self._load = {host.name: 0 for host in hosts}
        self._healing: dict[Any, Host] = {}
        self._waiting: list[Chunk] = []
        self._running: dict[Any, _Running] = {}
        self._losses: dict[int, int] = {}
        self._events: list[str] = []
        self._seconds_per_cost: float | None = None
        self._stateful = False
        self._split = count(-1, -1)
        self._read: OrderedDict[Any, tuple[ArrayRecord, int]] = OrderedDict()

    def submit(self, chunks: Iterable[Chunk]) -> None:
        """Queue chunks and start as many as hosts take."""
        self._waiting = sorted([*self._waiting, *chunks], key=lambda chunk: (-chunk.cost, chunk.number))
        self._start()

    def put(self, record: ArrayRecord) -> Any:
        """Put a record into Ray's object store."""
        return ray.put(record)

    def get(self, ref: Any) -> Any:
        """Fetch what a reference stands for; the records read last are remembered, up to READ_BYTES."""
        if not isinstance(ref, ray.ObjectRef):
            return ref
        if ref in self._read:
            self._read.move_to_end(ref)
            return self._read[ref][0]
        value = ray.get(ref)
        if isinstance(value, ArrayRecord):
            self._read[ref] = value, size_of(value)
            while len(self._read) > 1 and sum(size for _, size in self._read.values()) > READ_BYTES:
                self._read.popitem(last=False)
        return value

    def collect(self, timeout: float | None) -> list[ChunkResult]:
        """Wait for a chunk to finish, or a host to come back; start what can be started then."""
        if self._take_back():  # look again soon whether the chunk in front has ended
            timeout = STUCK_S if timeout is None else min(timeout, STUCK_S)
        pending = [*self._running, *self._healing]
        if not pending:
            if self._waiting:
                raise ResourceError("no client host is left to run on; check that the cluster's nodes are alive")
            return []
        ready, _ = ray.wait(pending, num_returns=1, timeout=timeout, fetch_local=False)
        if ready:  # take all that are ready by now: one wake-up for many short chunks
            ready, _ = ray.wait(pending, num_returns=len(pending), timeout=0, fetch_local=False)
        finished = []
        for ref in ready:
            if ref in self._healing:
                self._healed(ref)
            else:
                finished += self._finish(self._running.pop(ref), ref)
        self._start()
        return finished

    def abandon(self) -> None:
        """Drop the queue; restart hosts that still run a chunk of ours, so that a hanging client holds nobody up."""
        self._waiting.clear()
        for host in {running.host.name: running.host for running in self._running.values()}.values():
            ray.kill(host.actor, no_restart=False)
            self._lost(host, "still busy at the round's deadline; restarted")
        self._running.clear()

    def _start(self) -> None:
        healing = {host.name for host in self._healing.values()}
        while self._waiting:
            free = [name for name in self._hosts if name not in healing and self._load[name] < self._depth()]
            if not free:
                return
            self._send(self._waiting.pop(0), self._hosts[min(free, key=lambda name: self._load[name])])

    def _take_back(self) -> bool:
        """Call back chunks that wait behind a slow one while a host has nothing to do; return whether any wait."""
        queued: dict[str, list[Any]] = {}
        for ref, running in self._running.items():  # in the order in which they were sent
            queued.setdefault(running.host.name, []).append(ref)
        behind = [refs for refs in queued.values() if len(refs) > 1]
        if self._waiting or not behind or min(self._load.values()) > 0:
            return bool(behind)
        for first, *others in behind:
            if time.perf_counter() - self._running[first].started > STUCK_S:
                ray.cancel(others[-1])  # it may still run where it was sent; that result is not looked at
                running = self._running.pop(others[-1])
                self._load[running.host.name] -= 1
                self.submit([running.chunk])
        return True

    def _depth(self) -> int:
        """Chunks sent ahead to a host."""
        if self._seconds_per_cost is None or not self._waiting:
            return 1
        return 2 if self._waiting[0].cost * self._seconds_per_cost < QUICK_S else 1

    def _send(self, chunk: Chunk, host: Host) -> None:
        num_arrays = 1 if chunk.weight_key else len(chunk.tasks)
        num_states = len(chunk.tasks) if self._stateful else 0
        refs = host.actor.run.options(num_returns=1 + num_arrays + num_states).remote(
            self._spec.key, [self._spec_ref], chunk, num_arrays, num_states
        )
        self._load[host.name] += 1
        self._running[refs[0]] = _Running(chunk, host, refs, num_arrays)

    def _finish(self, running: _Running, head: Any) -> list[ChunkResult]:
        chunk, host = running.chunk, running.host
        self._load[host.name] = max(0, self._load[host.name] - 1)
        try:
            replies, in_band, more = ray.get(head)
        except RayTaskError as error:  # the host's own code failed: the app can't be built, or a reply can't be pickled
            return [_failed(chunk, host.name, str(error).strip().splitlines()[-1], str(error))]
        except RayError as error:
            return self._redo(chunk, host, error)
        seconds = sum(task.wall_s for task in replies.tasks) / max(chunk.cost, 1e-9)
        old = self._seconds_per_cost
        self._seconds_per_cost = seconds if old is None else 0.7 * old + 0.3 * seconds
        arrays, states = running.refs[1 : 1 + running.num_arrays], running.refs[1 + running.num_arrays :]
        if any(state is not None for state in in_band):
            self._stateful = True
            states = [state if state is None else ray.put(state) for state in in_band]
        events = tuple(self._events)
        self._events.clear()
        return [ChunkResult(chunk, replies, (*arrays, *more), tuple(states or in_band), events)]

    def _redo(self, chunk: Chunk, host: Host, error: Exception) -> list[ChunkResult]:
        """Run a lost chunk again elsewhere; after some losses client by client, then let the client fail."""
        self._lost(host, f"lost ({type(error).__name__}) with {len(chunk.tasks)} client tasks; they run again")
        self._losses[chunk.number] = losses = self._losses.get(chunk.number, 0) + 1
        if losses < LOSSES_PER_CHUNK:
            self.submit([chunk])
        elif len(chunk.tasks) > 1 and not chunk.weight_key:
            cost = chunk.cost / len(chunk.tasks)
            self.submit(Chunk(next(self._split), (task,), chunk.arrays, None, cost) for task in chunk.tasks)
        else:
            return [_failed(chunk, host.name, f"the host running this client died {losses} times", str(error))]
        return []

    def _lost(self, host: Host, what: str) -> None:
        """Note a host as away and ask for a sign of life; Ray restarts the actor, this call waits for it."""
        if host not in self._healing.values():
            self._events.append(f"host {host.name} {what}")
            self._healing[host.actor.ping.options(max_task_retries=-1).remote()] = host
        self._load[host.name] = 0

    def _healed(self, ref: Any) -> None:
        host = self._healing.pop(ref)
        try:
            ray.get(ref)
            self._events.append(f"host {host.name} is back")
        except RayError:  # gone for good: its node left, or it was killed without a restart
            self._events.append(f"host {host.name} is gone")
            del self._hosts[host.name]


def _failed(chunk: Chunk, host: str, reason: str, trace: str) -> ChunkResult:
    """Answer every task of a chunk with an error reply."""
    replies = tuple(_error_reply(task, reason) for task in chunk.tasks)
    tasks = tuple(
        TaskRecord(t.metadata.dst_node_id, t.metadata.message_type, host, 0.0, 0, 0, {}, {}, trace) for t in chunk.tasks
    )
    return ChunkResult(chunk, ChunkReplies(replies, tasks), (), tuple(task.state for task in chunk.tasks))


def _error_reply(task: Task, reason: str) -> Reply:
    original = make_message(task.metadata, RecordDict())
    message = Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=original)
    return Reply(message.metadata, None, message.error)
