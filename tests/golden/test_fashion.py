"""K-means on real images: plain, eroded and dilated Fashion-MNIST, where $FEDSWEEP_DATA has it."""

import os
from pathlib import Path

import pytest

from fedsweep.data.sources import load_images
from fedsweep.sweeps.compose import compose
from fedsweep.sweeps.prepare import make_split
from fedsweep.trial.trial import run_trial

HERE = Path(os.environ.get("FEDSWEEP_DATA", "/nowhere"), "fashion_mnist")


@pytest.mark.skipif(not HERE.is_dir(), reason="$FEDSWEEP_DATA has no fashion_mnist")
def test_kmeans_finds_plain_eroded_and_dilated_clothes() -> None:
    words = [
        "experiment=fashion_golden",
        "strategy=kmeans",
        "strategy.num_clusters=3",
        "resources=inline",
    ]
    config = compose([*words, "dataset.max_train=2400", "rounds=2", "evaluate_every=2"])
    images = load_images(config.dataset, config.data)
    *_, result = run_trial(config, images, make_split(images, config))
    assert result.summary["ari"] == 1
    assert result.summary["client_test_acc"] > 0.65
