"""Data sets from scikit-learn, folders and the Hub: decoding, the cache, refusals."""

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedsweep.config import DataConfig, DatasetConfig
from fedsweep.data.sources import channel_statistics, load_images
from fedsweep.errors import DataError

GREY = np.arange(12, dtype=np.uint8).reshape(3, 2, 2) * 20  # three images of 2 x 2
RGB = np.arange(36, dtype=np.uint8).reshape(3, 2, 2, 3)


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    """Encode an image without loss."""
    file = io.BytesIO()
    (Image.fromarray(pixels).convert(mode) if mode else Image.fromarray(pixels)).save(file, "PNG")
    return file.getvalue()


def write(
    path: Path, images: Sequence[Any], labels: Sequence[Any], classes: list[str] | None = None
) -> None:
    """Write a split as the Hub has it: encoded images, labels with class names if there are any."""
    cells = [
        {"bytes": image if isinstance(image, bytes | None) else png(image), "path": None}
        for image in images
    ]
    table = pa.table({"image": cells, "label": labels})
    if classes:
        features = {
            "image": {"_type": "Image"},
            "label": {"names": classes, "_type": "ClassLabel"},
        }
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with the set ``tiny``: three greyscale images to train on, two to test on."""
    write(tmp_path / "sets/tiny/train.parquet", list(GREY), [0, 1, 0], ["cat", "dog"])
    write(tmp_path / "sets/tiny/test.parquet", list(GREY[:2]), [1, 1], ["cat", "dog"])
    return tmp_path / "sets"


def folders(root: Path) -> DataConfig:
    """A data root with its cache beside it."""
    return DataConfig(root=str(root), cache=str(root.parent / "cache"))


def decoded(root: Path) -> list[str]:
    """What the cache holds of decoded data sets, drafts too."""
    return sorted(
        path.name for path in (root.parent / "cache").iterdir() if path.name != "contents"
    )


TINY = DatasetConfig(name="tiny")


def test_digits_are_scaled_and_split(tmp_path: Path) -> None:
    """The first digit's first row is 0 0 5 13 9 1 0 0 of 16; a 0, as all 178 of them in 1,797."""
    images = load_images(DatasetConfig(), DataConfig(cache=str(tmp_path)))
    assert images.train_x.shape == (1437, 1, 8, 8)
    assert images.test_x.shape == (360, 1, 8, 8)
    assert images.class_names == tuple("0123456789")
    x, y = (
        np.concatenate([images.train_x, images.test_x]),
        np.concatenate([images.train_y, images.test_y]),
    )
    assert x.max() == 255
    assert np.count_nonzero(y == 0) == 178
    first = (x[:, 0, 0] == [0, 0, 80, 207, 143, 16, 0, 0]).all(axis=1)
    assert y[first].tolist() == [0]


def test_a_folder_of_the_data_root_is_decoded(root: Path) -> None:
    images = load_images(TINY, folders(root))
    assert images.train_x.tolist() == GREY[:, None].tolist()
    assert images.train_y.tolist() == [0, 1, 0]
    assert images.test_x.tolist() == GREY[:2, None].tolist()
    assert images.test_y.tolist() == [1, 1]
    assert (images.train_x.dtype, images.train_y.dtype) == (np.uint8, np.int64)
    assert (images.name, images.source) == ("tiny", str(root / "tiny"))
    assert (images.class_names, images.num_classes, images.shape) == (("cat", "dog"), 2, (1, 2, 2))
    assert images.mean == pytest.approx((110 / 255,))
    assert images.std == pytest.approx((GREY.std() / 255,))


def test_colour_images_are_channels_first(root: Path) -> None:
    for split in ("train", "test"):
        write(root / f"colour/{split}.parquet", list(RGB), [0, 1, 2])
    images = load_images(DatasetConfig(name="colour"), folders(root))
    assert images.train_x.tolist() == RGB.transpose(0, 3, 1, 2).tolist()
    assert len(images.mean) == len(images.std) == 3


def test_palettes_and_transparency_become_rgb(root: Path) -> None:
    flat = np.full((2, 2, 3), 255, np.uint8)
    for split in ("train", "test"):
        write(root / f"modes/{split}.parquet", [png(flat, "P"), png(flat, "RGBA"), flat], [0, 1, 2])
    images = load_images(DatasetConfig(name="modes"), folders(root))
    assert images.train_x.tolist() == np.full((3, 3, 2, 2), 255).tolist()


@pytest.mark.parametrize(
    ("given", "names", "train", "test"),
    [
        ([["b", "a", "b"], ["c", "a"]], ("a", "b", "c"), [1, 0, 1], [2, 0]),
        ([[7, 3, 7], [3, 9]], ("3", "7", "9"), [1, 0, 1], [0, 2]),
        ([[True, False, True], [True, True]], ("False", "True"), [1, 0, 1], [1, 1]),
    ],
)
def test_labels_without_class_names_are_numbered_in_order(
    tmp_path: Path,
    given: list[list[Any]],
    names: tuple[str, ...],
    train: list[int],
    test: list[int],
) -> None:
    write(tmp_path / "sets/plain/train.parquet", list(GREY), given[0])
    write(tmp_path / "sets/plain/test.parquet", list(GREY[:2]), given[1])
    images = load_images(DatasetConfig(name="plain"), folders(tmp_path / "sets"))
    assert (images.class_names, images.train_y.tolist(), images.test_y.tolist()) == (
        names,
        train,
        test,
    )


def test_any_folder_that_datasets_opens_will_do(tmp_path: Path) -> None:
    """One folder per split with one folder of images per class;
    columns and splits are the configuration's.
    """
    for split, names in {"train": ("cat", "dog"), "validation": ("dog", "cat")}.items():
        for name in names:
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            (folder / "1.png").write_bytes(png(GREY[names.index(name)]))
    cfg = DatasetConfig(name="folder", path=str(tmp_path / "pets"), test_split="validation")
    images = load_images(cfg, DataConfig(root=str(tmp_path), cache=str(tmp_path / "cache")))
    assert images.class_names == ("cat", "dog")
    assert images.train_x[images.train_y == 1].tolist() == GREY[1:2, None].tolist()
    assert images.test_x[images.test_y == 1].tolist() == GREY[:1, None].tolist()


def test_max_train_draws_from_all_classes(root: Path) -> None:
    """Twelve classes in order: the first ten rows would leave out two classes of the whole set."""
    images = [np.full((2, 2), row, np.uint8) for row in range(240)]
    write(root / "long/train.parquet", images, np.repeat(np.arange(12), 20).tolist())
    write(root / "long/test.parquet", images[:3], range(3))
    whole = load_images(DatasetConfig(name="long"), folders(root))
    part = load_images(DatasetConfig(name="long", max_train=120), folders(root))
    less = load_images(DatasetConfig(name="long", max_train=30), folders(root))
    more = load_images(DatasetConfig(name="long", max_train=500), folders(root))
    rows = part.train_x[:, 0, 0, 0]  # an image's grey level is its row
    assert len(part.train_y) == len(np.unique(rows)) == 120
    assert part.train_y.tolist() == (rows // 20).tolist() == whole.train_y[rows].tolist()
    assert np.bincount(part.train_y, minlength=12).min() >= 4  # of 10 on average
    assert set(less.train_x[:, 0, 0, 0]) < set(rows)
    assert less.class_names == whole.class_names
    assert part.fingerprint != whole.fingerprint
    assert more.train_x.tolist() == whole.train_x.tolist()
    assert len(load_images(DatasetConfig(max_train=10), folders(root)).train_y) == 10


def test_the_cache_is_read_without_any_data_set_library(root: Path) -> None:
    """A trial process maps the arrays; importing datasets or scikit-learn would cost it seconds."""
    load_images(TINY, folders(root))
    load_images(DatasetConfig(), folders(root))
    program = f"""if True:
        import sys
        from fedsweep.config import DataConfig, DatasetConfig
        from fedsweep.data.sources import load_images
        data = DataConfig(root={str(root)!r}, cache={str(root.parent / "cache")!r})
        images = [load_images(DatasetConfig(name=name), data) for name in ("tiny", "digits")]
        heavy = {{"datasets", "flwr_datasets", "sklearn", "pandas", "torch"}}
        print(images[0].train_x.sum(), heavy & set(sys.modules))
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split(maxsplit=1) == [str(GREY.sum()), "set()\n"]


def test_changed_files_are_decoded_again(root: Path) -> None:
    before = load_images(TINY, folders(root))
    write(root / "tiny/train.parquet", list(GREY[::-1]), [0, 1, 0], ["cat", "dog"])
    after = load_images(TINY, folders(root))
    assert after.fingerprint != before.fingerprint
    assert after.train_x.tolist() == GREY[::-1, None].tolist()


def test_a_half_written_cache_is_mended(root: Path) -> None:
    first = load_images(TINY, folders(root))
    name = f"tiny-{first.fingerprint}"
    assert decoded(root) == [name]
    (root.parent / "cache" / name / "train_y.npy").unlink()
    assert load_images(TINY, folders(root)).train_y.tolist() == [0, 1, 0]
    assert decoded(root) == [name]  # nothing left of the decoding


def test_statistics_by_hand() -> None:
    """0, 1, .2 and .8 have mean .5 and variance .17; a constant channel has deviation 1."""
    pixels = np.array([[[[0, 255]], [[51, 51]]], [[[51, 204]], [[51, 51]]]], np.uint8)
    mean, std = channel_statistics(pixels)
    assert mean == pytest.approx((0.5, 0.2))
    assert std == pytest.approx((0.17**0.5, 1.0))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"image": "imag"},
            ["unknown column 'imag'", "Did you mean 'image'?", "Set dataset.image"],
        ),
        ({"label": "labels"}, ["Did you mean 'label'?", "Set dataset.label"]),
        (
            {"test_split": "validation"},
            ["unknown split 'validation'", "Valid: test, train", "Set dataset.test_split"],
        ),
        ({"image": "label"}, ["column 'label' holds", "not images"]),
        ({"label": "image"}, ["column 'image' holds", "not class labels"]),
        ({"path": "/nowhere"}, ["dataset.path=/nowhere is not a folder"]),
        (
            {"name": "other"},
            ["'other' can't be had", "/sets/other (from data.root)", "dataset.path", "dataset.id"],
        ),
    ],
)
def test_wrong_settings_are_refused_in_one_line(
    root: Path, settings: dict[str, str], named: list[str]
) -> None:
    with pytest.raises(DataError) as refused:
        load_images(TINY.model_copy(update=settings), folders(root))
    assert [word for word in named if word not in str(refused.value)] == []
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("images", "labels", "named"),
    [
        (
            [GREY[0], np.zeros((2, 3), np.uint8)], [0, 1],
            ["train.parquet, row 1 is 2 x 3 greyscale but",
             "train.parquet, row 0 is 2 x 2 greyscale"],
        ),
        ([GREY[0], RGB[0]], [0, 1],
         ["train.parquet, row 1 is 2 x 2 RGB but", "row 0 is 2 x 2 greyscale"]),
        ([RGB[0], RGB[1]], [0, 1], ["'train' are 2 x 2 RGB", "'test' 2 x 2 greyscale"]),
        ([GREY[0], b"no image"], [0, 1], ["train.parquet, row 1", "can't be decoded"]),
        ([GREY[0], png(GREY[1])[:45]], [0, 1], ["train.parquet, row 1", "can't be decoded"]),
        ([GREY[0], None], [0, 1], ["train.parquet, row 1", "missing"]),
        ([np.ones((2, 2), np.uint16)], [0], ["row 0", "more than 8 bits"]),
        ([GREY[0]], [-1], ["train.parquet, row 0", "labels outside 0..1"]),
        ([GREY[0], GREY[1]], [1, 2],
         ["train.parquet, row 1: label 2", "'label' declares 2 classes"]),
        ([GREY[0], GREY[1]], [0, None], ["train.parquet, row 1", "missing labels"]),
    ],
)  # fmt: skip
def test_wrong_data_are_refused_in_one_line(
    root: Path, images: list[Any], labels: list[Any], named: list[str]
) -> None:
    write(root / "tiny/train.parquet", images, labels, ["cat", "dog"])
    with pytest.raises(DataError) as refused:
        load_images(TINY, folders(root))
    message = str(refused.value)
    assert [word for word in [*named, str(root / "tiny")] if word not in message] == []
    assert "\n" not in message
    assert decoded(root) == []


@pytest.mark.parametrize("broken", ["corrupt", "empty"])
def test_files_that_cant_be_read_are_refused_in_one_line(
    root: Path, broken: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = root / "tiny/train.parquet"
    if broken == "corrupt":
        path.write_bytes(b"PAR1 and then nothing")
    else:
        pq.write_table(pq.read_table(path)[:0], path)
    said = {
        "corrupt": r"train\.parquet can't be read as parquet",
        "empty": r"train\.parquet: a split is empty",
    }
    with pytest.raises(DataError, match=said[broken]):
        load_images(TINY, folders(root))
    assert capfd.readouterr() == ("", "")


def test_a_cache_that_cant_be_written_is_refused(root: Path) -> None:
    with pytest.raises(
        DataError, match=r"data\.cache=.*train\.parquet can't be written.*set data\.cache"
    ):
        load_images(TINY, DataConfig(root=str(root), cache=str(root / "tiny/train.parquet")))


def test_the_hub_is_asked_last_and_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Max retries exceeded") from OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    with pytest.raises(DataError) as refused:
        load_images(DatasetConfig(name="mnist", id="ylecun/mnist"), folders(root))
    named = [
        f"{root}/mnist (from data.root) is not a folder",
        "ylecun/mnist@main: OSError: Name or service not known",
        "Set data.root to a folder that holds mnist/train.parquet and mnist/test.parquet",
        "network",
    ]
    assert [word for word in named if word not in str(refused.value)] == []


class Hub:
    """A Hub that holds one data set, and keeps what it was asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.asked: list[Any] = []
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", self.dataset_info)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", self.hf_hub_download)

    def dataset_info(self, repo: str, *, revision: str, timeout: float) -> SimpleNamespace:
        self.asked.append((repo, revision))
        files = [path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file()]
        siblings = [SimpleNamespace(rfilename=str(file)) for file in files]
        return SimpleNamespace(sha=f"commit-of-{revision}", siblings=siblings)

    def hf_hub_download(self, repo: str, path: str, *, repo_type: str, revision: str) -> str:
        self.asked.append((repo, revision, path))
        return str(self.folder / path)


def test_the_hub_is_read_at_the_commit_that_a_revision_stands_for(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on the cache serves, without a network. A pinned revision is another data set."""
    hub = Hub(root / "tiny", monkeypatch)
    data = DataConfig(cache=str(root.parent / "cache"))
    first = load_images(DatasetConfig(name="hub", id="me/tiny"), data)
    again = load_images(DatasetConfig(name="hub", id="me/tiny"), data)
    pinned = load_images(DatasetConfig(name="hub", id="me/tiny@v2"), data)
    at_once = load_images(DatasetConfig(name="hub", id=f"me/tiny@{'0123456789' * 4}"), data)
    asked = list(dict.fromkeys(hub.asked))
    assert asked[:2] == [("me/tiny", "main"), ("me/tiny", "commit-of-main")]
    assert {asked[2][2], asked[3][2]} == {"train.parquet", "test.parquet"}
    assert [call for call in asked if len(call) == 2][2:] == [
        ("me/tiny", "v2"), ("me/tiny", "commit-of-v2"), ("me/tiny", "0123456789" * 4),
    ]  # fmt: skip
    assert first.train_x.tolist() == GREY[:, None].tolist()
    assert first.source == again.source == "Hugging Face Hub, me/tiny@commit-of-main"
    assert first.fingerprint == again.fingerprint
    assert len({first.content, pinned.content, at_once.content}) == 3


def test_a_configuration_of_the_hub_is_named_where_there_are_several(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for config, pixels in {"small": GREY, "large": GREY[::-1]}.items():
        for split in ("train", "test"):
            for shard in range(2):
                name = f"two/{config}/{split}-0000{shard}-of-00002.parquet"
                write(root / name, [pixels[shard]], [shard], ["cat", "dog"])
    (root / "two/README.md").write_text("two configurations")
    Hub(root / "two", monkeypatch)
    data = DataConfig(cache=str(root.parent / "cache"))
    with pytest.raises(
        DataError, match=r"several configurations: large, small; set dataset\.config"
    ):
        load_images(DatasetConfig(name="hub", id="me/two"), data)
    images = load_images(DatasetConfig(name="hub", id="me/two", config="large"), data)
    assert images.train_x.tolist() == GREY[:0:-1, None].tolist()


def test_the_hub_offline_reads_its_own_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = root / "snapshots" / "abc"
    snapshot.parent.mkdir()
    (root / "tiny").rename(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda _, path, **__: str(snapshot / path)
    )
    images = load_images(
        DatasetConfig(name="hub", id="me/tiny"), DataConfig(cache=str(root.parent / "cache"))
    )
    assert images.source == "Hugging Face Hub, me/tiny@abc"
    assert images.train_y.tolist() == [0, 1, 0]
