"""Where the files of this package lie.

In a checkout the folders of the top level stand beside each other, under other names than those
that they are imported by: ``runner/`` is ``fedsweep``, ``strategies/`` is ``fedsweep.strategies``.
Installed, they lie within each other. Nothing of the package is imported here:
``python runner/places.py FOLDER`` lays the package out in a folder, for tools that look at files.
"""

import errno
import os
import sys
from pathlib import Path

PACKAGE = "fedsweep"
BESIDE = ("strategies", "models", "configs")
"""What lies beside this folder in a checkout."""

_RUNNER = "runner"
_HERE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """Return the folder of one of those that lie beside."""
    return next(place for place in (_HERE / name, _HERE.parent / name) if place.is_dir())


def module(path: str) -> str:
    """Return what a file of a checkout is imported as: ``runner/cli.py`` is ``fedsweep.cli``."""
    top, *parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    within = {_RUNNER: [PACKAGE], **{name: [PACKAGE, name] for name in BESIDE}}
    return ".".join([*within.get(top, [top]), *parts])


def lay_out(where: Path, here: Path = _HERE) -> Path:
    """Make a folder ``fedsweep`` of links, in the layout that it is imported in, and return it.

    Parameters
    ----------
    where : Path
        What the folder is made in, or brought up to date.
    here : Path
        The folder ``runner`` of a checkout, or an installed ``fedsweep``: this one.
    """
    package = where / PACKAGE
    package.mkdir(parents=True, exist_ok=True)
    parts = {path.name: path for path in here.iterdir() if path.name != "__pycache__"}
    beside = (here.parent / name for name in BESIDE)
    parts |= {path.name: path for path in beside if path.is_dir() and path.name not in parts}

    for old in set(package.iterdir()) - {package / name for name in parts}:
        old.unlink()
    for name, path in parts.items():
        if not (package / name).is_symlink():
            (package / name).symlink_to(path)
    return package


def absolute(path: str) -> str:
    """Return a path as all processes have it: resolved against the driver's folder.

    Raises
    ------
    ValueError
        It is no path on this machine.
    """
    try:
        found = str(Path(path).expanduser().absolute())
    except RuntimeError as error:
        give = "set $HOME, or give an absolute path"
        raise ValueError(f"the home folder of ~ is not known; {give}") from error
    except OSError as error:
        why = f"the folder that it is relative to can't be had ({error.strerror})"
        raise ValueError(f"{why}; give an absolute path") from error
    try:
        os.stat(found)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError("it is too long for a path; give a shorter one") from error
    return found


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]))
