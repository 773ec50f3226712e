"""What is learnt from, by which network, and how a client trains."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedsweep.config.section import Section, absolute, only
from fedsweep.strategies.ranges import CLIENTS, EXAMPLES, ROUNDS, SHARE, WEIGHT


class DatasetConfig(Section):
    """Which images and labels. ``dataset=hub`` and ``dataset=folder`` take any image data set."""

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
        description="the folder of classes or the table to train on, instead of the split; from the folder on",
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
        description="digest of what is read, found by itself; one that is given must be that of the files",
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


class PartitionConfig(Section):
    """How the training set is split among the clients."""

    name: Literal[
        "iid",
        "dirichlet",
        "inner_dirichlet",
        "shard",
        "pathological",
        "linear",
        "square",
        "exponential",
        "centralized",
    ] = Field("iid", description="the rule; centralized gives one client everything")
    alpha: float = only(
        "dirichlet inner_dirichlet",
        0.5,
        "concentration; smaller is more skewed",
        ge=1e-6,
        le=1e6,
    )
    sizes: Literal["equal", "linear", "square"] = only(
        "inner_dirichlet",
        "equal",
        "examples per client: equal, or shares as 1, 2, 3, ... (squared), dealt out by seed",
    )
    min_size: int = only(
        "dirichlet",
        10,
        "fewest examples that a client may get",
        ge=1,
        le=EXAMPLES,
    )
    shards_per_client: int = only(
        "shard",
        2,
        "label-sorted shards per client (McMahan 2017)",
        ge=1,
        le=EXAMPLES,
    )
    classes_per_client: int = only(
        "pathological",
        2,
        "distinct labels per client",
        ge=1,
        le=EXAMPLES,
    )
    eval_fraction: float = Field(
        0.2, ge=0, lt=1, description="share of each client's examples kept for its evaluation"
    )


_GROUPED = "rotation inversion noise morphology label_permutation label_groups"
_SEEN = "rotation inversion noise morphology label_permutation"  # how a group sees an example, not which ones it has


class ShiftConfig(Section):
    """How the clients' data differ in known groups, and over time. Client i belongs to group i mod groups."""

    name: Literal[
        "none", "rotation", "inversion", "noise", "morphology", "label_permutation", "label_groups"
    ] = Field("none", description="the kind of shift")  # fmt: skip
    groups: int = only(
        _GROUPED,
        4,
        "number of groups; at most 2 for inversion and 3 for morphology",
        ge=1,
        le=CLIENTS,
    )
    angles: tuple[Annotated[float, Field(ge=-360, le=360)], ...] | None = only(
        "rotation",
        None,
        "degrees per group, counter-clockwise; null spreads 360 degrees evenly",
        strict=False,  # a list makes a tuple; its numbers are as strict as others
    )
    noise_std: float = only(
        "noise",
        64.0,
        "last group's noise in grey levels (0 to 255); group 0 has none",
        gt=0,
        le=255,
    )
    classes_per_group: int | None = only(
        "label_groups", None, "classes of each group, shared with others where they do not suffice; null deals out all",
        ge=1, le=EXAMPLES,
    )  # fmt: skip
    replicate: bool = only(
        _SEEN, False, "the clients of each group together hold all training images (IFCA)"
    )
    drift_round: int = only(
        _SEEN,
        0,
        "from this round on some clients belong to the next group; 0: never",
        ge=0,
        le=ROUNDS,
    )
    drift_fraction: float = only(
        _SEEN, 0.5, "share of each group's clients that move to the next group", ge=0, le=1
    )
    newcomers: float = Field(
        0.0, ge=0, lt=1, description="share of the clients, the last ones, that join later"
    )
    join_round: int = Field(2, ge=2, le=ROUNDS, description="first round of the newcomers")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.angles is not None and len(self.angles) != self.groups:
            raise ValueError(
                f"angles has {len(self.angles)} values for {self.groups} groups; give one angle per group"
            )
        most = {"inversion": 2, "morphology": 3}.get(self.name)
        if most and self.groups > most:
            raise ValueError(
                f"groups={self.groups} with {self.name}: there are only {most} kinds; lower shift.groups"
            )
        return self


class ModelConfig(Section):
    """The network. Input shape and number of classes come from the data set."""

    name: str = Field(
        "mlp", description="a registered model, or the dotted path of a torch.nn.Module class"
    )
    kwargs: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the model's constructor"
    )


class TrainingConfig(Section):
    """Local training on a client. The strategy sends these values in the ConfigRecord of each message."""

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
        description="training images mirrored at random, or also shifted by up to an eighth of their side",
    )
    precision: Literal["float32", "tf32", "bf16"] = Field(
        "float32",
        description="of products while training: tf32 on GPUs only, bf16 by autocast, client by client",
    )

    def canonical(self) -> dict[str, Any]:
        """Return what defines local training; options that are off leave the keys of trials alone."""
        values = super().canonical()
        off = {"augment": "none", "precision": "float32"}
        return {key: value for key, value in values.items() if key not in off or off[key] != value}
