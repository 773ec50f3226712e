"""Data sets that a function gives: nobody's but a user's own."""

from collections.abc import Callable, Sequence
from inspect import Parameter

from fedsweep.parts.code import Code
from fedsweep.parts.registry import Functions
from fedsweep.places import folder


class Datasets(Functions[Callable[[], object]]):
    """Functions that return a data set, by name; those that are files have an option each."""

    def __init__(self) -> None:
        super().__init__("dataset", str(__package__), "fedsweep.datasets")

    def fits(self, parameters: Sequence[Parameter]) -> bool:
        """Return whether a function can be called without arguments."""
        rest = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        return all(p.default is not p.empty or p.kind in rest for p in parameters)

    def expected(self) -> str:
        """Say what a data set is."""
        return "a function without arguments that returns its splits"

    def _check_free(self, name: str, code: Code, attribute: str) -> None:
        """Refuse the name of an option of ``configs/dataset``, too."""
        if (folder("configs") / "dataset" / f"{name}.yaml").exists():
            raise ValueError(f"{code.path}: there is a dataset '{name}' already; rename yours")
        super()._check_free(name, code, attribute)

    def _read_package(self) -> None:
        """Read nothing: the project's own data sets are options in ``configs/dataset``."""


DATASETS = Datasets()
