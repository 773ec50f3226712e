"""By which network it is learnt, and how a client trains."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from fedsweep.config.section import Section
from fedsweep.models import MODELS
from fedsweep.parts.registry import Registry
from fedsweep.strategies.ranges import EXAMPLES, SHARE, WEIGHT
from fedsweep.strategies.settings import PartSettings


class ModelConfig(PartSettings, Section):
    """The network. Input shape and number of classes come from the data set."""

    registry: ClassVar[Registry[Any]] = MODELS

    name: str = Field(
        "mlp",
        description="a registered model, ./file.py:Net, or the dotted path of a torch.nn.Module "
        "class",
    )
    kwargs: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the model's constructor"
    )

    @field_validator("name")
    @classmethod
    def _there(cls, name: str) -> str:
        return MODELS.find(name)


class TrainingConfig(Section):
    """Local training on a client.

    The strategy sends these values in the ConfigRecord of each message.
    """

    optimizer: Literal["sgd", "adam"] = Field("sgd", description="optimizer, new in each round")
    lr: float = Field(0.02, gt=0, le=1000, description="learning rate of round 1")
    lr_decay: float = Field(
        1.0,
        ge=SHARE,
        le=1,
        description="factor on the learning rate per round",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum (sgd)")
    weight_decay: float = Field(0.0, ge=0, le=1000, description="L2 penalty")
    epochs: int = Field(
        1,
        ge=1,
        le=10**6,
        description="passes over the client's examples per round",
    )
    steps: int | None = Field(
        None,
        ge=1,
        le=EXAMPLES,
        description="optimizer steps per round, instead of epochs",
    )
    batch_size: int = Field(
        10,
        ge=0,
        le=EXAMPLES,
        description="examples per step; 0 takes all of them (full batch)",
    )
    proximal_mu: float = Field(
        0.0,
        ge=0,
        le=WEIGHT,
        description="weight of mu/2 ||w - w_round_start||^2 (FedProx)",
    )
    engine: Literal["sequential", "vectorized"] = Field(
        "vectorized",
        description="clients of a chunk one by one, or in one batched program where the model has "
        "one: the same up to rounding",
    )
    threads: int = Field(
        1,
        ge=1,
        le=1024,
        description="torch threads per client task; part of what fixes the bits of a sum",
    )
    augment: Literal["none", "flip", "crop_flip"] = Field(
        "none",
        description=(
            "training images mirrored at random, or also shifted by up to an eighth of their side"
        ),
    )
    precision: Literal["float32", "tf32", "bf16"] = Field(
        "float32",
        description=(
            "of products while training: tf32 on GPUs only, bf16 by autocast, client by client"
        ),
    )

    def canonical(self) -> dict[str, Any]:
        """Return what defines local training;
        options that are off leave the keys of trials alone.
        """
        values = super().canonical()
        off = {"augment": "none", "precision": "float32"}
        return {key: value for key, value in values.items() if key not in off or off[key] != value}
