"""Images of somebody: natural partitions of folders and tables, mixed colours, what is no image."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedsweep.data.federated import FederatedData
from fedsweep.data.sources import ImageData, load_images
from fedsweep.errors import DataError
from fedsweep.sweeps.compose import compose
from tests.unit.test_data_sources import png

NATURAL = ["partition=natural", "partition.eval_fraction=0", "partition.min_size=1"]


def read(folder: Path, *words: str) -> ImageData:
    config = compose(["dataset=folder", f"dataset.path={folder}", *words])
    return load_images(config.dataset, config.data, config.natural_column)


def parts(folder: Path, *words: str) -> list[list[int]]:
    """Return the first pixels of each client's images."""
    config = compose(["dataset=folder", f"dataset.path={folder}", *NATURAL, *words])
    data = load_images(config.dataset, config.data, config.natural_column)
    split = FederatedData.build(data, config)
    own = (split.client(client, "train")[0] for client in range(len(split.train_rows)))
    return [sorted(x[:, 0, 0, 0].tolist()) for x in own]


def grey(value: int) -> np.ndarray:
    return np.full((4, 4), value, np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(pixels))


@pytest.fixture
def writers(tmp_path: Path) -> Path:
    """Folders of classes with a folder per writer: ann wrote 10, 11 and 12, bob 20 and 21."""
    places = {"a/ann/1": 10, "a/ann/2": 11, "b/ann/1": 12, "a/bob/1": 20, "b/bob/1": 21}
    for place, value in places.items():
        save(tmp_path / f"set/train/{place}.png", grey(value))
    save(tmp_path / "set/test/a/carl/1.png", grey(0))
    save(tmp_path / "set/test/b/carl/1.png", grey(1))
    return tmp_path / "set"


def test_folders_below_the_classes_are_clients(writers: Path) -> None:
    words = ["partition.column=folder", "num_clients=2"]
    assert parts(writers, *words) == [[10, 11, 12], [20, 21]]
    assert read(writers, *NATURAL, *words).column.values == ("ann", "bob")
    plain = compose(["dataset=folder", f"dataset.path={writers}"])
    assert load_images(plain.dataset, plain.data).column is None


def test_whose_images_are_is_part_of_what_is_read(writers: Path) -> None:
    """Bytes, order and classes stay: the clients of before came out of the cache, in one trial."""
    words = ["partition.column=folder", "num_clients=2"]
    own, plain = (["dataset=folder", f"dataset.path={writers}", *more]
                  for more in ([*NATURAL, *words], []))  # fmt: skip
    assert parts(writers, *words) == [[10, 11, 12], [20, 21]]
    before = [compose(each).key for each in (own, plain)]
    (writers / "train/a/ann/2.png").rename(writers / "train/a/bob/0.png")
    assert parts(writers, *words) == [[10, 12], [11, 20, 21]]
    after = [compose(each).key for each in (own, plain)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True]


def test_images_right_in_their_class_have_no_folder(writers: Path) -> None:
    save(writers / "train/b/3.png", grey(9))
    with pytest.raises(DataError, match="lies in no folder below its class; lay images out"):
        parts(writers, "partition.column=folder", "num_clients=2")
    with pytest.raises(DataError, match="unknown column 'writer'.* Set partition.column"):
        parts(writers, "partition.column=writer", "num_clients=2")


def table_of_images(folder: Path, form: str, who: list[str | None]) -> None:
    """Write FEMNIST's layout on the Hub: image, writer_id, character; or a CSV of files."""
    values, label = [5, 6, 7, 8], ["x", "y", "x", "y"]
    for split, rows in (("train", range(4)), ("test", range(2))):
        table = {"writer_id": [who[i] for i in rows], "character": [label[i] for i in rows]}
        if form == "csv":
            names = [f"{split}{i}.png" for i in rows]
            for name, i in zip(names, rows, strict=True):
                save(folder / name, grey(values[i]))
            pd.DataFrame({"image": names, **table}).to_csv(folder / f"{split}.csv", index=False)
        else:
            cells = [{"bytes": png(grey(values[i])), "path": None} for i in rows]
            pq.write_table(pa.table({"image": cells, **table}), folder / f"{split}.parquet")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_column_of_a_table_of_images_says_whose_they_are(tmp_path: Path, form: str) -> None:
    table_of_images(tmp_path, form, ["w2", "w1", "w2", "w2"])
    words = ["dataset.label=character", "num_clients=2"]
    assert parts(tmp_path, "partition.column=writer_id", *words) == [[6], [5, 7, 8]]
    with pytest.raises(DataError, match="unknown column 'writer'. Did you mean 'writer_id'"):
        parts(tmp_path, "partition.column=writer", *words)


def test_whose_images_are_by_a_csv_is_part_of_what_is_read(tmp_path: Path) -> None:
    words = ["dataset.label=character", "num_clients=2", "partition.column=writer_id"]
    table_of_images(tmp_path, "csv", ["w2", "w1", "w2", "w2"])
    assert parts(tmp_path, *words) == [[6], [5, 7, 8]]
    table_of_images(tmp_path, "csv", ["w2", "w1", "w1", "w2"])
    assert parts(tmp_path, *words) == [[6, 7], [5, 8]]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_images_that_are_nobodys_are_no_client(tmp_path: Path, form: str) -> None:
    """They were a client together, whose name was empty, or None."""
    table_of_images(tmp_path, form, ["w2", None, "w2", "w1"])
    words = ["dataset.label=character", "num_clients=2", "partition.column=writer_id"]
    with pytest.raises(DataError, match="'writer_id' does not say whose 1 of 4 training examples"):
        parts(tmp_path, *words)


def test_a_flat_folder_with_a_csv_of_labels_is_read_by_two_words(tmp_path: Path) -> None:
    for i in range(10):
        save(tmp_path / f"{i}.png", grey(i))
    frame = pd.DataFrame({"image": [f"{i}.png" for i in range(10)], "label": ["x", "y"] * 5})
    frame.to_csv(tmp_path / "labels.csv", index=False)
    data = read(tmp_path, "dataset.train=labels.csv", "dataset.test_fraction=0.2")
    assert (len(data.train_y), np.bincount(data.test_y).tolist()) == (8, [1, 1])


def test_grey_and_colour_are_mixed_only_where_that_is_asked_for(writers: Path) -> None:
    """Luma by ITU-R 601 as PIL has it: 0.299 R + 0.587 G + 0.114 B."""
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    save(writers / "train/a/ann/3.png", red)
    with pytest.raises(DataError, match="set dataset.colour=rgb or dataset.colour=grey"):
        read(writers)
    in_rgb, in_grey = (read(writers, f"dataset.colour={colour}") for colour in ("rgb", "grey"))
    assert (in_rgb.shape, in_grey.shape) == ((3, 4, 4), (1, 4, 4))
    assert in_grey.train_x[:, 0, 0, 0].tolist().count(round(0.299 * 200)) == 1
    words = ["dataset=folder", f"dataset.path={writers}"]
    keys = {compose([*words, f"dataset.colour={colour}"]).key for colour in ("own", "rgb", "grey")}
    assert len(keys) == 3
    assert compose([*words, "dataset.colour=own"]).key == compose(words).key


@pytest.mark.parametrize(
    ("name", "option"),
    [("t.csv", "tabular"), ("t.parquet", "tabular"), ("t.txt", "text"), ("t.ts", "series")],
)
def test_what_is_no_image_says_which_option_reads_it(
    tmp_path: Path, name: str, option: str
) -> None:
    path = tmp_path / "set" / name
    path.parent.mkdir()
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=f"dataset={option} dataset.path=") as error:
        compose(["dataset=folder", f"dataset.path={path}"])
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=f"take dataset={option}"):
        compose(["dataset=folder", f"dataset.path={path.parent}"])


def test_a_table_without_images_is_told_apart(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        DataError, match="Set dataset.image; if it is no table of images, take data"
    ):
        compose(["dataset=folder", f"dataset.path={tmp_path}"])


def test_data_without_columns_has_no_natural_clients() -> None:
    config = compose([*NATURAL, "partition.column=writer"])
    with pytest.raises(DataError, match="has no columns that say whose an image is"):
        load_images(config.dataset, config.data, config.natural_column)
