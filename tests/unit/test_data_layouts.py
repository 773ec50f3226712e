"""What is read of a folder: hostile layouts, each made in one, and the right outcome of each."""

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedsweep.config import DataConfig, DatasetConfig
from fedsweep.data.decoding import drawn_test
from fedsweep.data.sources import ImageData, load_images
from fedsweep.errors import DataError, RunnerError, shown

Read = dict[str, list[int]]  # class -> values of its images, sorted


def png(value: int) -> bytes:
    """A grey image of 2 x 2 whose pixels tell which one it is."""
    file = io.BytesIO()
    Image.fromarray(np.full((2, 2), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def table(
    labels: Sequence[Any], values: Sequence[int], names: Sequence[str] | None = None
) -> pa.Table:
    """A table as the Hub has it."""
    made = pa.table(
        {"image": [{"bytes": png(value), "path": None} for value in values], "label": labels}
    )
    if names is None:
        return made
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return made.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def make(folder: Path, files: dict[str, Any]) -> Path:
    """Make files: a number is an image of that value; tables, bytes, text; links by ``link``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            path.write_bytes(png(content))
        elif isinstance(content, pa.Table) and path.suffix == ".arrow":
            with (
                pa.OSFile(str(path), "wb") as file,
                pa.ipc.new_stream(file, content.schema) as writer,
            ):
                writer.write_table(content)
        elif isinstance(content, pa.Table):
            pq.write_table(content, path)
        elif isinstance(content, Link):
            path.symlink_to(content.to)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@dataclass(frozen=True)
class Link:
    to: str


def load(folder: Path, **settings: Any) -> ImageData:
    cfg = DatasetConfig(name="folder", path=str(folder), **settings)
    return load_images(cfg, DataConfig(root=None, cache=str(folder.parent / "the cache")))


def read(images: ImageData) -> tuple[Read, Read]:
    """What training and test set hold."""
    sets = []
    for x, y in ((images.train_x, images.train_y), (images.test_x, images.test_y)):
        values: Read = {}
        for pixels, label in zip(x, y, strict=True):
            values.setdefault(images.class_names[label], []).append(int(pixels[0, 0, 0]))
        sets.append({name: sorted(own) for name, own in sorted(values.items())})
    return sets[0], sets[1]


@dataclass(frozen=True)
class Case:
    """A layout and what becomes of it: what is read and said, or the words of its refusal.

    Without a test set, ``train`` is all that is read, of which half of each class is drawn.
    """

    files: dict[str, Any]
    train: Read | None = None
    test: Read | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def split(*classes: str, start: int = 0, test: str = "test") -> dict[str, int]:
    """Two training images and one test image of each class."""
    files = {}
    for number, name in enumerate(classes):
        files |= {
            f"train/{name}/a.png": start + 10 * number + 1,
            f"train/{name}/b.png": start + 10 * number + 2,
        }
        files |= {f"{test}/{name}/a.png": start + 10 * number + 3}
    return files


CATS = split("cat", "dog")
CATS_READ: tuple[Read, Read] = ({"cat": [1, 2], "dog": [11, 12]}, {"cat": [3], "dog": [13]})
TRAIN, TEST = table([0, 1, 0], [1, 2, 3], ["cat", "dog"]), table([1, 0], [4, 5], ["cat", "dog"])
TABLES_READ: tuple[Read, Read] = ({"cat": [1, 3], "dog": [2]}, {"cat": [5], "dog": [4]})
MANY = {f"train/cat/{number:03}.png": number % 200 for number in range(199)} | {"test/cat/a.png": 1}


def flat(*classes: str) -> dict[str, int]:
    return {
        f"{name}/{n}.png": 10 * number + n for number, name in enumerate(classes) for n in (1, 2)
    }


HALF = {"test_fraction": 0.5}

CASES = {
    # Names that look like splits.
    "a class called train and a train_station": Case(
        split("train", "train_station", "test"),
        {"test": [21, 22], "train": [1, 2], "train_station": [11, 12]},
        {"test": [23], "train": [3], "train_station": [13]},
    ),
    "a class called test tube": Case(
        split("test tube", "beaker"), {"beaker": [11, 12], "test tube": [1, 2]},
        {"beaker": [13], "test tube": [3]}
    ),
    "a copy of train beside it": Case(
        CATS | {"train (copy)/cat/c.png": 99}, *CATS_READ, said=("not read: train (copy)/",)
    ),
    "old-test and backup": Case(
        CATS | {"old-test/cat/c.png": 99, "backup/train/cat/c.png": 98, "train.txt": "cat"},
        *CATS_READ,
        said=("not read: backup/, old-test/, train.txt",),
    ),
    "train_old.parquet": Case(
        {"train.parquet": TRAIN, "test.parquet": TEST, "train_old.parquet": TEST,
         "test-2.parquet": TRAIN},
        *TABLES_READ,
        said=("not read: test-2.parquet, train_old.parquet",),
    ),
    "tables in a folder called backup": Case(
        {"train.parquet": TRAIN, "test.parquet": TEST, "backup/train.parquet": TEST},
        *TABLES_READ,
        said=("not read: backup/",),
    ),
    # Classes that used to vanish.
    "__background__": Case(
        split("__background__", "cat"),
        {"__background__": [1, 2], "cat": [11, 12]},
        {"__background__": [3], "cat": [13]},
    ),
    "a class that begins with a dot": Case(
        split(".net", "cat"),
        refused=("3 of 6 files", "hidden (train/.net/a.png, train/.net/b.png, test/.net/a.png)")
    ),
    "a hidden copy of one image in two hundred": Case(
        MANY | {"train/cat/.copy.png": 9, "train/.DS_Store": b"junk",
            "train/cat/.DS_Store": b"junk"},
        {"cat": sorted(number % 200 for number in range(199))},
        {"cat": [1]},
        said=("left out: 1 hidden (train/cat/.copy.png)",
            "not read: train/.DS_Store, train/cat/.DS_Store"),
    ),
    "a class that is a link": Case(
        CATS | {"elsewhere/c.png": 21, "train/fox": Link("../elsewhere"),
            "test/fox": Link("../elsewhere")},
        CATS_READ[0] | {"fox": [21]},
        CATS_READ[1] | {"fox": [21]},
    ),
    "images that are links": Case(
        {"store/1": png(7), "train/cat/a.png": Link("../../store/1"),
         "test/cat/a.png": Link("../../store/1")},
        {"cat": [7]},
        {"cat": [7]},
    ),
    "images in folders of a class": Case(
        {"train/cat/indoor/1/a.png": 1, "train/cat/b.png": 2, "test/cat/c.png": 3}, {"cat": [1, 2]},
        {"cat": [3]}
    ),
    "a class without an image": Case(
        CATS | {"train/fox/read me.txt": "none"},
        refused=("1 of 7 files", "1 not an image (train/fox/read me.txt)")
    ),
    # Links without an end.
    "two folders that link to each other": Case(
        CATS | {"train/cat/more": Link("../dog"), "train/dog/more": Link("../cat")},
        refused=("a link to a folder above it", "train/cat/more/more"),
    ),
    "two links that point to each other": Case(
        CATS | {"train/cat/x.png": Link("y.png"), "train/cat/y.png": Link("x.png")},
        refused=("2 a link that leads nowhere (train/cat/x.png, train/cat/y.png)",),
    ),
    "a split that links to itself": Case(
        CATS | {"train/all": Link(".")}, refused=("a link to a folder above it (train/all)",)
    ),
    # Layouts that fit two readings, or none.
    "Tiny-ImageNet": Case(
        {"train/n01/images/n01_0.JPEG": 1, "train/n02/images/n02_0.JPEG": 2,
         "val/images/val_0.JPEG": 3,
         "val/val_annotations.txt": "val_0.JPEG n01", "test/images/test_0.JPEG": 4,
         "wnids.txt": "n01 n02"},
        refused=("the test set test has classes that train has not: images", "test/CLASS/IMAGE"),
    ),
    "Tiny-ImageNet, its training images alone": Case(
        {"train/n01/images/n01_0.JPEG": 1, "train/n01/images/n01_1.JPEG": 5,
         "train/n02/images/n02_0.JPEG": 2,
         "val/images/val_0.JPEG": 3, "test/images/test_0.JPEG": 4},
        settings={"train": "train", **HALF},
        train={"n01": [1, 5], "n02": [2]},
        said=("1 drawn from them to test on (dataset.test_fraction=0.5)",),
    ),
    "two configurations": Case(
        {f"{config}/{name}.parquet": TRAIN
         for config in ("large", "small") for name in ("train", "test")},
        refused=("several configurations: large, small", "set dataset.config"),
    ),
    "two configurations, one of them named": Case(
        {"large/train.parquet": TRAIN, "large/test.parquet": TEST}
        | {"small/train.parquet": TEST, "small/test.parquet": TEST},
        *TABLES_READ,
        settings={"config": "large"},
    ),
    "no such configuration": Case(
        {"large/train.parquet": TRAIN, "large/test.parquet": TEST},
        settings={"config": "lage"},
        refused=("unknown folder 'lage'. Did you mean 'large'?", "Set dataset.config"),
    ),
    "a folder and a table for one split": Case(
        CATS | {"train.parquet": TRAIN},
        refused=("split 'train' can be read from train.parquet, train",
            "set dataset.train to one of them"),
    ),
    "two formats": Case(
        {"train.parquet": TRAIN, "train.arrow": TRAIN, "test.parquet": TEST},
        refused=("can be read from train.arrow, train.parquet", "set dataset.train"),
    ),
    "the root and data/": Case(
        {"train.parquet": TRAIN, "test.parquet": TEST, "data/test.parquet": TEST},
        refused=("split 'test' can be read from test.parquet, data/test.parquet",
            "set dataset.test to one"),
    ),
    "explicit places decide": Case(
        CATS | {"train.parquet": TRAIN, "data/my test.parquet": TEST},
        *TABLES_READ,
        settings={"train": "train.parquet", "test": "data/my test.parquet"},
    ),
    "an explicit place that is not there": Case(
        CATS, settings={"train": "trian", "test": "test"},
        refused=("dataset.train=trian", "no such file or folder")
    ),
    "an explicit place that is no table": Case(
        CATS | {"list.txt": "a"}, settings={"train": "list.txt", "test": "test"},
        refused=("dataset.train=list.txt",)
    ),
    "images and labels of two kinds": Case(
        CATS | {"test.csv": "image,label\ntrain/cat/a.png,cat\n", "all.parquet": TRAIN},
        settings={"train": "all.parquet", "test": "test"},
        refused=("not of one kind",),
    ),
    "no test set": Case(
        {"train/cat/a.png": 1, "val/cat/a.png": 2},
        refused=("unknown split 'test'", "Valid: train, val", "dataset.test_split",
            "dataset.test_fraction=0.2"),
    ),
    "another name for the test set": Case(
        split("cat", "dog", test="val"), *CATS_READ, settings={"test_split": "val"}
    ),
    "nothing": Case({"read me.txt": "soon"},
        refused=("no split 'train' is there", "dataset.train_split")),
    "images of no class": Case({"a.png": 1, "b.png": 2}, refused=("no split 'train'",)),
    "splits without classes": Case(
        {"train/a.png": 1, "test/b.png": 2},
        refused=("train/ holds images but no folder per class", "train/CLASS/IMAGE"),
    ),
    # Classes without splits.
    "flat": Case(flat("cat", "dog"), {"cat": [1, 2], "dog": [11, 12]}, settings=HALF),
    "flat, without a fraction": Case(
        flat("cat", "dog"),
        refused=("Valid: cat, dog", "If its folders are the classes, set dataset.test_fraction=0.2")
    ),
    "flat, with classes called train and test": Case(
        flat("test", "train", "tram"),
        {"test": [1, 2], "train": [11, 12], "tram": [21, 22]},
        settings=HALF,
    ),
    "flat, a class called train with folders": Case(
        flat("bus") | {"train/old/1.png": 1, "train/new/2.png": 2},
        settings=HALF,
        refused=("is 'train' a split, or a class beside bus?", "dataset.train=train",
            "dataset.train=."),
    ),
    "flat, a class called train with folders, decided": Case(
        {"bus/1.png": 1, "bus/2.png": 2, "train/old/1.png": 11, "train/new/2.png": 12},
        {"bus": [1, 2], "train": [11, 12]},
        settings={"train": ".", **HALF},
    ),
    "a fraction of the split train": Case(
        {"train/cat/1.png": 1, "train/cat/2.png": 2, "read me.txt": "x"}, {"cat": [1, 2]},
        settings=HALF, said=("not read: read me.txt",),
    ),
    "a fraction and a test set": Case(
        CATS, settings=HALF, refused=("dataset.test_fraction is set", "dataset.train=.")
    ),
    "one image of a class": Case(
        {"cat/1.png": 1, "cat/2.png": 2, "dog/1.png": 11}, {"cat": [1, 2], "dog": [11]},
        settings=HALF
    ),
    "one image of each class": Case(
        {"cat/1.png": 1, "dog/1.png": 2}, settings=HALF, refused=("no class has two images",)
    ),
    # Files.
    "shards, as the Hub writes them": Case(
        {"data/train-00000-of-00002.parquet": table([0], [1], ["cat", "dog"]),
         "data/train-00001-of-00002.parquet": table([1, 0], [2, 3], ["cat", "dog"]),
         "data/test-00000-of-00001-a09b74b3ef9c3b56.parquet": TEST, "README.md": "x",
         ".gitattributes": "x"},
        *TABLES_READ,
    ),
    "a shard is missing": Case(
        {"train-00001-of-00002.parquet": TRAIN, "test.parquet": TEST},
        refused=("of the 2 shards train-*.parquet in . there are 1", "missing has number 0"),
    ),
    "Arrow, as save_to_disk writes it": Case(
        {"train/data-00000-of-00001.arrow": TRAIN, "train/state.json": "{}",
         "test/data-00000-of-00001.arrow": TEST,
         "test/dataset_info.json": "{}", "dataset_dict.json": "{}"},
        *TABLES_READ,
    ),
    "the Hub's converted branch": Case({"train/0000.parquet": TRAIN, "test/0000.parquet": TEST},
        *TABLES_READ),
    "CSV": Case(
        {"train.csv": "image,label\nimages/a.png,cat\nimages/b.png,dog\n",
         "test.csv": "image,label\nimages/a.png,cat\n",
         "images/a.png": 1, "images/b.png": 2, "images/c.png": 3},
        {"cat": [1], "dog": [2]},
        {"cat": [1]},
    ),
    "CSV that names a file that is not there": Case(
        {"train.csv": "image,label\na.png,cat\nb.png,dog\n", "test.csv": "image,label\na.png,cat\n",
         "a.png": 1},
        refused=("train.csv, line 3", "no file b.png"),
    ),
    "CSV that leads out of the folder": Case(
        {"train.csv": "image,label\n../secret.png,cat\n",
         "test.csv": "image,label\n/etc/passwd,cat\n"},
        refused=("train.csv, line 2", "../secret.png lies outside"),
    ),
    "CSV without the column": Case(
        {"train.csv": "file,label\na.png,cat\n", "test.csv": "file,label\na.png,cat\n", "a.png": 1},
        refused=("train.csv: unknown column 'image'", "Valid: file, label", "Set dataset.image"),
    ),
    "a file that is no image by its name": Case(
        MANY | {"train/cat/boxes.txt": "0 0 2 2"},
        {"cat": sorted(number % 200 for number in range(199))},
        {"cat": [1]},
        said=("left out: 1 not an image (train/cat/boxes.txt)",),
    ),
    "an image that can't be read in two hundred": Case(
        MANY | {"train/cat/000.png": b"no image"},
        {"cat": list(range(1, 199))},
        {"cat": [1]},
        said=("left out: 1 unreadable", "train/cat/000.png"),
    ),
    "an image that can't be read in two": Case(
        {"train/cat/a.png": 1, "train/cat/b.png": b"no image", "test/cat/a.png": 3},
        refused=("1 of 2 files", "1 unreadable", "train/cat/b.png"),
    ),
    "images of two sizes": Case(
        CATS | {"train/cat/c.ppm": b"P5 1 2 255 ab"},
        refused=("train/cat/c.ppm is 2 x 1 greyscale", "train/cat/a.png is 2 x 2 greyscale"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_of_a_layout(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    folder = make(tmp_path / "the data", case.files)
    if case.refused:
        with pytest.raises(DataError) as caught:
            load(folder, **case.settings)
        message = str(caught.value)
        assert [words for words in case.refused if words not in message] == [], message
        assert str(folder) in message
        assert "\n" not in message
        return
    images = load(folder, **case.settings)
    train, test = read(images)
    if case.test is None:
        assert {name: sorted(own + test.get(name, [])) for name, own in train.items()} == case.train
        assert {name: len(own) for name, own in test.items()} == {
            name: len(own) // 2 for name, own in (case.train or {}).items() if len(own) > 1
        }
    else:
        assert (train, test) == (case.train, case.test)
    assert [words for words in case.said if words not in images.told] == [], images.told
    assert case.said or "left out" not in images.told
    for count, verb in (
        (len(images.train_y), "images to train on"),
        (len(images.test_y), "to test on"),
    ):
        assert f"{count:,} " in images.told.split(verb)[0]


@pytest.mark.parametrize(
    "name",
    [
        "data [v2]",
        "data *",
        "a::b",
        "{x}",
        "a?b",
        "$HOME",
        "~",
        "a%20b",
        "hf:",
        "x" * 200,
        "día\n\\n<b>|",
    ],
)
def test_a_folder_of_any_name_is_read_and_no_other(name: str, tmp_path: Path) -> None:
    make(tmp_path / "data v", split("wrong", start=100))
    make(tmp_path / "data x", split("wrong", start=100))
    make(tmp_path / name, CATS)
    assert read(load(tmp_path / name)) == CATS_READ
    by_name = load_images(
        DatasetConfig(name=name), DataConfig(root=str(tmp_path), cache=str(tmp_path / "the cache"))
    )
    assert read(by_name) == CATS_READ
    assert "\n" not in by_name.told


NAMES = [
    "$\\frac$", "a\\b", "<script>", "a|b", "line\nbreak", "tab\there", "ü" * 120, "日本語",
    "e\u0301", "[red]", "{}", "%s", "'quote\"", " space ", "-rf", "*", "~", "train",
    "\u202eleft", "CON", "a" * 255, "💥", "#", "~$x", "{a,b}",
]  # fmt: skip


def test_names_of_classes_are_data(tmp_path: Path) -> None:
    images = load(make(tmp_path / "data", split(*NAMES)))
    assert images.class_names == tuple(sorted(NAMES))
    assert read(images)[0] == {name: [10 * n + 1, 10 * n + 2] for n, name in enumerate(NAMES)}
    assert "\n" not in images.told


def test_names_of_files_are_data(tmp_path: Path) -> None:
    files = {f"train/cat/{name[:200]}.png": number for number, name in enumerate(NAMES)}
    images = load(make(tmp_path / "data", files | {"test/cat/a.PNG": 1}))
    assert read(images)[0] == {"cat": list(range(len(NAMES)))}


def test_a_name_that_is_no_text_is_read_and_shown(tmp_path: Path) -> None:
    """A file system's names are bytes."""
    folder = make(tmp_path / "data", CATS)
    for part, value in ((b"train", 5), (b"test", 6)):
        path = os.path.join(os.fsencode(folder), part, b"caf\xe9")
        os.mkdir(path)
        with open(os.path.join(path, b"\xff.png"), "wb") as file:
            file.write(png(value))
    images = load(folder)
    assert [int(x[0, 0, 0]) for x in images.train_x] == [5, 1, 2, 11, 12]
    [name] = set(images.class_names) - {"cat", "dog"}
    name.encode()  # it can be written anywhere
    images.told.encode()


def test_a_shown_name_is_one_short_line_of_text() -> None:
    assert shown("plain name, é 日本") == "plain name, é 日本"
    assert shown("a\nb\x1b[0m") == "a\\nb\\x1b[0m"
    assert shown("caf\udce9") == "caf\\udce9"
    assert shown("x" * 300) == "x" * 40 + "…" + "x" * 39


# Tables


@dataclass(frozen=True)
class Column:
    """A table's column and what becomes of it."""

    train: pa.Table
    test: pa.Table
    classes: tuple[str, ...] = ()
    labels: tuple[list[int], list[int]] = ([], [])
    settings: dict[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = ()


def labelled(
    labels: Any, values: Sequence[int] = (1, 2, 3), names: Sequence[str] | None = None
) -> pa.Table:
    return table(labels, values[: len(labels)], names)


def with_images(column: pa.Array) -> pa.Table:
    return pa.table({"image": column, "label": [0, 1, 0][: len(column)]})


CATS_LARGE = pa.array(["cat", "dog", "cat"], pa.large_string())
COLUMNS = {
    "names in another order are the same names": Column(
        labelled([0, 1, 0], names=["cat", "dog"]), labelled([0, 1], names=["dog", "cat"]),
        ("cat", "dog"), ([0, 1, 0], [1, 0]),
    ),
    "a name that the first file has not": Column(
        labelled([0, 1, 0], names=["cat", "dog"]), labelled([0, 1], names=["fox", "cat"]),
        ("cat", "dog", "fox"), ([0, 1, 0], [2, 0]),
    ),
    "names in one file alone": Column(
        labelled([0, 1, 0], names=["cat", "dog"]), labelled([0, 1]),
        refused=("train.parquet declares the names of its classes", "test.parquet does not"),
    ),
    "one name twice": Column(
        labelled([0, 1, 0], names=["cat", "cat"]), labelled([0], names=["cat", "dog"]),
        refused=("train.parquet: two classes are called cat",),
    ),
    "labels from 1": Column(
        labelled([1, 2, 1], names=["cat", "dog"]), labelled([1], names=["cat", "dog"]),
        refused=("train.parquet, row 1: label 2", "column 'label' declares 2 classes",
            "outside 0..1"),
    ),
    "labels of a test set that nobody labelled": Column(
        labelled([0, 1], names=["cat", "dog"]), labelled([-1], names=["cat", "dog"]),
        refused=("test.parquet, row 0: label -1",),
    ),
    "large_string": Column(
        labelled(CATS_LARGE), labelled(pa.array(["dog"], pa.string_view())), ("cat", "dog"),
        ([0, 1, 0], [1])
    ),
    "dictionary": Column(
        labelled(CATS_LARGE.dictionary_encode()), labelled(["dog"]), ("cat", "dog"),
        ([0, 1, 0], [1])
    ),
    "small unsigned numbers": Column(
        labelled(pa.array([10, 9, 10], pa.uint8())), labelled([9]), ("9", "10"), ([1, 0, 1], [0])
    ),
    "numbers and text": Column(
        labelled([0, 1, 0]), labelled(["0", "1"]), refused=("labels of different types (int, str)",)
    ),
    "decimals": Column(labelled([0.5, 1.5, 0.5]), labelled([0.5]),
        refused=("holds double, not class labels",)),
    "a text for each image is no class": Column(
        table([f"a photograph of number {n}" for n in range(60)], range(60)), labelled(["one"]),
        refused=("61 different values in 61 rows", "a photograph of number 0", "set dataset.label"),
    ),
    "a number for each image is no class": Column(
        table(list(range(1000, 1060)), range(60)), labelled([1000]),
        refused=("60 different values in 61 rows", "set dataset.label"),
    ),
    "text as the image": Column(
        with_images(pa.array(["a cat", "a dog", "a fox"])), labelled([0]),
        refused=("column 'image' holds string, not images",),
    ),
    "numbers as the image": Column(
        with_images(pa.array([1, 2, 3])), labelled([0]),
        refused=("column 'image' holds int64, not images",)
    ),
    "pixels as lists": Column(
        with_images(pa.array([[1, 2], [3, 4]])), labelled([0]),
        refused=("column 'image' holds list", "not images")
    ),
    "encoded bytes alone": Column(
        with_images(pa.array([png(1), png(2), png(3)])),
        with_images(pa.array([png(1)], pa.large_binary())), ("0", "1"), ([0, 1, 0], [0]),
    ),
    "images that are elsewhere": Column(
        with_images(pa.array([{"bytes": None, "path": "/etc/passwd"}])), labelled([0]),
        refused=("train.parquet, row 0: the image is missing (only embedded images are read)",),
    ),
    "a column that is not there": Column(
        labelled([0]), labelled([0]), settings={"image": "img"},
        refused=("unknown column 'img'", "Set dataset.image")
    ),
    "a column twice": Column(
        pa.table([pa.array([png(1)]), pa.array([0]), pa.array([1])],
            names=["image", "label", "label"]), labelled([0]),
        refused=("two columns 'label'",),
    ),
    "a row that can't be read": Column(
        with_images(pa.array([png(1), b"no image"])), labelled([0]),
        refused=("train.parquet, row 1: the image can't be decoded",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_what_is_read_of_a_table(name: str, tmp_path: Path) -> None:
    case = COLUMNS[name]
    folder = make(tmp_path / "data", {"train.parquet": case.train, "test.parquet": case.test})
    if case.refused:
        with pytest.raises(DataError) as caught:
            load(folder, **case.settings)
        assert [words for words in case.refused if words not in str(caught.value)] == [], (
            caught.value
        )
        assert "\n" not in str(caught.value)
        return
    images = load(folder, **case.settings)
    assert images.class_names == case.classes
    assert (images.train_y.tolist(), images.test_y.tolist()) == case.labels
    assert images.train_x[:, 0, 0, 0].tolist() == [1, 2, 3]


def test_a_row_is_named_with_its_own_file(tmp_path: Path) -> None:
    """Files of many batches: row numbers count from the start of each file."""
    good, bad = [png(1)] * 2500, [png(1)] * 2400 + [b"no image"]
    shards = {
        f"train-0000{n}-of-00002.parquet": pa.table({"image": images, "label": [0] * len(images)})
        for n, images in enumerate([good, bad])
    }
    with pytest.raises(
        DataError, match=r"train-00001-of-00002\.parquet, row 2400: the image can't be decoded"
    ):
        load(make(tmp_path / "data", shards | {"test.parquet": labelled([0])}))


def test_rows_of_many_batches_keep_their_order_and_labels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, 4500)
    files = {
        "train.parquet": table((values % 7).tolist(), values.tolist()),
        "test.parquet": labelled([0]),
    }
    for name in ("train.parquet", "train.arrow"):
        folder = make(
            tmp_path / name, {name: files["train.parquet"], "test.parquet": files["test.parquet"]}
        )
        images = load(folder)
        assert images.train_x[:, 0, 0, 0].tolist() == values.tolist()
        assert images.train_y.tolist() == (values % 7).tolist()


def test_arrow_of_the_file_format_is_read_too(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", {"test.parquet": TEST})
    with (
        pa.OSFile(str(folder / "train.arrow"), "wb") as file,
        pa.ipc.new_file(file, TRAIN.schema) as writer,
    ):
        writer.write_table(TRAIN)
    assert read(load(folder)) == TABLES_READ


@pytest.mark.parametrize("name", ["train.parquet", "train.arrow"])
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "data", {name: b"ARROW1 and then nothing", "test.parquet": TEST})
    with pytest.raises(DataError, match=rf"{name} can't be read as"):
        load(folder)


# Images


def turned(orientation: int) -> bytes:
    """A wide PNG that is to be turned: left half 10, right half 200."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.array([[10, 10, 200, 200]] * 2, np.uint8)).save(file, "PNG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[10, 10, 200, 200]] * 2),
        (3, [[200, 200, 10, 10]] * 2),
        (6, [[10, 10], [10, 10], [200, 200], [200, 200]]),  # to be turned clockwise
        (8, [[200, 200], [200, 200], [10, 10], [10, 10]]),
    ],
)
def test_images_are_turned_as_their_exif_says(
    orientation: int, expected: list[list[int]], tmp_path: Path
) -> None:
    files = {f"{name}/cat/a.png": turned(orientation) for name in ("train", "test")}
    assert load(make(tmp_path / "data", files)).train_x[0, 0].tolist() == expected


def test_a_decompression_bomb_is_refused_in_one_line(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """A header that asks for gigabytes: above PIL's warning, below and above its error."""
    header = "P5 {0} {0} 255\n"
    for name, side in (("a", 12_000), ("b", 60_000)):
        files = CATS | {"train/cat/a.pgm": header.format(side)}
        with pytest.raises(
            DataError, match=r"train/cat/a\.pgm: the image is too large to be one to learn from"
        ):
            load(make(tmp_path / name, files))
    assert list(recwarn) == []


def test_every_test_image_is_drawn_once_and_by_class() -> None:
    """A property over sizes: each class gives its share, at least one, never all;
    the draw does not change.
    """
    rng = np.random.default_rng(1)
    for fraction in (0.01, 0.2, 0.5, 0.99):
        labels = rng.integers(0, 9, 500)
        rows = drawn_test(labels, fraction)
        assert len(set(rows.tolist())) == len(rows)
        assert rows.tolist() == drawn_test(labels, fraction).tolist() == sorted(rows.tolist())
        for label, total in zip(*np.unique(labels, return_counts=True), strict=True):
            drawn = int((labels[rows] == label).sum())
            assert drawn == min(max(round(fraction * total), 1), total - 1)


@pytest.mark.parametrize(
    "settings",
    [{"test": "x"}, {"train": "x", "test": "y", "test_fraction": 0.2}, {"test_fraction": 1.0}],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="dataset.train|leave out one|less than 1"):
        DatasetConfig(name="folder", path="/", **settings)


@pytest.mark.parametrize("name", ["../other", "/etc", "a/b", "..", ".", ""])
def test_a_name_does_not_lead_out_of_the_data_root(name: str, tmp_path: Path) -> None:
    make(tmp_path / "other", CATS)
    make(tmp_path / "root", {"a/b/c": "x"})
    data = DataConfig(root=str(tmp_path / "root"), cache=str(tmp_path / "cache"))
    with pytest.raises(RunnerError, match=r"dataset\.name=.* is no name of a folder"):
        load_images(DatasetConfig().model_copy(update={"name": name}), data)
