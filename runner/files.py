"""Files that several processes use: written whole, and locked by whoever is at work."""

import fcntl
import os
import uuid
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, and on the disk, when this returns.

    Raises
    ------
    OSError
        It can't be written; what was there before is there still.
    """
    draft = path.with_name(f".{uuid.uuid4().hex}")  # the name may be as long as names can be
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def lock(handle: int, *, wait: bool = False, shared: bool = False) -> bool:
    """Take the kernel's lock on an open file or folder; return whether it was to be had.

    It is given back when the handle is closed or its process ends, however that ends. The package
    filelock locks no folder (EISDIR), has no lock that several may share, and where a file system
    has none it makes a file instead, which a killed process leaves behind.

    Parameters
    ----------
    wait : bool
        Wait until it is to be had.
    shared : bool
        Others may have it too, if they share it: to look whether anybody is at work.

    Raises
    ------
    OSError
        The file system has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
