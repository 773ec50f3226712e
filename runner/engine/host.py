"""A client host: runs chunks of client tasks through a ClientApp, in a Ray actor or in place."""

import math
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from cachetools import LRUCache
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
    UserConfig,
)
from flwr.clientapp import ClientApp

from fedsweep.engine.flower import CLIENT_RAISED, make_message, node_config, size_of
from fedsweep.engine.load import LoadSampler
from fedsweep.engine.wire import (
    Chunk,
    ChunkReplies,
    Records,
    Reply,
    Slot,
    Task,
    bytes_of,
    count_bytes,
    empty,
    fill,
    records_up_to,
)
from fedsweep.errors import AppError
from fedsweep.records import TaskRecord
from fedsweep.strategies.arrays import read_array, records_of, write_array

if TYPE_CHECKING:
    import ray


@dataclass(frozen=True)
class AppSpec:
    """A ClientApp that hosts can build: a factory and arguments, which travel once per node."""

    key: str
    factory: Callable[..., ClientApp]
    kwargs: dict[str, Any]
    num_partitions: int
    run_config: UserConfig


class ChunkApp(Protocol):
    """A ClientApp that can also run a chunk's messages together."""

    def run_chunk(
        self, messages: Sequence[Message], contexts: Sequence[Context]
    ) -> list[Message] | None:
        """Return one reply a message, client states left in the contexts;
        None: call the app for each instead.
        """

    def notes(self) -> list[str]:
        """Return what the user should know of how chunks were run since the last call, in lines."""


def run_chunk(
    app: ClientApp,
    spec: AppSpec,
    chunk: Chunk,
    arrays: tuple[ArrayRecord, ...],
    states: list[RecordDict],
    host: str,
) -> tuple[ChunkReplies, list[ArrayRecord], list[RecordDict]]:
    """Run every task of a chunk, together where the app can, else in order.

    A client that raises becomes an error reply with its traceback kept.
    """
    started = time.perf_counter()
    # Not by isinstance, which asks a protocol for its members anew: 15 us a chunk.
    chunks = cast(ChunkApp, app) if hasattr(app, "run_chunk") else None
    together = None if chunks is None else _run_together(chunks, spec, chunk, arrays, states)
    share = (time.perf_counter() - started) / len(chunk.tasks)

    # Each task's reply, its record, and its client's state after it.
    replies: list[tuple[Reply, RecordDict | None]] = []
    mean = _PartialMean(chunk.weight_key, chunk.carried) if chunk.weight_key else None
    records: list[TaskRecord] = []
    after: list[RecordDict] = []
    for i, (task, state) in enumerate(zip(chunk.tasks, states, strict=True)):
        started = time.perf_counter()
        failure = None
        if together is not None:
            reply, new_state = together[i]
        else:
            reply, new_state, failure = _run_task(
                app, spec, task, fill(task.records, arrays), state
            )
        sent = reply.content if reply.has_content() else None
        after.append(new_state)
        records.append(
            TaskRecord(
                node_id=task.metadata.dst_node_id,
                message_type=task.metadata.message_type,
                host=host,
                wall_s=time.perf_counter() - started
                if together is None
                else _load(sent).get("wall_s", share),
                bytes_in=bytes_of(task.records),
                bytes_out=count_bytes(sent) if sent is not None else 0,
                metrics=_scalars(sent),
                load=_load(sent),
                error=failure,
            )
        )
        answer = Reply(reply.metadata, None, None if sent is not None else reply.error)
        if mean is not None:
            mean.add(answer, sent)
        else:
            replies.append((answer, sent))
    kept: list[ArrayRecord] = []
    wired = mean.replies(kept) if mean is not None else _each(replies, kept)
    notes = () if chunks is None else tuple(chunks.notes())
    return ChunkReplies(tuple(wired), tuple(records), notes=notes), kept, after


def _run_together(
    app: ChunkApp,
    spec: AppSpec,
    chunk: Chunk,
    arrays: tuple[ArrayRecord, ...],
    states: list[RecordDict],
) -> list[tuple[Message, RecordDict]] | None:
    """Return each task's reply and its client's state; None where the app wants them one by one."""
    messages = [
        make_message(copy(task.metadata), fill(task.records, arrays)) for task in chunk.tasks
    ]
    contexts = [
        _context(spec, task, state) for task, state in zip(chunk.tasks, states, strict=True)
    ]
    replies = app.run_chunk(messages, contexts)
    if replies is None:
        return None
    return [(reply, context.state) for reply, context in zip(replies, contexts, strict=True)]


def _context(spec: AppSpec, task: Task, state: RecordDict) -> Context:
    return Context(
        run_id=task.metadata.run_id,
        node_id=task.metadata.dst_node_id,
        node_config=node_config(task.metadata.dst_node_id - 1, spec.num_partitions),
        state=deepcopy(state) if len(state) else RecordDict(),
        run_config=dict(spec.run_config),
    )


def _run_task(
    app: ClientApp, spec: AppSpec, task: Task, content: RecordDict, state: RecordDict
) -> tuple[Message, RecordDict, str | None]:
    """Run one task; return its reply, the client's state after it, and a failure's traceback."""
    message = make_message(copy(task.metadata), content)
    context = _context(spec, task, state)
    try:
        reply = app(message, context)
        if not isinstance(reply, Message):
            raise TypeError(
                f"the ClientApp returned {type(reply).__name__}; it must return a Message"
            )
        if reply.has_content():
            _check_arrays(reply.content)
        return reply, context.state, None
    except (
        Exception
    ) as exception:  # the client's own code: whatever it raises is its reply, and the round goes on
        reason = f"{type(exception).__name__}: {exception}"
        original = make_message(task.metadata, RecordDict())
        error = Error(CLIENT_RAISED, reason)
        return Message(error, reply_to=original), state, traceback.format_exc()


def _check_arrays(content: RecordDict) -> None:
    """Refuse a reply with an array that nobody could read: here it costs a reply, later a round."""
    for record in records_of(content, ArrayRecord).values():
        for name, array in record.items():
            try:
                read_array(array)
            except Exception as error:  # whatever NumPy raises on bytes that are no array
                raise ValueError(f"the reply's array '{name}' can't be read: {error}") from error


def _each(replies: list[tuple[Reply, RecordDict | None]], kept: list[ArrayRecord]) -> list[Reply]:
    """Keep every reply's arrays."""

    def store(record: ArrayRecord) -> int:
        kept.append(record)
        return len(kept) - 1

    return [
        reply if content is None else Reply(reply.metadata, empty(content, store))
        for reply, content in replies
    ]


class _PartialMean:
    """The weighted mean of a chunk's replies, summed as they come.

    So a chunk holds one sum, not its clients' models.
    """

    def __init__(self, weight_key: str, carried: frozenset[str]) -> None:
        self._weight_key, self._not_averaged = weight_key, carried
        self._carried: dict[str, Array] = {}
        self._heaviest = (
            -math.inf,
            0,
        )  # weight, and minus the node id, of the reply they come from
        self._good: list[tuple[Reply, RecordDict]] = []  # without their arrays
        self._failed: list[Reply] = []
        self._name, self._only = "", ArrayRecord()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._sums: dict[str, np.ndarray] = {}

    def add(self, reply: Reply, content: RecordDict | None) -> None:
        """Take a reply; an error, and a reply that can't be averaged, stays a reply of its own."""
        if content is None:
            self._failed.append(reply)
            return
        if reason := self._unfit(content):
            self._failed.append(Reply(reply.metadata, None, Error(CLIENT_RAISED, reason)))
            return
        [(self._name, record)] = content.array_records.items()
        self._shapes = _shapes(record)
        weighted = next(iter(content.metric_records.values()))
        self._only = record
        self._sum(record, float(weighted[self._weight_key]), reply.metadata.src_node_id)  # type: ignore[arg-type]
        self._good.append(
            (reply, RecordDict({k: v for k, v in content.items() if k != self._name}))
        )

    def _unfit(self, content: RecordDict) -> str:
        """Return why a content can't be averaged; "" where it can."""
        arrays, metrics = content.array_records, content.metric_records
        weighted = metrics and all(self._weight_key in record for record in metrics.values())
        if len(arrays) != 1 or not weighted:
            return (
                f"a reply to be averaged needs one ArrayRecord, and '{self._weight_key}' in its "
                "MetricRecord"
            )
        shapes = _shapes(next(iter(arrays.values())))
        if self._good and shapes != self._shapes:
            return f"a reply to be averaged has arrays {shapes}, those before it {self._shapes}"
        return ""

    def _sum(self, record: ArrayRecord, weight: float, node: int) -> None:
        """Add a client's arrays with their weight; keep what is carried of the heaviest client."""
        rank = weight, -node
        if self._not_averaged and rank > self._heaviest:
            self._heaviest = rank
            self._carried = {key: a for key, a in record.items() if key in self._not_averaged}
        for key, array in record.items():
            if key in self._not_averaged:
                continue
            scaled = read_array(array) * weight
            if key in self._sums:
                self._sums[key] += scaled
            else:
                self._sums[key] = np.asarray(scaled)

    def replies(self, kept: list[ArrayRecord]) -> list[Reply]:
        """Return one reply that holds the mean and the summed weight, and those that failed;
        keep the mean.
        """
        if not self._good:
            return self._failed
        contents = {reply.metadata.src_node_id: content for reply, content in self._good}
        total = sum(_weights(contents.values(), self._weight_key))
        if (
            len(self._good) == 1 or not total
        ):  # one client's arrays as they are; of clients without examples, the last
            kept.append(self._only)
        else:
            means = {k: write_array(np.asarray(v / total)) for k, v in self._sums.items()}
            kept.append(ArrayRecord({key: (means | self._carried)[key] for key in self._shapes}))
        slot = Slot(0, size_of(kept[0]))
        records: Records = {self._name: slot, **told_of_mean(contents, self._weight_key)}
        return [Reply(self._good[0][0].metadata, records), *self._failed]


def told_of_mean(
    contents: Mapping[int, RecordDict], weight_key: str
) -> dict[str, MetricRecord | ConfigRecord]:
    """Return what a mean of replies tells beside its arrays.

    Parameters
    ----------
    contents : mapping
        Node -> what it replied, whose arrays are not read.
    weight_key : str
        The metric by which they are weighted, which is summed; other metrics are averaged by it.

    Returns
    -------
    dict
        The metrics, under their name, and ``load``: each client's id, weight and load, in lists.
    """
    name, first = next(iter(next(iter(contents.values())).metric_records.items()))
    told = [next(iter(content.metric_records.values())) for content in contents.values()]
    weights = _weights(contents.values(), weight_key)
    total = sum(weights)
    factors = (
        [weight / total for weight in weights] if total else [1.0 / len(weights)] * len(weights)
    )
    mean = MetricRecord()
    for key in first:
        values = [record[key] for record in told]
        mean[key] = total if key == weight_key else _mean_value(values, factors)
    loads = ConfigRecord({"node-ids": list(contents), "num-examples": weights})
    single = [_load(content) for content in contents.values()]
    for key in single[0]:
        loads[key] = [load.get(key, 0.0) for load in single]
    return {name: mean, "load": loads}


def _weights(contents: Iterable[RecordDict], weight_key: str) -> list[float]:
    return [
        float(next(iter(content.metric_records.values()))[weight_key])  # type: ignore[arg-type]
        for content in contents
    ]


def _shapes(record: ArrayRecord) -> dict[str, tuple[int, ...]]:
    return {key: tuple(array.shape) for key, array in record.items()}


def _mean_value(values: list[Any], factors: list[float]) -> Any:
    if isinstance(values[0], list):
        return [
            sum(f * v for f, v in zip(factors, column, strict=True))
            for column in zip(*values, strict=True)
        ]
    return sum(f * v for f, v in zip(factors, values, strict=True))


def _scalars(content: RecordDict | None) -> dict[str, float]:
    if content is None:
        return {}
    return {
        key: value
        for record in records_of(content, MetricRecord).values()
        for key, value in record.items()
        if not isinstance(value, list)
    }


def _load(content: RecordDict | None) -> dict[str, float]:
    record = content.get("load") if content is not None else None
    if not isinstance(record, ConfigRecord):
        return {}
    return {key: float(value) for key, value in record.items()}  # type: ignore[arg-type]


class ClientHost:
    """Holds the ClientApps of the trials that it works for, and runs their chunks one by one.

    It is a Ray actor in the engine. Arguments that may be Ray object references are resolved by
    ``get``.
    """

    APPS = 8  # ClientApps kept; a trial's app is some references and a model
    RECORD_BYTES = 256 * 2**20  # decoded ArrayRecords kept: the models of the rounds now running

    def __init__(self, name: str, node: str, get: Callable[[Sequence[object]], list[Any]]) -> None:
        self.name = name
        self._get = get
        self._apps: LRUCache[str, tuple[ClientApp, AppSpec]] = LRUCache(self.APPS)
        self._records: LRUCache[str, ArrayRecord] = records_up_to(self.RECORD_BYTES)
        self._sampler = LoadSampler(name, node)

    def ping(self) -> str:
        """Return the host's name: it is alive and has imported everything."""
        return self.name

    def pid(self) -> int:
        """Return the host's process id."""
        return os.getpid()

    def run(
        self,
        spec_key: str,
        spec: "list[ray.ObjectRef[AppSpec]]",
        chunk: Chunk,
        num_arrays: int,
        num_states: int,
    ) -> tuple[object, ...]:
        """Run a chunk for Ray: the replies, ``num_arrays`` arrays, ``num_states`` client states.

        Where the caller did not know that its app keeps state (``num_states`` 0), states travel
        with the replies. So do arrays beyond ``num_arrays``: those of replies with more than one
        ArrayRecord.
        """
        started = time.time()
        app, app_spec = self._app(spec_key, spec)
        arrays = tuple(self._record(ref) for ref in chunk.arrays)
        stored = [task.state for task in chunk.tasks if task.state is not None]
        fetched = iter(self._get(stored))
        found = [next(fetched) if task.state is not None else None for task in chunk.tasks]
        states = [state or RecordDict() for state in found]  # a reference may be to an empty one
        replies, kept, after = run_chunk(app, app_spec, chunk, arrays, states, self.name)
        samples = tuple(self._sampler.drain(started))
        head = replace(replies, samples=samples)
        in_band = [] if num_states else [state if len(state) else None for state in after]
        out = [state if len(state) else None for state in after] if num_states else []
        by_reference = kept[:num_arrays] + [None] * (num_arrays - len(kept))
        return (head, in_band, kept[num_arrays:]), *by_reference, *out

    def _app(self, key: str, spec: "list[ray.ObjectRef[AppSpec]]") -> tuple[ClientApp, AppSpec]:
        if key not in self._apps:
            app_spec: AppSpec = self._get(spec)[0]
            names = list(app_spec.kwargs)
            values = self._get([app_spec.kwargs[name] for name in names])
            try:
                app = app_spec.factory(**dict(zip(names, values, strict=True)))
            except Exception as error:  # the user's own code
                raise AppError(
                    f"the ClientApp can't be built: {type(error).__name__}: {error}"
                ) from error
            self._apps[key] = app, app_spec
        return self._apps[key]

    def _record(self, ref: "ray.ObjectRef[ArrayRecord]") -> ArrayRecord:
        key = ref.hex()
        if key not in self._records:
            self._records[key] = self._get([ref])[0]
        return self._records[key]
