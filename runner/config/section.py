"""What a group of settings is: frozen, every key known, some keys for some of its options only."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def only(options: str, default: Any, description: str, **limits: Any) -> Any:
    """Declare a field that applies to the named options of its group (space separated) and to no other."""
    return Field(default, description=description, json_schema_extra={"options": [*options.split()]}, **limits)


class Section(BaseModel):
    """A frozen group of settings in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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


def axis_name(key: str) -> str:
    """Return a setting as the short name of an axis: ``strategy.num_clusters`` -> ``num_clusters``.

    A setting of a part keeps the part's name (``strategy.server.rule`` -> ``server_rule``), which alone would say too
    little; open mappings have no name of their own (``model.kwargs.hidden`` -> ``hidden``).
    """
    _, *parts = [part for part in key.split(".") if part != "kwargs"]
    return "_".join(parts[-2:]) or key
