"""Files that several processes use: written whole, whatever happens meanwhile."""

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
