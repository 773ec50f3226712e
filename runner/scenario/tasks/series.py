"""Series of several channels and a class or a number each: ``.ts`` files, or drawn ones.

The format is that of the archives at timeseriesclassification.com: after ``@data`` a line is an
example, its channels separated by colons, its values by commas, and its target last. JapaneseVowels
(Kudo et al. 1999) is read from where the package aeon has it, which need not be importable:
``pip install --no-deps aeon``. ``cylinder_bell_funnel`` is drawn (Saito 1994, "Local Feature
Extraction and Its Applications Using a Library of Bases", section 5.3): a plateau, a rise or a fall
of height 6 + N(0, 1) somewhere in noise.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from fedsweep.errors import DataError, shown
from fedsweep.scenario.task import (
    Decoded,
    FileTask,
    Shown,
    Target,
    by_split,
    coded,
    counted,
    drawn_rows,
    drawn_test,
)

DRAWN = "cylinder_bell_funnel"
_VOWELS = "japanese_vowels"
_EACH = 400  # of a drawn class
_STEPS = 128


class Series(FileTask):
    """Values over time, in channels, at mean 0 and deviation 1 each, and a target."""

    name: str = Field("series", description=f"short name; {DRAWN} is drawn, {_VOWELS} is aeon's")
    target: Target = Field("classes", description="classes, or real: a number (regression)")
    length: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="steps: longer ones are cut; null: those of the longest",
    )

    @property
    def shows(self) -> Shown:
        """How examples are shown."""
        return "series"

    @property
    def target_kind(self) -> Target:
        """What is learnt of a series."""
        return self.target

    @property
    def _is_drawn(self) -> bool:
        return self.name == DRAWN and self.path is None

    def is_there(self, root: Path | None) -> bool:
        """Return whether there are series."""
        return self._is_drawn or self._of_aeon() is not None or super().is_there(root)

    def place(self, root: Path | None) -> str:
        """Return where the series are; what they are called where that is not known."""
        if self._is_drawn:
            return "drawn (Saito 1994)"
        return str(self.files(root)[0]) if self.is_there(root) else self.name

    def files(self, root: Path | None) -> Sequence[Path]:
        """Return the file to train on, and the one to test on where there is one."""
        if self._is_drawn:
            return ()
        found = self._of_aeon() or self.found(root)
        if found.is_dir():
            several = sorted(found.glob("*_TRAIN.ts"))
            if len(several) != 1:
                there = ", ".join(shown(path.name) for path in several) or "none"
                raise DataError(
                    f"{shown(str(found), 200)} holds NAME_TRAIN.ts: {there}; set dataset.path to "
                    "the one file"
                )
            found = several[0]
        if found.suffix != ".ts":
            raise DataError(
                f"{shown(str(found), 200)} is no .ts file, which is what dataset.task=series reads"
            )
        test = found.with_name(found.name.replace("_TRAIN.ts", "_TEST.ts"))
        return [found, test] if test != found and test.is_file() else [found]

    def _of_aeon(self) -> Path | None:
        if self.name != _VOWELS or self.path is not None:
            return None
        spec = importlib.util.find_spec("aeon")
        for folder in () if spec is None else spec.submodule_search_locations or ():
            file = Path(folder, "datasets", "data", "JapaneseVowels", "JapaneseVowels_TRAIN.ts")
            if file.is_file():
                return file
        return None

    def read(self, root: Path | None, column: str = "") -> Decoded:
        """Return the series float32 (N, T, C); short ones end in missing values."""
        if column:
            raise DataError(
                f"partition.column={shown(column)}: a .ts file has no column beside its series "
                "and its targets; set partition to another one"
            )
        files = self.files(root)
        splits = [_parsed(path, self.target) for path in files] or [_drawn()]
        values = [own for own, _ in splits]
        channels = values[0][0].shape[1]
        for own, path in zip(values, files or [Path(DRAWN)], strict=True):
            if any(one.shape[1] != channels for one in own):
                where = shown(str(path), 200)
                raise DataError(f"{where}: series of other than {channels} channels")
        length = self.length or max(len(one) for one in values[0])
        cut = sum(len(one) > length for own in values for one in own)
        x = [np.stack([_padded(one, length) for one in own]) for own in values]
        y, names = self._targets([targets for _, targets in splits], files)
        if len(x) == 1:
            labels = y[0] if names else np.zeros(len(y[0]), np.int64)
            tested = drawn_test(labels, self.test_fraction)
            rows = np.setdiff1d(np.arange(len(labels)), tested)
            x, y = [x[0][rows], x[0][tested]], [y[0][rows], y[0][tested]]
        if self.max_train is not None and self.max_train < len(y[0]):
            rows = drawn_rows(len(y[0]), self.max_train)
            x[0], y[0] = x[0][rows], y[0][rows]
        about = counted(names, y[0]) if names else f"from {y[0].min():.4g} to {y[0].max():.4g}"
        told = (
            f"{len(y[0]):,} series of {channels} channels and {length} steps to train on, "
            f"{len(y[1]):,} to test on; {about}" + (f"; {cut:,} longer ones are cut" if cut else "")
        )
        return Decoded(
            names,
            (x[0], y[0], x[1], y[1]),
            told,
            names=tuple(f"channel {c + 1}" for c in range(channels)),
            scaled=(True,) * channels,
        )

    def _targets(
        self, found: Sequence[Sequence[str]], files: Sequence[Path]
    ) -> tuple[list[np.ndarray], tuple[str, ...]]:
        """Return each split's targets, and the names of the classes."""
        if self.target == "real":
            return [np.array(own, np.float32) for own in found], ()
        names, flat = coded([text for own in found for text in own])
        where = [path.name for path in files[:1]] + [shown(str(path), 200) for path in files[1:]]
        return by_split(flat, [len(own) for own in found], names, where), names


def _padded(series: np.ndarray, length: int) -> np.ndarray:
    """Return a series (length, C), cut, or with missing values at its end."""
    whole = np.full((length, series.shape[1]), np.nan, np.float32)
    whole[: len(series)] = series[:length]
    return whole


def _parsed(path: Path, target: Target) -> tuple[list[np.ndarray], list[str]]:
    """Return a file's series, float32 (T, C) each, and their targets as they are written."""
    where = shown(str(path), 200)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{where} can't be read as UTF-8 text: {error}") from error
    header = [line.strip().lower().split() for line in lines if line.startswith("@")]
    kinds = {words[0]: words[1:] for words in header}
    if "@data" not in kinds:
        raise DataError(f"{where} has no line @data, after which the series are")
    wanted = "@classlabel" if target == "classes" else "@targetlabel"
    if kinds.get(wanted, ["false"])[0] != "true":
        other = "real" if target == "classes" else "classes"
        raise DataError(f"{where} has no '{wanted} true'; set dataset.target={other}")
    if kinds.get("@timestamps", ["false"])[0] == "true":
        raise DataError(f"{where} has time stamps, which are not read; write the values alone")
    series, targets = [], []
    begun = False
    for number, line in enumerate(lines, 1):
        if not begun:
            begun = line.strip().lower() == "@data"
            continue
        if not line.strip() or line.startswith(("#", "%")):
            continue
        *channels, label = line.strip().split(":")
        try:
            rows = [
                [np.nan if v == "?" else float(v) for v in channel.split(",")]
                for channel in channels
            ]
            with np.errstate(over="ignore"):
                learnt = np.float32(label if target == "real" else 0)
        except ValueError as error:
            raise DataError(f"{where}, line {number}: {error}") from error
        if not rows or len({len(row) for row in rows}) > 1:
            raise DataError(f"{where}, line {number}: channels of different lengths, or none")
        with np.errstate(over="ignore"):
            values = np.array(rows, np.float32)
        if np.isinf(values).any() or not np.isfinite(learnt):
            raise DataError(
                f"{where}, line {number}: a value or a target is not finite in 32 bits; correct or "
                "remove that line first"
            )
        series.append(values.T)
        targets.append(label.strip())
    if not series:
        raise DataError(f"{where} has no series")
    return series, targets


def _drawn() -> tuple[list[np.ndarray], list[str]]:
    """Return cylinders, bells and funnels, float32 (128, 1) each, and which each of them is."""
    rng = np.random.default_rng(0)
    time = np.arange(_STEPS)
    series, targets = [], []
    for kind in ("cylinder", "bell", "funnel"):
        for _ in range(_EACH):
            begin = rng.integers(16, 33)
            end = begin + rng.integers(32, 97)
            within = (time >= begin) & (time <= end)
            shape = {
                "cylinder": np.ones(_STEPS),
                "bell": (time - begin) / (end - begin),
                "funnel": (end - time) / (end - begin),
            }[kind]
            values = (6 + rng.normal()) * within * shape + rng.normal(size=_STEPS)
            series.append(values.astype(np.float32)[:, None])
            targets.append(kind)
    return series, targets
