"""The methods there are, by name: found by reading files, named nowhere else.

A method is one file, called as it is: a Flower ``Strategy`` whose own body names its ``settings``,
and beside it, where its clients do more than to train what they were sent, a
:class:`~fedsweep.strategies.clients.ClientPart` that names its ``method``. Files are read when
somebody asks for the first time: those of this package, and those of the folders in
``$FEDSWEEP_METHODS``, which every process of a run sees.
"""

import copyreg
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedsweep.strategies.clients import ClientPart
from fedsweep.strategies.settings import FedAvgSettings

FOLDERS = "FEDSWEEP_METHODS"
"""Environment variable: folders of methods, each a file, separated as ``$PATH`` is."""

_ELSEWHERE = f"{__package__}_elsewhere"
"""Where modules of other folders lie: no name of theirs hides one of anybody else's."""


class Registry(Mapping[str, type[Strategy]]):
    """Methods by name, open at run time: a file or a folder of them may be added.

    Parameters
    ----------
    package : str
        Whose modules are read first.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self._files: dict[Path, ModuleType] = {}
        self._found: dict[str, type[Strategy]] | None = None
        self._parts: dict[str, type[ClientPart]] = {}

    def __getitem__(self, name: str) -> type[Strategy]:
        return self._methods()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._methods()))

    def __len__(self) -> int:
        return len(self._methods())

    def settings(self, name: str) -> type[FedAvgSettings]:
        """Return the class of a method's settings."""
        found: type[FedAvgSettings] = self[name].settings  # type: ignore[attr-defined]
        return found

    def options_of(self, key: str) -> list[str] | None:
        """Return the methods that a key of settings applies to, or None where it applies to all."""
        names = [name for name in self if key in self.settings(name).model_fields]
        return names if 0 < len(names) < len(self) else None

    def keys_of_all(self) -> list[str]:
        """Return the keys of all methods' settings."""
        return [*dict.fromkeys(key for name in self for key in self.settings(name).model_fields)]

    def saying(self, fact: str) -> list[str]:
        """Return the methods whose class says a fact: see :func:`fedsweep.strategies.base.says`."""
        return [name for name, method in self.items() if vars(method).get(fact, False)]

    def client_part(self, method: str) -> ClientPart:
        """Return what the clients do whom messages tell a method; "" is FedAvg's.

        Raises
        ------
        ValueError
            No client part is called so.
        """
        self._methods()
        if method not in self._parts:
            valid = ", ".join(sorted(name for name in self._parts if name))
            raise ValueError(f"unknown method '{method}'. Valid: {valid}.")
        return self._parts[method]()

    def add_file(self, path: Path | str) -> None:
        """Make the method of a file known in this process; one that is known already stays.

        Raises
        ------
        ValueError
            It can't be imported, or another method, or another client part, is called so.
        """
        self._methods()
        self._add_file(Path(path).resolve())

    def _methods(self) -> dict[str, type[Strategy]]:
        if self._found is None:
            self._found = {}
            try:
                self._read_all()
            except BaseException:  # nobody takes some of them for all
                self._found, self._parts, self._files = None, {}, {}
                raise
        return self._found

    def _read_all(self) -> None:
        for folder in sys.modules[self._package].__path__:
            for stem in sorted(path.stem for path in Path(folder).glob("[!_]*.py")):
                self._add(import_module(f"{self._package}.{stem}"))
        for folder in filter(None, os.environ.get(FOLDERS, "").split(os.pathsep)):
            if not Path(folder).is_dir():
                raise ValueError(f"${FOLDERS} names {folder}, which is no folder; change it")
            for path in sorted(Path(folder).resolve().glob("[!_]*.py")):
                self._add_file(path)

    def _add_file(self, path: Path) -> None:
        if path in self._files:
            return
        name = f"{_ELSEWHERE}.{path.stem}"
        spec = spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ValueError(f"{path} is no file of Python; name one that ends in .py")
        module = sys.modules[name] = self._files[path] = module_from_spec(spec)
        try:
            try:
                spec.loader.exec_module(module)
            except Exception as error:
                told = f"{_place(path, error)}: {type(error).__name__}: {error}"
                raise ValueError(told) from error
            self._add(module)
        except BaseException:
            del sys.modules[name], self._files[path]
            raise
        # Another process may know the class after its own first look only: settings travel as
        # values.
        method = self._methods().get(path.stem)
        if method is not None and method.__module__ == name:
            copyreg.pickle(self.settings(path.stem), _values_of)

    def _add(self, module: ModuleType) -> None:
        assert self._found is not None
        own = [kind for kind in vars(module).values() if _is_of(kind, module)]
        methods = [kind for kind in own if issubclass(kind, Strategy) and "settings" in vars(kind)]
        parts = [kind for kind in own if issubclass(kind, ClientPart) and "method" in vars(kind)]
        name = module.__name__.rpartition(".")[2]
        if len(methods) > 1:
            called = ", ".join(kind.__name__ for kind in methods)
            raise ValueError(f"{module.__file__} has several methods ({called}); a file has one")
        if methods and name in self._found:
            raise ValueError(f"{module.__file__}: there is a strategy '{name}'; rename the file")
        taken = [part.method for part in parts if part.method in self._parts]
        if taken:
            raise ValueError(
                f"{module.__file__}: there is a client part of method '{taken[0]}'; rename it"
            )
        self._found |= dict(zip([name], methods, strict=False))
        self._parts |= {part.method: part for part in parts}


def _place(path: Path, error: BaseException) -> str:
    """Return the file, and the line of it that an error came from."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    if isinstance(error, SyntaxError):
        lines.append(error.lineno)
    return f"{path}:{lines[-1]}" if lines else str(path)


def _values_of(settings: FedAvgSettings) -> tuple[Any, ...]:
    return _from_values, (settings.model_dump(),)


def _from_values(values: dict[str, Any]) -> FedAvgSettings:
    return settings_of(**values)


def _is_of(value: Any, module: ModuleType) -> bool:
    return isinstance(value, type) and value.__module__ == module.__name__


STRATEGIES = Registry(str(__package__))


def settings_of(name: str = "fedavg", **values: Any) -> FedAvgSettings:
    """Return a method's settings, its defaults where no value is given.

    Raises
    ------
    KeyError
        There is no such method.
    pydantic.ValidationError
        A key is not one of the method's, or a value is not in its range.
    """
    return STRATEGIES.settings(name).model_validate({"name": name, **values})
