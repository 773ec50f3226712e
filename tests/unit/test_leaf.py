"""LEAF's own files: what images, tables and text read of them, whose it is, and what is refused."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsweep.config import RunConfig
from fedsweep.data.federated import FederatedData
from fedsweep.data.sources import ImageData, load_images
from fedsweep.errors import ConfigError, DataError
from fedsweep.scenario.leaf import as_features, read_leaf
from fedsweep.scenario.tasks.text import UNKNOWN
from fedsweep.sweeps.compose import compose
from tests.trials import events_of

Users = Mapping[str, tuple[list[Any], list[Any]]]

BY_USER = ["partition=natural", "partition.column=user", "partition.min_size=1",
           "partition.eval_fraction=0"]  # fmt: skip


def leaf(path: Path, given: Users, **other: Any) -> Path:
    """Write a file as LEAF's ``split_data.py`` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "users": [*given],
        "num_samples": [len(y) for _, y in given.values()],
        "user_data": {user: {"x": x, "y": y} for user, (x, y) in given.items()},
    }
    path.write_text(json.dumps(content | other))
    return path


def composed(dataset: str, folder: Path, *words: str) -> RunConfig:
    """Return a configuration with a cache of its own: a shared one would know what was read."""
    cache = f"data.cache={folder.parent / 'cache'}"
    return compose([f"dataset={dataset}", f"dataset.path={folder}", cache, *words])


def data_of(config: RunConfig) -> ImageData:
    return load_images(config.dataset, config.data, config.natural_column)


def read(dataset: str, folder: Path, *words: str) -> ImageData:
    return data_of(composed(dataset, folder, *words))


def split_of(dataset: str, folder: Path, *words: str) -> FederatedData:
    config = composed(dataset, folder, *BY_USER, *words)
    return FederatedData.build(data_of(config), config)


def said(dataset: str, folder: Path, *words: str) -> str:
    """Return what a refusal says, in its one line."""
    with pytest.raises(DataError) as error:
        read(dataset, folder, *words)
    assert "\n" not in str(error.value)
    return str(error.value)


# FEMNIST's


def image(*levels: int) -> list[float]:
    """Return pixels as LEAF writes them: levels of grey by 255."""
    return [level / 255 for level in levels]


@pytest.fixture
def femnist(tmp_path: Path) -> Path:
    """Images of 2 x 2: ann and bob in train and test, carl in train alone, dora in test alone."""
    folder = tmp_path / "femnist"
    ann = ([image(0, 1, 254, 255), image(10, 0, 0, 0)], [61, 2])
    leaf(folder / "train/b_1.json", {"carl": ([image(30, 0, 0, 0)], [2])})
    leaf(folder / "train/b_0.json", {"bob": ([image(20, 0, 0, 0)], [10]), "ann": ann})
    test = {"ann": ([image(11, 0, 0, 0)], [2]), "bob": ([image(21, 0, 0, 0)], [7])}
    leaf(folder / "test/b_0.json", {**test, "dora": ([image(41, 0, 0, 0)], [61])})
    (folder / "all_data").mkdir()
    return folder


def test_pixels_are_levels_in_the_order_of_files_and_users(femnist: Path) -> None:
    data = read("folder", femnist)
    assert data.train_x.tolist() == [
        [[[20, 0], [0, 0]]],
        [[[0, 1], [254, 255]]],
        [[[10, 0], [0, 0]]],
        [[[30, 0], [0, 0]]],
    ]
    assert data.train_x.dtype == np.uint8
    assert data.class_names == ("2", "7", "10", "61")
    assert data.train_y.tolist() == [2, 3, 0, 0]
    assert data.test_y.tolist() == [0, 1, 3]
    assert data.test_x[:, 0, 0, 0].tolist() == [11, 21, 41]
    assert data.column is None
    assert read("folder", femnist, "dataset.colour=rgb").shape == (3, 2, 2)


def test_users_are_clients(femnist: Path) -> None:
    split = split_of("folder", femnist, "num_clients=3")
    assert split.images.column.values == ("ann", "bob", "carl")
    own = [sorted(split.client(c, "train")[0][:, 0, 0, 0].tolist()) for c in range(3)]
    assert own == [[0, 10], [20], [30]]
    why = said("folder", femnist, "partition=natural", "partition.column=writer")
    assert "unknown column 'writer'" in why
    assert "Valid: user. Set partition.column" in why


def test_what_is_read_is_said(femnist: Path) -> None:
    leaf(femnist / "test/b_1.json", {"eve": ([], []), "carl": ([image(0, 0, 0, 0)], [2])},
         num_samples=[0, 80])  # fmt: skip
    told = read("folder", femnist).told
    for part in (
        "4 images to train on (train, 2 files), 4 images to test on (test, 2 files)",
        "4 classes (2: 2, 7: 0, 10: 1, 61: 1)",
        "not read: all_data/",
        "3 users to train on (2 JSON files), 4 users to test on (2 JSON files), 3 of them in both",
        "1 without an example left out",
        "num_samples gives another number for 1, and does not count",
    ):
        assert part in told


def test_a_test_set_is_drawn_where_only_the_whole_is_there(tmp_path: Path) -> None:
    whole = {"ann": ([image(i) for i in range(10)], [0, 1] * 5)}
    leaf(tmp_path / "set/all_data/all_data.json", whole, hierarchies=["play"])
    data = read("folder", tmp_path / "set", "dataset.train=all_data", "dataset.test_fraction=0.2")
    assert (len(data.train_y), np.bincount(data.test_y).tolist()) == (8, [1, 1])


def test_which_split_a_file_is_in_is_a_part_of_the_content(tmp_path: Path) -> None:
    """The same files in the same order: one more of them is to test on."""
    rows = {name: ([[float(i), 1.0]], [0]) for i, name in enumerate("abc")}
    contents = []
    for dataset in ("tabular", "folder"):
        for tests in (1, 2):
            folder = tmp_path / f"{dataset}{tests}"
            for i, name in enumerate("abc"):
                values = [[0.1 * i] * 4] if dataset == "folder" else rows[name][0]
                place = "test" if i >= 3 - tests else "train"
                leaf(folder / place / f"{name}.json", {name: (values, [0])})
            contents.append(composed(dataset, folder).dataset.content)
            assert len(read(dataset, folder).test_y) == tests
    assert len({*contents}) == 4


def test_files_of_one_name_in_two_splits_are_told_apart(synthetic: Path) -> None:
    before = composed("tabular", synthetic).dataset.content
    leaf(synthetic / "test/data.json", {"1": ([[9, 8]], [0])})
    with pytest.raises(ConfigError, match=r": test/data\.json \(changed\); put the data back"):
        composed("tabular", synthetic, f"dataset.content={before}")


# Shakespeare's


def windows(text: str, length: int = 4) -> tuple[list[str], list[str]]:
    """Return what LEAF makes of a text: all windows, and the character after each."""
    places = range(len(text) - length)
    return [text[i : i + length] for i in places], [text[i + length] for i in places]


@pytest.fixture
def shakespeare(tmp_path: Path) -> Path:
    folder = tmp_path / "shakespeare"
    leaf(folder / "train/all.json", {"ROMEO": windows("ababab"), "JULIET": windows("bcbcbcb")})
    leaf(folder / "test/all.json", {"ROMEO": windows("abaxé")}, num_samples=[80])
    return folder


def test_windows_and_what_follows_them_are_as_they_were_cut(shakespeare: Path) -> None:
    data = read("text", shakespeare, "dataset.length=4")
    assert data.names == data.class_names == (UNKNOWN, "a", "b", "c")
    rows = ["".join(data.names[symbol] for symbol in [*x, y])
            for x, y in zip(data.train_x, data.train_y, strict=True)]  # fmt: skip
    assert rows == ["ababa", "babab", "bcbcb", "cbcbc", "bcbcb"]
    assert data.test_x.tolist() == [[1, 2, 1, 0]]
    assert data.test_y.tolist() == [0]
    assert (data.train_x.dtype, data.train_y.dtype) == (np.int32, np.int64)
    assert "5 windows of 4 characters of 2 parts to train on, 1 to test on; 4 symbols" in data.told
    assert "windows overlap: what a client holds out it has seen in part" in data.told
    assert "num_samples gives another number for 1" in data.told
    few = read("text", shakespeare, "dataset.length=4", "dataset.symbols=2")
    assert few.names == (UNKNOWN, "b")  # 13 times, a 5 and c 7 times


@pytest.mark.parametrize("column", [["partition.column=user"], ["partition.column=''"]])
def test_speakers_are_clients(shakespeare: Path, column: list[str]) -> None:
    split = split_of("text", shakespeare, "dataset.length=4", "num_clients=2", *column)
    assert split.images.column.values == ("JULIET", "ROMEO")
    assert [len(split.client(client, "train")[1]) for client in range(2)] == [3, 2]


def test_text_of_leaf_is_read_as_it_is(shakespeare: Path) -> None:
    assert "has texts of 4 characters; set dataset.length=4" in said("text", shakespeare)
    assert "leave out dataset.part" in said("text", shakespeare, "dataset.part='(A)'")
    assert "leave out dataset.stride" in said("text", shakespeare, "dataset.stride=1")
    one = said("text", shakespeare / "train", "dataset.length=4")
    assert "all.json is one of LEAF's files; set dataset.path to the folder that holds" in one
    (shakespeare / "a.txt").write_text("abc" * 99)
    assert "holds a.txt and LEAF's files in train/" in said("text", shakespeare)
    (shakespeare / "a.txt").unlink()
    (shakespeare / "test/all.json").unlink()
    assert "holds train/*.json and no test/*.json" in said("text", shakespeare)


# Synthetic


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    folder = tmp_path / "synthetic"
    train = {"0": ([[0.5, -1], [1.5, 2]], [0.0, 1.0]), "1": ([[2, 3.25]], [1.0])}
    leaf(folder / "train/data.json", train)
    leaf(folder / "test/data.json", {"1": ([[9, 9]], [0])})
    (folder / "train/._data.json").write_text("what a Mac leaves behind")
    return folder


@pytest.mark.parametrize("label", [[], ["dataset.label=y"]])
def test_numbers_are_the_columns_of_a_table(synthetic: Path, label: list[str]) -> None:
    data = read("tabular", synthetic, "dataset.standardize=false", *label)
    assert data.names == ("x1", "x2")  # whose a row is is no feature
    assert data.train_x.tolist() == [[0.5, -1], [1.5, 2], [2, 3.25]]
    assert data.class_names == ("0", "1")
    assert data.train_y.tolist() == [0, 1, 1]
    assert (data.test_x.tolist(), data.test_y.tolist()) == ([[9, 9]], [0])
    assert "2 users to train on (1 JSON file), 1 user to test on (1 JSON file)" in data.told
    left = read("tabular", synthetic, "dataset.ignore=[x1]")
    assert left.names == ("x2",)


def test_users_of_a_table_are_clients(synthetic: Path) -> None:
    split = split_of("tabular", synthetic, "dataset.standardize=false", "num_clients=2")
    assert split.images.column.values == ("0", "1")
    assert [split.client(c, "train")[0][:, 0].tolist() for c in range(2)] in (
        [[0.5, 1.5], [2]],
        [[1.5, 0.5], [2]],
    )
    why = said("tabular", synthetic, "partition=natural", "partition.column=client")
    assert "Valid: label, user, x1, x2. Set partition.column" in why
    assert "leave out dataset.label=x2" in said("tabular", synthetic, "dataset.label=x2")
    (synthetic / "train.csv").write_text("a,label\n1,2\n")
    assert "holds train.csv and LEAF's files in train/" in said("tabular", synthetic)


def test_a_number_is_learnt(tmp_path: Path) -> None:
    leaf(tmp_path / "set/train/a.json", {"u": ([[1.0], [2.0], [4.0]], [0.5, 1, 2])})
    data = read("tabular", tmp_path / "set", "dataset.target=real", "dataset.test_fraction=0.34")
    assert sorted([*data.train_y.tolist(), *data.test_y.tolist()]) == [0.5, 1, 2]
    assert len(data.test_y) == 1


# What is refused

GOOD = ([[0.0, 0.5, 0.5, 1.0]], [1])


@pytest.mark.parametrize(
    ("users", "other", "why"),
    [
        ({"u": ([[0.0] * 4, [0.0] * 4], [1])}, {}, "user 'u': x and y have 2 and 1 examples"),
        ({"u": ([[0.0] * 4, [0.0] * 3], [1, 1])}, {}, "user 'u': x has rows of 3 and of 4 numbers"),
        ({"u": GOOD, "v": ([[0.0]], [1])}, {}, "user 'v': x are 1 long, and those before 4"),
        ({"u": ([[0.0, "0.5", 0, 0]], [1])}, {}, "user 'u': x holds rows of something else than"),
        ({"u": ([[0.0, None, 0, 0]], [1])}, {}, "user 'u': x holds rows of something else than"),
        ({"u": ([[[0.0], 1, 1, 1]], [1])}, {}, "user 'u': x holds rows of something else than"),
        ({"u": ([[]], [1])}, {}, "user 'u': x holds rows of something else than numbers"),
        ({"u": (["abcd"], [1])}, {}, "user 'u': x holds texts .of which dataset=text learns"),
        ({"u": ([7], [1])}, {}, "user 'u': x holds neither texts nor rows of numbers"),
        ({"u": ([[0.0, 0, 0, float("nan")]], [1])}, {}, "it holds NaN, which is no number"),
        ({"u": GOOD, "v": (GOOD[0], [None])}, {}, "user 'v': y holds neither numbers alone nor"),
        ({"u": GOOD, "v": (GOOD[0], ["a"])}, {}, "user 'v': y are texts for some users, and num"),
        ({"u": (GOOD[0], [2**70])}, {}, "user 'u': y holds a number of more than 64 bits"),
        ({"u": ([], [])}, {}, "there is no user with an example"),
        ({}, {}, "there is no user with an example"),
        ({"u": GOOD}, {"users": ["u", "u"]}, "user 'u' is in users twice"),
        ({"u": GOOD}, {"users": ["u", "v"]}, "user 'v' is in one of users and user_data alone"),
        ({"u": GOOD}, {"users": []}, "user 'u' is in one of users and user_data alone"),
        ({"u": GOOD}, {"users": [3]}, "users are no list of names"),
        ({"u": GOOD}, {"num_samples": 3}, "num_samples is no list"),
        ({"u": GOOD}, {"user_data": [GOOD]}, "has no users and user_data, as LEAF's files have"),
        ({"u": GOOD}, {"user_data": {"u": {"x": [[0]]}}}, "user 'u': x and y have 1 and no exam"),
    ],
)
@pytest.mark.parametrize("dataset", ["folder", "tabular"])
def test_what_leaf_does_not_write_is_refused(
    tmp_path: Path, dataset: str, users: Users, other: dict[str, Any], why: str
) -> None:
    folder = tmp_path / "set"
    leaf(folder / "train/bad.json", users, **other)
    leaf(folder / "test/a.json", {"u": GOOD})
    message = said(dataset, folder)
    assert f"{folder / 'train/bad.json'}" in message
    assert why.replace(".", "(") in message.replace(".", "(")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "can't be read as JSON: Expecting property name"),
        ("[" * 99_999, "can't be read as JSON: "),
        ("[]", "has no users and user_data"),
        (
            '{"users": ["u"], "user_data": {"u": {}, "u": {}}}',
            "can't be read as JSON: 'u' is in it",
        ),
        (
            '{"users": ["u"], "user_data": {"u": {"x": [[1e999]], "y": [1]}}}',
            "user 'u': x holds a number that is not finite",
        ),
        (
            '{"users": ["u"], "user_data": {"u": {"x": [[1e99]], "y": [1]}}}',
            "user 'u': x holds a number that is not finite",
        ),
        ("\xff", "can't be read as JSON: "),
    ],
)
def test_what_is_no_json_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "set/train/bad.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("latin-1"))
    message = said("tabular", tmp_path / "set")
    assert f"{path}" in message
    assert why in message


def test_pixels_are_squares_of_numbers_from_0_to_1(tmp_path: Path) -> None:
    leaf(tmp_path / "set/test/a.json", {"u": GOOD})
    path = tmp_path / "set/train/a.json"
    for row, why in (([0, 0, 0, 2.5], "x goes from 0 to 2.5"), ([0.5] * 3, "3 pixels make no sq")):
        leaf(path, {"u": ([row], [1])})
        assert why in (message := said("folder", tmp_path / "set"))
        assert "user 'u'" in message
        assert "take dataset=tabular if these are features" in message
    leaf(path, {"u": (GOOD[0], [0.5])})
    assert "y holds fractions, not class labels" in said("folder", tmp_path / "set")


def test_text_is_characters_and_the_next_one(tmp_path: Path) -> None:
    leaf(tmp_path / "set/test/a.json", {"u": (["ab"], ["c"])})
    for (x, y), why in (
        (([[0.5]], ["c"]), "x holds rows (dataset=folder reads pixels, dataset=tabular features)"),
        ((["ab", "abc"], ["c", "c"]), "x has texts of 2 and of 3 characters"),
        ((["ab"], ["cd"]), "y is not one character each"),
        ((["ab"], [1]), "y is not one character each"),
    ):
        leaf(tmp_path / "set/train/a.json", {"u": (x, y)})
        assert why in said("text", tmp_path / "set")


def test_a_user_is_in_one_file_of_a_split(femnist: Path) -> None:
    leaf(femnist / "train/b_2.json", {"ann": ([image(0, 0, 0, 0)], [2])})
    why = said("folder", femnist)
    assert "train/b_2.json, user 'ann': is in b_0.json, too; remove one of them" in why


def test_splits_are_of_one_kind_and_both_there(femnist: Path) -> None:
    for name in ("notes.txt", "._b_0.json"):
        (femnist / "train" / name).write_text("a")
    told = read("folder", femnist).told
    assert "not read: all_data/, train/._b_0.json, train/notes.txt" in told
    for path in (femnist / "test").iterdir():
        path.unlink()
    (femnist / "test.csv").write_text("image,label\n")
    assert "split 'test' can be read from" in said("folder", femnist)
    (femnist / "test").rmdir()
    (femnist / "test.csv").unlink()
    assert "Set dataset.test_split" in said("folder", femnist)
    (femnist / "test.parquet").touch()
    assert "train and test.parquet are not of one kind" in said("folder", femnist)
    (femnist / "test.parquet").unlink()
    (femnist / "train").rename(femnist / "test")
    assert "holds test/*.json and no train/*.json" in said("tabular", femnist)


def test_one_file_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is opened once the users of the one before it are taken."""
    files = [leaf(tmp_path / f"{i}.json", {f"u{i}": GOOD, f"v{i}": GOOD}) for i in range(3)]
    seen: list[str] = []
    opened = Path.read_bytes

    def noted(path: Path) -> bytes:
        seen.append(path.name)
        return opened(path)

    def taken(x: list[Any], y: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        seen.append("taken")
        return as_features(x, y)

    monkeypatch.setattr(Path, "read_bytes", noted)
    read_leaf(files, taken)
    assert seen == [word for i in range(3) for word in (f"{i}.json", "taken", "taken")]


# Trials


def trial(dataset: str, folder: Path, *words: str) -> dict[str, float]:
    config = composed(dataset, folder, "partition=natural", "num_clients=3", "rounds=2",
                      "resources.engine=inline", *words)  # fmt: skip
    return events_of(config, images=data_of(config))[-1].summary


def test_femnists_shape_is_learnt(tmp_path: Path) -> None:
    """784 pixels, white but for a bar of two rows that says the class."""
    for split, count in (("train", 8), ("test", 2)):
        users: dict[str, tuple[list[Any], list[Any]]] = {}
        for user in ("f0000_14", "f0001_41", "f0002_09"):
            labels = [0, 61] * count
            x = np.ones((len(labels), 28, 28))
            for one, label in zip(x, labels, strict=True):
                one[5 if label else 20 :][:2] = 0
            users[user] = x.reshape(-1, 784).tolist(), labels
        leaf(tmp_path / f"femnist/{split}/all_data_0_niid_0_keep_0_{split}_9.json", users)
    found = trial("folder", tmp_path / "femnist", "partition.column=user", "model=lenet",
                  "rounds=4")  # fmt: skip
    assert found["acc"] == 1


def test_shakespeares_shape_is_learnt(tmp_path: Path) -> None:
    for split, size in (("train", 110), ("test", 90)):
        texts = {f"PLAY_{name}": f"{name.lower()}e " * size for name in ("ROMEO", "JULIET", "MAB")}
        users = {user: windows(text[: size + 20], 80) for user, text in texts.items()}
        leaf(tmp_path / f"shakespeare/{split}/all_data_niid_2_keep_0_{split}_9.json", users)
    found = trial("text", tmp_path / "shakespeare", "model=lstm",
                  "model.kwargs={hidden:8,layers:1,embedding:4}", "training.lr=1")  # fmt: skip
    assert 1 < found["perplexity"] < 10  # of 13 symbols


def test_synthetics_shape_is_learnt(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(60, 5)) / np.arange(1, 61)[:, None]
    for split, count in (("train", 200), ("test", 100)):
        users: dict[str, tuple[list[Any], list[Any]]] = {}
        for user in range(3):
            x = rng.normal(size=(count, 60))
            users[str(user)] = x.tolist(), (x @ weights).argmax(1).tolist()
        leaf(tmp_path / f"synthetic/{split}/data_{split}_9.json", users)
    found = trial("tabular", tmp_path / "synthetic", "partition.column=user", "model=logreg",
                  "rounds=10", "training.lr=0.1", "dataset.standardize=false")  # fmt: skip
    assert found["acc"] > 0.6  # of 5 classes


def test_windows_that_do_not_overlap_are_not_said_to(tmp_path: Path) -> None:
    text = "abcdefghijklmnopqrst"
    apart = [text[i : i + 5] for i in (0, 5, 10)]
    users = {"u": ([one[:4] for one in apart], [one[4] for one in apart])}
    for split in ("train", "test"):
        leaf(tmp_path / f"set/{split}/a.json", users)
    assert not any(a[1:] == b[:-1] for a, b in pairwise(apart))
    assert "overlap" not in read("text", tmp_path / "set", "dataset.length=4").told
