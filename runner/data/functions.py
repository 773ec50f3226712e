"""A data set that a function returns: arrays, a frame or a ``datasets.Dataset``, with splits."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedsweep.data.decoding import image_size, pixel
from fedsweep.errors import DataError, shown
from fedsweep.scenario.task import Decoded, as_number, counted, drawn_rows, drawn_test
from fedsweep.scenario.tasks.images import Images

_FORMS = (
    "return {'train': split, 'test': split}, or one split and set dataset.test_fraction; "
    "a split is (images, labels), (images, labels, names of the classes), a pandas.DataFrame, or a "
    "datasets.Dataset"
)


class Split(NamedTuple):
    """What is trained, or tested, on."""

    images: np.ndarray  # uint8 (N, C, H, W)
    labels: np.ndarray  # (N,), as they were given
    names: tuple[str, ...] | None  # of the labels 0..K-1, where they are said


def decode_returned(cfg: Images, function: Callable[[], Any], place: str) -> Decoded:
    """Call a function and return its data set as arrays.

    Parameters
    ----------
    cfg : Images
        Names of splits and columns, what is drawn to test on, and how much is trained on.
    function : callable
        Of somebody's own.
    place : str
        Where it lies, for messages.

    Raises
    ------
    DataError
        It raises, or returns what is no data set: what it should return.
    """
    try:
        given = function()
    except Exception as error:
        raise DataError(f"{place} raises {type(error).__name__}: {error}") from error
    train, test = splits_of(cfg, given, place)
    names, (train_y, *test_y) = _numbered([train, *([test] if test else [])])
    rows = np.arange(len(train_y))
    if test is None:
        if cfg.test_fraction is None:
            raise DataError(
                f"{place} returns one split; set dataset.test_fraction=0.2, or return two: "
                "{'train': split, 'test': split}"
            )
        drawn = drawn_test(train_y, cfg.test_fraction)
        rows, test_x, test_y = np.setdiff1d(rows, drawn), train.images[drawn], [train_y[drawn]]
    else:
        test_x = test.images
        if test_x.shape[1:] != train.images.shape[1:]:
            sizes = (image_size(split.shape[1:]) for split in (train.images, test_x))
            raise DataError(
                f"{place}: images to train and to test on differ: {' and '.join(sizes)}"
            )
    if cfg.max_train is not None and cfg.max_train < len(rows):
        rows = rows[drawn_rows(len(rows), cfg.max_train)]
    if not len(rows) or not len(test_x):
        raise DataError(f"{place} returns no images to {'train' if len(test_x) else 'test'} on")
    arrays = (train.images[rows], train_y[rows], test_x, test_y[0])
    told = (
        f"{len(rows):,} images to train on, {len(test_x):,} to test on; "
        f"{counted(names, train_y[rows])}"
    )
    return Decoded(names, arrays, told)


def content_of(decoded: Decoded) -> str:
    """Return the digest of a data set's arrays and classes: 16 hex digits."""
    return arrays_digest(decoded.class_names, decoded.arrays)[:16]


def arrays_digest(told: object, arrays: Iterable[np.ndarray]) -> str:
    """Return the SHA-256 of what is told of arrays and of what they hold, in hex."""
    digest = hashlib.sha256(repr(told).encode())
    for array in arrays:
        digest.update(repr((array.shape, str(array.dtype))).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def splits_of(cfg: Images, given: Any, place: str) -> tuple[Split, Split | None]:
    """Return what is trained on and what is tested on, if that was given.

    Raises
    ------
    DataError
        It is no data set: what one is.
    """
    if isinstance(given, Mapping) and not hasattr(given, "columns"):
        lacking = [name for name in (cfg.train_split,) if name not in given]
        if lacking or not {*given} <= {cfg.train_split, cfg.test_split}:
            there = ", ".join(shown(str(name)) for name in given) or "none"
            raise DataError(
                f"{place} returns the splits {there}, and '{cfg.train_split}' and "
                f"'{cfg.test_split}' are wanted; set dataset.train_split and dataset.test_split"
            )
        test = given.get(cfg.test_split)
        train = _split(cfg, given[cfg.train_split], place)
        return train, None if test is None else _split(cfg, test, place)
    if isinstance(given, tuple) and len(given) == 2 and not _is_column(given[1]):
        return _split(cfg, given[0], place), _split(cfg, given[1], place)
    return _split(cfg, given, place), None


def _is_column(value: Any) -> bool:
    """Return whether a value is the labels of a split, and no split."""
    return isinstance(value, np.ndarray | list) or type(value).__name__ in ("Series", "Tensor")


def _split(cfg: Images, given: Any, place: str) -> Split:
    if isinstance(given, tuple | list) and len(given) in (2, 3):
        images, labels = given[:2]
        names = given[2] if len(given) == 3 else None
    elif hasattr(given, "features") or hasattr(given, "columns"):
        there = list(getattr(given, "column_names", None) or given.columns)
        if missing := [name for name in (cfg.image, cfg.label) if name not in there]:
            raise DataError(
                f"{place}: a split has the columns {shown(', '.join(map(str, there)), 200)}, "
                f"and no '{missing[0]}'; set "
                f"dataset.{'image' if missing[0] == cfg.image else 'label'}"
            )
        images, labels = list(given[cfg.image]), list(given[cfg.label])
        names = getattr(getattr(given, "features", {}).get(cfg.label), "names", None)
    else:
        raise DataError(f"{place} returns a {type(given).__name__}; {_FORMS}")
    pixels, own = _pixels(images, place), _labels(labels, place)
    if own.ndim != 1 or len(own) != len(pixels):
        raise DataError(f"{place}: {len(pixels):,} images and labels of shape {own.shape}")
    if own.dtype.kind not in "iubUSO":
        raise DataError(f"{place}: labels are {own.dtype}; give class numbers or names")
    known = None if names is None else tuple(map(str, names))
    if known and (own.dtype.kind not in "iub" or not np.isin(own, np.arange(len(known))).all()):
        raise DataError(
            f"{place}: labels of {len(known)} named classes are 0 to {len(known) - 1}; "
            f"there is {shown(str(own[~np.isin(own, np.arange(len(known)))][0]))}"
        )
    return Split(pixels, own, known or None)


def _labels(labels: Any, place: str) -> np.ndarray:
    """Return labels as an array, none of them missing and all of one kind."""
    own = np.asarray(labels)
    if own.dtype.kind not in "OU" or own.ndim != 1:
        return own
    values = list(labels)  # as they were given: NumPy writes a nan among texts as 'nan'
    for row, value in enumerate(values):
        if value is None or type(value).__name__ == "NAType" or value != value:
            raise DataError(f"{place}: the label of image {row} is missing; remove such images")
    if len({isinstance(value, str) for value in values}) > 1:
        raise DataError(f"{place}: labels are texts and numbers; write them alike")
    return own


def _pixels(images: Any, place: str) -> np.ndarray:
    """Return images as uint8 (N, C, H, W)."""
    if not isinstance(images, np.ndarray) or images.dtype == object:
        if hasattr(images, "numpy"):  # a tensor
            return _pixels(np.asarray(images), place)
        if isinstance(images, str | bytes) or not isinstance(images, Iterable):
            raise DataError(f"{place}: images are {shown(repr(images))}; {_FORMS}")
        cells = [_cell(image, f"{place}, image {i}") for i, image in enumerate(images)]
        if len({cell.shape for cell in cells}) > 1:
            sizes = ", ".join(sorted({image_size(cell.shape) for cell in cells})[:3])
            raise DataError(f"{place}: images are {sizes}; resize them to one size first")
        return np.stack(cells) if cells else np.empty((0, 1, 1, 1), np.uint8)
    if images.dtype != np.uint8:
        raise DataError(
            f"{place}: pixels are {images.dtype}; give images as uint8, 0 to 255 (normalisation is "
            "dataset.normalize's)"
        )
    pixels = np.asarray(images)
    if pixels.ndim == 3:
        return pixels[:, None]
    if pixels.ndim == 4 and pixels.shape[-1] in (1, 3):
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3):
        return pixels
    raise DataError(
        f"{place}: images have the shape {images.shape}; give (N, H, W), (N, H, W, C) or "
        "(N, C, H, W) with 1 or 3 channels"
    )


def _cell(image: Any, where: str) -> np.ndarray:
    """Return one image as uint8 (C, H, W)."""
    if isinstance(image, dict):  # a datasets.Image that was not decoded
        image = image.get("bytes") or image.get("path")
    if isinstance(image, np.ndarray | list):
        [one] = _pixels(np.asarray(image)[None], where)
        return np.asarray(one)
    return pixel(image, where)


def _numbered(splits: list[Split]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Return class names, and each split's labels from 0 to K - 1."""
    if splits[0].names:
        return splits[0].names, [split.labels.astype(np.int64) for split in splits]
    values, flat = np.unique(np.concatenate([s.labels for s in splits]), return_inverse=True)
    order = sorted(range(len(values)), key=lambda i: as_number(str(values[i])))
    place = np.empty(len(values), np.int64)
    place[order] = np.arange(len(values))
    stops = np.cumsum([len(split.labels) for split in splits])[:-1]
    return tuple(str(values[i]) for i in order), np.split(place[flat], stops)
