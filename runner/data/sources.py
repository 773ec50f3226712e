"""Data sets as arrays: found once, decoded once, then read without any library.

``origins.py`` says where a data set comes from. The decoded arrays lie in ``data.cache`` as
``.npy`` files under a digest of what was read, so that all processes of a node share their memory
pages, and equal content at two places is decoded once.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsweep.config import DataConfig, RunConfig
from fedsweep.data.content import changed_files, digest_of
from fedsweep.data.decoding import reason
from fedsweep.data.origins import origin_of
from fedsweep.errors import ConfigError, DataError, shown
from fedsweep.scenario.task import (
    Column,
    Decoded,
    Shown,
    Task,
    strata_edges,
    strata_names,
)

_FORMAT = 2  # of the cached files; raise it when they or the decoding change
_CHUNK = 2000  # images counted at a time
_ARRAYS = ("train_x", "train_y", "test_x", "test_y")
_WORDS = ("names", "scaled", "edges")


@dataclass(frozen=True, eq=False)
class ImageData:
    """A decoded data set. The arrays are read-only and, as a rule, mapped from the cache.

    Of images, ``mean`` and ``std`` are those of the training pixels in units of 0..1, one per
    channel; a constant channel has a ``std`` of 1, so that dividing by it is safe. Under
    ``dataset.normalize=unit`` they are 0 and 1.
    """

    name: str
    fingerprint: str
    source: str  # where the data set was found
    class_names: tuple[str, ...]
    train_x: np.ndarray  # uint8 (N, C, H, W), or what another task has: see Decoded
    train_y: np.ndarray  # int64 (N,) classes, or float32 (N,) numbers
    test_x: np.ndarray
    test_y: np.ndarray
    mean: tuple[float, ...]  # of images; empty for other tasks, which federated data scale
    std: tuple[float, ...]
    content: str = ""  # digest of what was read
    told: str = ""  # what was read and what was left out, in a line
    shows: Shown = "images"
    names: tuple[str, ...] = ()  # of features, channels or symbols
    scaled: tuple[bool, ...] = ()  # which of them are standardised
    column: Column | None = None  # what a natural partition goes by
    groups: tuple[np.ndarray, np.ndarray] | None = None  # known ones, of train and test examples
    edges: tuple[float, ...] = ()  # between the strata of a real target

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example: channels, height and width of an image."""
        return self.train_x.shape[1:]

    @property
    def is_real(self) -> bool:
        """Whether a real number is learnt, and not a class."""
        return self.train_y.dtype.kind == "f"

    @property
    def num_classes(self) -> int:
        """Number of classes; of a real target, of its strata."""
        return len(self.class_names)

    @property
    def num_outputs(self) -> int:
        """How many numbers a network gives for an example."""
        return 1 if self.is_real else self.num_classes

    @property
    def num_symbols(self) -> int:
        """How many symbols examples are written in; 0 where they are numbers or pixels."""
        return len(self.names) if self.train_x.dtype.kind == "i" else 0

    def strata(self, y: np.ndarray) -> np.ndarray:
        """Return classes (n,) of targets: themselves, or the strata of real ones."""
        return np.searchsorted(self.edges, y, side="right") if self.is_real else y


def load_images(cfg: Task, data: DataConfig, column: str = "") -> ImageData:
    """Return a data set from the cache, or find and decode it first.

    Parameters
    ----------
    column : str
        What a natural partition goes by, if there is one.

    Raises
    ------
    DataError
        The data set can't be had, read or cached, or its content is not ``dataset.content``; the
        message says where it was looked for and what to set.
    """
    origin = origin_of(cfg, data)
    source = origin.find(column)
    if column and not origin.has_columns:
        raise DataError(
            f"partition.column={shown(column)}: {shown(source.place, 200)} has no columns that say "
            "whose an image is; set partition to another one"
        )
    cache = Path(data.cache).expanduser()
    if cfg.content is not None and cfg.content != source.content:
        raise DataError(
            f"data set '{shown(cfg.name)}' at {shown(source.place, 200)} has changed since its "
            f"content was {cfg.content} (dataset.content): "
            f"{changed_files(cache, cfg.content, source.content)}"
        )
    read_as = [*cfg.read_as, *([column] if column else [])]
    fingerprint = digest_of([_FORMAT, source.content, *read_as])
    folder = cache / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', cfg.name)[:60]}-{fingerprint}"
    with _writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        scratch = (
            tempfile.TemporaryDirectory(prefix=".decoding-", dir=cache)
            if not _complete(folder)
            else None
        )
    if scratch:
        with scratch:
            decoded = source.decode()
            with _writing(cache):
                _store(decoded, Path(scratch.name) / "decoded", folder)
    meta = json.loads((folder / "meta.json").read_text())
    # np.asarray drops the memmap subclass: plain arrays travel out of band in a pickle, without a
    # copy.
    arrays: dict[str, Any] = {
        key: np.asarray(np.load(folder / f"{key}.npy", mmap_mode="r")) for key in _ARRAYS
    }
    return ImageData(
        name=cfg.name,
        fingerprint=fingerprint,
        source=source.place,
        class_names=tuple(meta["class_names"]),
        mean=(0.0,) * len(meta["mean"]) if cfg.as_they_are else tuple(meta["mean"]),
        std=(1.0,) * len(meta["std"]) if cfg.as_they_are else tuple(meta["std"]),
        content=source.content,
        told=f"data set '{shown(cfg.name)}', {shown(source.place, 200)}: {meta['told']}",
        shows=cfg.shows,
        **arrays,
        **_beside(folder, meta),
    )


def _beside(folder: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """Return what tasks other than images keep beside their arrays."""

    def kept(name: str) -> np.ndarray:
        return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))

    found: dict[str, Any] = {key: tuple(meta[key]) for key in _WORDS if key in meta}
    if "column" in meta:
        found["column"] = Column(tuple(meta["column"]), kept("column"))
    if meta.get("grouped"):
        found["groups"] = kept("train_group"), kept("test_group")
    return found


def identified(
    config: RunConfig, ask: bool = False, known: dict[str, str] | None = None
) -> RunConfig:
    """Return a trial with the content of its data, which its key covers.

    A data set that can't be had, or that only the Hub can tell, leaves the trial as it is, unless
    ``ask`` is given: then it is refused.

    Parameters
    ----------
    ask : bool
        Whether the Hub may be asked for the commit that a revision stands for.
    known : dict of str to str, optional
        Contents found by earlier calls, to be found once for a grid.

    Raises
    ------
    ConfigError
        ``dataset.content`` is given, and the data set has another one.
    DataError
        It is there and can't be read.
    """
    cfg = config.dataset
    column = config.natural_column
    key = json.dumps([cfg.model_dump(), config.data.model_dump(), column], sort_keys=True)
    known = {} if known is None else known
    if key not in known:
        known[key] = _content(cfg, config.data, column, ask)
    content = known[key]
    if not content or content == cfg.content:
        return config
    if cfg.content is not None:
        raise ConfigError(
            f"dataset.content={cfg.content}, but that of {shown(place_of(config), 200)} "
            f"is {content}: {changed_files(Path(config.data.cache), cfg.content, content)}; "
            "put the data back, or leave it out"
        )
    return config.model_copy(update={"dataset": cfg.model_copy(update={"content": content})})


def _content(cfg: Task, data: DataConfig, column: str, ask: bool) -> str:
    """Return the content of a data set; nothing where it takes more than a look, unless asked."""
    origin = origin_of(cfg, data)
    if not (ask or origin.known):
        return ""
    return load_images(cfg, data).content if origin.whole else origin.find(column).content


def place_of(config: RunConfig) -> str:
    """Return where a trial's data are found, without reading them."""
    return origin_of(config.dataset, config.data).place


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation per channel of uint8 (N, C, H, W), in 0..1, from exact counts."""
    levels = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256, np.int64)
        for start in range(0, len(images), _CHUNK):  # bincount widens to 8 bytes a pixel
            counts += np.bincount(images[start : start + _CHUNK, channel].ravel(), minlength=256)
        share = counts / counts.sum()
        mean = float(share @ levels)
        means.append(mean)
        stds.append(
            float(np.sqrt(share @ (levels - mean) ** 2)) if np.count_nonzero(counts) > 1 else 1.0
        )
    return tuple(means), tuple(stds)


# The cache


def _store(decoded: Decoded, staging: Path, folder: Path) -> None:
    """Write a decoded data set so that it appears at once or not at all."""
    staging.mkdir()
    for key, array in zip(_ARRAYS, decoded.arrays, strict=True):
        np.save(staging / f"{key}.npy", array)
    train_x, train_y, *_ = decoded.arrays
    mean, std = channel_statistics(train_x) if train_x.dtype == np.uint8 else ((), ())
    meta: dict[str, object] = {"class_names": decoded.class_names, "mean": mean, "std": std}
    meta["told"] = decoded.told
    if decoded.names:
        meta |= {"names": decoded.names, "scaled": decoded.scaled}
    if train_y.dtype.kind == "f":
        edges = strata_edges(train_y).tolist()
        meta |= {"edges": edges, "class_names": strata_names(edges)}
    if decoded.column is not None:
        meta["column"] = decoded.column.values
        np.save(staging / "column.npy", decoded.column.codes)
    if decoded.groups is not None:
        meta["grouped"] = True
        for split, groups in zip(("train", "test"), decoded.groups, strict=True):
            np.save(staging / f"{split}_group.npy", groups)
    (staging / "meta.json").write_text(json.dumps(meta, indent=1))
    if folder.exists() and not _complete(folder):
        shutil.rmtree(folder)
    try:
        staging.rename(folder)
    except OSError:
        if not _complete(folder):  # else another process was faster, with the same arrays
            raise


def _complete(folder: Path) -> bool:
    return all(
        (folder / name).is_file() for name in ("meta.json", *(f"{key}.npy" for key in _ARRAYS))
    )


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"data.cache={cache} can't be written: {reason(error)}; set data.cache to another"
        ) from error
