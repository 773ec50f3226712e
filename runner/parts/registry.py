"""The parts of one kind that there are, by name: found by reading files, named nowhere else.

A part is a class (or a function) in a file that is called as it is. Those of this project lie in a
package; others are found in the folders of ``$FEDSWEEP_PARTS``, by entry points of installed
packages (``fedsweep.strategies``, ...), or where a reference says: ``./mine.py``,
``./mine.py:Mine``, ``package.module:Mine``.
"""

import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from inspect import Parameter, isfunction, signature
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from fedsweep.parts.code import LOADED, Code, code_of_file, code_of_module

FOLDERS = "FEDSWEEP_PARTS"
"""Environment variable: folders of parts, each a file, separated as ``$PATH`` is."""

T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """Where a part of somebody's own comes from."""

    name: str
    code: Code
    attribute: str


class Registry(Mapping[str, T], Generic[T]):
    """Parts of one kind by name, open at run time.

    Parameters
    ----------
    kind : str
        What one of them is called: ``strategy``.
    package : str
        Whose modules are read first.
    entries : str
        Group of entry points.
    """

    def __init__(self, kind: str, package: str, entries: str) -> None:
        self.kind = kind
        self._package, self._entries = package, entries
        self._found: dict[str, T] | None = None
        self._origins: dict[str, Origin] = {}
        self._names: dict[tuple[str, str], str] = {}  # digest, what was named of it -> name

    # What a part is

    @abstractmethod
    def is_part(self, value: object) -> bool:
        """Return whether a value of a module is a part, if it is defined there."""

    def accepts(self, value: object) -> bool:
        """Return whether a value that a reference names can be made a part."""
        return self.is_part(value)

    @abstractmethod
    def expected(self) -> str:
        """Say what a part is, for somebody whose file has none."""

    def read(self, module: ModuleType) -> None:
        """Take what else a module has, beside parts."""

    def _added(self, name: str) -> None:
        """Do what is to be done with a part of somebody's own."""

    # By name

    def __getitem__(self, name: str) -> T:
        return self._parts()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts()))

    def __len__(self) -> int:
        return len(self._parts())

    def origin(self, name: str) -> Origin | None:
        """Return where a part comes from; None for those of this project."""
        return self._origins.get(name)

    # By reference

    def find(self, given: str) -> str:
        """Return the name of a part that is given by its name or by a reference.

        Raises
        ------
        ValueError
            There is no such part: what is there, or what its file lacks.
        """
        if given in self._parts():
            return given
        path, attribute = split_reference(given)
        if not path:
            near = get_close_matches(given, self, n=1, cutoff=0.5)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            valid = ", ".join(self)
            raise ValueError(
                f"unknown {self.kind} '{given}'.{hint} Valid: {valid}, or FILE.py:NAME."
            )
        is_file = path.endswith(".py")
        code = code_of_file(Path(path)) if is_file else code_of_module(path)
        return self._add_code(code, attribute)

    def add_file(self, path: Path | str) -> None:
        """Make the parts of a file known in this process; it may have none of this kind."""
        self._parts()
        code = code_of_file(Path(path).resolve())
        for attribute in _own(LOADED.module(code), self.is_part):
            self._add_code(code, attribute)
        self.read(LOADED.module(code))

    def receive(self, origin: Origin) -> None:
        """Know a part that another process knows."""
        self._parts()
        self._add_code(origin.code, origin.attribute)

    def _add_code(self, code: Code, attribute: str) -> str:
        named = code.digest, attribute
        known = self._origins.get(self._names.get(named, ""))
        if known is None or known.code.digest != code.digest:
            self._names[named] = self._add_new(code, attribute)
        return self._names[named]

    def _add_new(self, code: Code, attribute: str) -> str:
        module = LOADED.module(code)
        own = _own(module, self.is_part) or _own(module, self.accepts)
        if not attribute:
            if len(own) != 1:
                several = f"several ({', '.join(own)})" if own else "none"
                raise ValueError(
                    f"{code.path} has {several}, and one {self.kind} is wanted: {self.expected()}; "
                    f"name it, as {code.path.name}:NAME"
                )
            attribute = next(iter(own))
        value = getattr(module, attribute, None)
        if value is None or not self.accepts(value):
            what = "is no" if value is not None else "is not there; it should be a"
            raise ValueError(f"{code.path}: {attribute} {what} {self.kind}: {self.expected()}")
        name = code.module.rpartition(".")[2] if [*own] == [attribute] else attribute
        self._check_free(name, code, attribute)
        self.read(module)
        before = dict(self._parts()), dict(self._origins)
        self._add(name, value)
        self._origins[name] = Origin(name, code, attribute)
        try:
            self._added(name)
        except ValueError as error:
            self._found, self._origins = before
            raise ValueError(f"{code.path}: {error}") from error
        return name

    def _check_free(self, name: str, code: Code, attribute: str) -> None:
        """Refuse a second part of one name; an edited one takes the place of itself."""
        if name not in self._parts():
            return
        there = self._origins.get(name)
        if there is None:
            raise ValueError(f"{code.path}: there is a {self.kind} '{name}' already; rename yours")
        same = (there.code.root, there.code.module, there.attribute)
        if there.code.digest != code.digest and same != (code.root, code.module, attribute):
            raise ValueError(
                f"{code.path}: there is a {self.kind} '{name}' of {there.code.path} already; "
                "rename one of them"
            )

    # Reading

    def _parts(self) -> dict[str, T]:
        if self._found is None:
            self._found = {}
            try:
                self._read_all()
            except BaseException:  # nobody takes some of them for all
                self._found, self._origins = None, {}
                raise
        return self._found

    def _read_package(self) -> None:
        for folder in sys.modules[self._package].__path__:
            for stem in sorted(path.stem for path in Path(folder).glob("[!_]*.py")):
                module = import_module(f"{self._package}.{stem}")
                own = _own(module, self.is_part)
                if len(own) > 1:
                    called = ", ".join(own)
                    raise ValueError(f"{module.__file__} has several ({called}); a file has one")
                for value in own.values():
                    self._add(stem, value)
                self.read(module)

    def _read_all(self) -> None:
        self._read_package()
        for entry in entry_points(group=self._entries):
            self.find(f"{entry.module}:{entry.attr}")
        for folder in filter(None, os.environ.get(FOLDERS, "").split(os.pathsep)):
            if not os.path.isdir(folder):
                raise ValueError(f"${FOLDERS} names {folder}, which is no folder; change it")
            for path in sorted(Path(folder).resolve().glob("[!_]*.py")):
                self.add_file(path)

    def _add(self, name: str, value: T) -> None:
        assert self._found is not None
        self._found[name] = value


class Functions(Registry[T]):
    """Parts that are functions of a kind which says nothing of itself.

    Any function of a folder of parts would be one: there they are not looked for.
    """

    @abstractmethod
    def fits(self, parameters: Sequence[Parameter]) -> bool:
        """Return whether a function with such parameters can be one."""

    def is_part(self, value: object) -> bool:
        """Return whether it is a function that somebody may have meant."""
        if not isfunction(value) or value.__name__.startswith("_"):
            return False
        return self.fits([*signature(value).parameters.values()])

    def add_file(self, path: Path | str) -> None:
        """Take nothing of a folder of parts."""


def is_reference(given: str) -> bool:
    """Return whether a text says where a part lies, rather than how it is called."""
    return bool(split_reference(given)[0])


def split_reference(given: str) -> tuple[str, str]:
    """Return the file or module of a reference, and the name in it;
    nothing if it is a plain name.
    """
    path, colon, attribute = given.rpartition(":")
    if given.endswith(".py"):
        return given, ""
    names = [*path.split("."), attribute]
    is_named = path.endswith(".py") or all(name.isidentifier() for name in names)
    return (path, attribute) if colon and is_named else ("", "")


def _own(module: ModuleType, is_part: Callable[[object], bool]) -> dict[str, Any]:
    """Return the parts that a module defines, by their names in it."""
    return {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__
        and getattr(value, "__name__", None) == name
        and is_part(value)
    }
