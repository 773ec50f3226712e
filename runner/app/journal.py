"""What an app's clients replied, kept exchange by exchange: an interrupted trial goes on from it.

A ServerApp is a function that runs from its beginning to its end, and its state can't be put back
in the midst. But it can be run again: what its clients replied is taken from here as long as it
asks what it asked before, which costs its own work alone. Nothing is pickled.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict

from fedsweep.engine.grid import Trace
from fedsweep.errors import CheckpointError, TrialError, no_room
from fedsweep.records import LoadSample, TaskRecord
from fedsweep.strategies.insides import Shared
from fedsweep.trial.checkpoint import (
    CheckpointStore,
    decode,
    encode,
    open_storage,
    write_atomically,
)

VERSION = 1  # of what an exchange holds
_SUFFIX = ".exchange"
_NAME = re.compile(rf"\d{{6}}-\d+{re.escape(_SUFFIX)}")


@dataclass(frozen=True)
class Exchange:
    """Messages that were sent at once, and what became of them.

    Parameters
    ----------
    sent : str
        Digest of the messages.
    replies : sequence of (int, RecordDict or None, (int, str))
        In their order: which message was answered, its content, or an error's code and reason.
    states : mapping
        The clients' ``Context.state`` after it, by node id, where they have one.
    trace : Trace
        What the engine saw.
    """

    sent: str
    replies: Sequence[tuple[int, RecordDict | None, tuple[int, str]]]
    states: Mapping[int, RecordDict] = field(default_factory=dict)
    trace: Trace = field(default_factory=Trace)


class Journal:
    """The exchanges of one trial, in its folder of checkpoints.

    Parameters
    ----------
    checkpoints : CheckpointStore
        Where they are kept.
    most_bytes : int
        Of all of them: a trial that would take more keeps none, and starts again.

    Attributes
    ----------
    round : int
        The round that the last one is of; 0 where there is none.
    """

    def __init__(self, checkpoints: CheckpointStore, most_bytes: int) -> None:
        self._fs, self._root = open_storage(checkpoints.url)
        self._key, self._url, self._most = checkpoints.key, checkpoints.url, most_bytes
        self._names = self._there()
        self.round = int(self._names[-1].split("-")[1].split(".")[0]) if self._names else 0
        self._next = self._bytes = 0
        self._stopped = most_bytes <= 0

    def recall(self, messages: Sequence[Message], number: int) -> Exchange | None:
        """Return what these messages were answered before; None where they were not sent yet.

        Raises
        ------
        TrialError
            Others were: the server does not repeat itself.
        """
        if self._stopped or self._next >= len(self._names):
            return None
        data = bytes(self._fs.cat_file(f"{self._root}/{self._names[self._next]}"))
        try:
            state = decode(data)
            if (state["version"], state["trial"]) != (VERSION, self._key):
                raise CheckpointError("it is of another trial or version")
            found = _exchange(state)
        except (CheckpointError, KeyError, TypeError, ValueError):  # cut off: it is sent once more
            self._forget_rest()
            return None
        if found.sent != digest_of(messages):
            raise TrialError(
                f"round {number} is asked otherwise than before it was interrupted: the app's "
                "server does not repeat itself, so its trial can't go on; start it over with "
                "--fresh, or keep nothing of it with journal_mb=0"
            )
        self._next += 1
        self._bytes += len(data)
        return found

    def keep(self, exchange: Exchange, number: int) -> str:
        """Keep an exchange of a round; return what is to be said, if anything.

        Raises
        ------
        CheckpointError
            The storage can't be written.
        """
        if self._stopped:
            return ""
        data = encode(_state(exchange, self._key))
        self._bytes += len(data)
        if self._bytes > self._most:
            self.stop()
            return (
                f"the clients' replies take more than journal_mb={self._most // 2**20}: an "
                "interruption starts this trial over"
            )
        name = f"{self._next:06d}-{number}{_SUFFIX}"
        try:
            self._fs.makedirs(self._root, exist_ok=True)
            write_atomically(self._fs, f"{self._root}/{name}", data)
        except Exception as error:  # each kind of storage has errors of its own
            mend = "make room there" if no_room(error) else "mend that"
            raise CheckpointError(f"{self._url} can't be written: {error}; {mend}") from error
        self._next += 1
        self._names.append(name)
        return ""

    def stop(self) -> None:
        """Keep nothing any more, and forget what was kept: it would not lead to the end."""
        if not self._stopped:
            self._next = 0
            self._forget_rest()
            self._stopped = True

    def _forget_rest(self) -> None:
        for name in self._names[self._next :]:
            self._fs.rm_file(f"{self._root}/{name}")
        del self._names[self._next :]

    def _there(self) -> list[str]:
        """Return the names of the exchanges that there are, as far as none is missing."""
        try:
            paths = self._fs.ls(self._root, detail=False, refresh=True)
        except FileNotFoundError:
            return []
        found = (path.rsplit("/", 1)[-1] for path in paths)
        names = sorted(name for name in found if _NAME.fullmatch(name))
        whole = [name for i, name in enumerate(names) if name.startswith(f"{i:06d}-")]
        return whole


def digest_of(messages: Sequence[Message]) -> str:
    """Return what tells messages from others: to whom they go, and every value in them."""
    told = hashlib.sha256()
    of_record: Shared[Any, bytes] = Shared(_record_digest)
    for message in messages:
        told.update(f"{message.metadata.message_type} {message.metadata.dst_node_id}".encode())
        for name, record in message.content.items():
            told.update(name.encode() + of_record(record))
    return told.hexdigest()


def _record_digest(record: Any) -> bytes:
    told = hashlib.sha256()
    for key, value in record.items():
        told.update(key.encode())
        if isinstance(record, ArrayRecord):
            told.update(f"{value.dtype} {value.shape}".encode() + value.data)
        else:
            told.update(repr(value).encode())
    return told.digest()


def _state(exchange: Exchange, key: str) -> dict[str, Any]:
    return {
        "version": VERSION,
        "trial": key,
        "sent": exchange.sent,
        "replies": [list(reply) for reply in exchange.replies],
        "states": {str(node): state for node, state in exchange.states.items()},
        "tasks": [asdict(task) for task in exchange.trace.tasks],
        "samples": [asdict(sample) for sample in exchange.trace.samples],
        "events": exchange.trace.events,
    }


def _exchange(state: Mapping[str, Any]) -> Exchange:
    trace = Trace(
        [TaskRecord(**task) for task in state["tasks"]],
        [LoadSample(**sample) for sample in state["samples"]],
        list(state["events"]),
    )
    replies = [(int(i), content, (int(e[0]), str(e[1]))) for i, content, e in state["replies"]]
    states = {int(node): kept for node, kept in state["states"].items()}
    return Exchange(str(state["sent"]), replies, states, trace)
