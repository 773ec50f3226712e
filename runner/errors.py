"""The one family of errors that a user sees, in a line: what is given, allowed, to be changed."""

import errno
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from fedsweep.escape import line, shortened
from fedsweep.redaction import redact

_LONGEST = 2000
"""Characters of a message: what it quotes from outside may be longer than anybody reads."""

_OTHERS = 300
"""Characters of what another library says."""
_LONGEST_WORD = 400
"""Characters of a name or path in a message: what is wrong with it comes behind it."""


def shown(text: str, most: int = 80) -> str:
    """Return text from outside as one short line."""
    return shortened(line(text), most)


def one_line(error: BaseException) -> str:
    """Return what an error says, in one short line without credentials."""
    return shown(" ".join(redact(f"{type(error).__name__}: {error}").split()), _OTHERS)


class RunnerError(Exception):
    """Base of all errors that a user can mend: a line on stderr, status 2, or 3 on a full disk."""

    full = False  # whether a full disk was behind it in the process that it comes from

    def __init__(self, message: str) -> None:
        words = line(redact(" ".join(message.split()))).split(" ")
        super().__init__(
            shortened(" ".join(shortened(word, _LONGEST_WORD) for word in words), _LONGEST)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Take along what its cause says of the disk: causes stay behind in their process."""
        return type(self), self.args, vars(self) | {"full": no_room(self)}


class ConfigError(RunnerError):
    """A group, option, key or value of the configuration is not allowed."""


class DataError(RunnerError):
    """A data set can't be had, or can't be split as asked."""


class ResourceError(RunnerError):
    """The cluster does not have what the configuration asks for."""


class EngineLost(ResourceError):
    """Ray's processes on this machine ended, or did not start: another start may help."""


class TrackingError(RunnerError):
    """The tracking store can't be reached or written."""


class CheckpointError(RunnerError):
    """A checkpoint is of another trial or version, or the storage can't be read or written."""


class TrialError(RunnerError):
    """A trial can't go on, for example because too few clients replied.

    It fails alone; the sweep goes on.
    """


class AppError(RunnerError):
    """A host can't build the ClientApp: none of its clients can run."""


def unknown(kind: str, given: str, valid: Iterable[str], among: Collection[str] = ()) -> str:
    """Return the sentence for an unknown name: the name, the nearest valid one, and valid ones.

    Where ``among`` names some, these are listed alone.
    """
    names, given = sorted(valid), shown(given)
    near = get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"unknown {kind} '{given}'.{hint} Valid: {', '.join(sorted(among) or names)}."


def first_of(texts: Sequence[str], most: int) -> str:
    """Return texts as a list that ends with how many are left, if they are more."""
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def no_room(error: BaseException | None) -> bool:
    """Return whether a full disk or a used-up quota is behind an error: no input is wrong then."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, RunnerError) and error.full:
            return True
        code = getattr(error, "sqlite_errorcode", None) or 0
        if isinstance(error, sqlite3.Error) and code & 0xFF == sqlite3.SQLITE_FULL:
            return True
        error = error.__cause__ or error.__context__
    return False
