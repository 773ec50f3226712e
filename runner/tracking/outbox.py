"""Operations that wait on disk for a store that does not answer: ``spill/<store>-<random>/``.

Each is a folder ``<number>-<token of its run>``, JSON and files, nothing pickled. ``lock`` is held
by the process that owns them all, and ``runs.json`` has MLflow's id of each run made so far. What
can't be sent, or must not be any more, is moved to ``spill/aside-.../``, with ``why.txt``: it
stands in nobody's way there.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from fedsweep.files import lock, write_whole
from fedsweep.tracking import waiting as form
from fedsweep.tracking.ops import Op
from fedsweep.tracking.store import Store
from fedsweep.tracking.waiting import Damaged

_log = logging.getLogger("fedsweep.tracking")
_PLACE = re.compile(rf"(\d{{8,12}})-({form.TOKEN})")
_OURS = ("lock", "runs.json")
_ASIDE = "aside-"


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
        self._waiting: list[tuple[int, str]] = []  # number and token
        self.strangers: list[str] = []
        """Names of what lies in the folder and is no operation."""
        for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
            if found := _PLACE.fullmatch(name):
                self._waiting.append((int(found[1]), found[2]))
            elif name not in _OURS and not name.startswith("."):
                self.strangers.append(name)
        self._waiting.sort()
        self._last = self._waiting[-1][0] if self._waiting else 0

    @classmethod
    def fresh(cls, spill: Path, store: Store) -> "Outbox":
        """Return an empty outbox for a store; nothing is written yet."""
        return cls(spill / f"{_store_id(store)}-{uuid.uuid4().hex[:8]}")

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def gap(self) -> bool:
        """Whether an operation between the first and the last one has vanished."""
        numbers = [number for number, _ in self._waiting]
        return bool(numbers) and numbers != list(range(numbers[0], numbers[-1] + 1))

    @property
    def tokens(self) -> set[str]:
        """The runs of which something waits."""
        return {token for _, token in self._waiting}

    @property
    def aside(self) -> Path:
        """Where what can't be sent is put."""
        return self.folder.with_name(_ASIDE + self.folder.name)

    def append(self, op: Op, runs: Mapping[str, str]) -> None:
        """Put an operation behind the others. Raises OSError where the disk takes no more."""
        if not self._waiting:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock()
            self.keep_runs(runs)
        number = self._last + 1
        draft = self.folder / f".{number:08d}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        write_whole(draft / "op.json", form.dump(op))
        for i, content in enumerate(op.files.values()):
            write_whole(draft / f"file{i}", content)
        draft.rename(self._place(number, op.run))
        self._last = number
        self._waiting.append((number, op.run))

    def token(self) -> str:
        """Return the token of the run whose operation has waited longest."""
        return self._waiting[0][1]

    def first(self) -> Op:
        """Return the operation that has waited longest.

        Raises
        ------
        Damaged
            It can't be read, or is none.
        """
        place = self._place(*self._waiting[0])
        if place.is_symlink() or not place.is_dir():
            raise Damaged("is no folder")
        op, names = form.load(_content(place, "op.json"))
        if op.run != self.token():
            raise Damaged("is of another run than its name says")
        content = {name: _content(place, f"file{i}") for i, name in enumerate(names)}
        return Op(op.kind, op.run, op.data, content)

    def done(self, runs: Mapping[str, str], made_run: bool) -> None:
        """Forget the first operation; with the last, the folder goes too.

        Where the disk takes no more, it stays there, or the run that it made is not noted: it is
        sent again by the next session, which finds the run by its token.
        """
        place = self._place(*self._waiting.pop(0))
        sent = self.folder / ".sent"
        with suppress(OSError):
            os.rename(place, sent)  # half of it would be taken for a damaged one
        shutil.rmtree(sent, ignore_errors=True)
        if made_run:
            with suppress(OSError):
                self.keep_runs(runs)
        self._tidy()

    def put_aside(self, reason: str) -> None:
        """Move the first operation out of the way of the others, with the reason."""
        place = self._place(*self._waiting.pop(0))
        if self._move(place.name, reason):
            self._tidy()

    def put_strangers_aside(self) -> None:
        """Move all that is no operation out of the way."""
        reason = "is no operation of this version of fedsweep"
        self.strangers = [name for name in self.strangers if not self._move(name, reason)]
        self._tidy()

    def runs(self) -> dict[str, str]:
        """Return the runs made before or while these operations waited, as far as can be read."""
        try:
            known = json.loads(_content(self.folder, "runs.json"))
            return {
                token: run_id
                for token, run_id in known.items()
                if isinstance(run_id, str) and re.fullmatch("[0-9a-f]{32}", run_id)
            }
        except (Damaged, ValueError, AttributeError, RecursionError):
            return {}  # they are found by their tokens

    def keep_runs(self, runs: Mapping[str, str]) -> None:
        """Note the runs made so far."""
        write_whole(self.folder / "runs.json", json.dumps(dict(runs)).encode())

    def lock(self) -> bool:
        """Take the folder for this process; False where another one holds it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        self._lock = os.open(self.folder / "lock", flags, 0o600)
        if lock(self._lock):
            return True
        self.unlock()
        return False

    def unlock(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _tidy(self) -> None:
        if not self._waiting and not self.strangers:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.unlock()

    def _move(self, name: str, reason: str) -> bool:
        """Put something aside; return whether that was possible, else it stays for the next try."""
        target = self.aside / name
        while target.exists():
            target = target.with_name(f"{target.name}~")
        try:
            self.aside.mkdir(parents=True, exist_ok=True)
            with (self.aside / "why.txt").open("a") as file:
                file.write(f"{name}: {reason}\n")
            os.rename(self.folder / name, target)
        except FileNotFoundError:
            return True  # it has vanished
        except OSError as error:
            _log.warning("%s can't be put aside: %s", self.folder / name, error)
            return False
        return True

    def _place(self, number: int, token: str) -> Path:
        return self.folder / f"{number:08d}-{token}"


def left_behind(store: Store, spill: Path) -> Iterator[Outbox]:
    """Yield the outboxes of a store that no process holds, each locked; oldest first.

    Raises
    ------
    OSError
        One of them can't be opened.
    """
    folders = [
        path
        for path in spill.glob(f"{_store_id(store)}-*")
        if path.is_dir() and not path.is_symlink()
    ]
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime):
        outbox = Outbox(folder)
        if not outbox.lock():
            continue
        if outbox or outbox.strangers:
            yield outbox
        else:
            outbox.unlock()
            shutil.rmtree(folder, ignore_errors=True)


def of_others(store: Store, spill: Path) -> list[Path]:
    """Return the folders that are left alone: links, and what waits for other stores than this."""
    ours = _store_id(store)
    return [
        path
        for path in sorted(spill.glob("*-*"))
        if path.is_symlink() or not path.name.startswith((f"{ours}-", _ASIDE))
    ]


def _store_id(store: Store) -> str:
    """Return a name for a store that gives no credentials away, as its address might."""
    return hashlib.sha256(f"{store.name} {store.experiment_id}".encode()).hexdigest()[:12]


def _content(folder: Path, name: str) -> bytes:
    """Return the content of a file that is one: no link, no pipe, no folder.

    Raises
    ------
    Damaged
        It can't be read.
    """
    try:
        if not stat.S_ISREG((folder / name).lstat().st_mode):
            raise Damaged(f"{name} is no file")
        handle = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            return file.read()
    except OSError as error:
        raise Damaged(f"{name} can't be read ({error.strerror})") from error
