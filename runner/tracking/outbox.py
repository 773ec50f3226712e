"""Operations that wait on disk for a store that does not answer, in ``<tracking.output>/spill/<store>-<random>/``.

Each is a folder with a number, JSON and files, nothing pickled. ``lock`` is held by the process that owns them all, and
``runs.json`` has MLflow's id of each run made so far.
"""

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.tracking import ops
from runner.tracking.ops import Op
from runner.tracking.store import Store


class Outbox:
    """A queue of operations on disk, in order; each is on disk whole or not at all.

    Parameters
    ----------
    folder : Path
        Its folder, made with the first operation and removed with the last.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = None
        self._waiting = sorted(int(path.name) for path in folder.glob("[0-9]*")) if folder.exists() else []
        self._last = self._waiting[-1] if self._waiting else 0

    @classmethod
    def fresh(cls, spill: Path, store: Store) -> "Outbox":
        """Return an empty outbox for a store; nothing is written yet."""
        return cls(spill / f"{_store_id(store)}-{uuid.uuid4().hex[:8]}")

    def __len__(self) -> int:
        return len(self._waiting)

    def append(self, op: Op, runs: Mapping[str, str]) -> None:
        """Put an operation behind the others. Raises OSError where the disk takes no more."""
        if not self._waiting:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock()
            self.keep_runs(runs)
        number = self._last + 1
        draft = self.folder / f".{number:08d}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        head = {"kind": op.kind, "run": op.run, "data": op.data, "files": list(op.files)}
        _durable(draft / "op.json", json.dumps(head).encode())
        for i, content in enumerate(op.files.values()):
            _durable(draft / f"file{i}", content)
        draft.rename(self.folder / f"{number:08d}")
        self._last = number
        self._waiting.append(number)

    def first(self) -> Op:
        """Return the operation that has waited longest."""
        place = self._place(self._waiting[0])
        head: dict[str, Any] = json.loads((place / "op.json").read_text())
        content = {name: (place / f"file{i}").read_bytes() for i, name in enumerate(head["files"])}
        return Op(head["kind"], head["run"], head["data"], content)

    def done(self, runs: Mapping[str, str], made_run: bool) -> None:
        """Forget the first operation; with the last, the folder goes too."""
        if made_run:
            self.keep_runs(runs)
        shutil.rmtree(self._place(self._waiting.pop(0)))
        if not self._waiting:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.unlock()

    def runs(self) -> dict[str, str]:
        """Return the runs that were made before or while these operations waited."""
        known: dict[str, str] = json.loads((self.folder / "runs.json").read_text())
        return known

    def keep_runs(self, runs: Mapping[str, str]) -> None:
        """Note the runs made so far."""
        draft = self.folder / ".runs.json"
        _durable(draft, json.dumps(dict(runs)).encode())
        draft.rename(self.folder / "runs.json")

    def lock(self) -> bool:
        """Take the folder for this process; False where another one holds it."""
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.unlock()
            return False
        return True

    def unlock(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _place(self, number: int) -> Path:
        return self.folder / f"{number:08d}"


def send_spilled(store: Store, spill: Path) -> int:
    """Send what earlier processes left on disk for this store; return how many operations.

    What the store refuses as wrong stays on disk, in a folder that starts with ``refused-``, and so does what comes
    behind it. Raises what the store raises when it does not answer.
    """
    sent = 0
    for outbox in _left_behind(store, spill):
        try:
            runs = outbox.runs()
            while outbox:
                op = outbox.first()
                try:
                    ops.apply(op, store, runs)
                except Exception as error:
                    if ops.passing(error):
                        raise
                    outbox.folder.rename(outbox.folder.with_name(f"refused-{outbox.folder.name}"))
                    raise
                outbox.done(runs, op.kind == "create")
                sent += 1
        finally:
            outbox.unlock()
    return sent


def waiting(store: Store, spill: Path) -> int:
    """Return how many operations wait on disk for this store."""
    return sum(len(Outbox(folder)) for folder in spill.glob(f"{_store_id(store)}-*"))


def _left_behind(store: Store, spill: Path) -> Iterator[Outbox]:
    """Yield the outboxes of a store that no process holds, each locked; oldest first."""
    folders = spill.glob(f"{_store_id(store)}-*")
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime):
        outbox = Outbox(folder)
        if not outbox.lock():
            continue
        if outbox:
            yield outbox
        else:
            outbox.unlock()
            shutil.rmtree(folder, ignore_errors=True)


def _store_id(store: Store) -> str:
    """Return a name for a store that gives no credentials away: the address itself may hold some."""
    return hashlib.sha256(f"{store.uri} {store.experiment_id}".encode()).hexdigest()[:12]


def _durable(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
