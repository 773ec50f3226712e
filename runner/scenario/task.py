"""What a task is: what a federation learns from, as arrays of any shape and type, and its target.

A task's file has its settings, which are those of ``dataset``, and reads or draws its arrays. Which
loss is trained and which numbers add up over clients follows from the target: of classes the
cross-entropy and hits, of a real number squared and absolute errors. What an array holds says how a
batch is made and an example is shown: bytes are pixels, floats are features that are standardised
by what the training clients sum, whole numbers are symbols.
"""

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from fedsweep.errors import DataError, first_of, shown
from fedsweep.parts.registry import Registry
from fedsweep.places import absolute
from fedsweep.scenario.dataset import DATASETS
from fedsweep.strategies.ranges import EXAMPLES, SHARE
from fedsweep.strategies.settings import PartSettings

if TYPE_CHECKING:
    import pandas as pd

Target = Literal["classes", "real"]
Shown = Literal["images", "rows", "text", "series"]
STRATA = 10
"""Ranges of equal counts that a real target is cut into, where partitions want classes."""


class Column(NamedTuple):
    """What a natural partition goes by."""

    values: tuple[str, ...]
    codes: np.ndarray  # int64 (N,), which of the values each training example has


@dataclass(frozen=True)
class Decoded:
    """A data set in memory.

    Parameters
    ----------
    class_names : tuple of str
        Names of the classes; of a real target empty.
    arrays : tuple of np.ndarray
        Training examples (N, ...) and targets (N,), those of the test set. Examples are uint8
        images (N, C, H, W), float32 features (N, F) or series (N, T, C), or int32 symbols (N, T);
        targets are int64 classes or float32 numbers.
    told : str
        What was read and what was left out, in a line.
    names : tuple of str
        Of features, channels or symbols.
    scaled : tuple of bool
        Which features, or channels, are standardised.
    column : Column, optional
        What a natural partition goes by, where it was asked for.
    groups : tuple of np.ndarray, optional
        The known group of each training and each test example, int64 (N,).
    """

    class_names: tuple[str, ...]
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    told: str = ""
    names: tuple[str, ...] = ()
    scaled: tuple[bool, ...] = ()
    column: Column | None = None
    groups: tuple[np.ndarray, np.ndarray] | None = None


class Task(PartSettings):
    """Which examples, and what of them is learnt."""

    registry: ClassVar[Registry[Any]] = DATASETS
    natural: ClassVar[str] = ""
    """The column that says whose an example is, where no other is named; none if empty."""

    task: str = Field("images", description="what is learnt from: images, tabular, ...")
    name: str = Field("digits", description="short name; the folder looked for under data.root")
    content: str | None = Field(
        None,
        description=(
            "digest of what is read, found by itself; one that is given must be that of the files"
        ),
    )

    @property
    def shows(self) -> Shown:
        """How examples are shown."""
        return "rows"

    @property
    def target_kind(self) -> Target:
        """What is learnt of an example: its class, or a real number."""
        return "classes"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that each trial has by its task, by the names under which they are asked for."""
        return ("mae", "r2") if self.target_kind == "real" else ()

    @property
    def read_as(self) -> Sequence[object]:
        """What decides the arrays beside the content of the files."""
        return ()

    @property
    def as_they_are(self) -> bool:
        """Whether pixels keep their values, and are not brought to mean 0 and deviation 1."""
        return False

    def groups_by(self, column: str) -> int:
        """Return how many known groups clients have that are split by a column; 1: none known."""
        del column
        return 1


class ArrayTask(Task):
    """A task that reads files of its own, or draws what it is about."""

    version: ClassVar[int] = 1
    """Of what :meth:`read` gives; raise it when the same files give something else."""

    def reading(self) -> dict[str, Any]:
        """Return the settings that decide what :meth:`read` gives."""
        return {k: v for k, v in self.canonical().items() if k not in ("content", "name")}

    @property
    def read_as(self) -> Sequence[object]:
        """What decides the arrays beside the content of the files."""
        return (self.version, self.reading())

    def is_there(self, root: Path | None) -> bool:
        """Return whether there is something to be read where nothing more is said."""
        del root
        return True

    @abstractmethod
    def place(self, root: Path | None) -> str:
        """Return where the data are, in words; ``root`` is ``data.root``."""

    @abstractmethod
    def files(self, root: Path | None) -> Sequence[Path]:
        """Return the files that are read, in order; none where all is drawn.

        Raises
        ------
        DataError
            They are not there: what to set.
        """

    @abstractmethod
    def read(self, root: Path | None, column: str = "") -> Decoded:
        """Return the data set, with the column of that name where one is asked for.

        Raises
        ------
        DataError
            It can't be read; the message says where, and what to change.
        """


class FileTask(ArrayTask):
    """A task whose examples are in a file or a folder."""

    path: str | None = Field(None, description="a local file or folder: docs/tasks.md")
    max_train: int | None = Field(
        None,
        ge=10,
        le=EXAMPLES,
        description="training examples used, drawn by chance, the same for every seed; null: all",
    )
    test_fraction: float = Field(
        0.2,
        ge=SHARE,
        lt=1,
        description="share of the examples to test on, where no split is there for it",
    )

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        return None if path is None else absolute(path)

    def canonical(self) -> dict[str, Any]:
        """Return what defines the data: their content, not their place."""
        return {key: value for key, value in super().canonical().items() if key != "path"}

    def is_there(self, root: Path | None) -> bool:
        """Return whether a path is named, or the name is one in ``data.root``."""
        return self.path is not None or self._in(root) is not None

    def _in(self, root: Path | None) -> Path | None:
        """Return what is called so in ``data.root``, if anything is."""
        if root is None or os.sep in self.name or self.name in ("", ".", ".."):
            return None
        return place if _is_there(place := root / self.name) else None

    def found(self, root: Path | None) -> Path:
        """Return the file or folder: ``dataset.path``, or ``dataset.name`` in ``data.root``.

        Raises
        ------
        DataError
            There is none.
        """
        if self.path is not None:
            place = Path(self.path)
            if not _is_there(place):
                raise DataError(
                    f"dataset.path={shown(self.path, 200)} is no file or folder; correct it"
                )
            return place
        if (named := self._in(root)) is not None:
            return named
        looked = "data.root is not set"
        if root is not None:
            looked = f"{shown(str(root / self.name), 200)} (from data.root) is not there"
        raise DataError(
            f"data set '{shown(self.name)}' can't be had: dataset.path is not set, and {looked}; "
            f"set dataset.path to a file or a folder that dataset.task={self.task} reads"
        )

    def place(self, root: Path | None) -> str:
        """Return where the data are; what they are called where that is not known."""
        return str(self.found(root)) if self.is_there(root) else self.name


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long a name, or one that can't be
        return False


# What several tasks do


def drawn_rows(total: int, wanted: int) -> np.ndarray:
    """Return so many of ``total`` rows, drawn by chance and in order, int64 (wanted,).

    The first rows of a file sorted by label would be the first classes alone. The draw is the same
    for all trials, whatever their seed: it makes a smaller data set, which a sweep's trials share.
    A smaller draw is a part of a larger one.
    """
    return np.sort(np.random.default_rng(0).permutation(total)[:wanted])


def drawn_test(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Return the rows that make a test set: a share of each class, by chance, int64, in order.

    At least one of each class that has two or more, and never all. The draw is the same for every
    seed of a trial: the test set belongs to the data set.
    """
    rng = np.random.default_rng(0)
    drawn = [np.empty(0, np.int64)]
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(own)), 1), len(own) - 1)
        drawn.append(rng.permutation(own)[:count])
    return np.sort(np.concatenate(drawn))


def as_number(name: str) -> tuple[int, int, str]:
    """Sort names as text, but those that are all whole numbers by their value."""
    return (0, int(name), name) if name.isascii() and name.isdecimal() else (1, 0, name)


def read_table(path: Path) -> "pd.DataFrame":
    """Return the rows of a CSV or Parquet file.

    Raises
    ------
    DataError
        It can't be read.
    """
    import pandas as pd

    try:
        if path.suffix == ".csv":
            return pd.read_csv(path, float_precision="round_trip")
        return pd.read_parquet(path)
    except Exception as error:  # parsers raise what they like on broken files
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{shown(str(path), 200)} can't be read: {lines[0]}") from error


def as_float32(values: np.ndarray, where: str, what: str) -> np.ndarray:
    """Return numbers (n, ...) as float32; missing ones are nan and stay so.

    Raises
    ------
    DataError
        One is infinite, or too large: ``where`` and ``what`` say what holds it.
    """
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if (infinite := np.isinf(found)).any():
        row = int(np.argwhere(infinite)[0][0])
        raise DataError(
            f"{where}, row {row}: {what} holds {values[infinite].flat[0]:g}, which is infinite or "
            "too large for 32 bits; correct or remove such rows first"
        )
    return found


def loses_digits(values: np.ndarray) -> bool:
    """Return whether numbers (n,) are so near each other that 32 bits don't tell them apart.

    That is where rounding moves one by more than a thousandth of their deviation.
    """
    there = values[np.isfinite(values)].astype(np.float64)
    if not len(there):
        return False
    moved = float(np.abs(there - there.astype(np.float32)).max())
    return moved > 1e-3 * float(there.std()) > 0


def check_owned(missing: np.ndarray, where: str, column: str) -> None:
    """Refuse training examples, of which ``missing`` (n,) are nobody's by their column.

    Raises
    ------
    DataError
        There are some: together they would be a client that nobody meant.
    """
    if missing.any():
        raise DataError(
            f"{where}: column '{shown(column)}' does not say whose {int(missing.sum()):,} of "
            f"{len(missing):,} training examples are; remove those rows first"
        )


def coded(values: Sequence[object] | np.ndarray) -> Column:
    """Return values as names, in the order of :func:`as_number`, and which each of them is."""
    texts, flat = np.unique(np.asarray([str(value) for value in values]), return_inverse=True)
    order = sorted(range(len(texts)), key=lambda i: as_number(str(texts[i])))
    place = np.empty(len(texts), np.int64)
    place[order] = np.arange(len(texts))
    return Column(tuple(str(texts[i]) for i in order), place[flat])


def by_split(
    labels: np.ndarray, sizes: Sequence[int], names: Sequence[str], where: Sequence[str]
) -> list[np.ndarray]:
    """Return the labels of splits that were coded together, each for itself.

    Raises
    ------
    DataError
        The last one has classes that the first has not.
    """
    splits = np.split(labels, np.cumsum(sizes)[:-1])
    if foreign := sorted({*splits[-1]} - {*splits[0]}):
        raise DataError(f"{where[-1]}: classes that {where[0]} has not: {shown(names[foreign[0]])}")
    return splits


def strata_edges(targets: np.ndarray) -> np.ndarray:
    """Return the inner edges of ranges of a real target with equal counts, float (strata - 1,)."""
    firsts = len(targets) * np.arange(1, STRATA) // STRATA
    return np.unique(np.sort(targets)[firsts].astype(np.float64))


def strata_names(edges: Sequence[float]) -> tuple[str, ...]:
    """Return what the ranges between edges are called."""
    if not len(edges):
        return ("all",)
    between = [f"{a:.4g} to {b:.4g}" for a, b in pairwise(edges)]
    return (f"below {edges[0]:.4g}", *between, f"from {edges[-1]:.4g}")


def counted(names: Sequence[str], labels: np.ndarray, most: int = 10) -> str:
    """Say how many classes there are, and how many examples the first of them have."""
    counts = np.bincount(labels, minlength=len(names))
    each = [f"{shown(name, 40)}: {count:,}" for name, count in zip(names, counts, strict=True)]
    return f"{len(names):,} classes ({first_of(each, most)})"


def listed_columns(columns: Mapping[str, object] | Sequence[str]) -> str:
    """Return the names of columns as a list, shortened."""
    return first_of([shown(str(name), 40) for name in columns], 8)
