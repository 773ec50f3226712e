"""Text: the next character of any file or folder, or the class of short texts in a table.

The next character is LEAF's Shakespeare (Caldas et al. 2018, arXiv:1812.01097): so many characters
are read, and the one after them is learnt; clients are files, or parts that a pattern begins.
Deviation: windows do not overlap by default, so that what a client holds out is not what it trained
on; those in LEAF's own files do. Short texts are words, embedded by a network from scratch, or
hashed n-grams of characters (Weinberger et al. 2009, arXiv:0902.2206).
"""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from fedsweep.errors import DataError, shown, unknown
from fedsweep.scenario.leaf import USER, as_characters, leaf_splits, read_leaf, told_users
from fedsweep.scenario.task import (
    Column,
    Decoded,
    FileTask,
    Shown,
    check_owned,
    coded,
    counted,
    drawn_rows,
    drawn_test,
    listed_columns,
    read_table,
)

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = "\ufffd"
"""What stands for characters, and words, that are too rare to be symbols."""
_WORD = re.compile(r"\w+|[^\w\s]")
_POINTS = 0x110000  # code points that there are
_CHUNK = 10_000  # windows counted at a time
_OVERLAP = "windows overlap: what a client holds out it has seen in part"


class Text(FileTask):
    """Symbols, and what comes next; or short texts, and what they are."""

    natural: ClassVar[str] = "part"

    name: str = Field("text", description="short name; the file or folder looked for in data.root")
    predict: Literal["next", "label"] = Field(
        "next", description="the next character, or the label of short texts in a table"
    )
    part: str | None = Field(
        None,
        description="a pattern of lines that begin another part, called by its first group; "
        "null: a part is a file (predict=next)",
    )
    stride: int | None = Field(
        None, ge=1, le=100_000, description="from window to window; null: their length (next)"
    )
    length: int = Field(80, ge=1, le=10_000, description="characters, or words, that are read")
    symbols: int = Field(
        80, ge=2, le=100_000, description="characters, or words, that are known: the most frequent"
    )
    text: str = Field("text", description="column of the short texts (predict=label)")
    label: str = Field("label", description="column of their labels (predict=label)")
    encode: Literal["words", "ngrams"] = Field(
        "words", description="words as symbols, or hashed n-grams as features (predict=label)"
    )
    ngrams: int = Field(3, ge=1, le=10, description="characters of an n-gram (encode=ngrams)")
    buckets: int = Field(1024, ge=2, le=10**6, description="features that they share (ngrams)")

    @field_validator("part")
    @classmethod
    def _is_pattern(cls, part: str | None) -> str | None:
        try:
            groups = 1 if part is None else re.compile(part).groups
        except re.error as error:
            raise ValueError(f"it is no pattern: {error}") from error
        if groups < 1:
            raise ValueError("it has no group that says what the part is called; add ( )")
        return part

    @property
    def shows(self) -> Shown:
        """How examples are shown."""
        return "rows" if self.predict == "label" and self.encode == "ngrams" else "text"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that each trial has."""
        return ("perplexity",) if self.predict == "next" else ()

    def files(self, root: Path | None) -> Sequence[Path]:
        """Return the file, or the files of the folder, by name; hidden ones are none."""
        found = self.found(root)
        if self.predict == "label":
            if found.suffix not in (".csv", ".parquet"):
                raise DataError(
                    f"{shown(str(found), 200)} is no .csv or .parquet file, which are what "
                    "dataset.predict=label reads"
                )
            return [found]
        if found.is_file():
            return [found]
        there = (path for path in sorted(found.iterdir()) if not path.name.startswith("."))
        files, leaf = [path for path in there if path.is_file()], leaf_splits(found)
        if files and leaf:
            raise DataError(
                f"{shown(str(found), 200)} holds {shown(files[0].name)} and LEAF's files in "
                "train/; remove one of them"
            )
        if not files and not leaf:
            raise DataError(f"{shown(str(found), 200)} holds no file; set dataset.path to another")
        return files or [path for own in leaf for path in own]

    def read(self, root: Path | None, column: str = "") -> Decoded:
        """Return windows of characters and the next ones, or short texts and their labels."""
        files = self.files(root)
        if self.predict == "label":
            return self._short(files[0], column)
        splits = leaf_splits(self.found(root))
        if column not in ("", self.natural, *([USER] if splits else [])):
            raise DataError(
                f"partition.column={shown(column)}: texts have no columns; leave it out: a part "
                "is a file, what dataset.part says, or a user of LEAF's files"
            )
        return self._leaf(splits) if splits else self._windows(files)

    # The next character

    def _windows(self, files: Sequence[Path]) -> Decoded:
        parts = self._parts(files)
        share = self.test_fraction
        cuts = {name: len(own) - max(1, round(share * len(own))) for name, own in parts}
        seen = Counter[str]()
        for name, own in parts:
            seen.update(own[: cuts[name]])
        known = self._known(seen)
        code = {symbol: number + 1 for number, symbol in enumerate(known)}

        train, test, names = [], [], []
        short = 0
        for name, own in parts:
            numbers = np.array([code.get(symbol, 0) for symbol in own], np.int32)
            windows = self._cut(numbers[: cuts[name]])
            if not len(windows):
                short += 1
                continue
            train.append(windows)
            test.append(self._cut(numbers[cuts[name] :]))
            names.append(name)
        if not train or not sum(map(len, test)):
            raise DataError(
                f"{shown(str(files[0]), 200)}: no part has the {self.length + 1} characters of an "
                "example to train on, or none to test on; lower dataset.length, or set "
                "dataset.part otherwise"
            )
        by = coded(np.repeat(np.array(names), [len(own) for own in train]))
        remarks = [f"{short:,} parts are too short for one"] if short else []
        if self.stride is not None and self.stride < self.length:
            remarks.append(_OVERLAP)
        return self._decoded(np.concatenate(train), np.concatenate(test), known, by, remarks)

    def _leaf(self, splits: Sequence[Sequence[Path]]) -> Decoded:
        """Return the windows of LEAF's files, as they were cut, with a user as a part."""
        where = shown(str(splits[0][0].parent.parent), 200)
        if self.part is not None or self.stride is not None:
            key = "part" if self.part is not None else "stride"
            raise DataError(
                f"{where} holds LEAF's files, whose users and windows are what they are; leave out "
                f"dataset.{key}"
            )
        if len(splits) < 2:
            raise DataError(f"{where} holds train/*.json and no test/*.json")
        read = [read_leaf(own, as_characters) for own in splits]
        for own, split in zip(splits, read, strict=True):
            if (length := split.x.shape[1] - 1) != self.length:
                raise DataError(
                    f"{shown(str(own[0]), 200)} has texts of {length:,} characters; set "
                    f"dataset.length={length}"
                )
        windows = read[0].x
        counts = np.zeros(_POINTS, np.int64)
        for start in range(0, len(windows), _CHUNK):  # bincount widens to 8 bytes a character
            some = windows[start : start + _CHUNK].ravel()
            counts += np.bincount(some, minlength=_POINTS)
        seen = Counter({chr(point): int(counts[point]) for point in np.flatnonzero(counts)})
        known = self._known(seen)
        code = np.zeros(_POINTS, np.int32)
        code[[ord(symbol) for symbol in known]] = np.arange(1, len(known) + 1)
        train, test = (code[split.x] for split in read)
        remarks = [told_users(read)]
        some = train[:_CHUNK]
        if (some[1:, :-1] == some[:-1, 1:]).all(1).any():
            remarks.append(_OVERLAP)
        return self._decoded(train, test, known, coded(read[0].users), remarks)

    def _known(self, seen: "Counter[str]") -> list[str]:
        """Return the characters that are symbols, in order."""
        return sorted(symbol for symbol, _ in _most_common(seen, self.symbols - 1))

    def _decoded(
        self,
        train: np.ndarray,
        test: np.ndarray,
        known: Sequence[str],
        by: Column,
        remarks: Sequence[str],
    ) -> Decoded:
        """Return windows int32 (n, length + 1) as examples: what is read, and what is next."""
        if self.max_train is not None:
            keep = drawn_rows(len(train), self.max_train)
            train, by = train[keep], by._replace(codes=by.codes[keep])
        unknown_share = float((train == 0).mean())
        told = (
            f"{len(train):,} windows of {self.length} characters of {len(by.values):,} parts to "
            f"train on, {len(test):,} to test on; {len(known) + 1} symbols"
            + (f", {unknown_share:.2%} of the characters unknown" if unknown_share else "")
        )
        symbols = (UNKNOWN, *known)
        return Decoded(
            symbols,
            (train[:, :-1], train[:, -1].astype(np.int64),
             test[:, :-1], test[:, -1].astype(np.int64)),
            "; ".join([told, *remarks]),
            names=symbols,
            column=by,
        )  # fmt: skip

    def _parts(self, files: Sequence[Path]) -> list[tuple[str, str]]:
        """Return the parts by name, each with its text; lines of one name are joined."""
        parts: dict[str, list[str]] = {}
        stems = Counter(path.stem for path in files)
        for path in files:
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(
                    f"{shown(str(path), 200)} can't be read as UTF-8 text: {error}"
                ) from error
            if path.suffix == ".json" and text.startswith('{"users"'):
                raise DataError(
                    f"{shown(str(path), 200)} is one of LEAF's files; set dataset.path to the "
                    "folder that holds their train/ and test/"
                )
            if self.part is None:
                called = path.stem if stems[path.stem] == 1 else path.name
                if called in parts:
                    raise DataError(f"two files are called {shown(called)}; rename one of them")
                parts[called] = [text]
                continue
            pattern, name = re.compile(self.part), ""
            for line in text.splitlines(keepends=True):
                if match := pattern.match(line):
                    name = str(match[1])
                if name:
                    parts.setdefault(name, []).append(line)
        if not parts:
            raise DataError(
                f"{shown(str(files[0]), 200)}: no line matches dataset.part={shown(str(self.part))}"
            )
        return [(name, "".join(lines)) for name, lines in sorted(parts.items())]

    def _cut(self, numbers: np.ndarray) -> np.ndarray:
        """Return windows with the symbol that follows, int32 (n, length + 1)."""
        if len(numbers) <= self.length:
            return np.empty((0, self.length + 1), np.int32)
        every = np.lib.stride_tricks.sliding_window_view(numbers, self.length + 1)
        return every[:: self.stride or self.length]

    # Short texts

    def _short(self, path: Path, column: str) -> Decoded:
        where = shown(str(path), 200)
        frame = read_table(path)
        asked = {"dataset.text": self.text, "dataset.label": self.label, "partition.column": column}
        for key, name in asked.items():
            if name and name not in frame.columns and (key, name) != ("partition.column", "part"):
                there = [shown(str(other)) for other in frame.columns]
                raise DataError(f"{where}: {unknown('column', name, there)} Set {key}")
        if column and column not in frame.columns:
            raise DataError(
                f"{where}: partition=natural needs a column that says whose a text is; set "
                f"partition.column to one of {listed_columns([*map(str, frame.columns)])}"
            )
        missing = frame[[self.text, self.label]].isna().any(axis=1).to_numpy()
        if missing.any():
            raise DataError(
                f"{where}, row {int(missing.argmax())}: the text or the label is missing; remove "
                "those rows first"
            )
        names, labels = coded(frame[self.label].to_numpy())
        tested = drawn_test(labels, self.test_fraction)
        rows = np.setdiff1d(np.arange(len(labels)), tested)
        if self.max_train is not None and self.max_train < len(rows):
            rows = rows[drawn_rows(len(rows), self.max_train)]
        if not len(rows) or not len(tested):
            raise DataError(f"{where}: no class has two texts; give more rows")
        by = None
        if column:
            owners = frame[column].iloc[rows]
            check_owned(owners.isna().to_numpy(), where, column)
            by = coded(owners.to_numpy())
        texts = frame[self.text].map(str)
        x, symbols = self._encoded(texts, rows)
        told = (
            f"{len(rows):,} texts to train on, {len(tested):,} to test on; "
            f"{counted(names, labels[rows])}"
        )
        return Decoded(
            names,
            (x[rows], labels[rows], x[tested], labels[tested]),
            told,
            names=symbols,
            scaled=(False,) * len(symbols) if x.dtype.kind == "f" else (),
            column=by,
        )

    def _encoded(
        self, texts: "pd.Series[str]", rows: np.ndarray
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return texts as features float32 (N, buckets), or words int32 (N, length); and names.

        What words there are is said by the training rows alone. Word 0 fills a short text up.
        """
        if self.encode == "ngrams":
            hashed = np.stack([hashed_ngrams(text, self.ngrams, self.buckets) for text in texts])
            return hashed, tuple(f"bucket {i}" for i in range(self.buckets))
        words = [_WORD.findall(text.lower()) for text in texts]
        seen = Counter(word for row in rows for word in words[row])
        known = sorted(word for word, _ in _most_common(seen, max(1, self.symbols - 2)))
        code = {word: number + 2 for number, word in enumerate(known)}
        x = np.zeros((len(words), self.length), np.int32)
        for row, own in zip(x, words, strict=True):
            numbers = [code.get(word, 1) for word in own[: self.length]]
            row[: len(numbers)] = numbers
        return x, ("", UNKNOWN, *known)


def hashed_ngrams(text: str, size: int, buckets: int) -> np.ndarray:
    """Return counts of a text's n-grams of characters in buckets, of length 1, float32 (buckets,).

    The hash is CRC-32 of the UTF-8 bytes: the same in every process, unlike Python's own.
    """
    padded = f" {' '.join(text.lower().split())} "
    grams = (padded[i : i + size] for i in range(max(1, len(padded) - size + 1)))
    found = [zlib.crc32(gram.encode()) % buckets for gram in grams]
    counts = np.bincount(found, minlength=buckets).astype(np.float32)
    return counts / np.float32(np.linalg.norm(counts))


def _most_common(seen: "Counter[str]", most: int) -> list[tuple[str, int]]:
    """Return the most frequent ones; of equal ones those that are first in order."""
    return sorted(seen.items(), key=lambda item: (-item[1], item[0]))[:most]
