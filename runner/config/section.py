"""What a group of settings is: frozen, every key known, some keys for some of its options only."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from runner.config.ranges import checked


def only(options: str, default: Any, description: str, **limits: Any) -> Any:
    """Declare a field that applies to the named options of its group (space separated) and to no other."""
    return Field(default, description=description, json_schema_extra={"options": [*options.split()]}, **limits)


class Section(BaseModel):
    """A frozen group of settings in which an unknown key is an error.

    Its values are of the types that they are written as: ``true`` and ``'3'`` are no numbers, 1 is
    not ``true``. A whole number may be written as ``2.0`` or ``1e2``. Numbers are finite.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: Any, info: ValidationInfo) -> Any:
        return checked(value, cls.model_fields[str(info.field_name)].annotation)

    @classmethod
    def options_of(cls, key: str) -> list[str] | None:
        """Return the options that a field applies to, or None where it applies to all."""
        extra = cls.model_fields[key].json_schema_extra
        return list(extra["options"]) if isinstance(extra, dict) else None  # type: ignore[arg-type]

    def canonical(self) -> dict[str, Any]:
        """Return what defines the section, without the fields that do not apply to its option."""
        name = getattr(self, "name", None)
        kept = {}
        for key in type(self).model_fields:
            options = self.options_of(key)
            if options is None or name in options:
                value = getattr(self, key)
                kept[key] = value.canonical() if isinstance(value, Section) else value
        return kept


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by full key (``strategy.server.rule``), without those that are None."""
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
    ends = Counter(".".join(words[-n:]) for words in parts.values() for n in range(1, len(words) + 1))
    return {
        key: next((end for n in range(1, len(words)) if ends[end := ".".join(words[-n:])] == 1), key)
        for key, words in parts.items()
    }
