"""What travels between a grid and its hosts.

A message's arrays travel by reference, its other records (configs, metrics) by value. An
:class:`ArrayRecord` that came back from a host stays a reference until somebody reads it, and goes
to another host as that reference.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pickle import PickleBuffer
from typing import Any, TypeAlias

import ray
from cachetools import LRUCache
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Metadata, MetricRecord, RecordDict

from fedsweep.engine.flower import ArrayRef, size_of
from fedsweep.links import TRAVELS
from fedsweep.records import LoadSample, TaskRecord

OUT_OF_BAND_BYTES = 2**16
"""Arrays from here on go beside the pickle: one copy less on the way into the object store."""


@dataclass(frozen=True)
class Slot:
    """Where a content's ArrayRecord is found: an index into the arrays of its chunk;
    and how many bytes it has.
    """

    index: int
    nbytes: int


Records = dict[str, Slot | ConfigRecord | MetricRecord]
"""A message's content in its own order, arrays replaced by slots."""


StateRef: TypeAlias = "ray.ObjectRef[RecordDict] | RecordDict | None"
"""A client's Context.state, by reference or by value; None while it is empty."""


@dataclass(frozen=True)
class Task:
    """One message for one client."""

    metadata: Metadata
    records: Records
    state: StateRef
    stateless: bool = False  # it neither sees nor changes the state


@dataclass(frozen=True)
class Chunk:
    """A fixed group of client tasks that one host runs in one call.

    ``arrays`` holds each distinct ArrayRecord of the tasks once. ``weight_key`` asks for one
    weighted mean of the replies' arrays in place of the replies; arrays named in ``carried`` are
    not averaged, but those of the heaviest reply, of equal ones that of the lowest node id.
    """

    number: int
    tasks: tuple[Task, ...]
    arrays: tuple[ArrayRef, ...]
    weight_key: str | None = None
    carried: frozenset[str] = frozenset()
    cost: float = 1.0  # in any unit, the same in every run
    seconds: float = 0.0  # expected from what such tasks took; 0.0: not known yet
    ahead: bool = False  # nobody waits for it yet: it runs behind those that somebody waits for


@dataclass(frozen=True)
class Reply:
    """What one client task sent back; a partial mean stands for several tasks."""

    metadata: Metadata
    records: Records | None  # None: an error; slots index the arrays of the chunk's result
    error: Error | None = None


@dataclass(frozen=True)
class ChunkReplies:
    """What a host says about a chunk, but for the arrays and client states, which go beside it."""

    replies: tuple[Reply, ...]
    tasks: tuple[TaskRecord, ...]
    samples: tuple[LoadSample, ...] = ()
    notes: tuple[str, ...] = ()  # what the app says of how it ran the chunk


@dataclass(frozen=True)
class ChunkResult:
    """A finished chunk as its executor hands it to the grid."""

    chunk: Chunk
    replies: ChunkReplies
    arrays: tuple[ArrayRef, ...]  # one per slot of the replies
    states: tuple[StateRef, ...]  # one per task, after it
    events: tuple[str, ...] = field(default=())


def bytes_of(records: Records) -> int:
    """Return the bytes of the arrays that a message's content stands for, as they travel."""
    travel: Any = records.get(TRAVELS, {})
    return sum(
        int(travel.get(name, record.nbytes))
        for name, record in records.items()
        if isinstance(record, Slot)
    )


def count_bytes(content: RecordDict) -> int:
    """Return the bytes of the arrays in a content."""
    return sum(size_of(record) for record in content.values() if isinstance(record, ArrayRecord))


def records_up_to(most_bytes: int) -> LRUCache[Any, ArrayRecord]:
    """Return a cache of the ArrayRecords used last; one with more bytes than all is kept alone."""
    return LRUCache(most_bytes, lambda record: min(size_of(record), most_bytes))


def fill(records: Records, arrays: tuple[ArrayRecord, ...]) -> RecordDict:
    """Build a content of its own for one client: nothing it changes is seen by another."""
    content = RecordDict()
    for name, record in records.items():
        if isinstance(record, Slot):
            content[name] = arrays[record.index].copy()
        else:
            values: Any = {
                key: list(value) if isinstance(value, list) else value
                for key, value in record.items()
            }
            content[name] = type(record)(values)
    return content


def empty(content: RecordDict, store: Callable[[ArrayRecord], int]) -> Records:
    """Replace a content's arrays by slots; ``store`` keeps an ArrayRecord and returns its index."""
    return {
        name: Slot(store(record), size_of(record)) if isinstance(record, ArrayRecord) else record
        for name, record in content.items()
    }


def out_of_band() -> None:
    """Have Ray write the bytes of large arrays straight into the store, from this process."""
    ray.util.register_serializer(Array, serializer=_take_apart, deserializer=_put_together)


_Parts = tuple[str, tuple[int, ...], str, bytes | PickleBuffer]


def _take_apart(array: Array) -> _Parts:
    large = len(array.data) >= OUT_OF_BAND_BYTES
    return array.dtype, array.shape, array.stype, PickleBuffer(array.data) if large else array.data


def _put_together(parts: _Parts) -> Array:
    dtype, shape, stype, data = parts
    return Array(
        dtype, shape, stype, bytes(data)
    )  # bytes, as Flower asks: what is read is a copy, as before
