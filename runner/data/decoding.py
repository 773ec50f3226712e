"""The decoding of a data set's images and labels into arrays."""

import csv
import io
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsweep.data.layout import FileLayout, Part, Tree, check_share, listed, reasons
from fedsweep.data.tables import Table, cells, class_numbers
from fedsweep.errors import DataError, shown, unknown
from fedsweep.scenario.leaf import USER, LeafSplit, as_images, read_leaf, told_users
from fedsweep.scenario.task import (
    Decoded,
    as_number,
    check_owned,
    coded,
    counted,
    drawn_rows,
    drawn_test,
)
from fedsweep.scenario.tasks.images import Colour, Images

if TYPE_CHECKING:
    from PIL import Image

_CHUNK = 2000  # images decoded at a time by a thread


@dataclass(frozen=True)
class _Encoded:
    """An image before it is decoded."""

    row: int  # of the split
    data: bytes | Path | None
    where: str
    name: str = ""  # of its file, from the data set's folder on


def decode(cfg: Images, layout: FileLayout, tree: Tree, place: str, column: str = "") -> Decoded:
    """Decode what a layout says.

    Parameters
    ----------
    place : str
        The data set's place, for messages.
    column : str
        What a natural partition goes by, if there is one: of a table's, ``folder``, or ``user``.

    Raises
    ------
    DataError
        An image or a label can't be read; the message names the file, and the row in it.
    """
    names, labels, readers = _opened(layout, tree, cfg)
    leaf = [reader for reader in readers if isinstance(reader, _Leaf)]
    rows = [np.arange(len(own)) for own in labels]
    if layout.test is None:
        assert cfg.test_fraction is not None
        test_rows = drawn_test(labels[0], cfg.test_fraction)
        if not len(test_rows):
            raise DataError(
                f"{place}: no class has two images, so that none can be drawn for the test set; "
                "set dataset.test"
            )
        readers, labels = [readers[0]] * 2, [labels[0]] * 2
        rows = [np.setdiff1d(rows[0], test_rows), test_rows]
    if cfg.max_train is not None and cfg.max_train < len(rows[0]):
        rows[0] = rows[0][drawn_rows(len(rows[0]), cfg.max_train)]
    users = leaf[0].split.users if leaf else None
    owners = owners_of(cfg, layout.train, tree, place, column, users) if column else None
    splits = []
    left_out = dict(layout.left_out)
    for reader, own, wanted in zip(readers, labels, rows, strict=True):
        pixels, broken = _pixels(reader, wanted, place, cfg.colour)
        if broken:
            unreadable = tuple(at.name for at in broken)
            left_out["unreadable"] = (*left_out.get("unreadable", ()), *unreadable)
            check_share({"unreadable": unreadable}, len(wanted) - len(broken), place)
        kept = np.isin(wanted, [at.row for at in broken], invert=True)
        splits.append((pixels[kept] if broken else pixels, own[wanted[kept]]))
        if owners is not None and len(splits) == 1:
            owners = owners[wanted[kept]]
    (train_x, train_y), (test_x, test_y) = splits
    if train_x.shape[1:] != test_x.shape[1:]:
        raise DataError(
            f"{place}: images of split '{cfg.train_split}' are {image_size(train_x.shape[1:])}, "
            f"of '{cfg.test_split}' {image_size(test_x.shape[1:])}; resize them to one size first"
        )
    told = _told(cfg, replace(layout, left_out=left_out), names, train_y, test_y)
    if leaf:
        told += f"; {told_users([reader.split for reader in leaf])}"
    by = None if owners is None else coded(owners)
    return Decoded(names, (train_x, train_y, test_x, test_y), told, column=by)


def owners_of(
    cfg: Images,
    part: Part,
    tree: Tree,
    place: str,
    column: str,
    users: np.ndarray | None = None,
) -> np.ndarray:
    """Return whose each image of a part is, str (N,): a column's values, folders' names, or users.

    ``users`` are those of LEAF's files.

    Raises
    ------
    DataError
        There is no such column, it lacks values, or images lie in no folders of their classes'.
    """
    if users is not None:
        if column != USER:
            raise _no_column(f"{place}, LEAF's files", column, [USER])
        return users
    if part.kind in ("parquet", "arrow"):
        tables = [Table(tree.local(file), part.kind, cfg.image, cfg.label) for file in part.files]
        for table in tables:
            if column not in table.names():
                raise _no_column(table.where, column, table.names())
        batches = [batch for table in tables for batch in table.batches(column)]
        found = [value for batch in batches for value in batch.to_pylist()]
        check_owned(np.array([value is None for value in found]), place, column)
        return np.array([str(value) for value in found])
    if part.tables:
        values: list[str] = []
        for file in part.tables:
            with tree.local(file).open(encoding="utf-8-sig", newline="") as lines:
                reader = csv.DictReader(lines, strict=True)
                if column not in (reader.fieldnames or ()):
                    raise _no_column(shown(str(tree.local(file)), 200), column, reader.fieldnames)
                values += [row[column] for row in reader]
        check_owned(np.array([not value for value in values]), place, column)
        return np.array(values)
    if column != "folder":
        raise _no_column(f"{place}, images in folders", column, ["folder"])
    below = [
        os.path.dirname(os.path.relpath(file, os.path.join(part.place, of_class)))
        for file, of_class in zip(part.files, part.classes, strict=True)
    ]
    if not all(below):
        raise DataError(
            f"{place}: {shown(part.files[below.index('')])} lies in no folder below its class; lay "
            "images out as CLASS/CLIENT/IMAGE for partition.column=folder"
        )
    return np.array(below)


def _no_column(where: str, column: str, there: "Sequence[str] | None") -> DataError:
    known = unknown("column", column, [shown(name) for name in there or ()])
    return DataError(f"{where}: {known} Set partition.column")


def _told(
    cfg: Images,
    layout: FileLayout,
    names: Sequence[str],
    train_y: np.ndarray,
    test_y: np.ndarray,
) -> str:
    """Say in a line what was read and what was not."""

    def part(what: str, count: int, files: Part) -> str:
        number = f", {len(files.files):,} file{'s' * (len(files.files) != 1)}"
        return f"{count:,} images {what} ({files.name}{number})"

    if layout.test is None:
        share = f"dataset.test_fraction={cfg.test_fraction:g}"
        tested = f"{len(test_y):,} drawn from them to test on ({share})"
    else:
        tested = part("to test on", len(test_y), layout.test)
    line = f"{part('to train on', len(train_y), layout.train)}, {tested}; {counted(names, train_y)}"
    if layout.left_out:
        line += f"; left out: {reasons(layout.left_out)}"
    if layout.ignored:
        line += f"; not read: {listed(layout.ignored)}"
    return line


# What a split is read from


@dataclass(frozen=True)
class _Images:
    """A file per image."""

    files: Sequence[Path]
    names: Sequence[str]  # from the data set's folder on
    may_leave_out = True

    def chunks(self, rows: np.ndarray) -> Iterator[list[_Encoded]]:
        """Yield the images of some rows, in order, some at a time."""
        for start in range(0, len(rows), _CHUNK):
            yield [
                _Encoded(
                    int(row), self.files[row], shown(str(self.files[row]), 200), self.names[row]
                )
                for row in rows[start : start + _CHUNK]
            ]


@dataclass(frozen=True)
class _Tables:
    """Tables with an image per row."""

    tables: Sequence[Table]
    sizes: Sequence[int]
    may_leave_out = False

    def chunks(self, rows: np.ndarray) -> Iterator[list[_Encoded]]:
        """Yield the images of some rows, in order, some at a time."""
        first = 0
        for table, size in zip(self.tables, self.sizes, strict=True):
            own = rows[(rows >= first) & (rows < first + size)] - first
            start = 0
            for batch in table.batches(table.image) if len(own) else ():
                here = own[(own >= start) & (own < start + len(batch))]
                encoded = cells(batch, (here - start).tolist())
                yield [
                    _Encoded(first + int(row), data, f"{table.where}, row {row}")
                    for row, data in zip(here, encoded, strict=True)
                ]
                start += len(batch)
            first += size


@dataclass(frozen=True)
class _Leaf:
    """LEAF's files, whose images are read already."""

    split: LeafSplit
    where: str

    label = "y"

    def labels(self) -> tuple[None, np.ndarray]:
        """Return no names of classes, and the labels as they stand in the files.

        Raises
        ------
        DataError
            They are fractions.
        """
        if self.split.y.dtype.kind == "f":
            raise DataError(
                f"{self.where}: y holds fractions, not class labels; take dataset=tabular "
                "dataset.target=real to learn numbers"
            )
        return None, self.split.y.astype(object)

    def pixels(self, rows: np.ndarray, colour: Colour) -> np.ndarray:
        """Return some images, uint8 (rows, C, H, W)."""
        grey = self.split.x[rows]
        return np.repeat(grey, 3, axis=1) if colour == "rgb" else grey


_Reader = _Images | _Tables | _Leaf


def _opened(
    layout: FileLayout, tree: Tree, cfg: Images
) -> tuple[tuple[str, ...], list[np.ndarray], list[_Reader]]:
    """Return class names, and per part the labels 0..K-1 and what reads its images."""
    labels, readers = [], list[_Reader]()
    if layout.train.kind == "images":
        classes = sorted({name for part in layout.parts for name in part.classes}, key=as_number)
        order = {name: number for number, name in enumerate(classes)}
        for part in layout.parts:
            labels.append(np.array([order[name] for name in part.classes], np.int64))
            readers.append(_Images([tree.local(file) for file in part.files], part.files))
        # A file system's names are bytes, which need not be text.
        return (
            tuple(name.encode("utf-8", "backslashreplace").decode() for name in classes),
            labels,
            readers,
        )
    if layout.train.kind == "leaf":
        splits = [
            _Leaf(
                read_leaf([tree.local(file) for file in part.files], as_images),
                shown(str(tree.local(part.files[0])), 200),
            )
            for part in layout.parts
        ]
        names, labels = class_numbers(splits)
        return names, labels, [*splits]
    tables = [
        [Table(tree.local(file), part.kind, cfg.image, cfg.label) for file in part.files]
        for part in layout.parts
    ]
    names, numbers = class_numbers([table for own in tables for table in own])
    for own in tables:
        mine, numbers = numbers[: len(own)], numbers[len(own) :]
        labels.append(np.concatenate(mine))
        readers.append(_Tables(own, [len(values) for values in mine]))
    return names, labels, readers


def _pixels(
    reader: _Reader, rows: np.ndarray, place: str, colour: Colour
) -> tuple[np.ndarray, list[_Encoded]]:
    """Decode some images into uint8 (rows, C, H, W), C = 1 for greyscale and 3 for colour.

    Returns
    -------
    images : np.ndarray
        Those that can't be read are undefined.
    broken : list of _Encoded
        Them; only where images are files of their own, else they are refused.
    """
    if isinstance(reader, _Leaf):
        return reader.pixels(rows, colour), []
    images: np.ndarray | None = None
    first = ""
    broken: list[_Encoded] = []
    place_of = {int(row): index for index, row in enumerate(rows)}

    def decode_chunk(chunk: list[_Encoded]) -> list[tuple[_Encoded, np.ndarray | DataError]]:
        decoded: list[tuple[_Encoded, np.ndarray | DataError]] = []
        for encoded in chunk:
            try:
                decoded.append((encoded, pixel(encoded.data, encoded.where, colour)))
            except _Broken as error:
                if not reader.may_leave_out:
                    raise
                decoded.append((encoded, error))
        return decoded

    workers = min(8, os.cpu_count() or 1)
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(workers) as pool,
    ):  # PIL decodes outside the interpreter lock
        warnings.simplefilter("ignore")  # about sizes that are refused, and about damaged metadata
        for decoded in _ahead(pool, decode_chunk, reader.chunks(rows), workers + 1):
            for encoded, image in decoded:
                if isinstance(image, DataError):
                    broken.append(encoded)
                    continue
                if images is None:
                    images, first = np.empty((len(rows), *image.shape), np.uint8), encoded.where
                if image.shape != images.shape[1:]:
                    same = image.shape[1:] == images.shape[2:]
                    raise DataError(
                        f"{encoded.where} is {image_size(image.shape)} but {first} is "
                        f"{image_size(images.shape[1:])}; "
                        + (
                            "set dataset.colour=rgb or dataset.colour=grey"
                            if same
                            else "convert the images to one size and one colour mode first"
                        )
                    )
                images[place_of[encoded.row]] = image
    if images is None:
        raise DataError(
            f"{place}: none of {len(rows):,} images can be read: {listed(e.name for e in broken)}"
        )
    return images, broken


def _ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[list[_Encoded]], list[tuple[_Encoded, "np.ndarray | DataError"]]],
    chunks: Iterator[list[_Encoded]],
    most: int,
) -> Iterator[list[tuple[_Encoded, "np.ndarray | DataError"]]]:
    """Yield the results of work on chunks in order, with at most so many chunks in memory."""
    waiting: deque[Future[list[tuple[_Encoded, np.ndarray | DataError]]]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(work, chunk))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _Broken(DataError):
    """An image that can't be decoded."""


def pixel(
    data: "bytes | str | Path | Image.Image | None", where: str, colour: Colour = "own"
) -> np.ndarray:
    """Decode one image as it is meant to be seen, turned as its EXIF says, into uint8 (C, H, W)."""
    from PIL import Image, ImageOps

    if not data:
        raise DataError(
            f"{where}: the image is missing (only embedded images are read); remove the row first"
        )
    try:
        with _opened_image(data) as image:
            width, height = image.size
            if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
                raise _too_large(where, f"{width} x {height} pixels")
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                raise DataError(
                    f"{where}: pixels of more than 8 bits; convert the images to 8 bits first"
                )
            grey = image.mode in ("1", "L", "LA") if colour == "own" else colour == "grey"
            mode = "L" if grey else "RGB"
            turned = ImageOps.exif_transpose(image)
            pixels = np.asarray(turned if turned.mode == mode else turned.convert(mode))
    except Image.DecompressionBombError as error:
        raise _too_large(where, reason(error)) from error
    except DataError:
        raise
    except Exception as error:  # PIL's decoders raise what they like on broken files
        raise _Broken(f"{where}: the image can't be decoded: {reason(error)}") from error
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _opened_image(data: "bytes | str | Path | Image.Image") -> "Image.Image":
    from PIL import Image

    if isinstance(data, Image.Image):
        return data.copy()
    return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)


def _too_large(where: str, size: str) -> DataError:
    return DataError(
        f"{where}: the image is too large to be one to learn from ({size}); "
        "scale it down or remove it"
    )


def image_size(shape: Sequence[int]) -> str:
    """Say the size of an image of the shape (C, H, W)."""
    channels, height, width = shape
    return f"{height} x {width} {'greyscale' if channels == 1 else 'RGB'}"


def reason(error: BaseException) -> str:
    """Return the first line of the innermost cause: libraries wrap it in what they were doing."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
