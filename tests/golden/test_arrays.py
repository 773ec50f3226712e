"""The arrays of the data sets that figures are reported on: whatever reads them, to the bit."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from fedsweep.config import DataConfig, DatasetConfig
from fedsweep.data.sources import load_images

ROOT = Path(os.environ.get("FEDSWEEP_DATA", "/nowhere"))
TEST_SETS = {
    "mnist": "d8913f735ad3e223",
    "fashion_mnist": "df02199ed7dce73f",
    "cifar10": "27a4d592461fe75c",
}  # of 10,000 images and labels


def sha256(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.dtype.str, array.shape)).encode() + array.tobytes())
    return digest.hexdigest()[:16]


def test_digits(tmp_path: Path) -> None:
    images = load_images(DatasetConfig(), DataConfig(cache=str(tmp_path)))
    assert (
        sha256(images.train_x, images.train_y, images.test_x, images.test_y) == "a36a012feb2950cf"
    )


@pytest.mark.parametrize("name", [name for name in TEST_SETS if (ROOT / name).is_dir()])
def test_test_sets(name: str, tmp_path: Path) -> None:
    column = "img" if name == "cifar10" else "image"
    cfg = DatasetConfig(
        name=name, image=column, train="test.parquet", test="test.parquet", max_train=10
    )
    images = load_images(cfg, DataConfig(root=str(ROOT), cache=str(tmp_path)))
    assert sha256(images.test_x, images.test_y) == TEST_SETS[name]
