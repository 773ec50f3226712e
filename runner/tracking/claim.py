"""Who writes: one driver at a time runs a sweep, or a trial on its own, in a store.

The lock is the kernel's and ends with the process that holds it, however that ends. It lies beside
the database of a local store, so that all who write there meet it; for a server it lies in the
output folder, and meets those who share that folder. On network folders it holds as far as their
file system passes locks on.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from fedsweep.drivers import driver_name
from fedsweep.errors import RunnerError
from fedsweep.files import lock

_log = logging.getLogger("fedsweep.tracking")
_TRIES, _WAIT_S = 5, 0.1  # somebody who only looks holds a lock for a moment


@contextmanager
def claim(folder: Path, what: str, driver: str) -> Iterator[None]:
    """Be the only one who runs something, for as long as the context lasts.

    Parameters
    ----------
    folder : Path
        Where the lock lies; it is made where missing.
    what : str
        What is run, such as ``sweep 'default'``.
    driver : str
        This process: see :func:`fedsweep.drivers.driver_name`.

    Raises
    ------
    RunnerError
        Another process runs it, or the folder can't be written.
    """
    path = folder / f".claim-{hashlib.sha256(what.encode()).hexdigest()[:12]}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take(path, driver)
    except OSError as error:
        raise RunnerError(
            f"{folder} can't be written: {error.strerror}; name another folder"
        ) from error
    if handle is None:
        who = _who(path)
        raise RunnerError(
            f"{what} is being run by {who}; wait for it, or end it there with Ctrl-C or kill"
        )
    try:
        yield
    finally:
        _drop(path, handle)


def writer_of(folder: Path) -> str:
    """Return who else runs something in the store of a folder; nothing where nobody does."""
    this = f"{driver_name()}\n"
    for path in folder.glob(".claim-*.lock"):
        with suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if not lock(handle, shared=True) and not path.read_text().startswith(this):
                    return _who(path)
            finally:
                os.close(handle)
    return ""


def _take(path: Path, driver: str) -> int | None:
    """Return the open file with its lock, which says whose it is;
    None where another process holds it.
    """
    for _ in range(_TRIES):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            if not lock(handle):
                os.close(handle)
                time.sleep(_WAIT_S)
                continue
        except OSError as error:
            _log.warning(
                "%s has no locks (%s): nothing else may run this meanwhile", path.parent, error
            )
        if os.path.exists(path) and os.path.samestat(os.fstat(handle), path.stat()):
            try:
                since = datetime.now().astimezone().isoformat(" ", "seconds")
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{driver}\n{since}\n".encode(), 0)
            except OSError:  # a full disk takes files, and nothing into them
                _drop(path, handle)
                raise
            return handle
        os.close(handle)  # who held it removed it in between
    return None


def _drop(path: Path, handle: int) -> None:
    """Give a lock back, its file with it."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
    os.close(handle)


def _who(path: Path) -> str:
    with suppress(OSError, ValueError):
        driver, since, *_ = path.read_text().split("\n")
        host, pid, *_ = driver.split(" ")
        return f"process {pid} of {host} since {since}"
    return "another process"
