"""What runs chunks: its interface, the executor of this process, and a host as a trial sees it."""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from flwr.app import ArrayRecord, RecordDict

from fedsweep.engine.flower import ArrayRef
from fedsweep.engine.host import AppSpec, run_chunk
from fedsweep.engine.load import inline_sampler
from fedsweep.engine.wire import Chunk, ChunkResult

if TYPE_CHECKING:
    import ray
    from ray.actor import ActorHandle

T = TypeVar("T")


@dataclass(frozen=True)
class Host:
    """A client host as a trial sees it: a Ray actor that Ray restarts when it dies."""

    name: str
    actor: "ActorHandle"
    pool: str = ""  # actors called ``<pool>/<name>`` are its hosts, those that join later too
    node: str = ""  # the node that it stays on; "": any


class Executor(Protocol):
    """Runs chunks. The grid submits, then collects until it has what it waits for."""

    def submit(self, chunks: Iterable[Chunk]) -> None:
        """Accept chunks to run."""

    def collect(self, timeout: float | None) -> list[ChunkResult]:
        """Return chunks that finished, after at most ``timeout`` seconds (None: for ever)."""

    def abandon(self) -> None:
        """Give up every chunk that is not finished; hosts still busy with one are restarted."""

    def put(self, record: ArrayRecord) -> ArrayRef:
        """Keep an ArrayRecord where hosts can read it; return what stands for it in a chunk."""

    def get(self, ref: "ray.ObjectRef[T] | T") -> T:
        """Return what a reference stands for."""


class InlineExecutor:
    """Runs chunks in this process when they are collected;
    for debugging, unit tests and machines without Ray.
    """

    def __init__(self, spec: AppSpec) -> None:
        self._spec = spec
        self._app = spec.factory(**spec.kwargs)
        self._waiting: deque[Chunk] = deque()
        self._sampler = inline_sampler()

    def submit(self, chunks: Iterable[Chunk]) -> None:
        """Queue chunks."""
        self._waiting.extend(chunks)

    def collect(self, timeout: float | None) -> list[ChunkResult]:
        """Run the next chunk; it can't be interrupted, so the timeout holds between chunks."""
        if not self._waiting:
            return []
        chunk, started = self._waiting.popleft(), time.time()
        states = [task.state if task.state is not None else RecordDict() for task in chunk.tasks]
        replies, kept, after = run_chunk(
            self._app, self._spec, chunk, chunk.arrays, states, "inline"
        )
        replies = replace(replies, samples=tuple(self._sampler.drain(started)))
        return [
            ChunkResult(chunk, replies, tuple(kept), tuple(s if len(s) else None for s in after))
        ]

    def abandon(self) -> None:
        """Forget the queue."""
        self._waiting.clear()

    def put(self, record: ArrayRecord) -> ArrayRecord:
        """Return the value itself."""
        return record

    def get(self, ref: "ray.ObjectRef[T] | T") -> T:
        """Return the value itself."""
        return ref
