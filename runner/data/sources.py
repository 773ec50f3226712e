"""Image data sets as uint8 arrays: found once, decoded once, then read from disk without any data-set library.

A data set is looked for in this order: ``dataset.path``, ``<data.root>/<dataset.name>``, the Hugging Face Hub under
``dataset.id``. Folders and the Hub are opened by the same code, through flwr-datasets. The decoded arrays lie in
``data.cache`` as ``.npy`` files, so that all processes of a node share their memory pages.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runner.config import DataConfig, DatasetConfig
from runner.data.decoding import Decoded, decode, reason
from runner.errors import DataError
from runner.paths import component

_FORMAT = 1  # of the cached files; raise it when they or the decoding change
_CHUNK = 2000  # images counted at a time
_ARRAYS = ("train_x", "train_y", "test_x", "test_y")
_HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True, eq=False)
class ImageData:
    """A decoded data set. The arrays are read-only and, as a rule, mapped from the cache.

    ``mean`` and ``std`` are those of the training pixels in units of 0..1, one per channel; a constant channel has a
    ``std`` of 1, so that dividing by it is safe. Under ``dataset.normalize=unit`` they are 0 and 1.
    """

    name: str
    fingerprint: str
    source: str  # where the data set was found
    class_names: tuple[str, ...]
    train_x: np.ndarray  # uint8 (N, C, H, W)
    train_y: np.ndarray  # int64 (N,)
    test_x: np.ndarray
    test_y: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.train_x.shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


@dataclass(frozen=True)
class _Source:
    identity: Sequence[object]  # JSON-able; another identity means that the data may differ
    decode: Callable[[Path], Decoded]  # takes a scratch folder


def load_images(cfg: DatasetConfig, data: DataConfig) -> ImageData:
    """Return a data set from the cache, or find and decode it first.

    Raises
    ------
    DataError
        The data set can't be had, read or cached; the message says where it was looked for and what to set.
    """
    source = _find(cfg, data)
    covered = [_FORMAT, source.identity, cfg.image, cfg.label, cfg.train_split, cfg.test_split, cfg.max_train]
    fingerprint = hashlib.sha256(json.dumps(covered).encode()).hexdigest()[:16]
    cache = Path(data.cache).expanduser()
    folder = cache / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', cfg.name)}-{fingerprint}"
    with _writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".decoding-", dir=cache) if not _complete(folder) else None
    if scratch:
        with scratch:
            decoded = source.decode(Path(scratch.name))
            with _writing(cache):
                _store(decoded, Path(scratch.name) / "decoded", folder)
    meta = json.loads((folder / "meta.json").read_text())
    # np.asarray drops the memmap subclass: plain arrays travel out of band in a pickle, without a copy.
    arrays = {key: np.asarray(np.load(folder / f"{key}.npy", mmap_mode="r")) for key in _ARRAYS}
    return ImageData(
        name=cfg.name,
        fingerprint=fingerprint,
        source=meta["source"],
        class_names=tuple(meta["class_names"]),
        mean=tuple(meta["mean"]) if cfg.normalize == "standard" else (0.0,) * len(meta["mean"]),
        std=tuple(meta["std"]) if cfg.normalize == "standard" else (1.0,) * len(meta["std"]),
        **arrays,
    )


def _find(cfg: DatasetConfig, data: DataConfig) -> _Source:
    if cfg.path is not None:
        folder = Path(cfg.path).expanduser()
        if not folder.is_dir():
            raise DataError(f"dataset.path={cfg.path} is not a folder; set it to one that datasets.load_dataset opens")
        return _folder_source(cfg, folder)
    if cfg.name == "digits" and cfg.id is None:
        return _Source(["scikit-learn digits"], lambda _: _decode_digits(cfg))
    if data.root is None:
        looked = "data.root is not set"
    else:
        folder = Path(data.root).expanduser() / component(cfg.name, "dataset.name")
        if folder.is_dir():
            return _folder_source(cfg, folder)
        looked = f"{folder} (from data.root) is not a folder"
    if cfg.id is None:
        raise DataError(
            f"data set '{cfg.name}' can't be had: dataset.path and dataset.id are not set; {looked}. "
            "Set dataset.path to a folder that datasets.load_dataset opens, or dataset.id to a name on the Hub"
        )
    repo, _, revision = cfg.id.partition("@")
    return _Source(["hub", repo, revision or "main"], lambda _: _decode_hub(cfg, repo, revision or "main", looked))


# Sources


def _decode_digits(cfg: DatasetConfig) -> Decoded:
    """Decode scikit-learn's digits: 1,797 images of 8 x 8 with values 0..16, split 4 to 1 by a fixed seed."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    y = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(y))
    test, train = order[:360], order[360:][: cfg.max_train]
    names = tuple(str(name) for name in digits.target_names)
    return Decoded("scikit-learn (load_digits)", names, (x[train], y[train], x[test], y[test]))


def _folder_source(cfg: DatasetConfig, folder: Path) -> _Source:
    folder = folder.resolve()
    paths = sorted(Path(parent) / name for parent, _, names in os.walk(folder, followlinks=True) for name in names)
    stats = [(str(path.relative_to(folder)), path.stat()) for path in paths if path.exists()]
    files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]

    def decode_folder(scratch: Path) -> Decoded:
        # datasets copies what it opens into its cache; there it is needed only until it is decoded.
        return decode(cfg, str(folder), dataset=str(folder), cache_dir=str(scratch / "datasets"))

    return _Source(["folder", str(folder), files], decode_folder)


def _decode_hub(cfg: DatasetConfig, repo: str, revision: str, looked: str) -> Decoded:
    """Decode a data set of the Hub at the commit that the revision stands for now.

    The Hub is asked first, because ``load_dataset`` retries for half a minute where there is no network.
    """
    from huggingface_hub import HfApi, constants

    source = "the Hugging Face Hub's own cache (HF_HUB_OFFLINE is set)"
    if not constants.HF_HUB_OFFLINE:
        source = "Hugging Face Hub"
        try:
            revision = HfApi().dataset_info(repo, revision=revision, timeout=_HUB_TIMEOUT_S).sha or revision
        except Exception as error:  # whatever it is, the data set can't be had
            raise DataError(
                f"data set '{cfg.name}' can't be had: {looked}; Hugging Face Hub, {repo}@{revision}: {reason(error)}. "
                f"Set data.root to a folder that holds {cfg.name}/train.parquet and {cfg.name}/test.parquet, check "
                "dataset.id and the network, or set HF_HUB_OFFLINE=1 to use what the Hub's own cache holds"
            ) from error
    return decode(cfg, f"{source}, {repo}@{revision}", dataset=repo, revision=revision)


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of uint8 (N, C, H, W), in units of 0..1, from exact counts."""
    levels = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256, np.int64)
        for start in range(0, len(images), _CHUNK):  # bincount widens to 8 bytes a pixel
            counts += np.bincount(images[start : start + _CHUNK, channel].ravel(), minlength=256)
        share = counts / counts.sum()
        mean = float(share @ levels)
        means.append(mean)
        stds.append(float(np.sqrt(share @ (levels - mean) ** 2)) if np.count_nonzero(counts) > 1 else 1.0)
    return tuple(means), tuple(stds)


# The cache


def _store(decoded: Decoded, staging: Path, folder: Path) -> None:
    """Write a decoded data set so that it appears at once or not at all."""
    staging.mkdir()
    for key, array in zip(_ARRAYS, decoded.arrays, strict=True):
        np.save(staging / f"{key}.npy", array)
    mean, std = channel_statistics(decoded.arrays[0])
    meta = {"source": decoded.source, "class_names": decoded.class_names, "mean": mean, "std": std}
    (staging / "meta.json").write_text(json.dumps(meta, indent=1))
    if folder.exists() and not _complete(folder):
        shutil.rmtree(folder)
    try:
        staging.rename(folder)
    except OSError:
        if not _complete(folder):  # else another process was faster, with the same arrays
            raise


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("meta.json", *(f"{key}.npy" for key in _ARRAYS)))


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"data.cache={cache} can't be written: {reason(error)}; set data.cache to another") from error
