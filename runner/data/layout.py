"""Which files of a data set are read as what: exact rules, nothing guessed from part of a name.

A split (``train`` and ``test``, or what ``dataset.train_split`` and ``dataset.test_split`` say) is

- a folder of that name that holds one folder of images per class, or Parquet or Arrow files, or
  JSON files of LEAF's and nothing else that could be read;
- ``<split>.parquet``, ``.arrow`` or ``.csv``, or all shards ``<split>-00000-of-00002.parquet``, in
  the data set's folder, in its ``data/``, or in the one folder that holds such files (a Hub
  configuration).

Without splits, the folders of the data set are its classes, and ``dataset.test_fraction`` of each
is the test set. ``dataset.train`` and ``dataset.test`` name other folders or files. What fits two
readings is refused, with the setting that decides. What is not read is listed, with the reason.
"""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from fedsweep.errors import DataError, first_of, shown, unknown
from fedsweep.scenario.tasks.images import Images

Kind = Literal["folder", "file", "neither"]
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"}
    | {".tga", ".tif", ".tiff", ".webp"}
)
MOST_LEFT_OUT = 0.01
"""Share of a split's images that may be left out; more is refused."""

_TABLES = ("parquet", "arrow", "csv")
_FORMS = {"parquet": "table", "arrow": "table", "images": "images", "leaf": "leaf"}
"""Kinds of parts that two splits may have together."""
_SHOWN = 5  # names in a list


def listed(names: Iterable[str], most: int = _SHOWN) -> str:
    """Return names as a list that ends with how many are left, if they are many."""
    return first_of([shown(name) for name in names], most)


class Tree(Protocol):
    """The files of a data set, on this machine or on the Hub. Paths are relative to its folder."""

    def entries(self, path: str) -> dict[str, Kind]:
        """Return what a folder holds, sorted by name; links count as what they point to."""

    def identity(self, path: str) -> object:
        """Return what tells a folder from another one, however it is reached."""

    def local(self, path: str) -> Path:
        """Return a file of this machine with the content of a file."""


@dataclass(frozen=True)
class LocalTree:
    """A folder of this machine."""

    root: Path

    def entries(self, path: str) -> dict[str, Kind]:
        """Return what a folder holds, sorted by name; links count as what they point to.

        Raises
        ------
        DataError
            It can't be listed.
        """
        try:
            with os.scandir(self.root / path) as found:
                return {
                    entry.name: _kind(entry)
                    for entry in sorted(found, key=lambda entry: entry.name)
                }
        except OSError as error:
            raise DataError(
                f"{shown(str(self.root / path))} can't be read: {error.strerror}"
            ) from error

    def identity(self, path: str) -> object:
        """Return device and number of the folder."""
        stat = os.stat(self.root / path)
        return stat.st_dev, stat.st_ino

    def local(self, path: str) -> Path:
        """Return the file itself."""
        return self.root / path


def _kind(entry: "os.DirEntry[str]") -> Kind:
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "neither"
    except OSError:  # a link that leads back to itself
        return "neither"


@dataclass(frozen=True)
class Part:
    """The files of a split, in order."""

    place: str  # relative to the data set; "" is its own folder
    kind: Literal["images", "parquet", "arrow", "leaf"]
    files: tuple[str, ...]
    classes: tuple[str, ...] = ()  # of images: the class of each file
    tables: tuple[str, ...] = ()  # the CSV files that name the images

    @property
    def name(self) -> str:
        """The place as it is shown."""
        return shown(self.place) or "."


@dataclass(frozen=True)
class FileLayout:
    """What is read. Without a test part, a share of the training part is the test set."""

    train: Part
    test: Part | None
    left_out: Mapping[
        str, tuple[str, ...]
    ]  # reason -> paths; each of them would have been an image
    ignored: tuple[str, ...]  # what lies beside the layout

    @property
    def parts(self) -> list[Part]:
        """The parts that are read."""
        return [self.train] if self.test is None else [self.train, self.test]


@dataclass
class _Finder:
    cfg: Images
    tree: Tree
    where: str
    left_out: dict[str, list[str]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)  # what is no image and need not be one

    def layout(self) -> FileLayout:
        if self.cfg.train is not None:
            return self._as_told(self.cfg.train)
        cfg = self.cfg
        base, entries = self._base()
        train = self._split(base, entries, cfg.train_split, "train")
        test = self._split(base, entries, cfg.test_split, "test")
        folders = [
            name for name, kind in entries.items() if kind == "folder" and not name.startswith(".")
        ]
        if cfg.test_fraction is None:
            if train is None or test is None:
                raise DataError(self._missing(base, entries, folders, train, test))
            return self._done(train, test, self._beside(base, entries, [train, test]))
        if train and test:
            raise DataError(
                f"{self.where} holds the splits {train.name} and {test.name}, "
                "and dataset.test_fraction is set: leave it out if they are the splits, "
                "or set dataset.train to the folder whose "
                "folders are the classes (dataset.train=. for the whole)"
            )
        one = train or test
        own = (
            one.files[0][len(base) :].lstrip(os.sep).split(os.sep)[0] if one and one.files else None
        )
        others = [name for name in folders if name != own]
        if one and (others or one is test):
            raise DataError(
                f"{self.where}: is '{one.name}' a split, or a class beside "
                f"{listed(others) or 'none'}? Set dataset.train={one.name} if it is the split to "
                "learn from, or dataset.train=. if it is a class"
            )
        if train:
            return self._done(train, None, self._beside(base, entries, [train]))
        if not folders:
            raise DataError(self._missing(base, entries, folders, train, test))
        whole = self._classes(base)
        return self._done(whole, None, self._beside(base, entries, [whole]))

    def _as_told(self, place: str) -> FileLayout:
        """Return the layout of a data set whose training examples are said to be at a place."""
        train, test = self._at(place, "dataset.train"), None
        if self.cfg.test is not None:
            test = self._at(self.cfg.test, "dataset.test")
        elif self.cfg.test_fraction is None:
            raise DataError(
                f"dataset.train={place} without a test set; set dataset.test to a folder "
                "or file, or dataset.test_fraction=0.2"
            )
        return self._done(train, test, sorted(self.unread))

    def _done(self, train: Part, test: Part | None, ignored: Iterable[str]) -> FileLayout:
        for part in (train, test):
            if part is None or part.kind != "images":
                continue
            if not part.files:
                raise DataError(
                    f"{self.where}: {part.name} holds no image of a class; {_how(self.cfg)}"
                )
        if test is not None and _FORMS.get(train.kind) != _FORMS.get(test.kind):
            raise DataError(
                f"{self.where}: {train.name} and {test.name} are not of one kind: "
                "images in folders have their classes' names, tables have labels, LEAF's files "
                "have pixels and users; bring both into one form"
            )
        if test is not None and train.kind == "images":
            foreign = sorted(set(test.classes) - set(train.classes))
            if foreign:
                raise DataError(
                    f"{self.where}: the test set {test.name} has classes that {train.name} has "
                    f"not: {listed(foreign)}; it needs one folder of images per class, "
                    f"as {test.name}/CLASS/IMAGE"
                )
        read = sum(len(part.files) for part in (train, test) if part and part.kind == "images")
        out = {reason: tuple(paths) for reason, paths in self.left_out.items()}
        check_share(out, read, self.where)
        return FileLayout(train, test, out, tuple(ignored))

    # Where the splits are

    def _base(self) -> tuple[str, dict[str, Kind]]:
        """Return the folder that holds the splits, and what it holds; configurations have one."""
        entries = self.tree.entries("")
        if self.cfg.config is not None:
            if entries.get(self.cfg.config) != "folder":
                folders = [name for name, kind in entries.items() if kind == "folder"]
                raise DataError(
                    f"{self.where}: {unknown('folder', self.cfg.config, folders)} Set "
                    "dataset.config"
                )
            return self.cfg.config, self.tree.entries(self.cfg.config)
        names = (self.cfg.train_split, self.cfg.test_split)
        if any(self._candidates("", entries, name) for name in names):
            return "", entries
        configs = {}
        for name, kind in entries.items():
            if kind == "folder" and not name.startswith("."):
                inside = self.tree.entries(name)
                if any(self._tables(name, inside, split) for split in names):
                    configs[name] = inside
        if len(configs) > 1:
            raise DataError(
                f"{self.where} holds several configurations: {listed(configs)}; "
                "set dataset.config to one of them"
            )
        return next(iter(configs.items()), ("", entries))

    def _split(self, base: str, entries: Mapping[str, Kind], name: str, role: str) -> Part | None:
        found = self._candidates(base, entries, name)
        if len(found) > 1:
            raise DataError(
                f"{self.where}: split '{shown(name)}' can be read from {listed(found)}; "
                f"set dataset.{role} to one of them"
            )
        for place, files in found.items():
            if files is None:
                return self._folder(place)
            return self._of_tables(place, files)
        return None

    def _candidates(
        self, base: str, entries: Mapping[str, Kind], name: str
    ) -> dict[str, list[str] | None]:
        """Return the places that a split can be read from: table files, or None for a folder."""
        found: dict[str, list[str] | None] = {}
        inside = [base]
        if entries.get("data") == "folder" and "data" not in (
            self.cfg.train_split,
            self.cfg.test_split,
        ):
            inside.append(_join(base, "data"))
        for folder in inside:
            listing = entries if folder == base else self.tree.entries(folder)
            found.update(self._tables(folder, listing, name))
        if entries.get(name) == "folder" and self._holds(_join(base, name)) != "images":
            found[_join(base, name)] = None
        return found

    def _tables(
        self, folder: str, entries: Mapping[str, Kind], split: str
    ) -> dict[str, list[str] | None]:
        """Return the tables of a folder that are named for a split: first file -> files.

        Raises
        ------
        DataError
            A shard is missing.
        """
        pattern = re.compile(
            rf"{re.escape(split)}(?:-(\d+)-of-(\d+)(?:-[0-9a-f]+)?)?\.({'|'.join(_TABLES)})"
        )
        groups: dict[tuple[str, str], dict[int, str]] = {}
        for name, kind in entries.items():
            match = pattern.fullmatch(name)
            if match and kind == "file":
                number, total, suffix = match.groups()
                shards = groups.setdefault((suffix, total or ""), {})
                if int(number or 0) in shards:
                    raise DataError(
                        f"{self.where}: {shown(shards[int(number or 0)])} and {shown(name)} are "
                        "the same shard; remove one, or set dataset.train and dataset.test"
                    )
                shards[int(number or 0)] = name
        found: dict[str, list[str] | None] = {}
        for (suffix, total), shards in groups.items():
            missing = sorted(set(range(int(total or 1))) - set(shards))
            if missing or len(shards) != int(total or 1):
                raise DataError(
                    f"{self.where}: of the {int(total or 1)} shards {split}-*.{suffix} in "
                    f"{folder or '.'} there are {len(shards)}; the first that is missing has "
                    f"number {missing[0] if missing else total}"
                )
            files = [_join(folder, shards[number]) for number in sorted(shards)]
            found[files[0]] = files
        return found

    def _holds(self, folder: str) -> Literal["images", "folders", "tables", "nothing"]:
        """Return what a folder holds directly: images, folders, tables, or nothing of these."""
        entries = {
            name: kind
            for name, kind in self.tree.entries(folder).items()
            if not name.startswith(".")
        }
        if "folder" in entries.values():
            return "folders"
        if any(is_image(name) for name in entries):
            return "images"
        return "tables" if any(_suffix(name) in _TABLES for name in entries) else "nothing"

    # What a place holds

    def _at(self, place: str, key: str) -> Part:
        """Return what an explicit setting names."""
        place = os.path.normpath(place) if place else "."
        place = "" if place == "." else place
        folder, name = os.path.split(place)
        kind: Kind | None = "folder" if not place else None
        if place:
            try:
                kind = self.tree.entries(folder).get(name)
            except DataError:
                kind = None
        if kind == "folder":
            return self._folder(place)
        if kind == "file" and _suffix(name) in _TABLES:
            return self._of_tables(place, [place])
        what = (
            "is there no such file or folder"
            if kind is None
            else "it is no Parquet, Arrow or CSV file"
        )
        raise DataError(
            f"{self.where}: {key}={shown(place, 200)}: {what}; name a folder of classes or a table"
        )

    def _folder(self, place: str) -> Part:
        """Return a folder as the tables or the classes that it holds."""
        if self._holds(place) == "images":
            raise DataError(
                f"{self.where}: {shown(place) or 'it'} holds images but no folder per class; "
                f"{_how(self.cfg)}"
            )
        entries = self.tree.entries(place)
        tables = [
            name for name, kind in entries.items() if kind == "file" and _suffix(name) in _TABLES
        ]
        if not tables:
            return self._of_leaf(place, entries) or self._classes(place)
        suffixes = {_suffix(name) for name in tables}
        if self._holds(place) == "folders" or len(suffixes) > 1:
            raise DataError(
                f"{self.where}: {shown(place) or 'it'} holds {listed(tables)} and other files or "
                "folders that could be read; set dataset.train and dataset.test to what is meant"
            )
        return self._of_tables(place, [_join(place, name) for name in tables])

    def _of_tables(self, place: str, files: list[str]) -> Part:
        suffix = _suffix(files[0])
        if suffix == "csv":
            rows = [row for file in files for row in self._csv(file)]
            images, labels = (tuple(row[i] for row in rows) for i in (0, 1))
            return Part(place, "images", images, labels, tuple(files))
        return Part(place, "parquet" if suffix == "parquet" else "arrow", tuple(files))

    def _of_leaf(self, place: str, entries: Mapping[str, Kind]) -> Part | None:
        """Return a folder of JSON files, if it holds some and no folders."""
        files = [
            name
            for name, kind in entries.items()
            if kind == "file" and _suffix(name) == "json" and not name.startswith(".")
        ]
        if not files or self._holds(place) == "folders":
            return None
        self.unread += [_join(place, name) for name in entries if name not in files]
        return Part(place, "leaf", tuple(_join(place, name) for name in files))

    def _classes(self, place: str) -> Part:
        """Return a folder of one folder of images per class, at any depth."""
        files: list[str] = []
        classes: list[str] = []
        for name, kind in self.tree.entries(place).items():
            path = _join(place, name)
            if kind != "folder":
                if kind == "neither":
                    self._leave_out("a link that leads nowhere", path)
                elif is_image(name):
                    self._leave_out(
                        "hidden" if name.startswith(".") else "in no class's folder", path
                    )
                else:
                    self.unread.append(path)
                continue
            above = (self.tree.identity(place),)
            of_class = list(self._images(path, above, hidden=name.startswith(".")))
            if not of_class:
                self.unread.append(f"{path}/")
            files += of_class
            classes += [name] * len(of_class)
        return Part(place, "images", tuple(files), tuple(classes))

    def _images(self, folder: str, above: tuple[object, ...], hidden: bool) -> Iterator[str]:
        """Yield the images of a class; a hidden one's are left out."""
        here = self.tree.identity(folder)
        if here in above:
            self._leave_out("a link to a folder above it", folder)
            return
        for name, kind in self.tree.entries(folder).items():
            path, unseen = _join(folder, name), hidden or name.startswith(".")
            if kind == "folder":
                yield from self._images(path, (*above, here), unseen)
            elif unseen:
                if is_image(name):
                    self._leave_out("hidden", path)
                else:
                    self.unread.append(path)
            elif kind == "neither":
                self._leave_out("a link that leads nowhere", path)
            elif is_image(name):
                yield path
            else:
                self._leave_out("not an image", path)

    def _csv(self, file: str) -> list[tuple[str, str]]:
        """Return image paths, relative to the data set, and labels of a CSV file, row by row."""
        shown_file = shown(str(self.tree.local(file)), 200)
        try:
            text = self.tree.local(file).read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{shown_file} can't be read as UTF-8 text: {error}") from error
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        folder = os.path.dirname(file)
        rows = []
        known: dict[str, dict[str, Kind]] = {}
        try:
            for key in ("image", "label"):
                name = getattr(self.cfg, key)
                if name not in (reader.fieldnames or ()):
                    given = [shown(column) for column in reader.fieldnames or ()]
                    raise DataError(
                        f"{shown_file}: {unknown('column', name, given)} Set dataset.{key}"
                        f"{_other_task(file)}"
                    )
            for row in reader:
                image, label = row[self.cfg.image], row[self.cfg.label]
                where = f"{shown_file}, line {reader.line_num}"
                if not image or not label:
                    raise DataError(
                        f"{where}: the image or the label is missing; remove the row first"
                    )
                path = os.path.normpath(_join(folder, image))
                if os.path.isabs(image) or path.split(os.sep)[0] == "..":
                    raise DataError(
                        f"{where}: {shown(image)} lies outside the data set; give paths relative "
                        "to the CSV"
                    )
                inside, name = os.path.split(path)
                if inside not in known:
                    try:
                        known[inside] = self.tree.entries(inside)
                    except DataError:
                        known[inside] = {}
                if known[inside].get(name) != "file":
                    raise DataError(
                        f"{where}: there is no file {shown(image)}; correct or remove the row"
                    )
                rows.append((path, label))
        except csv.Error as error:
            raise DataError(f"{shown_file}, line {reader.line_num}: {error}") from error
        if not rows:
            raise DataError(
                f"{shown_file} has no row; set dataset.train_split and dataset.test_split to others"
            )
        return rows

    def _leave_out(self, reason: str, path: str) -> None:
        self.left_out.setdefault(reason, []).append(path)

    # What is said

    def _beside(self, base: str, entries: Mapping[str, Kind], parts: Iterable[Part]) -> list[str]:
        """Return what lies beside the layout, and in it without being read."""
        start = len(base) + 1 if base else 0
        used = {
            path[start:].split(os.sep)[0] for part in parts for path in (part.place, *part.files)
        }
        beside = {
            _join(base, name) + ("/" if kind == "folder" else "")
            for name, kind in entries.items()
            if name not in used
        }
        left = {path for paths in self.left_out.values() for path in paths}
        return sorted((beside | set(self.unread)) - left)

    def _missing(
        self,
        base: str,
        entries: Mapping[str, Kind],
        folders: list[str],
        train: Part | None,
        test: Part | None,
    ) -> str:
        """Say which split is not there, what is there, and how each reading is asked for."""
        role, name = ("test", self.cfg.test_split) if train else ("train", self.cfg.train_split)
        splits = {match[1] for entry in entries if (match := re.fullmatch(_NAMED, entry))} | {
            *folders
        }
        if entries.get("data") == "folder":
            inside = self.tree.entries(_join(base, "data"))
            splits |= {match[1] for entry in inside if (match := re.fullmatch(_NAMED, entry))}
        if entries.get(name) == "folder":
            what = f"{shown(name)}/ holds images but no folder per class"
            return f"{self.where}: {what}; {_how(self.cfg)}"
        lacking = (
            unknown("split", name, map(shown, sorted(splits)[:20]))
            if splits
            else f"no split '{name}' is there."
        )
        classes = (
            ""
            if train or test
            else " If its folders are the classes, set dataset.test_fraction=0.2."
        )
        others = [name for name in entries if entries[name] == "file" and _suffix(name) in _TASKS]
        if others and not folders and not train and not test:
            task = _TASKS[_suffix(others[0])]
            classes += f" If {shown(others[0])} holds no images, take dataset={task}."
        return (
            f"{self.where}: {lacking}{classes} Set dataset.{role}_split to the split's name, "
            f"dataset.{role} to its folder or file"
            + (", or dataset.test_fraction=0.2 to draw a test set" if train else "")
        )


_NAMED = rf"(.+?)(?:-\d+-of-\d+(?:-[0-9a-f]+)?)?\.(?:{'|'.join(_TABLES)})"


def find_layout(cfg: Images, tree: Tree, where: str) -> FileLayout:
    """Return what is read of a data set, by the rules above.

    Parameters
    ----------
    tree : Tree
        Its files.
    where : str
        Its place, for messages.

    Raises
    ------
    DataError
        Nothing or two things can be meant, a shard or an image is missing, or too much would be
        left out.
    """
    return _Finder(cfg, tree, where).layout()


def check_share(left_out: Mapping[str, tuple[str, ...]], read: int, where: str) -> None:
    """Refuse to leave out more than :data:`MOST_LEFT_OUT` of the images.

    Raises
    ------
    DataError
        It is more.
    """
    count = sum(map(len, left_out.values()))
    if count > MOST_LEFT_OUT * (read + count):
        raise DataError(
            f"{where}: {count:,} of {read + count:,} files can't be read as images of a class, "
            f"more than {MOST_LEFT_OUT:.0%}: {reasons(left_out)}; remove, rename or move them"
        )


def reasons(left_out: Mapping[str, tuple[str, ...]]) -> str:
    """Return what was left out, by reason."""
    return ", ".join(
        f"{len(paths):,} {reason} ({listed(paths, 3)})" for reason, paths in left_out.items()
    )


def is_image(name: str) -> bool:
    """Return whether a file is one by its name's ending."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].removeprefix(".")


def _join(folder: str, name: str) -> str:
    return os.path.join(folder, name) if folder else name


_TASKS = {"csv": "tabular", "parquet": "tabular", "txt": "text", "ts": "series"}


def _other_task(file: str) -> str:
    """Say which data set a file would be that holds no images; nothing if none is known."""
    task = _TASKS.get(_suffix(file))
    return f"; if it is no table of images, take dataset={task}" if task else ""


def other_task_of(path: Path) -> str:
    """Say by which words a file is read that is given in place of a folder of images."""
    task = _TASKS.get(_suffix(path.name))
    return f"; a {path.suffix} file is dataset={task} dataset.path={path}" if task else ""


def _how(cfg: Images) -> str:
    return (
        f"lay images out as {cfg.train_split}/CLASS/IMAGE and {cfg.test_split}/CLASS/IMAGE, "
        "or as CLASS/IMAGE with dataset.train=. dataset.test_fraction=0.2"
    )
