"""Checkpoints: what a trial needs to go on to the bit, and the records of the rounds behind it.

A checkpoint of round n is two files under the trial's folder, on any storage that fsspec knows::

    000005.safetensors   of the last two rounds: arrays, and in its header the rest as JSON
    000005.json          of each checkpoint: the records since the one before, and the checksums

The second is written last and makes the first valid. As it holds the records, a round whose log was
lost with the driver is logged again from there, and tables of a resumed trial have all their rows.
Nothing is pickled.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from fedsweep.errors import CheckpointError, no_room, one_line
from fedsweep.files import write_whole
from fedsweep.records import LoadSample, RoundRecord
from fedsweep.strategies.base import State

VERSION = 2  # of what a state holds
_ENTRY = re.compile(r"\d{6,9}\.json")
_STATE = re.compile(r"\d{6,9}\.safetensors")
KEPT = 2
"""States kept: where the last one was cut off or corrupted, the one before is used."""


@dataclass(frozen=True)
class Checkpoint:
    """A trial after a round."""

    round: int
    state: State
    records: tuple[RoundRecord, ...]  # of rounds 0 to ``round``


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one trial.

    Parameters
    ----------
    url : str
        Folder of this trial, as a path or an fsspec URL.
    key : str
        The trial's key; a checkpoint of another one is refused.
    shorter : CheckpointStore, optional
        Those of the same trial with fewer rounds: where there are none of its own, it begins there.
    """

    url: str
    key: str
    shorter: "CheckpointStore | None" = None

    def save(self, number: int, state: State, records: Sequence[RoundRecord]) -> None:
        """Store the state after a round, and the records since the last checkpoint;
        drop states that are too old.

        Parameters
        ----------
        number : int
            The round.
        state : mapping
            Nested dicts and lists of plain values, NumPy arrays and Flower records.

        Raises
        ------
        CheckpointError
            The storage can't be written.
        """
        data = encode(state)
        entry = {
            "version": VERSION,
            "trial": self.key,
            "round": number,
            "state_sha256": hashlib.sha256(data).hexdigest(),
            "records": [asdict(record) for record in records],
        }
        written = _entry_file(entry)
        try:
            self._fs.makedirs(self._root, exist_ok=True)
            self._write(f"{number:06d}.safetensors", data)
            self._write(f"{number:06d}.json", written)
            states = (name for name in self._names() if _STATE.fullmatch(name))
            for name in sorted(states, key=_round_of)[:-KEPT]:
                self._fs.rm_file(f"{self._root}/{name}")
        except Exception as error:  # each kind of storage has errors of its own
            mend = "make room there" if no_room(error) else "mend that"
            raise CheckpointError(
                f"no checkpoint can be written to {self.url}: {error}; {mend}"
            ) from error

    def load(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, with every record up to it;
        None where there is none.

        One of the shorter trial is made this trial's own.

        Raises
        ------
        CheckpointError
            It was made by another trial, or by another version of fedsweep.
        """
        entries = {
            number: entry for number in self.rounds() if (entry := self._entry(number)) is not None
        }
        for number in sorted(entries, reverse=True):
            data = self._read(f"{number:06d}.safetensors")
            if data is None or hashlib.sha256(data).hexdigest() != entries[number]["state_sha256"]:
                continue
            records: dict[int, RoundRecord] = {}
            for n in sorted(n for n in entries if n <= number):
                records |= {record.round: record for record in entries[n]["records"]}
            if list(records) == list(range(number + 1)):
                with suppress(CheckpointError):
                    return Checkpoint(number, decode(data), tuple(records.values()))
        begun = self.shorter.load() if self.shorter else None
        if begun:
            self.save(begun.round, begun.state, begun.records)
        return begun

    def rounds(self) -> list[int]:
        """Return the rounds that have a checkpoint, whole or not; other files are none of ours."""
        return sorted(_round_of(name) for name in self._names() if _ENTRY.fullmatch(name))

    def check(self) -> None:
        """Raise the CheckpointError that :meth:`load` would raise, without reading any state."""
        for number in reversed(self.rounds()):
            if self._entry(number) is not None:
                return

    def keep_last(self) -> None:
        """Leave the newest checkpoint alone, with the records of all rounds in its one entry."""
        entries = {number: self._text(number) for number in self.rounds()}
        if len(entries) < 2:
            return
        whole = {number: json.loads(text) for number, text in entries.items() if text}
        if not whole:
            return
        last = max(whole)
        records = [record for number in sorted(whole) for record in whole[number]["records"]]
        self._write(f"{last:06d}.json", _entry_file(whole[last] | {"records": records}))
        kept = {f"{last:06d}.json", f"{last:06d}.safetensors"}
        for name in self._names():
            if name not in kept and (_ENTRY.fullmatch(name) or _STATE.fullmatch(name)):
                self._fs.rm_file(f"{self._root}/{name}")

    def remove(self) -> None:
        """Delete all of the trial's checkpoints."""
        try:
            self._fs.rm(self._root, recursive=True)
        except FileNotFoundError:
            return
        except Exception as error:  # each kind of storage has errors of its own
            raise CheckpointError(
                f"the checkpoints in {self.url} can't be removed: {one_line(error)}; mend that"
            ) from error

    @cached_property
    def _opened(self) -> tuple[AbstractFileSystem, str]:
        return open_storage(self.url)

    @property
    def _fs(self) -> AbstractFileSystem:
        return self._opened[0]

    @property
    def _root(self) -> str:
        return self._opened[1]

    def __getstate__(self) -> dict[str, object]:
        return {"url": self.url, "key": self.key, "shorter": self.shorter}

    def _names(self) -> list[str]:
        try:
            return [
                path.rsplit("/", 1)[-1]
                for path in self._fs.ls(self._root, detail=False, refresh=True)
            ]
        except FileNotFoundError:
            return []
        except Exception as error:  # each kind of storage has errors of its own
            raise self._unread(error) from error

    def _entry(self, number: int) -> State | None:
        """Return what a checkpoint's second file says, or None where it is cut off or corrupted.

        Its records are RoundRecords. One of another trial or version is refused by what it says of
        itself, before anything else in it is looked at.
        """
        try:
            entry: State = json.loads(self._text(number))
            given = entry["version"], entry["trial"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        for what, found, ours in zip(("version", "trial"), given, (VERSION, self.key), strict=True):
            if found != ours:
                raise CheckpointError(
                    f"{self.url}/{number:06d}.json is a checkpoint of {what} {found}, "
                    f"but this is {what} {ours}; start over with --fresh, or set another "
                    "checkpoint.storage_path"
                )
        try:
            records = [_record(values) for values in entry["records"]]
            return entry | {"records": records, "state_sha256": str(entry["state_sha256"])}
        except (
            KeyError,
            TypeError,
            AttributeError,
        ):  # a field is missing, or not what it should be
            return None

    def _text(self, number: int) -> str:
        """Return the text of a checkpoint's second file; nothing where it is not whole."""
        try:
            outer = json.loads(self._read(f"{number:06d}.json") or b"")
            return str(outer["entry"]) if _sha256(outer["entry"]) == outer["sha256"] else ""
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return ""

    def _read(self, name: str) -> bytes | None:
        try:
            return bytes(self._fs.cat_file(f"{self._root}/{name}"))
        except (FileNotFoundError, IsADirectoryError):
            return None
        except Exception as error:  # none that is not there: nobody starts over because of it
            raise self._unread(error) from error

    def _unread(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"the checkpoints in {self.url} can't be read: {one_line(error)}; mend that"
        )

    def _write(self, name: str, data: bytes) -> None:
        write_atomically(self._fs, f"{self._root}/{name}", data)


def open_storage(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system and the path of a URL;
    what names no protocol is a local path, whatever it holds.

    Raises
    ------
    CheckpointError
        There is no such kind of storage, or its package is missing.
    """
    if "://" not in url:
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(url))
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError, OSError) as error:
        raise CheckpointError(f"checkpoint.storage_path={url} can't be opened: {error}") from error
    return fs, path


def write_atomically(fs: AbstractFileSystem, path: str, data: bytes) -> None:
    """Write a file that is there whole or not at all; object stores do so by themselves."""
    if "file" not in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol):
        fs.pipe_file(path, data)
        return
    write_whole(Path(path), data)


def encode(state: State) -> bytes:
    """Return a state as a safetensors file: its arrays, and the rest as JSON in the header."""
    tensors: dict[str, np.ndarray] = {}

    def keep(array: np.ndarray) -> str:
        key = f"{len(tensors):06d}"
        tensors[key] = np.asarray(array, order="C")
        return key

    def walk(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            return {
                "$scalar" if isinstance(value, np.generic) else "$array": keep(np.asarray(value))
            }
        if isinstance(value, ArrayRecord):
            return {"$arrays": {name: keep(array.numpy()) for name, array in value.items()}}
        for tag, kind in _RECORDS.items():
            if isinstance(value, kind):
                return {tag: {name: walk(item) for name, item in value.items()}}
        if isinstance(value, bytes):
            return {"$bytes": base64.b64encode(value).decode()}
        if isinstance(value, tuple):
            return {"$tuple": [walk(item) for item in value]}
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, Mapping):
            return {str(name): walk(item) for name, item in value.items()}
        return value

    return bytes(save_tensors(tensors, {"state": json.dumps(walk(state))}))


def decode(data: bytes) -> State:
    """Return what :func:`encode` was given; keys are strings.

    Raises
    ------
    CheckpointError
        The data are no state.
    """
    try:
        tensors = {
            key: np.array(array) for key, array in load_tensors(data).items()
        }  # ours to write to
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        written = json.loads(header["__metadata__"]["state"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"a checkpoint is corrupted: {error}") from error

    state: State = _unpacked(written, tensors)
    return state


def _unpacked(value: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """Return what a value of the JSON in a state stands for."""
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        [(tag, item)] = value.items()
        if tag in _UNPACK:
            return _UNPACK[tag](item, tensors)
        if tag in _RECORDS:
            return _RECORDS[tag]({name: _unpacked(part, tensors) for name, part in item.items()})
    return {name: _unpacked(item, tensors) for name, item in value.items()}


_UNPACK: dict[str, Callable[[Any, Mapping[str, np.ndarray]], object]] = {
    "$array": lambda key, tensors: tensors[key],
    "$scalar": lambda key, tensors: tensors[key][()],
    "$arrays": lambda keys, tensors: ArrayRecord(
        {name: Array(tensors[key]) for name, key in keys.items()}
    ),
    "$bytes": lambda text, tensors: base64.b64decode(text),
    "$tuple": lambda items, tensors: tuple(_unpacked(item, tensors) for item in items),
}

_RECORDS: dict[str, type[RecordDict | ConfigRecord | MetricRecord]] = {
    "$records": RecordDict,
    "$config": ConfigRecord,
    "$metrics": MetricRecord,
}


def _record(values: State) -> RoundRecord:
    load = tuple(LoadSample(**sample) for sample in values["load"])
    return RoundRecord(**{**values, "load": load, "events": tuple(values["events"])})


def _round_of(name: str) -> int:
    """Return the round of a file; by their names a millionth would come before the second."""
    return int(name.partition(".")[0])


def _entry_file(entry: State) -> bytes:
    """Return the content of a checkpoint's second file."""
    text = json.dumps(entry, default=_plain)
    return json.dumps({"sha256": _sha256(text), "entry": text}).encode()


def _plain(value: np.generic | np.ndarray) -> object:
    """Write NumPy's values, which tables may hold, as Python's."""
    return value.tolist()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
