"""Settings of methods: what a sweep may set, its range, unit and meaning, what fits together.

A method's settings are a class in its own file, derived from :class:`FedAvgSettings`. The command
line, the grids and the help read them there; the same checks are made where the method's class is
constructed on plain Flower.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
)

from fedsweep.parts.registry import Origin, Registry
from fedsweep.strategies.ranges import CLIENTS, SHARE, bounds, checked


class Settings(BaseModel):
    """A frozen group of settings in which an unknown key is an error.

    Its values are of the types that they are written as: ``true`` and ``'3'`` are no numbers, 1 is
    not ``true``. A whole number may be written as ``2.0`` or ``1e2``. Numbers are finite.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    _origin: Origin | None = PrivateAttr(None)

    @property
    def part_origin(self) -> Origin | None:
        """Where the part comes from that these are settings of, if it is somebody's own."""
        return self._origin

    @field_validator("*", mode="before")
    @classmethod
    def _means_something(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[str(info.field_name)]
        if value == "" and field.default != "":
            raise ValueError("it is empty; give a value, or leave it out")
        return checked(value, field.annotation)

    def canonical(self) -> dict[str, Any]:
        """Return what defines the settings, as plain values."""
        values = {key: getattr(self, key) for key in type(self).model_fields}
        return {k: v.canonical() if isinstance(v, Settings) else v for k, v in values.items()}


class PartSettings(Settings):
    """Settings whose ``name`` may be a part of somebody's own, which brings no settings."""

    registry: ClassVar[Registry[Any]]

    name: str = Field(description="the part")

    def model_post_init(self, context: object) -> None:
        """Know where the part comes from."""
        del context
        self._origin = self.registry.origin(self.name)

    def __reduce__(self) -> tuple[object, ...]:
        """Take along where the part comes from."""
        return _with_part, (type(self), self.part_origin, self.model_dump())


def _with_part(
    kind: type[PartSettings], origin: Origin | None, values: dict[str, Any]
) -> PartSettings:
    """Return settings that came from another process, once their part is known here."""
    if origin is not None:
        kind.registry.receive(origin)
    return kind.model_validate(values)


@dataclass(frozen=True)
class Setting:
    """What a method is set into: what is None is not known there, and nothing is checked by it."""

    num_clients: int
    cohort: int
    """Clients that train in a round, in the smallest one."""
    rounds: int | None = None
    optimizer: str | None = None
    """Of the clients."""
    model: str | None = None


class FedAvgSettings(Settings):
    """What every method can be told. Names and meanings are Flower's where Flower has them."""

    pull: ClassVar[str] = ""
    """The key that takes the place of ``training.proximal_mu``, if there is one."""

    name: str = Field("fedavg", description="the strategy")
    fraction_train: float = Field(
        1.0, ge=SHARE, le=1, description="share of the clients that train in a round"
    )
    fraction_evaluate: float = Field(
        1.0, ge=0, le=1, description="share of the clients that evaluate"
    )
    min_train_nodes: int = Field(1, ge=1, le=CLIENTS, description="train at least so many clients")
    min_evaluate_nodes: int = Field(
        1, ge=0, le=CLIENTS, description="evaluate at least so many clients"
    )
    min_available_nodes: int = Field(
        1, ge=1, le=CLIENTS, description="start only with so many clients"
    )
    min_fit_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="below this share of usable replies, or answers to a query, a round fails",
    )

    def trained(self, num_clients: int) -> int:
        """Return how many of so many clients train in a round; ``build_strategy`` counts alike."""
        whole = int(num_clients * self.fraction_train * (1 + 1e-12))  # .29 of 100 is 29
        return min(num_clients, max(whole, self.min_train_nodes))

    def check(self) -> None:
        """Refuse settings that mean nothing together.

        Raises
        ------
        ValueError
            In one line: what was given, and what to change.
        """

    def check_in(self, setting: Setting) -> None:
        """Refuse settings that can't work, or do nothing, in a trial.

        Raises
        ------
        ValueError
            In one line: what was given, and what to change.
        """

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: key -> the setting that is why."""
        if self.fraction_evaluate == 0:
            return {"min_evaluate_nodes": "strategy.fraction_evaluate=0"}
        return {}


class NumClustersSettings(FedAvgSettings):
    """Of a method that forms a number of clusters, which is given."""

    num_clusters: int = Field(4, ge=1, le=CLIENTS, description="clusters; 1 is FedAvg")

    def check_in(self, setting: Setting) -> None:
        """Refuse more clusters than clients."""
        super().check_in(setting)
        if "num_clusters" not in self.idle() and self.num_clusters > setting.num_clients:
            raise ValueError(
                f"strategy.num_clusters={self.num_clusters} is more than "
                f"num_clients={setting.num_clients}; lower it or add clients"
            )


def inherited(base: type[Settings], key: str, default: object) -> Any:
    """Declare a setting of a base class anew, with a default of one's own."""
    field = base.model_fields[key]
    limits: dict[str, Any] = dict(bounds(field.metadata))
    return Field(default, description=field.description, **limits)
