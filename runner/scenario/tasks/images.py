"""Images and their classes: from the Hub, folders of files, Parquet, or a function of one's own.

``runner/data/layout.py`` says which files are read as what.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedsweep.parts.registry import is_reference
from fedsweep.places import absolute
from fedsweep.scenario.dataset import DATASETS
from fedsweep.scenario.task import Shown, Task
from fedsweep.strategies.ranges import EXAMPLES, SHARE

Colour = Literal["own", "grey", "rgb"]


class Images(Task):
    """Which images and labels. ``dataset=hub`` and ``dataset=folder`` take any image data set."""

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
    image: str = Field("image", description="column that holds the images")
    label: str = Field("label", description="column that holds the class labels")
    train_split: str = Field("train", description="split that the clients share")
    test_split: str = Field("test", description="split of the central test set")
    normalize: Literal["standard", "unit"] = Field(
        "standard",
        description="pixels at mean 0 and deviation 1 per channel, or unit: divided by 255",
    )
    colour: Colour = Field(
        "own", description="images as they are, all of one mode; or all made rgb, or grey"
    )
    max_train: int | None = Field(
        None,
        ge=10,
        le=EXAMPLES,
        description="training images used, drawn by chance, the same for every seed (all if null)",
    )

    @property
    def shows(self) -> Shown:
        """How examples are shown."""
        return "images"

    @property
    def read_as(self) -> Sequence[object]:
        """What decides the arrays beside the content of the files."""
        colour = () if self.colour == "own" else (self.colour,)  # older caches know no other
        return (self.image, self.label, self.test_fraction, self.max_train, *colour)

    @property
    def as_they_are(self) -> bool:
        """Whether pixels keep their values, and are not brought to mean 0 and deviation 1."""
        return self.normalize == "unit"

    @field_validator("name")
    @classmethod
    def _function(cls, name: str) -> str:
        return DATASETS.find(name) if is_reference(name) else name

    def canonical(self) -> dict[str, Any]:
        """Return what defines the data: their content, not their place.

        Keys of trials are older than tasks and colours: those that were meant are not in them.
        """
        left_out = {"task", "path", "train", "test"}
        if self.colour == "own":
            left_out.add("colour")
        return {key: value for key, value in super().canonical().items() if key not in left_out}

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
