"""Data sets that a function gives: nobody's but a user's own."""

import inspect
from typing import Any

from fedsweep.parts.code import Code
from fedsweep.parts.registry import Registry
from fedsweep.places import folder


class Datasets(Registry[Any]):
    """Functions that return a data set, by name; those that are files have an option each."""

    def __init__(self) -> None:
        super().__init__("dataset", str(__package__), "DATASETS", "fedsweep.datasets")

    def is_part(self, value: Any) -> bool:
        """Return whether it is a function that can be called without arguments."""
        if not inspect.isfunction(value) or value.__name__.startswith("_"):
            return False
        given = inspect.signature(value).parameters.values()
        named = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return all(p.default is not p.empty or p.kind in named for p in given)

    def expected(self) -> str:
        """Say what a data set is."""
        return "a function without arguments that returns its splits"

    def add_file(self, path: Any) -> None:
        """Take nothing of a folder of parts: any function there would be a data set."""

    def _check_free(self, name: str, code: Code, attribute: str) -> None:
        """Refuse the name of an option of ``configs/dataset``, too."""
        if (folder("configs") / "dataset" / f"{name}.yaml").exists():
            raise ValueError(f"{code.path}: there is a dataset '{name}' already; rename yours")
        super()._check_free(name, code, attribute)

    def _read_package(self) -> None:
        """Read nothing: the project's own data sets are options in ``configs/dataset``."""


DATASETS = Datasets()
