"""The opening of a data set through flwr-datasets, and the decoding of its images and labels into arrays."""

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.config import DatasetConfig
from runner.errors import DataError, unknown

_CHUNK = 2000  # images decoded at a time by a thread


@dataclass(frozen=True)
class Decoded:
    """A data set in memory."""

    source: str
    class_names: tuple[str, ...]
    arrays: tuple[
        np.ndarray, np.ndarray, np.ndarray, np.ndarray
    ]  # train images, train labels, test images, test labels


def decode(cfg: DatasetConfig, source: str, **load: Any) -> Decoded:
    """Open a data set through flwr-datasets and decode its two splits."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    import datasets
    from flwr_datasets import FederatedDataset

    def checked(splits: datasets.DatasetDict) -> datasets.DatasetDict:
        kept = {}
        for key in ("train_split", "test_split"):
            name = getattr(cfg, key)
            if name not in splits:
                raise DataError(f"{source}: {unknown('split', name, splits)} Set dataset.{key}")
            kept[name] = _checked_columns(cfg, splits[name], source)
        return datasets.DatasetDict(kept)

    try:
        with _quiet(progress="cache_dir" not in load):
            opened = FederatedDataset(partitioners={}, preprocessor=checked, shuffle=False, **load)
            train, test = (opened.load_split(name) for name in (cfg.train_split, cfg.test_split))
    except DataError:
        raise
    except Exception as error:  # datasets raises what its readers raise: there is no common base
        raise DataError(f"{source} can't be opened by datasets.load_dataset: {reason(error)}") from error
    names, labels = _labels(cfg, [train, test], source)
    if cfg.max_train is not None and cfg.max_train < len(train):
        rows = drawn_rows(len(train), cfg.max_train)
        train, labels[0] = train.select(rows), labels[0][rows]
    train_x = _pixels(train, cfg.image, f"{source}, split '{cfg.train_split}'")
    test_x = _pixels(test, cfg.image, f"{source}, split '{cfg.test_split}'")
    if train_x.shape[1:] != test_x.shape[1:]:
        raise DataError(
            f"{source}: images of split '{cfg.train_split}' are {_size(train_x.shape[1:])}, of '{cfg.test_split}' "
            f"{_size(test_x.shape[1:])}; resize them to one size first"
        )
    return Decoded(source, names, (train_x, labels[0], test_x, labels[1]))


def drawn_rows(total: int, wanted: int) -> np.ndarray:
    """Return so many of ``total`` rows, drawn by chance and in order, int64 (wanted,).

    The first rows of a file sorted by label would be the first classes alone. The draw is the same
    for all trials, whatever their seed: it makes a smaller data set, which a sweep's trials share.
    A smaller draw is a part of a larger one.
    """
    return np.sort(np.random.default_rng(0).permutation(total)[:wanted])


@contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """Keep datasets from logging what an error of ours says; only a download shows its progress."""
    import datasets

    level, bars = datasets.logging.get_verbosity(), datasets.is_progress_bar_enabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if bars and not progress:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def _checked_columns(cfg: DatasetConfig, split: Any, source: str) -> Any:
    """Return the split with its two columns alone, images left encoded."""
    import datasets

    for key in ("image", "label"):
        name = getattr(cfg, key)
        if name not in split.column_names:
            raise DataError(f"{source}: {unknown('column', name, split.column_names)} Set dataset.{key}")
    if len(split) == 0:
        raise DataError(f"{source}: a split is empty; set dataset.train_split and dataset.test_split to others")
    columns = list(dict.fromkeys([cfg.image, cfg.label]))  # the two may be set to the same by mistake
    try:
        return split.select_columns(columns).cast_column(cfg.image, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        kind = split.features[cfg.image]
        raise DataError(f"{source}: column '{cfg.image}' holds {kind}, not images; set dataset.image") from error


def _labels(cfg: DatasetConfig, splits: Sequence[Any], source: str) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Return class names and, per split, labels 0..K-1; labels without class names are numbered in sorted order."""
    import pyarrow as pa

    columns = [split.select_columns([cfg.label]).with_format("arrow")[:][cfg.label] for split in splits]
    given = splits[0].features[cfg.label]
    kind = columns[0].type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_boolean(kind)):
        raise DataError(f"{source}: column '{cfg.label}' holds {kind}, not class labels; set dataset.label")
    if any(column.null_count for column in columns):
        raise DataError(f"{source}: column '{cfg.label}' has missing labels; remove those rows first")
    values = [column.to_numpy() for column in columns]
    names = getattr(given, "names", None)
    if names is None:
        classes = np.unique(np.concatenate(values))
        return tuple(str(c) for c in classes), [np.searchsorted(classes, v).astype(np.int64) for v in values]
    if any(v.min() < 0 or v.max() >= len(names) for v in values):
        raise DataError(
            f"{source}: column '{cfg.label}' has labels outside 0..{len(names) - 1}; remove such rows first"
        )
    return tuple(names), [v.astype(np.int64) for v in values]


def _pixels(split: Any, column: str, where: str) -> np.ndarray:
    """Decode a column of encoded images into uint8 (N, C, H, W), C = 1 for greyscale and 3 for colour."""
    encoded = split.select_columns([column]).with_format("arrow")
    first = _pixel(encoded[0:1][column][0].as_py(), f"{where}, row 0")
    images = np.empty((len(split), *first.shape), np.uint8)

    def decode_chunk(start: int) -> None:
        for row, cell in enumerate(encoded[start : start + _CHUNK][column].to_pylist(), start):
            image = _pixel(cell, f"{where}, row {row}")
            if image.shape != first.shape:
                raise DataError(
                    f"{where}: row {row} is {_size(image.shape)} but row 0 is {_size(first.shape)}; "
                    "convert the images to one size and one colour mode first"
                )
            images[row] = image

    # PIL decodes outside the interpreter lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode_chunk, range(0, len(split), _CHUNK)):
            pass
    return images


def _pixel(cell: dict[str, Any] | None, where: str) -> np.ndarray:
    """Decode one image, given as bytes or as a path, into uint8 (C, H, W)."""
    from PIL import Image

    if not cell or not (cell["bytes"] or cell["path"]):
        raise DataError(f"{where}: the image is missing; remove the row first")
    try:
        with Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"]) as image:
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                raise DataError(f"{where}: pixels of more than 8 bits; convert the images to 8 bits first")
            grey = image.mode in ("1", "L", "LA")
            mode = "L" if grey else "RGB"
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    except (OSError, ValueError, SyntaxError) as error:  # PIL's decoders raise all three on broken files
        raise DataError(f"{where}: the image can't be decoded: {reason(error)}") from error
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _size(shape: Sequence[int]) -> str:
    channels, height, width = shape
    return f"{height} x {width} {'greyscale' if channels == 1 else 'RGB'}"


def reason(error: BaseException) -> str:
    """Return the first line of the innermost cause: libraries wrap what went wrong in what they were doing."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
