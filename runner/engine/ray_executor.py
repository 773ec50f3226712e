"""Chunks on Ray actors that pull work, heal, join and leave, and are shared by many trials."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, TypeVar

import ray
from cachetools import LRUCache
from flwr.app import ArrayRecord, Error, Message, RecordDict
from ray.exceptions import ObjectLostError, RayError, RayTaskError

from fedsweep.engine.executors import Host
from fedsweep.engine.flower import CLIENT_GONE, ArrayRef, make_message
from fedsweep.engine.host import AppSpec
from fedsweep.engine.wire import (
    Chunk,
    ChunkReplies,
    ChunkResult,
    Reply,
    Task,
    out_of_band,
    records_up_to,
)
from fedsweep.errors import AppError, ResourceError, TrialError
from fedsweep.records import TaskRecord

LOSSES_PER_CHUNK = 3
"""Times that a chunk's host may die before its clients run one by one, to find the one at fault."""

READ_BYTES = 64 * 2**20
"""Arrays kept of the replies that were read last;
a reply is read some times in a row, then hardly again.
"""

QUICK_S = 0.5
"""A host is sent a second chunk ahead where chunks should be shorter: a pause takes some ms."""

NEAR_S = 0.02
"""A chunk sent ahead is called back for an idle host, unless the one before it ends about now."""

FOLLOW_S = 1.0
"""Seconds between two looks for hosts that joined the pool."""

T = TypeVar("T")


@dataclass
class _Running:
    chunk: Chunk
    host: Host
    refs: list[ray.ObjectRef]
    num_arrays: int
    started: float = field(default_factory=time.perf_counter)

    def left_s(self, now: float) -> float:
        """Return the seconds that it should still take."""
        return max(0.0, self.chunk.seconds - (now - self.started))


@dataclass
class _Probing:
    """A chunk that can't be run as it is, while each of its clients is run alone."""

    chunk: Chunk
    left: int
    good: set[str] = field(default_factory=set)  # ids of the messages of clients that can


class RayExecutor:
    """Gives chunks to hosts as they become free, largest first; runs lost chunks again."""

    def __init__(self, spec: AppSpec, hosts: list[Host]) -> None:
        out_of_band()
        kwargs = {
            name: v if isinstance(v, ray.ObjectRef) else ray.put(v)
            for name, v in spec.kwargs.items()
        }
        self._spec = AppSpec(spec.key, spec.factory, kwargs, spec.num_partitions, spec.run_config)
        self._spec_ref = ray.put(self._spec)
        self._hosts = {host.name: host for host in hosts}
        self._pool, self._known, self._look_at = hosts[0].pool, set(self._hosts), 0.0
        self._healing: dict[ray.ObjectRef, Host] = {}
        self._waiting: list[Chunk] = []
        self._running: dict[ray.ObjectRef, _Running] = {}  # in the order in which they were sent
        self._losses: dict[int, int] = {}
        self._probes: dict[int, _Probing] = {}  # by number of the probe
        self._probed: set[int] = set()
        self._events: list[str] = []
        self._stateful = False
        self._probe_numbers = count(-1, -1)
        self._read: LRUCache[ray.ObjectRef, Any] = records_up_to(READ_BYTES)

    def submit(self, chunks: Iterable[Chunk]) -> None:
        """Queue chunks and start as many as hosts take."""
        self._waiting = sorted(
            [*self._waiting, *chunks], key=lambda c: (c.ahead, -c.seconds, -c.cost, c.number)
        )
        self._follow()
        self._send_waiting()

    def put(self, record: ArrayRecord) -> ArrayRef:
        """Put a record into Ray's object store."""
        return ray.put(record)

    def get(self, ref: ray.ObjectRef[T] | T) -> T:
        """Fetch what a reference stands for;
        the records read last are remembered, up to READ_BYTES.
        """
        if not isinstance(ref, ray.ObjectRef):
            return ref
        if ref in self._read:
            known: T = self._read[ref]
            return known
        value: T = ray.get(ref)
        if isinstance(value, ArrayRecord):
            self._read[ref] = value
        return value

    def collect(self, timeout: float | None) -> list[ChunkResult]:
        """Wait for a chunk to finish, or a host to come back; start what can be started then."""
        if self._waiting:
            self._follow()
            timeout = FOLLOW_S if timeout is None else min(timeout, FOLLOW_S)
        if self._take_back():  # look again soon whether the chunk in front has ended
            timeout = NEAR_S if timeout is None else min(timeout, NEAR_S)
        pending = [*self._running, *self._healing]
        if not pending:
            if self._waiting:
                raise ResourceError(
                    "no client host is left to run on; check that the cluster's nodes are alive"
                )
            return []
        ready, _ = ray.wait(pending, num_returns=1, timeout=timeout, fetch_local=False)
        if ready:  # take all that are ready by now: one wake-up for many short chunks
            ready, _ = ray.wait(pending, num_returns=len(pending), timeout=0, fetch_local=False)
        finished = []
        for ref in ready:
            if ref in self._healing:
                self._healed(ref)
            else:
                finished += self._finish_chunk(self._running.pop(ref), ref)
        self._send_waiting()
        return finished

    def abandon(self) -> None:
        """Drop the queue; restart hosts busy with chunks of ours: one that hangs holds up none."""
        self._waiting.clear()
        self._probes.clear()
        hosts = {running.host.name: running.host for running in self._running.values()}
        self._running.clear()
        for host in hosts.values():
            ray.kill(host.actor, no_restart=False)
            self._lost(host, "still busy at the round's deadline; restarted")

    def _follow(self) -> None:
        """Take in hosts that joined the pool since the last look; each works once it answers."""
        if not self._pool or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + FOLLOW_S
        for full_name in ray.util.list_named_actors():
            pool, _, name = full_name.partition("/")
            if pool == self._pool and name not in self._known:
                self._known.add(name)
                self._await(Host(name, ray.get_actor(full_name), pool))

    def _queues(self) -> dict[str, list[ray.ObjectRef]]:
        """Return what each host has been sent and not answered yet, in order;
        hosts that are away have no entry.
        """
        away = {host.name for host in self._healing.values()}
        queues: dict[str, list[ray.ObjectRef]] = {
            name: [] for name in self._hosts if name not in away
        }
        for ref, running in self._running.items():
            if running.host.name in queues:
                queues[running.host.name].append(ref)
        return queues

    def _send_waiting(self) -> None:
        """Send chunks to the hosts that should be done first."""
        if not self._waiting:
            return
        now, queues = time.perf_counter(), self._queues()
        sent = {name: len(refs) for name, refs in queues.items()}
        left = {
            name: sum(self._running[ref].left_s(now) for ref in refs)
            for name, refs in queues.items()
        }
        while self._waiting:
            depth = 2 if 0 < self._waiting[0].seconds < QUICK_S else 1
            free = [name for name in sent if sent[name] < depth]
            if not free:
                return
            chunk, name = self._waiting.pop(0), min(free, key=lambda name: (left[name], sent[name]))
            self._send(chunk, self._hosts[name])
            sent[name] += 1
            left[name] += chunk.seconds

    def _take_back(self) -> bool:
        """Call back chunks that wait behind another while a host has nothing to do;
        return whether to look again.
        """
        if self._waiting:
            return False
        now, queues = time.perf_counter(), self._queues()
        idle = sum(not refs for refs in queues.values())
        behind = [refs for refs in queues.values() if len(refs) > 1]
        for first, *others in behind if idle else ():
            front = self._running[first]
            if abs(now - front.started - front.chunk.seconds) > NEAR_S:
                ray.cancel(
                    others[-1]
                )  # it may still run where it was sent; that result is not looked at
                self.submit([self._running.pop(others[-1]).chunk])
                if not (idle := idle - 1):
                    break
        return bool(idle and behind)

    def _send(self, chunk: Chunk, host: Host) -> None:
        num_arrays = 1 if chunk.weight_key else len(chunk.tasks)
        num_states = len(chunk.tasks) if self._stateful else 0
        refs = host.actor.run.options(num_returns=1 + num_arrays + num_states).remote(
            self._spec.key, [self._spec_ref], chunk, num_arrays, num_states
        )
        self._running[refs[0]] = _Running(chunk, host, refs, num_arrays)

    def _finish_chunk(self, running: _Running, head: ray.ObjectRef) -> list[ChunkResult]:
        chunk, host = running.chunk, running.host
        for other in self._running.values():
            if other.host.name == host.name:  # it comes next
                other.started = time.perf_counter()
                break
        try:
            replies, in_band, more = ray.get(head)
        except RayTaskError as error:
            return self._refused(chunk, host, error)
        except RayError as error:
            return self._redo(chunk, host, error)
        if chunk.number in self._probes:
            return self._probe_ended(chunk, ())
        arrays, states = (
            running.refs[1 : 1 + running.num_arrays],
            running.refs[1 + running.num_arrays :],
        )
        if any(state is not None for state in in_band):
            self._stateful = True
            states = [state if state is None else ray.put(state) for state in in_band]
        events = tuple(self._events)
        self._events.clear()
        return [ChunkResult(chunk, replies, (*arrays, *more), tuple(states or in_band), events)]

    def _refused(self, chunk: Chunk, host: Host, error: RayTaskError) -> list[ChunkResult]:
        """Deal with a chunk that its host could not run as a whole."""
        if isinstance(error.cause, ObjectLostError):
            raise TrialError(
                f"arrays or client states that {len(chunk.tasks)} client tasks begin with were "
                "lost with their node; a trial goes on from its last checkpoint"
            ) from error
        reason = str(error).strip().splitlines()[-1]
        if isinstance(error.cause, AppError):
            return [_failed(chunk, host.name, reason, str(error))]
        return self._run_one_by_one(chunk, host, reason, str(error))

    def _redo(self, chunk: Chunk, host: Host, error: Exception) -> list[ChunkResult]:
        """Run a lost chunk again elsewhere, so many times."""
        self._lost(
            host,
            f"lost ({type(error).__name__}) with {len(chunk.tasks)} client tasks; they run again",
        )
        self._losses[chunk.number] = losses = self._losses.get(chunk.number, 0) + 1
        if losses < LOSSES_PER_CHUNK:
            self.submit([chunk])
            return []
        return self._run_one_by_one(
            chunk, host, f"the host running this client died {losses} times", str(error)
        )

    def _run_one_by_one(
        self, chunk: Chunk, host: Host, reason: str, trace: str
    ) -> list[ChunkResult]:
        """Run each client of a chunk alone, to see which of them can't be run;
        the others run together after that.

        So their results are those of a round in which it raised, and those of an undisturbed one if
        there is none.
        """
        if chunk.number in self._probes:
            return self._probe_ended(chunk, [_failed(chunk, host.name, reason, trace)])
        if len(chunk.tasks) == 1 or chunk.number in self._probed:
            return [_failed(chunk, host.name, reason, trace)]
        self._events.append(f"{len(chunk.tasks)} clients run one by one: {reason}")
        probing, n = _Probing(chunk, len(chunk.tasks)), len(chunk.tasks)
        probes = [
            Chunk(
                next(self._probe_numbers),
                (task,),
                chunk.arrays,
                cost=chunk.cost / n,
                seconds=chunk.seconds / n,
                ahead=chunk.ahead,
            )
            for task in chunk.tasks
        ]
        self._probes |= {probe.number: probing for probe in probes}
        self.submit(probes)
        return []

    def _probe_ended(self, probe: Chunk, failed: Sequence[ChunkResult]) -> list[ChunkResult]:
        """Take note of a client that ran alone, or failed;
        after the last one, run the good ones together.
        """
        probing = self._probes.pop(probe.number)
        probing.left -= 1
        if not failed:
            probing.good.add(probe.tasks[0].metadata.message_id)
        if not probing.left and probing.good:
            good = tuple(
                task for task in probing.chunk.tasks if task.metadata.message_id in probing.good
            )
            self._losses.pop(probing.chunk.number, None)
            self._probed.add(probing.chunk.number)
            self.submit([replace(probing.chunk, tasks=good)])
        return list(failed)

    def _lost(self, host: Host, what: str) -> None:
        """Note a host as away until it answers."""
        if host not in self._healing.values():
            self._events.append(f"host {host.name} {what}")
            self._await(host)

    def _await(self, host: Host) -> None:
        """Ask a host for a sign of life; Ray starts it where it must, and this call waits."""
        self._healing[host.actor.ping.options(max_task_retries=-1).remote()] = host

    def _healed(self, ref: ray.ObjectRef) -> None:
        host = self._healing.pop(ref)
        try:
            ray.get(ref)
            self._events.append(
                f"host {host.name} {'is back' if host.name in self._hosts else 'joined'}"
            )
            self._hosts[host.name] = host
        except RayError:  # gone for good: its node left, or it was killed without a restart
            self._events.append(f"host {host.name} is gone")
            self._hosts.pop(host.name, None)


def _failed(chunk: Chunk, host: str, reason: str, trace: str) -> ChunkResult:
    """Answer every task of a chunk with an error reply."""
    replies = tuple(_error_reply(task, reason) for task in chunk.tasks)
    tasks = tuple(
        TaskRecord(t.metadata.dst_node_id, t.metadata.message_type, host, 0.0, 0, 0, {}, {}, trace)
        for t in chunk.tasks
    )
    return ChunkResult(
        chunk, ChunkReplies(replies, tasks), (), tuple(task.state for task in chunk.tasks)
    )


def _error_reply(task: Task, reason: str) -> Reply:
    original = make_message(task.metadata, RecordDict())
    message = Message(Error(CLIENT_GONE, reason), reply_to=original)
    return Reply(message.metadata, None, message.error)
