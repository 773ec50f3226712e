"""What a group of settings is: frozen, every key known, some keys for some of its options only."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from pydantic import BaseModel, Field, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, core_schema

from fedsweep.errors import ConfigError
from fedsweep.parts.family import Family
from fedsweep.parts.registry import Registry
from fedsweep.strategies.settings import Settings


def only(options: str, default: Any, description: str, **limits: Any) -> Any:
    """Declare a field that applies to the named options of its group (space separated) alone."""
    return Field(
        default,
        description=description,
        json_schema_extra={"options": [*options.split()]},
        **limits,
    )


class Section(Settings):
    """A group of settings some of which apply to some of its options only."""

    @classmethod
    def options_of(cls, key: str) -> list[str] | None:
        """Return the options that a key applies to, or None where it applies to all."""
        return _options(cls).get(key)

    @classmethod
    def keys(cls) -> list[str]:
        """Return the keys of all options."""
        return [*cls.model_fields]

    @classmethod
    def kind(cls, values: object) -> type[BaseModel]:
        """Return the class that values of the section are of."""
        del values
        return cls

    @classmethod
    def option(cls, values: Mapping[str, Any]) -> str | None:
        """Return the option that values are of, if the section has any."""
        named = cls.model_fields.get("name")
        return None if named is None else values.get("name", named.default)

    @classmethod
    def option_key(cls, name: str) -> str:
        """Return the key by which the section called so is told its option."""
        return name

    def canonical(self) -> dict[str, Any]:
        """Return what defines the section, without the fields that do not apply to its option."""
        name = getattr(self, "name", None)
        options = {key: self.options_of(key) for key in type(self).model_fields}
        applying = {key for key, names in options.items() if names is None or name in names}
        return {key: value for key, value in super().canonical().items() if key in applying}


class Group(Protocol):
    """A group of settings whose options have keys of their own: a Section, or a family of them."""

    def options_of(self, key: str) -> list[str] | None:
        """Return the options that a key applies to, or None where it applies to all."""

    def keys(self) -> list[str]:
        """Return the keys of all options."""

    def kind(self, values: object) -> type[BaseModel]:
        """Return the class that values of the group are of."""

    def option(self, values: Mapping[str, object]) -> str | None:
        """Return the option that values are of, if the group has any."""

    def option_key(self, name: str) -> str:
        """Return the key by which the group called so is told its option."""


@dataclass(frozen=True)
class OneOf:
    """A section of a trial that holds the settings of one part: its ``name`` says whose.

    It asks the family each time: a part that is added while the program runs is there.
    """

    family: Family[Any]

    def options_of(self, key: str) -> list[str] | None:
        """Return the parts that a key applies to, or None where it applies to all."""
        return self.family.options_of(key)

    def keys(self) -> list[str]:
        """Return the keys of all parts."""
        return self.family.keys_of_all()

    def kind(self, values: object) -> type[BaseModel]:
        """Return the class of settings that values are of.

        Raises
        ------
        ConfigError
            There is no such part.
        """
        if isinstance(values, Settings):
            return type(values)
        return self.family.settings(self.option(values if isinstance(values, Mapping) else {}))

    def option(self, values: Mapping[str, object]) -> str:
        """Return the name of the part that values are of.

        Raises
        ------
        ConfigError
            There is no such part.
        """
        given = values.get(self.family.key)
        return find_part(self.family, self.family.default if given is None else str(given))

    def option_key(self, name: str) -> str:
        """Return the key by which the group called so is told its part."""
        return name if self.family.key == "name" else f"{name}.{self.family.key}"

    def read(self, values: object) -> Settings:
        """Return values as the settings of the part that they name."""
        if isinstance(values, Settings):
            return values
        if not isinstance(values, Mapping):
            raise PydanticCustomError("section", "it has to be a mapping of keys to values")
        found: Settings = self.family.settings_from(
            {**values, self.family.key: self.option(values)}
        )
        return found

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Have pydantic read and write the settings by their own class."""
        del source, handler
        write = core_schema.plain_serializer_function_ser_schema(
            lambda settings, info: settings.model_dump(mode=info.mode), info_arg=True
        )
        return core_schema.no_info_plain_validator_function(self.read, serialization=write)


def find_part(registry: Registry[Any], given: str) -> str:
    """Return the name of a part that is given by its name or by where it lies.

    Raises
    ------
    ConfigError
        There is no such part.
    """
    try:
        return registry.find(given)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def group_of(field: FieldInfo) -> Group | None:
    """Return the group of settings that a field of a trial holds; None if it holds a value."""
    for extra in field.metadata:
        if hasattr(extra, "options_of"):
            family: Group = extra
            return family
    section = field.annotation
    return section if isinstance(section, type) and issubclass(section, Section) else None


@cache
def _options(section: type[Section]) -> dict[str, list[str] | None]:
    """Return the options that each field of a section applies to; grids ask for them often."""
    extras = {key: field.json_schema_extra for key, field in section.model_fields.items()}
    return {
        key: list(extra["options"]) if isinstance(extra, dict) else None  # type: ignore[arg-type]
        for key, extra in extras.items()
    }


def flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by full key (``strategy.server.rule``), no None among them."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[prefix + key] = value
    return found


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return what the axes of a grid, which are known by their full keys, are called by people.

    The name is the shortest end of the key that no other key has (``strategy.num_clusters`` ->
    ``num_clusters``; ``partition.alpha`` and ``strategy.alpha`` keep their whole keys), so no two
    axes of a grid have the same one.
    """
    parts = {key: key.split(".") for key in keys}
    ends = Counter(
        ".".join(words[-n:]) for words in parts.values() for n in range(1, len(words) + 1)
    )
    return {
        key: next(
            (end for n in range(1, len(words)) if ends[end := ".".join(words[-n:])] == 1), key
        )
        for key, words in parts.items()
    }
