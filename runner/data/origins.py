"""Where a data set comes from: what that is called, how its content is known, how it is read.

Images are a function of somebody's own, or looked for in this order: ``dataset.path``,
``<data.root>/<dataset.name>``, the Hugging Face Hub under ``dataset.id``. Folders and the Hub's
files are read by the same rules (``layout.py``); other tasks than images read their own
(``fedsweep.scenario.tasks``).
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedsweep.config import DataConfig
from fedsweep.data.content import digest_of, files_digest, paths_digest
from fedsweep.data.decoding import decode, owners_of
from fedsweep.data.functions import content_of, decode_returned
from fedsweep.data.hub import HubTree, commit_of
from fedsweep.data.layout import LocalTree, find_layout, other_task_of
from fedsweep.errors import DataError, shown
from fedsweep.parts.registry import Origin
from fedsweep.scenario.dataset import DATASETS
from fedsweep.scenario.task import ArrayTask, Decoded, Task
from fedsweep.scenario.tasks.images import Images


@dataclass(frozen=True)
class Source:
    """A data set that was found."""

    place: str
    content: str  # digest; another one means other data
    decode: Callable[[], Decoded]


class DataOrigin(ABC):
    """Where a data set comes from."""

    whole: ClassVar[bool] = False
    """Whether its content is known once all of it was read, so that it is kept at once."""
    has_columns: ClassVar[bool] = True
    """Whether it may say whose an example is."""

    @property
    def known(self) -> bool:
        """Whether no more than a look at this machine tells the content."""
        return True

    @property
    @abstractmethod
    def place(self) -> str:
        """Where it is found, in words, before it is read."""

    @abstractmethod
    def find(self, column: str = "") -> Source:
        """Return the data set, to be decoded with the column of that name where one is asked for.

        Raises
        ------
        DataError
            It can't be had; the message says where it was looked for and what to set.
        """


def origin_of(cfg: Task, data: DataConfig) -> DataOrigin:
    """Return where a data set comes from."""
    if not isinstance(cfg, Images):
        assert isinstance(cfg, ArrayTask)
        return _TaskFiles(cfg, data)
    if cfg.part_origin is not None:
        return _Function(cfg, cfg.part_origin)
    if cfg.name == "digits" and cfg.id is None and cfg.path is None:
        return _Digits(cfg)
    if (folder := _folder(cfg, data)) is not None:
        return _Folder(cfg, folder, _cache(data))
    return _Hub(cfg, data)


def _root(data: DataConfig) -> Path | None:
    return None if data.root is None else Path(data.root).expanduser()


def _cache(data: DataConfig) -> Path:
    return Path(data.cache).expanduser()


@dataclass(frozen=True)
class _TaskFiles(DataOrigin):
    """What a task reads itself, known by its files; what it draws, by its settings."""

    cfg: ArrayTask
    data: DataConfig

    @property
    def known(self) -> bool:
        return self.cfg.is_there(_root(self.data))

    @property
    def place(self) -> str:
        return self.cfg.place(_root(self.data))

    def find(self, column: str = "") -> Source:
        root = _root(self.data)
        files, place = self.cfg.files(root), self.place
        content = digest_of([self.cfg.task, self.cfg.version, self.cfg.reading()])
        if files:
            content = paths_digest(files, _cache(self.data), place)
        return Source(place, content, lambda: self.cfg.read(root, column))


@dataclass(frozen=True)
class _Function(DataOrigin):
    """What a function of somebody's own gives; it is called to know its content."""

    cfg: Images
    origin: Origin

    whole = True
    has_columns = False

    @property
    def place(self) -> str:
        return f"{self.origin.code.path}:{self.origin.attribute}"

    def find(self, column: str = "") -> Source:
        del column
        DATASETS.receive(self.origin)

        def decoded() -> Decoded:
            return decode_returned(self.cfg, DATASETS[self.origin.name], self.place)

        if self.cfg.content is None:
            found = decoded()
            return Source(self.place, content_of(found), lambda: found)

        def same() -> Decoded:
            if (content := content_of(found := decoded())) != self.cfg.content:
                raise DataError(
                    f"{self.place} gave data of the content {self.cfg.content}, and now of "
                    f"{content}; let it give the same whenever it is called"
                )
            return found

        return Source(self.place, self.cfg.content, same)


@dataclass(frozen=True)
class _Folder(DataOrigin):
    """A folder of this machine."""

    cfg: Images
    folder: Path
    cache: Path

    @property
    def place(self) -> str:
        return str(self.folder)

    def find(self, column: str = "") -> Source:
        tree, told = LocalTree(self.folder), shown(self.place, 200)
        layout = find_layout(self.cfg, tree, told)
        owners: list[str] = []
        if column and layout.train.kind == "images":  # else the files themselves say it
            owners = owners_of(self.cfg, layout.train, tree, told, column).tolist()
        content = files_digest(layout, tree, self.cache, self.place, owners)
        return Source(self.place, content, lambda: decode(self.cfg, layout, tree, told, column))


@dataclass(frozen=True)
class _Digits(DataOrigin):
    """scikit-learn's digits, known by the file that it ships; the package is not imported."""

    cfg: Images

    has_columns = False

    @property
    def place(self) -> str:
        return "scikit-learn (load_digits)"

    def find(self, column: str = "") -> Source:
        del column
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
        return Source(self.place, content, lambda: _decode_digits(self.cfg))


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


@dataclass(frozen=True)
class _Hub(DataOrigin):
    """A repository of the Hugging Face Hub; none where ``dataset.id`` names none."""

    cfg: Images
    data: DataConfig

    @property
    def known(self) -> bool:
        return self.cfg.id is not None and bool(self._commit(ask=False))

    @property
    def place(self) -> str:
        return f"{self.cfg.id}"

    def find(self, column: str = "") -> Source:
        cfg, looked = self.cfg, "data.root is not set"
        if (root := _root(self.data)) is not None:
            looked = f"{root / cfg.name} (from data.root) is not a folder"
        if cfg.id is None:
            raise DataError(
                f"data set '{shown(cfg.name)}' can't be had: dataset.path and dataset.id are not "
                f"set; {looked}. Set dataset.path to a folder that holds images, or dataset.id to "
                "a name on the Hub"
            )
        try:
            commit = self._commit(ask=True)
        except DataError as error:
            raise DataError(
                f"data set '{shown(cfg.name)}' can't be had: {looked}; {error}. "
                f"Set data.root to a folder that holds {cfg.name}/train.parquet and "
                f"{cfg.name}/test.parquet, check dataset.id and the network, or set "
                "HF_HUB_OFFLINE=1 to use what the Hub's own cache holds"
            ) from error
        repo = cfg.id.partition("@")[0]
        place = f"Hugging Face Hub, {repo}@{commit}"

        def decoded() -> Decoded:
            tree = HubTree(repo, commit)
            return decode(cfg, find_layout(cfg, tree, place), tree, place, column)

        chosen = [cfg.config, cfg.train, cfg.test, cfg.train_split, cfg.test_split]
        return Source(place, digest_of(["hub", commit, *chosen]), decoded)

    def _commit(self, ask: bool) -> str:
        repo, _, revision = str(self.cfg.id).partition("@")
        return commit_of(repo, revision or "main", _cache(self.data), ask)


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
    root = _root(data)
    if root is None:
        return None
    if cfg.name in ("", ".", "..") or os.sep in cfg.name or "\0" in cfg.name:
        raise DataError(
            f"dataset.name={shown(cfg.name, 200)} is no name of a folder in data.root; "
            "set dataset.path"
        )
    folder = root / cfg.name
    return folder.resolve() if _is_folder(folder) else None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long a name, or one that can't be
        return False
