"""What is learnt from, by which network, and how a client trains."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedsweep.config.section import PartSection, Section, absolute
from fedsweep.models import MODELS
from fedsweep.parts.registry import Registry, is_reference
from fedsweep.scenario.dataset import DATASETS
from fedsweep.strategies.ranges import EXAMPLES, SHARE, WEIGHT


class DatasetConfig(PartSection):
    """Which images and labels. ``dataset=hub`` and ``dataset=folder`` take any image data set."""

    registry: ClassVar[Registry[Any]] = DATASETS

    name: str = Field("digits", description="short name; the folder looked for under data.root")
    id: str | None = Field(None, description="Hugging Face Hub id, e.g. ylecun/mnist")
    path: str | None = Field(
        None, description="a local folder: docs/data.md says what is read of it"
    )
    config: str | None = Field(
        None, description="its folder that holds the splits, as a Hub configuration has one"
    )
    train: str | None = Field(
        None,
        description=(
            "the folder of classes or the table to train on, instead of the split; "
            "from the folder on"
        ),
    )
    test: str | None = Field(
        None, description="the folder of classes or the table to test on, likewise"
    )
    test_fraction: float | None = Field(
        None,
        ge=SHARE,
        lt=1,
        description="share of each class's images to test on, where no split is there for it",
    )
    content: str | None = Field(
        None,
        description=(
            "digest of what is read, found by itself; one that is given must be that of the files"
        ),
    )
    image: str = Field("image", description="column that holds the images")
    label: str = Field("label", description="column that holds the class labels")
    train_split: str = Field("train", description="split that the clients share")
    test_split: str = Field("test", description="split of the central test set")
    normalize: Literal["standard", "unit"] = Field(
        "standard",
        description="pixels at mean 0 and deviation 1 per channel, or unit: divided by 255",
    )
    max_train: int | None = Field(
        None,
        ge=10,
        le=EXAMPLES,
        description="training images used, drawn by chance, the same for every seed (all if null)",
    )

    @field_validator("name")
    @classmethod
    def _function(cls, name: str) -> str:
        return DATASETS.find(name) if is_reference(name) else name

    def canonical(self) -> dict[str, Any]:
        """Return what defines the data: their content, not their place."""
        values = super().canonical()
        return {key: value for key, value in values.items() if key not in ("path", "train", "test")}

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        return None if path is None else absolute(path)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.test is not None and self.train is None:
            raise ValueError(f"test={self.test} without dataset.train; set both")
        if self.test is not None and self.test_fraction is not None:
            raise ValueError(
                f"test={self.test} with test_fraction={self.test_fraction}; leave out one of them"
            )
        return self


class ModelConfig(PartSection):
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
