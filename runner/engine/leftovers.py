"""The folder of a Ray session that starts here, and what is left of one whose driver was killed.

The driver holds a lock on its session's folder for as long as it lives: the kernel gives it back at
once, however the driver ends, and in whatever container. A folder whose lock is free is a leftover,
and so are the processes that name it in their environment.
"""

import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedsweep.engine.load import end_processes
from fedsweep.environ import variable
from fedsweep.errors import ResourceError
from fedsweep.files import lock

SESSION = "FEDSWEEP_SESSION"
"""In the environment of every process of a session: its folder."""

_PREFIX = "fedray-"
_LONGEST_ROOT = 21
"""Bytes of a path that Ray's files can lie below: its sockets add 82, and macOS takes 103."""

_log = logging.getLogger("fedsweep.engine")


@contextmanager
def session_folder() -> Iterator[Path]:
    """Make a folder for a Ray session that only this user may enter; it is removed at the end.

    Ray's sockets in it ask for no token, and Ray lets everybody enter the folder that it is given:
    that has to be one inside. Leftovers of dead drivers are removed first.

    Raises
    ------
    ResourceError
        No folder for temporary files can be used.
    """
    root = _root()
    for folder in root.glob(f"{_PREFIX}*"):
        _remove_leftover(folder)
    folder, handle = _fresh(root)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _fresh(root: Path) -> tuple[Path, int | None]:
    """Return a new folder and its lock; no lock where the file system has none.

    Until it is locked, a driver that starts at the same moment takes it for a leftover: then it is
    that driver's to remove, and another one is made.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        with suppress(FileNotFoundError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                lock(handle, wait=True)
            except OSError:
                os.close(handle)
                return folder, None
            if folder.exists():
                return folder, handle
            os.close(handle)


def _root() -> Path:
    """Return the first folder that Ray can use; what is passed over is said."""
    problems = []
    given = {"RAY_TMPDIR": variable("RAY_TMPDIR"), "TMPDIR": variable("TMPDIR"), "": "/tmp"}
    for name, value in given.items():
        if not value:
            continue
        if problem := _problem(value):
            problems.append(f"{name}={value} {problem}".lstrip("="))
            continue
        if problems:
            _log.warning("%s; Ray's files go to %s", ", ".join(problems), value)
        return Path(value).absolute()
    raise ResourceError(
        f"Ray finds no folder for its files: {', '.join(problems)}; set TMPDIR to a folder that "
        f"can be written, with a path of at most {_LONGEST_ROOT} characters"
    )


def _problem(folder: str) -> str:
    """Return why Ray can't keep its files in a folder, or nothing."""
    if not os.path.isdir(folder):
        return "is not a folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "can't be written"
    if len(os.fsencode(os.path.abspath(folder))) > _LONGEST_ROOT:
        return f"is too long a path for Ray's sockets (at most {_LONGEST_ROOT} characters)"
    return ""


def _remove_leftover(folder: Path) -> None:
    """Remove a session's folder and its processes, if its driver is dead."""
    with suppress(OSError):  # it is gone, or another user's
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return
        handle = _locked(folder)
        if handle is None:
            return
        try:
            ended = end_processes(SESSION, str(folder))
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)
        if ended:
            _log.warning("a killed driver left %d Ray processes behind: they were ended", ended)


def _locked(folder: Path) -> int | None:
    """Return a folder, opened and locked; None where a living driver has the lock."""
    handle = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # without locks nobody can tell who is alive: nothing is removed
        if lock(handle):
            return handle
    os.close(handle)
    return None
