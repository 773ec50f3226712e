"""What this process prints, whichever library prints it: no credentials, and never an exception.

Output that can't be written costs output, not work: a reader that has enough (``| head``), a
terminal that is gone, a full disk or a closed stream end no sweep.
"""

import codecs
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from fedsweep.escape import line
from fedsweep.redaction import redact

_ENOUGH = (errno.EPIPE, errno.EBADF)
"""Nobody reads on: the reader of a pipe has gone. Nobody misses anything."""

_PLAIN = {"±": "+-", "…": "...", "→": "->", "×": "x", "–": "-", "—": "-"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Say what an encoding lacks in other characters: an error handler of ``str.encode``."""
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    if character in _PLAIN:
        return _PLAIN[character], error.start + 1
    told, after = codecs.backslashreplace_errors(error)
    return str(told), after


codecs.register_error("fedsweep-plain", _plain)


class Output:
    """A text stream in front of another one that takes everything, and writes what can be written.

    Parameters
    ----------
    stream : TextIO or None
        The one behind it; None where there is none, as with ``>&-``.

    Attributes
    ----------
    lost : str
        Why something could not be written that somebody may miss; empty if nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if stream is not None else open(os.devnull, "w")  # noqa: SIM115
        # a terminal that is gone is an I/O error, and so is a broken disk
        self._enough = (*_ENOUGH, errno.EIO) if _is_terminal(self._stream) else _ENOUGH
        self._open = True
        self._waiting = ""
        self.lost = ""

    def write(self, text: str) -> int:
        """Write a text without the credentials in it, in characters that the encoding has."""
        encoding = self._stream.encoding or "utf-8"
        self._waiting += redact(text).encode(encoding, "fedsweep-plain").decode(encoding)
        self._do(self._write)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for text in lines:
            self.write(text)

    def flush(self) -> None:
        """Bring to its reader what was written."""
        self._do(self._flush)

    def _write(self) -> None:
        told, self._waiting = self._waiting, ""
        try:
            self._stream.write(told)
        except RuntimeError:  # a signal's handler speaks in the middle of a write: it is next
            self._waiting = told

    def _flush(self) -> None:
        if self._waiting:
            self._write()
        with suppress(RuntimeError):
            self._stream.flush()

    def _do(self, what: Callable[[], object]) -> None:
        if not self._open:
            return
        try:
            what()
        except (OSError, ValueError) as error:  # ValueError: the file was closed
            self._open = False
            if getattr(error, "errno", errno.EBADF) not in self._enough:
                self.lost = str(error)
            with suppress(OSError, ValueError):  # what is in buffers goes nowhere, without a word
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(text: str, file: "TextIO | Output | None" = None) -> None:
    """Print one line for people, whatever is in the names that it tells."""
    print(line(text), file=file or sys.stdout, flush=True)


def amount(count: int, what: str) -> str:
    """Return how many there are of something, as it is read: ``1 trial``, ``1,200 trials``."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # it is closed
        return False


@contextmanager
def guarded_output() -> Iterator[tuple[Output, Output]]:
    """Have all that this process prints go through an :class:`Output` for each stream."""
    _occupy()
    before = sys.stdout, sys.stderr
    out, err = (s if isinstance(s, Output) else Output(s) for s in before)
    sys.stdout, sys.stderr = out, err
    try:
        yield out, err
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def _occupy() -> None:
    """Open the standard streams that are closed: else a file, the database, has their number.

    Whatever writes to standard output below Python would then write into that file.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(handle, True)
    os.close(handle)
