"""The code of a Flower app in a process: a trial's modules are its own.

Apps keep things in modules (a data set, a model, a counter). Under Flower each run has processes of
its own; here hosts work for several trials, and what one of them left in a module must not be found
by another one.
"""

import atexit
import hashlib
import importlib
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from fedsweep.errors import AppError
from fedsweep.parts.code import TRAVELLED, own_place, traceback_of


@dataclass(frozen=True)
class AppCode:
    """A Flower app as its files, which travel.

    Parameters
    ----------
    root : str
        The folder where they lie on the machine that read them.
    files : tuple of (str, bytes)
        Path below the root, and content, of what Flower would bundle.
    serverapp, clientapp : str
        ``module:attribute``, as in ``pyproject.toml``.
    """

    root: str
    files: tuple[tuple[str, bytes], ...]
    serverapp: str
    clientapp: str

    @cached_property
    def digest(self) -> str:
        """What the app is, wherever it lies: 12 hex digits of SHA-256."""
        told = hashlib.sha256(repr((self.serverapp, self.clientapp)).encode())
        for path, content in self.files:
            told.update(f"{path} {len(content)} ".encode() + content)
        return told.hexdigest()[:12]

    @property
    def top_names(self) -> frozenset[str]:
        """The names that its modules begin with."""
        python = (path for path, _ in self.files if path.endswith(".py"))
        return frozenset(path.partition("/")[0].removesuffix(".py") for path in python)

    def imports(self, package: str) -> bool:
        """Return whether one of its modules imports a package, in whatever place."""
        line = re.compile(rf"^\s*(import|from)\s+{package}\b".encode(), re.MULTILINE)
        return any(path.endswith(".py") and line.search(text) for path, text in self.files)

    @cached_property
    def here(self) -> Path:
        """The folder in which these very files lie on this machine."""
        root = Path(self.root)
        try:
            if all((root / path).read_bytes() == content for path, content in self.files):
                return root
        except OSError:
            pass
        return _unpacked(self)

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what is true of one machine alone."""
        return {key: value for key, value in vars(self).items() if key != "here"}


_FOLDERS: dict[str, Path] = {}


def _unpacked(code: AppCode) -> Path:
    """Write files that came from elsewhere into a folder of this process."""
    if code.digest not in _FOLDERS:
        folder = Path(tempfile.mkdtemp(prefix=TRAVELLED))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for path, content in code.files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        _FOLDERS[code.digest] = folder
    return _FOLDERS[code.digest]


class Modules:
    """An app's modules, as they are for one trial in this process.

    Python has one place for modules: those of the trial that is worked for are put there by
    :meth:`enter`, and those of the one before it, and what else had their names, are put aside.
    """

    _entered: ClassVar["Modules | None"] = None
    _known: ClassVar["WeakValueDictionary[tuple[str, str], Modules]"] = WeakValueDictionary()

    @classmethod
    def of(cls, code: AppCode, trial: str) -> "Modules":
        """Return those of a trial: its server and its clients share them within a process."""
        found = cls._known.get((code.digest, trial))
        if found is None:
            found = cls._known[code.digest, trial] = cls(code)
        return found

    def __init__(self, code: AppCode) -> None:
        self._code, self._root = code, str(code.here)
        self._own: dict[str, ModuleType] = {}
        self._others: dict[str, ModuleType] = {}

    def enter(self) -> None:
        """Have these modules be those that Python finds."""
        if Modules._entered is self:
            return
        if Modules._entered is not None:
            Modules._entered.leave()
        self._others = self._taken()
        sys.modules.update(self._own)
        sys.path.insert(0, self._root)
        Modules._entered = self

    def leave(self) -> None:
        """Have Python find what it found before."""
        if Modules._entered is not self:
            return
        self._own = self._taken()
        sys.modules.update(self._others)
        if self._root in sys.path:
            sys.path.remove(self._root)
        Modules._entered = None

    def load(self, reference: str, kind: type) -> Any:
        """Return the object that ``module:attribute`` names.

        Raises
        ------
        AppError
            Its module can't be imported, or has no such object: file and line of the app's.
        """
        name, _, attribute = reference.partition(":")
        self.enter()
        importlib.invalidate_caches()
        before = os.getcwd()
        try:
            found: Any = importlib.import_module(name)
            for part in attribute.split("."):
                found = getattr(found, part)
        except Exception as error:  # the app's own code: it raises what it likes
            place = own_place(traceback_of(error)) or reference
            raise AppError(f"{place}: {type(error).__name__}: {error}") from error
        finally:
            if os.getcwd() != before:
                os.chdir(before)
        origin = getattr(sys.modules[name], "__file__", None) or ""
        if not Path(origin).is_relative_to(self._root):
            raise AppError(f"{reference} is a module of {origin}, and not of the app; rename yours")
        if not isinstance(found, kind):
            raise AppError(
                f"{reference} is a {type(found).__name__}, and has to be a {kind.__name__}; mend "
                "[tool.flwr.app.components] of pyproject.toml"
            )
        return found

    def _taken(self) -> dict[str, ModuleType]:
        """Take all modules out of Python's place whose names are the app's."""
        tops = self._code.top_names
        names = [name for name in sys.modules if name.partition(".")[0] in tops]
        return {name: sys.modules.pop(name) for name in names}
