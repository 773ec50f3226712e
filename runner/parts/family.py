"""Parts that have settings: a class of pydantic's for each."""

import copyreg
from abc import abstractmethod
from collections.abc import Mapping
from importlib import import_module
from inspect import isabstract
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ValidationError

from fedsweep.parts.registry import Origin, Registry

T = TypeVar("T")
S = TypeVar("S", bound=BaseModel)


class Family(Registry[T]):
    """Parts that have settings: a pydantic class, whose field :attr:`key` says whose they are.

    Parameters
    ----------
    kind, package, entries : str
        As a registry's.
    default : str
        The part that is meant where none is named.
    home : str
        The name of this object in its package, by which another process finds its own.
    """

    key: ClassVar[str] = "name"

    def __init__(self, kind: str, package: str, entries: str, default: str, home: str) -> None:
        super().__init__(kind, package, entries)
        self.default, self._home = default, home

    def __reduce__(self) -> tuple[object, ...]:
        return _family, (self._package, self._home)

    @abstractmethod
    def settings(self, name: str) -> type[BaseModel]:
        """Return the class of a part's settings."""

    def make(self, part: str = "", /, **values: Any) -> Any:
        """Return a part's settings, its defaults where no value is given.

        Raises
        ------
        ValueError
            There is no such part.
        pydantic.ValidationError
            A key is not one of the part's, or a value is not in its range.
        """
        return self.settings_from({self.key: part or self.default, **values})

    def settings_from(self, values: Mapping[str, Any]) -> Any:
        """Return values as the settings of the part that they name: see :meth:`make`."""
        name = self.find(str(values[self.key]))
        made: Any = self.settings(name).model_validate({**values, self.key: name})
        made._origin = self.origin(name)
        return made

    def options_of(self, key: str) -> list[str] | None:
        """Return the parts that a key of settings applies to, or None where it applies to all."""
        names = [name for name in self if key in self.settings(name).model_fields]
        return names if 0 < len(names) < len(self) else None

    def keys_of_all(self) -> list[str]:
        """Return the keys of all parts' settings."""
        return [*dict.fromkeys(key for name in self for key in self.settings(name).model_fields)]

    def _added(self, name: str) -> None:
        _check_defaults(self.settings(name))
        # Where its file is not known yet, it is when the settings arrive.
        copyreg.pickle(self.settings(name), self._reduced)

    def _reduced(self, settings: Any) -> tuple[Any, ...]:
        return _restored, (self, settings.part_origin, settings.model_dump())


def _check_defaults(settings: type[BaseModel]) -> None:
    """Refuse a default that the setting itself could not be given: no trial could be told it."""
    fields = settings.model_fields.items()
    optional = [(key, field) for key, field in fields if not field.is_required()]
    values = {key: field.get_default(call_default_factory=True) for key, field in optional}
    try:
        settings.model_validate(values)
    except ValidationError as error:
        for issue in error.errors():
            key = str(issue["loc"][0]) if issue["loc"] else ""
            if key in values:
                said = issue["msg"].removeprefix("Value error, ")
                raise ValueError(f"the default of {key} is {values[key]!r}: {said}") from error


class Kinds(Family[type[S]]):
    """Parts that are their own settings: classes derived from a base.

    Parameters
    ----------
    base : type
        What they are derived from; it stands in a file with others that are no parts.
    expected : str
        What a part is, beside that.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        entries: str,
        default: str,
        home: str,
        base: type,
        expected: str,
    ) -> None:
        super().__init__(kind, package, entries, default, home)
        self._base, self._expected = base, expected

    def make(self, part: str = "", /, **values: Any) -> S:
        """Return a part with its settings: see :meth:`Family.make`."""
        made: S = super().make(part, **values)
        return made

    def is_part(self, value: object) -> bool:
        """Return whether it is a class of the kind, and no base of others."""
        is_kind = isinstance(value, type) and issubclass(value, self._base)
        return is_kind and not isabstract(value) and value.__module__ != self._base.__module__

    def expected(self) -> str:
        """Say what a part is."""
        return f"a class derived from {self._base.__module__}.{self._expected}"

    def settings(self, name: str) -> type[S]:
        """Return the class itself."""
        return self[name]


def _family(package: str, home: str) -> object:
    return getattr(import_module(package), home)


def _restored(family: Family[Any], origin: Origin | None, values: dict[str, Any]) -> Any:
    """Return settings that came from another process, once their part is known here.

    A part of this project has no origin; its class comes here where one's own part has it too.
    """
    if origin is not None:
        family.receive(origin)
    return family.settings_from(values)
