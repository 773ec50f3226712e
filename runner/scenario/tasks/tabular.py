"""Tables: a class or a real number from numeric and categorical columns, of CSV or Parquet files.

LEAF's files are tables, too, whose columns are the numbers of an x and, as no feature, the user.

scikit-learn's ``breast_cancer``, ``wine`` and ``diabetes`` are there without a file.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import Field, model_validator

from fedsweep.errors import DataError, shown, unknown
from fedsweep.scenario.leaf import (
    USER,
    LeafSplit,
    as_features,
    leaf_splits,
    read_leaf,
    told_users,
)
from fedsweep.scenario.task import (
    Decoded,
    FileTask,
    Target,
    as_float32,
    as_number,
    by_split,
    check_owned,
    coded,
    counted,
    drawn_rows,
    drawn_test,
    listed_columns,
    loses_digits,
    read_table,
)

if TYPE_CHECKING:
    import pandas as pd

SHIPPED = {
    "breast_cancer": ("breast_cancer.csv",),
    "wine": ("wine_data.csv",),
    "diabetes": ("diabetes_data_raw.csv.gz", "diabetes_target.csv.gz"),
}
"""scikit-learn's tables, and the files of its package that hold them; their label is ``target``."""

MOST_CATEGORIES = 100
_SUFFIXES = (".csv", ".parquet")
_FEW = 20
"""So many classes are believed, however few examples each of them has."""


class Tabular(FileTask):
    """Rows of features, numeric ones standardised, and a target."""

    name: str = Field("tabular", description="short name; breast_cancer, wine, diabetes are there")
    label: str = Field("label", description="column that holds what is learnt")
    target: Target = Field("classes", description="classes, or real: a number (regression)")
    ignore: tuple[str, ...] = Field((), strict=False, description="columns that are not read")
    categorical: tuple[str, ...] = Field(
        (), strict=False, description="columns of numbers that are names, as texts always are"
    )
    standardize: bool = Field(
        True, description="numeric columns at mean 0 and deviation 1, by the training clients' sums"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        both = {*self.ignore} & {*self.categorical}
        if both:
            raise ValueError(f"categorical={sorted(both)} is in dataset.ignore too; leave out one")
        if self.label in (*self.ignore, *self.categorical):
            raise ValueError(f"label={self.label} is what is learnt; take it off the other list")
        return self

    @property
    def target_kind(self) -> Target:
        """What is learnt of a row."""
        return self.target

    @property
    def _shipped(self) -> tuple[str, ...]:
        return SHIPPED.get(self.name, ()) if self.path is None else ()

    def is_there(self, root: Path | None) -> bool:
        """Return whether there is a table."""
        return bool(self._shipped) or super().is_there(root)

    def place(self, root: Path | None) -> str:
        """Return where the table is."""
        return f"scikit-learn (load_{self.name})" if self._shipped else super().place(root)

    def files(self, root: Path | None) -> Sequence[Path]:
        """Return one file, or the one to train on and the one to test on."""
        if self._shipped:
            spec = importlib.util.find_spec("sklearn")
            if spec is None or spec.origin is None:
                raise DataError(
                    f"data set '{self.name}': scikit-learn is not installed; make setup"
                )
            folder = Path(spec.origin).parent / "datasets" / "data"
            return [folder / name for name in self._shipped]
        found = self.found(root)
        if found.is_file():
            if found.suffix not in _SUFFIXES:
                raise DataError(
                    f"{shown(str(found), 200)} is no .csv or .parquet file, which are what "
                    "dataset.task=tabular reads"
                )
            return [found]
        leaf = leaf_splits(found)
        splits = []
        for split in ("train", "test"):
            there = [path for s in _SUFFIXES if (path := found / f"{split}{s}").is_file()]
            if len(there) > 1:
                names = " and ".join(path.name for path in there)
                raise DataError(f"{shown(str(found), 200)} holds {names}; remove one of them")
            splits += there
        if splits and leaf:
            raise DataError(
                f"{shown(str(found), 200)} holds {splits[0].name} and LEAF's files in train/; "
                "remove one of them"
            )
        if leaf:
            return [path for own in leaf for path in own]
        if not splits or splits[0].stem != "train":
            raise DataError(
                f"{shown(str(found), 200)} holds no train.csv, train.parquet or train/*.json; set "
                "dataset.path to a file, or to a folder with train and, if there is one, test"
            )
        return splits

    def read(self, root: Path | None, column: str = "") -> Decoded:
        """Return the rows as float32 features, categories one by one, and their targets."""
        files = self.files(root)
        leaf: list[LeafSplit] = []
        if self._shipped:
            frames = [_of_sklearn(self.name)]
        elif splits := leaf_splits(self.found(root)):
            files = [own[0].parent for own in splits]
            leaf = [read_leaf(own, as_features) for own in splits]
            frames = [_of_leaf(split, self.label, files[0]) for split in leaf]
        else:
            frames = [read_table(path) for path in files]
        where = [shown(str(path), 200) for path in files]
        _check_columns(self, frames, where, column)
        coarse = self._check_numbers(frames, where)
        targets, class_names = self._targets(frames, where)

        rows = [np.arange(len(frame)) for frame in frames]
        if len(frames) == 1:
            tested = self._drawn(targets[0])
            rows = [np.setdiff1d(rows[0], tested), tested]
            frames, targets = frames * 2, targets * 2
        if self.max_train is not None and self.max_train < len(rows[0]):
            rows[0] = rows[0][drawn_rows(len(rows[0]), self.max_train)]
        if not all(map(len, rows)):
            what = "train" if not len(rows[0]) else "test"
            raise DataError(f"{where[0]}: no row is left to {what} on; give more rows")
        split = [frame.iloc[own] for frame, own in zip(frames, rows, strict=True)]
        (train_x, test_x), names, scaled, remarks = self._features(split, where)
        train_y, test_y = (own[at] for own, at in zip(targets, rows, strict=True))

        by = None
        if column:
            owners = split[0][column] if column in split[0] else split[0].index
            check_owned(np.asarray(owners.isna()), where[0], column)
            by = coded(owners.to_numpy())
        about = counted(class_names, train_y) if class_names else _range_of(train_y, self.label)
        told = (
            f"{len(train_y):,} rows to train on, {len(test_y):,} to test on; "
            f"{len(names)} features of the columns {listed_columns(self._used(frames[0]))}; {about}"
        )
        if coarse:
            remarks.append(
                f"32 bits do not tell apart the numbers of {listed_columns(coarse)}: write them "
                "less what they have in common"
            )
        if leaf:
            remarks.append(told_users(leaf))
        return Decoded(
            class_names,
            (train_x, train_y, test_x, test_y),
            "; ".join([told, *remarks]),
            names=names,
            scaled=scaled,
            column=by,
        )

    def _used(self, frame: "pd.DataFrame") -> list[str]:
        return [str(c) for c in frame.columns if c != self.label and c not in self.ignore]

    def _check_numbers(
        self, frames: "Sequence[pd.DataFrame]", where: Sequence[str]
    ) -> dict[str, None]:
        """Refuse numbers that are not finite; return the columns that float32 can't hold apart."""
        learnt = [self.label] if self.target == "real" else []
        coarse: dict[str, None] = {}
        for frame, place in zip(frames, where, strict=False):
            for column in [*self._used(frame), *learnt]:
                if frame[column].dtype.kind not in "iuf" or column in self.categorical:
                    continue
                values = frame[column].to_numpy(np.float64, na_value=np.nan)
                as_float32(values, place, f"column '{shown(column)}'")
                if loses_digits(values):
                    coarse[column] = None
        return coarse

    def _targets(
        self, frames: "Sequence[pd.DataFrame]", where: Sequence[str]
    ) -> tuple[list[np.ndarray], tuple[str, ...]]:
        """Return each table's targets, and the names of the classes."""
        for frame, place in zip(frames, where, strict=False):
            missing = frame[self.label].isna().to_numpy()
            if missing.any():
                raise DataError(
                    f"{place}, row {int(missing.argmax())}: column '{shown(self.label)}' has "
                    "missing values; remove those rows first"
                )
        if self.target == "real":
            found = []
            for frame, place in zip(frames, where, strict=False):
                if frame[self.label].dtype.kind not in "iuf":
                    raise DataError(
                        f"{place}: column '{shown(self.label)}' holds {frame[self.label].dtype}, "
                        "and dataset.target=real learns numbers; set dataset.target=classes"
                    )
                found.append(frame[self.label].to_numpy(np.float32))
            return found, ()
        own = [frame[self.label].to_numpy() for frame in frames]
        names, flat = coded(np.concatenate([np.asarray(values, object) for values in own]))
        if len(names) > max(_FEW, len(flat) // 2):
            raise DataError(
                f"{where[0]}: column '{shown(self.label)}' has {len(names):,} different values in "
                f"{len(flat):,} rows: these are no classes; set dataset.target=real or "
                "dataset.label"
            )
        return by_split(flat, [len(values) for values in own], names, where), names

    def _drawn(self, targets: np.ndarray) -> np.ndarray:
        """Return the rows to test on: of each class a share, of numbers a share of all."""
        labels = targets if self.target == "classes" else np.zeros(len(targets), np.int64)
        return drawn_test(labels, self.test_fraction)

    def _features(
        self, frames: "Sequence[pd.DataFrame]", where: Sequence[str]
    ) -> tuple[list[np.ndarray], tuple[str, ...], tuple[bool, ...], list[str]]:
        """Return features float32 (N, F) per split, names, which are scaled, and what to say."""
        import pandas as pd

        columns: list[list[np.ndarray]] = [[] for _ in frames]
        names: list[str] = []
        scaled: list[bool] = []
        remarks = []
        for column in self._used(frames[0]):
            parts = [frame[column] for frame in frames]
            kinds = {part.dtype.kind for part in parts}
            is_number = kinds <= {*"iufb"} and column not in self.categorical
            if kinds & {*"mMc"} or isinstance(parts[0].dtype, pd.PeriodDtype):
                raise DataError(
                    f"{where[0]}: column '{shown(column)}' holds {parts[0].dtype}; write it as "
                    f"numbers, or set dataset.ignore=[{shown(column)}]"
                )
            if is_number:
                for own, part in zip(columns, parts, strict=True):
                    own.append(part.to_numpy(np.float32)[:, None])
                names.append(column)
                scaled.append(self.standardize)
                if missing := sum(int(part.isna().sum()) for part in parts):
                    remarks.append(f"{missing:,} missing in {shown(column)}: taken as its mean")
                continue
            texts = [part.map(str, na_action="ignore") for part in parts]
            known = sorted(texts[0].dropna().unique(), key=as_number)
            if len(known) > MOST_CATEGORIES:
                raise DataError(
                    f"{where[0]}: column '{shown(column)}' has {len(known):,} different texts, "
                    f"more than {MOST_CATEGORIES}: no categories; set "
                    f"dataset.ignore=[{shown(column)}]"
                )
            if missing := sum(int(part.isna().sum()) for part in parts):
                remarks.append(f"{missing:,} missing in {shown(column)}: none of its values")
            for own, text in zip(columns, texts, strict=True):
                own.append((text.to_numpy()[:, None] == np.array(known, object)).astype(np.float32))
            names += [f"{column}={value}" for value in known]
            scaled += [False] * len(known)
            if new := int((texts[1].notna() & ~texts[1].isin(known)).sum()):
                remarks.append(f"{new:,} test rows have a {shown(column)} that is in no other row")
        return [np.concatenate(own, 1) for own in columns], tuple(names), tuple(scaled), remarks


def _of_sklearn(name: str) -> "pd.DataFrame":
    import sklearn.datasets

    more: dict[str, Any] = {"scaled": False} if name == "diabetes" else {}
    found = getattr(sklearn.datasets, f"load_{name}")(as_frame=True, **more)
    frame: pd.DataFrame = found.frame
    if len(names := getattr(found, "target_names", ())):
        frame["target"] = [str(names[i]) for i in frame["target"]]
    return frame


def _of_leaf(split: LeafSplit, label: str, where: Path) -> "pd.DataFrame":
    """Return a split as a table with the columns x1, x2, ..., and its users as the index."""
    import pandas as pd

    if label not in ("label", "y"):
        raise DataError(
            f"{shown(str(where), 200)} holds LEAF's files, where what is learnt is y; leave out "
            f"dataset.label={shown(label)}"
        )
    frame = pd.DataFrame(split.x, columns=[f"x{j + 1}" for j in range(split.x.shape[1])])
    frame[label] = split.y
    return frame.set_index(pd.Index(split.users, name=USER))


def _check_columns(
    task: Tabular, frames: "Sequence[pd.DataFrame]", where: Sequence[str], column: str
) -> None:
    """Refuse columns that are not there, and tables that do not have the same ones."""
    asked = {
        "dataset.label": [task.label],
        "dataset.ignore": task.ignore,
        "dataset.categorical": task.categorical,
        "partition.column": [column] if column else [],
    }
    there = [str(name) for name in frames[0].columns]
    owner = frames[0].index.name  # of LEAF's files: whose a row is, which is no feature
    for key, names in asked.items():
        known = [*there, str(owner)] if owner and key == "partition.column" else there
        for name in names:
            if name not in known:
                given = unknown("column", name, [shown(other) for other in known])
                raise DataError(f"{where[0]}: {given} Set {key}")
    if not task._used(frames[0]):
        raise DataError(f"{where[0]}: there is no column but '{shown(task.label)}' to learn from")
    for frame, place in zip(frames[1:], where[1:], strict=False):
        if [*frame.columns] != [*frames[0].columns]:
            other = sorted({*map(str, frame.columns)} ^ {*there}) or ["their order"]
            raise DataError(f"{place} has other columns than {where[0]}: {listed_columns(other)}")


def _range_of(targets: np.ndarray, label: str) -> str:
    return f"{shown(label)} from {targets.min():.4g} to {targets.max():.4g}"
