"""How updates become models: methods' settings as a section of a trial, and privacy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field, GetCoreSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

from fedsweep.config.section import Section, only
from fedsweep.errors import ConfigError, unknown
from fedsweep.strategies.ranges import METRIC, WEIGHT
from fedsweep.strategies.registry import STRATEGIES, Registry
from fedsweep.strategies.settings import FedAvgSettings


@dataclass(frozen=True)
class OneOf:
    """A section of a trial that holds the settings of one method: its ``name`` says whose.

    It asks the registry each time: a method that is added while the program runs is there.
    """

    registry: Registry

    def options_of(self, key: str) -> list[str] | None:
        """Return the methods that a key applies to, or None where it applies to all."""
        return self.registry.options_of(key)

    def keys(self) -> list[str]:
        """Return the keys of all methods."""
        return self.registry.keys_of_all()

    def kind(self, values: Any) -> type[BaseModel]:
        """Return the class of settings that values are of."""
        if not isinstance(values, Mapping):
            return type(values) if isinstance(values, FedAvgSettings) else FedAvgSettings
        name = values.get("name", FedAvgSettings.model_fields["name"].default)
        if name not in self.registry:
            raise ConfigError(unknown("strategy", str(name), self.registry))
        return self.registry.settings(name)

    def read(self, values: Any) -> FedAvgSettings:
        """Return values as the settings of the method that they name."""
        if isinstance(values, FedAvgSettings):
            return values
        if not isinstance(values, Mapping):
            raise PydanticCustomError("section", "it has to be a mapping of keys to values")
        found = self.kind(values).model_validate(dict(values))
        assert isinstance(found, FedAvgSettings)
        return found

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Have pydantic read and write the settings by their own class."""
        del source, handler
        write = core_schema.plain_serializer_function_ser_schema(
            lambda settings, info: settings.model_dump(mode=info.mode), info_arg=True
        )
        return core_schema.no_info_plain_validator_function(self.read, serialization=write)


METHOD = OneOf(STRATEGIES)


class PrivacyConfig(Section):
    """Clipping and noise around the strategy: user-level differential privacy."""

    name: Literal["none", "fixed_server", "fixed_client", "adaptive_server", "adaptive_client"] = (
        Field("none", description="where updates are clipped, and whether the clipping norm adapts")
    )
    noise_multiplier: float = only(
        "fixed_server fixed_client adaptive_server adaptive_client",
        1.0,
        "noise deviation over clipping norm",
        ge=0,
        le=WEIGHT,
    )
    clipping_norm: float = only(
        "fixed_server fixed_client",
        1.0,
        "largest L2 norm of an update",
        gt=0,
        le=METRIC,
    )
    initial_clipping_norm: float = only(
        "adaptive_server adaptive_client", 0.1, "clipping norm of round 1", gt=0, le=METRIC
    )
    target_clipped_quantile: float = only(
        "adaptive_server adaptive_client", 0.5, "share left unclipped", gt=0, lt=1
    )
    clip_norm_lr: float = only(
        "adaptive_server adaptive_client", 0.2, "step size of the norm's adaptation", gt=0, le=1000
    )
