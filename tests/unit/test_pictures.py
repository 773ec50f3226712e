"""What a run does with a picture that can't be drawn: it says so once, and keeps its results."""

import inspect
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from fedsweep.cli import main
from fedsweep.figures import split, trial
from fedsweep.report import comparisons
from fedsweep.report import plots as sweep

SMALL = [
    "shift=none", "partition=iid", "num_clients=4", "rounds=2", "model=logreg", "strategy=kmeans",
    "strategy.num_clusters=1,2", "strategy.warmup_rounds=1", "seed=0", "resources=inline",
]  # fmt: skip
_PLOTS = [
    "label_heatmap", "label_bars", "class_counts", "divergence", "examples_group0", "curves",
    "clusters", "load",
]  # fmt: skip
OF_TRIALS = {*(f"plots/{name}.png" for name in _PLOTS), "confusion.png"}
REPORT = {
    "acc_over_rounds", "acc_over_megabytes", "loss_over_rounds", "loss_over_megabytes",
    "acc_by_clusters", "client_acc_by_clusters", "client_accuracy", "label_distributions",
    "client_acc_bars", "acc_bars", "cluster_map", "servers", "load",
}  # fmt: skip


class Place:
    """A folder with a store."""

    def __init__(self, folder: Path, template: Path) -> None:
        shutil.copy(template, folder / "mlflow.db")
        self.folder = folder
        self.client = MlflowClient(f"sqlite:///{folder}/mlflow.db")

    def sweep(self, *words: str) -> int:
        return main(["sweep", "default", *SMALL, *words, f"tracking.output={self.folder}"])

    def runs(self, kind: str) -> list[Run]:
        experiment = self.client.get_experiment_by_name("fedsweep").experiment_id
        return list(self.client.search_runs([experiment], f"tags.kind = '{kind}'"))

    def files(self, run: Run, folder: str | None = None) -> set[str]:
        found = set()
        for entry in self.client.list_artifacts(run.info.run_id, folder):
            found |= self.files(run, entry.path) if entry.is_dir else {entry.path}
        return found

    def read(self, run: Run, path: str) -> str:
        return Path(self.client.download_artifacts(run.info.run_id, path)).read_text()


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Place:
    return Place(tmp_path, template)


def images(root: Path, classes: list[str]) -> None:
    """Write a small data set: a folder per class."""
    for part, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.full((8, 8), 80 * label + i, np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")


def makers() -> list[tuple[object, str]]:
    """Return all functions that make a figure."""
    return [
        (module, name)
        for module in (split, trial, sweep, comparisons)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and function.__annotations__.get("return") in ("Figure", Figure)
    ]


def broken(what: str) -> Callable[..., NoReturn]:
    def breaks(*_: object, **__: object) -> NoReturn:
        raise ValueError(f"{what} broke\non purpose")

    return breaks


def test_no_picture_costs_a_result(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All figures fail, the pixels of the slider too; each is told in one line for all trials."""
    assert len(makers()) > 12
    for module, name in makers():
        monkeypatch.setattr(module, name, broken(name))
    monkeypatch.setattr(trial, "cluster_squares", broken("cluster_squares"))
    with caplog.at_level(logging.WARNING):
        assert place.sweep("tracking.log_models=true") == 0
    [parent] = place.runs("sweep")
    trials = place.runs("trial")
    assert [run.info.status for run in (parent, *trials)] == ["FINISHED"] * 3
    for run in trials:
        assert run.data.metrics["0_final/client_acc"] > 0
        history = place.client.get_metric_history(run.info.run_id, "1_global/acc")
        assert [point.step for point in history] == [0, 1, 2]
        assert len(run.data.tags["weights_sha256"]) == 64
        kept = place.files(run)
        tables = {"split.parquet", "clients.parquet", "assignments.parquet", "load.parquet"}
        assert tables <= {path.split("/")[0] for path in kept}
        assert not [path for path in kept if path.endswith(".png")]
        told = place.read(run, "events.txt")
        assert "plots/curves.png is missing: ValueError: curves broke on purpose\n" in told
    experiment = trials[0].info.experiment_id
    models = place.client.search_logged_models([experiment])
    assert len(models) == 5  # two global ones; those of one and of two clusters
    assert place.files(parent) >= {
        "report.md",
        "index.html",
        "report.csv",
        "report.tex",
        "trials.csv",
    }
    page = place.read(parent, "index.html")
    assert "acc_over_rounds" in page
    assert "over broke on purpose" in page
    said = [told for told in caplog.messages if " is missing: " in told]
    assert len(set(said)) == len(said)
    of_trials = {line.split()[0] for line in said if not line.startswith("report of default: ")}
    of_report = {line.split()[3] for line in said if line.startswith("report of default: ")}
    assert of_trials == {*OF_TRIALS, "images/clusters"}
    assert of_report == {f"plots/{name}.png" for name in REPORT}
    assert all("\n" not in line and "on purpose" in line for line in said)


def test_names_of_classes_are_drawn_as_they_are(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A class called as mathtext that can't be read: the run trained, and then kept no metric."""
    images(tmp_path / "data", [r"$\frac$", "_hidden", "<b>&|[red]"])
    words = [
        f"dataset.path={tmp_path}/data",
        "strategy.num_clusters=2",
        "tracking.log_models=false",
    ]
    with caplog.at_level(logging.WARNING):
        assert place.sweep("dataset=folder", *words) == 0
    assert not [record for record in caplog.records if " is missing: " in record.getMessage()]
    [run] = place.runs("trial")
    assert run.info.status == "FINISHED"
    assert place.files(run) >= OF_TRIALS
