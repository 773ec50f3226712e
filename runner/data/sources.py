"""Data sets as arrays: found once, decoded once, then read without any library.

A data set is a function of somebody's own, or looked for in this order: ``dataset.path``,
``<data.root>/<dataset.name>``, the Hugging Face Hub under ``dataset.id``. Folders and the Hub's
files are read by the same rules (``layout.py``); other tasks than images read their own
(``fedsweep.scenario.tasks``). The decoded arrays lie in ``data.cache`` as
``.npy`` files under a digest of what was read, so that all processes of a node share their memory
pages, and equal content at two places is decoded once.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fedsweep.config import DataConfig, RunConfig
from fedsweep.data.content import changed_files, digest_of, files_digest, paths_digest
from fedsweep.data.decoding import decode, reason
from fedsweep.data.functions import content_of, decode_returned
from fedsweep.data.hub import HubTree, commit_of
from fedsweep.data.layout import LocalTree, find_layout, other_task_of
from fedsweep.errors import ConfigError, DataError, shown
from fedsweep.parts.registry import Origin
from fedsweep.scenario.dataset import DATASETS
from fedsweep.scenario.task import (
    ArrayTask,
    Column,
    Decoded,
    Shown,
    Task,
    strata_edges,
    strata_names,
)
from fedsweep.scenario.tasks.images import Images

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


@dataclass(frozen=True)
class _Source:
    place: str
    content: str  # digest; another one means other data
    decode: Callable[[], Decoded]


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
    source = _find(cfg, data, column)
    cache = Path(data.cache).expanduser()
    if cfg.content is not None and cfg.content != source.content:
        raise DataError(
            f"data set '{shown(cfg.name)}' at {shown(source.place, 200)} has changed since its "
            f"content was {cfg.content} (dataset.content): "
            f"{changed_files(cache, cfg.content, source.content)}"
        )
    covered: list[object] = [_FORMAT, source.content]
    if isinstance(cfg, ArrayTask):
        covered += [cfg.version, cfg.reading()]
    else:
        cfg = as_images(cfg)
        covered += [cfg.image, cfg.label, cfg.test_fraction, cfg.max_train]
        covered += [] if cfg.colour == "own" else [cfg.colour]
    fingerprint = digest_of([*covered, *([column] if column else [])])
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
    unit = isinstance(cfg, Images) and cfg.normalize == "unit"
    return ImageData(
        name=cfg.name,
        fingerprint=fingerprint,
        source=source.place,
        class_names=tuple(meta["class_names"]),
        mean=(0.0,) * len(meta["mean"]) if unit else tuple(meta["mean"]),
        std=(1.0,) * len(meta["std"]) if unit else tuple(meta["std"]),
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
    key = json.dumps([cfg.model_dump(), config.data.model_dump()], sort_keys=True)
    known = {} if known is None else known
    if key not in known:
        known[key] = _content(cfg, config.data, ask)
    content = known[key]
    if not content or content == cfg.content:
        return config
    if cfg.content is not None:
        raise ConfigError(
            f"dataset.content={cfg.content}, but that of {shown(_place(cfg, config.data), 200)} "
            f"is {content}: {changed_files(Path(config.data.cache), cfg.content, content)}; "
            "put the data back, or leave it out"
        )
    return config.model_copy(update={"dataset": cfg.model_copy(update={"content": content})})


def _root(data: DataConfig) -> Path | None:
    return None if data.root is None else Path(data.root).expanduser()


def as_images(cfg: Task) -> Images:
    """Return the settings of a data set that is known to be of images."""
    assert isinstance(cfg, Images)
    return cfg


def _content(cfg: Task, data: DataConfig, ask: bool) -> str:
    """Return the content of a data set; nothing where it takes more than a look, unless asked."""
    if isinstance(cfg, ArrayTask):
        there = ask or cfg.is_there(_root(data))
        return _array_source(cfg, data, "").content if there else ""
    cfg = as_images(cfg)
    here = ask or _is_digits(cfg) or cfg.part_origin or _folder(cfg, data) is not None
    if not here and (cfg.id is None or not _commit(cfg, data, ask=False)):
        return ""
    if cfg.part_origin is not None:  # what it gave is not asked for again
        return load_images(cfg, data).content
    return _find(cfg, data).content


def place_of(config: RunConfig) -> str:
    """Return where a trial's data are found, without reading them."""
    return _place(config.dataset, config.data)


def _place(cfg: Task, data: DataConfig) -> str:
    if isinstance(cfg, ArrayTask):
        return cfg.place(_root(data))
    cfg = as_images(cfg)
    if cfg.part_origin is not None:
        return _place_of(cfg.part_origin)
    folder = _folder(cfg, data)
    return (
        str(folder)
        if folder is not None
        else "scikit-learn (load_digits)"
        if _is_digits(cfg)
        else f"{cfg.id}"
    )


def _is_digits(cfg: Images) -> bool:
    return cfg.name == "digits" and cfg.id is None and cfg.path is None


def _folder(cfg: Images, data: DataConfig) -> Path | None:
    """Return the folder of this machine that holds a data set; None where there is none.

    Raises
    ------
    DataError
        ``dataset.path`` is no folder, or the name would lead out of ``data.root``.
    """
    if cfg.path is not None:
        folder = Path(cfg.path)
        if not _is_folder(folder):
            raise DataError(
                f"dataset.path={shown(cfg.path, 200)} is not a folder; set it to one that holds "
                f"images{other_task_of(folder)}"
            )
        return folder.resolve()
    if _is_digits(cfg) or data.root is None:
        return None
    if cfg.name in ("", ".", "..") or os.sep in cfg.name or "\0" in cfg.name:
        raise DataError(
            f"dataset.name={shown(cfg.name, 200)} is no name of a folder in data.root; "
            "set dataset.path"
        )
    folder = Path(data.root).expanduser() / cfg.name
    return folder.resolve() if _is_folder(folder) else None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long a name, or one that can't be
        return False


def _find(cfg: Task, data: DataConfig, column: str = "") -> _Source:
    if isinstance(cfg, ArrayTask):
        return _array_source(cfg, data, column)
    cfg = as_images(cfg)
    if cfg.part_origin is not None:
        return _without_columns(_function_source(cfg, cfg.part_origin), column)
    folder = _folder(cfg, data)
    if folder is not None:
        return _folder_source(cfg, folder, Path(data.cache).expanduser(), column)
    if _is_digits(cfg):
        return _without_columns(_digits_source(cfg), column)
    looked = "data.root is not set"
    if data.root is not None:
        looked = f"{Path(data.root).expanduser() / cfg.name} (from data.root) is not a folder"
    if cfg.id is None:
        raise DataError(
            f"data set '{shown(cfg.name)}' can't be had: dataset.path and dataset.id are not set; "
            f"{looked}. Set dataset.path to a folder that holds images, or dataset.id to a name "
            "on the Hub"
        )
    try:
        commit = _commit(cfg, data, ask=True)
    except DataError as error:
        raise DataError(
            f"data set '{shown(cfg.name)}' can't be had: {looked}; {error}. "
            f"Set data.root to a folder that holds {cfg.name}/train.parquet and "
            f"{cfg.name}/test.parquet, check dataset.id and the network, or set HF_HUB_OFFLINE=1 "
            "to use what the Hub's own cache holds"
        ) from error
    repo = cfg.id.partition("@")[0]
    place = f"Hugging Face Hub, {repo}@{commit}"

    def decode_hub() -> Decoded:
        tree = HubTree(repo, commit)
        return decode(cfg, find_layout(cfg, tree, place), tree, place, column)

    chosen = [cfg.config, cfg.train, cfg.test, cfg.train_split, cfg.test_split]
    return _Source(place, digest_of(["hub", commit, *chosen]), decode_hub)


def _commit(cfg: Images, data: DataConfig, ask: bool) -> str:
    repo, _, revision = str(cfg.id).partition("@")
    return commit_of(repo, revision or "main", Path(data.cache).expanduser(), ask)


# Sources


def _array_source(cfg: ArrayTask, data: DataConfig, column: str) -> _Source:
    """Return what a task reads itself, known by its files; what it draws, by its settings."""
    root = _root(data)
    files = cfg.files(root)
    place = cfg.place(root)
    content = digest_of([cfg.task, cfg.version, cfg.reading()])
    if files:
        content = paths_digest(files, Path(data.cache).expanduser(), place)
    return _Source(place, content, lambda: cfg.read(root, column))


def _digits_source(cfg: Images) -> _Source:
    """Return scikit-learn's digits, known by the file that the package ships;
    the package is not imported.
    """
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError(
            "data set 'digits' can't be had: scikit-learn is not installed; run make setup"
        )
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        content = digest_of(hashlib.sha256(file.read_bytes()).hexdigest())
    except OSError as error:
        raise DataError(
            f"data set 'digits' can't be had: {file} can't be read: {error.strerror}"
        ) from error
    return _Source("scikit-learn (load_digits)", content, lambda: _decode_digits(cfg))


def _decode_digits(cfg: Images) -> Decoded:
    """Decode scikit-learn's digits: 1,797 images, 8 x 8, values 0..16, split 4 to 1 by a seed."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    y = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(y))
    test, train = order[:360], order[360:][: cfg.max_train]
    names = tuple(str(name) for name in digits.target_names)
    told = f"{len(train):,} images to train on, {len(test):,} to test on; {len(names)} classes"
    return Decoded(names, (x[train], y[train], x[test], y[test]), told)


def _without_columns(source: _Source, column: str) -> _Source:
    """Refuse a natural partition of what does not say whose an example is."""
    if column:
        raise DataError(
            f"partition.column={shown(column)}: {shown(source.place, 200)} has no columns that say "
            "whose an image is; set partition to another one"
        )
    return source


def _folder_source(cfg: Images, folder: Path, cache: Path, column: str) -> _Source:
    place, tree = str(folder), LocalTree(folder)
    layout = find_layout(cfg, tree, shown(place, 200))
    content = files_digest(layout, tree, cache, place)
    return _Source(place, content, lambda: decode(cfg, layout, tree, shown(place, 200), column))


def _function_source(cfg: Images, origin: Origin) -> _Source:
    """Return what a function of somebody's own gives; it is called to know its content."""
    place = _place_of(origin)
    DATASETS.receive(origin)

    def decoded() -> Decoded:
        return decode_returned(cfg, DATASETS[origin.name], place)

    if cfg.content is None:
        found = decoded()
        return _Source(place, content_of(found), lambda: found)

    def same() -> Decoded:
        if (content := content_of(found := decoded())) != cfg.content:
            raise DataError(
                f"{place} gave data of the content {cfg.content}, and now of {content}; "
                "let it give the same whenever it is called"
            )
        return found

    return _Source(place, cfg.content, same)


def _place_of(origin: Origin) -> str:
    return f"{origin.code.path}:{origin.attribute}"


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
