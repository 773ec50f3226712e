"""Names from outside that become part of a path here: they stay in the folder they are put in."""

from pathlib import PurePosixPath, PureWindowsPath

from fedsweep.errors import RunnerError
from fedsweep.escape import shortened

_LONGEST = 255  # bytes that file systems take


def component(name: str, what: str) -> str:
    """Return a name that is a single part of a path, on any system.

    Parameters
    ----------
    name : str
        The name, such as a data set's or a sweep's in a store that others write to as well.
    what : str
        What it is called in the message, such as ``dataset.name``.

    Raises
    ------
    RunnerError
        It is empty, ``.`` or ``..``, or has a separator, a drive or a control character, or file
        systems have no room for it.
    """
    plain = name == PurePosixPath(name).name == PureWindowsPath(name).name
    if not plain or name in ("", ".", "..") or not all(char.isprintable() for char in name):
        raise RunnerError(
            f"{what}={name!r} is no name of a file or folder; leave out /, \\, .. "
            "and control characters"
        )
    if (size := len(name.encode())) > _LONGEST:
        raise RunnerError(
            f"{what}={shortened(name, 60)!r} has {size} bytes; the name of a file has {_LONGEST} "
            "at most"
        )
    return name


def relative(path: str, what: str) -> str:
    """Return a path each of whose parts is a :func:`component`: it leads nowhere but down.

    Raises
    ------
    RunnerError
        A part is none.
    """
    for part in path.split("/"):
        component(part, what)
    return path
