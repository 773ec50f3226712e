"""A sweep as a file for others: what is in it, and that it is checked to the bit."""

import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from fedsweep.cli import main
from fedsweep.reproduce.package import _as_json, _differences
from tests.on_flower import APPS


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, template: Path) -> tuple[Path, Path]:
    """The output folder of a sweep of two methods, and the file that it was exported to."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copy(template, folder / "mlflow.db")
    words = [
        "strategy=fedavg,ifca", "seed=0,1", "num_clients=4", "rounds=2", "training.epochs=1",
        "resources.engine=inline", "tracking.figures=none", "tracking.log_models=false",
    ]  # fmt: skip
    assert main(["sweep", *words, f"tracking.output={folder}", "--name", "mine", "--quiet"]) == 0
    assert main(["export", "mine", str(folder / "mine.zip"), f"tracking.output={folder}"]) == 0
    return folder, folder / "mine.zip"


def changed(path: Path, target: Path, name: str, content: bytes) -> Path:
    """Write an archive anew, with another content of one of its files."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, content if entry == name else old.read(entry))
    return target


def test_it_holds_what_was_run_and_what_came_out(exported: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(exported[1]) as packed:
        names, manifest = packed.namelist(), json.loads(packed.read("manifest.json"))
        trial = manifest["trials"][0]
        rounds = pd.read_parquet(io.BytesIO(packed.read(f"rounds/{trial['key']}.parquet")))
        clients = pd.read_parquet(io.BytesIO(packed.read(f"clients/{trial['key']}.parquet")))
        config = packed.read(f"configs/{trial['key']}.yaml").decode()
    assert {"report/index.html", "report/report.csv", "environment.json", "README.md"} <= {*names}
    assert [t["axes"] for t in manifest["trials"]] == [
        {"strategy": strategy, "seed": seed} for strategy in ("fedavg", "ifca") for seed in "01"
    ]
    assert rounds["round"].tolist() == [0, 1, 2]
    assert rounds["3_clients/acc"].iloc[-1] == trial["final"]["client_acc"]
    assert set(clients["client"]) == {0, 1, 2, 3}
    assert "name: fedavg" in config
    assert {*names} == {*manifest["sha256"], "manifest.json"}


def test_its_trials_have_the_same_bits_again(
    exported: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The first and the last of the grid."""
    assert main(["verify", str(exported[1])]) == 0
    out = capsys.readouterr().out
    assert out.count("the same bits") == 2
    assert "again: fedavg seed=0" in out
    assert "again: ifca seed=1" in out
    assert "2 of 2 trials have the bits that were exported" in out


def test_a_metric_that_is_gone_and_one_that_is_no_number_are_compared() -> None:
    ended = {"client_acc": 0.5, "perplexity": float("inf"), "acc": float("nan"), "wall_s": 1.0}
    told = json.loads(json.dumps({k: _as_json(v) for k, v in ended.items()}, allow_nan=False))
    assert [*_differences(told, {**ended, "wall_s": 2.0})] == []
    assert [*_differences(told, {"perplexity": float("nan"), "acc": float("inf")})] == [
        "client_acc", "perplexity", "acc"
    ]  # fmt: skip


def test_other_bits_are_found(
    exported: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(exported[1]) as packed:
        manifest = json.loads(packed.read("manifest.json"))
    manifest["trials"][0]["weights_sha256"] = "0" * 64
    manifest["trials"][0]["final"]["client_acc"] += 1e-9
    other = changed(exported[1], tmp_path / "x.zip", "manifest.json", json.dumps(manifest).encode())
    assert main(["verify", str(other), "--sample", "1"]) == 1
    out = capsys.readouterr().out
    assert "not the same: the final weights, client_acc" in out
    assert "0 of 1 trials" in out


def test_a_file_that_was_changed_and_what_is_no_export_are_refused(
    exported: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = changed(exported[1], tmp_path / "x.zip", "report/report.csv", b"x")
    assert main(["verify", str(other)]) == 2
    assert "report/report.csv is not what was exported" in capsys.readouterr().err
    (tmp_path / "y.zip").write_bytes(b"x")
    for path in ("y.zip", "z.zip"):
        assert main(["verify", str(tmp_path / path)]) == 2
        err = capsys.readouterr().err
        assert "is no exported sweep" in err
        assert err.count("\n") == 1


def test_the_same_store_gives_the_same_file(exported: tuple[Path, Path]) -> None:
    folder, first = exported
    second = folder / "again.zip"
    assert main(["export", "mine", str(second), f"tracking.output={folder}"]) == 0
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as two:
        differ = [name for name in one.namelist() if one.read(name) != two.read(name)]
    assert set(differ) <= {"README.md", "manifest.json"}  # they name the file


# A Flower app's


@pytest.fixture(scope="module")
def of_app(tmp_path_factory: pytest.TempPathFactory, template: Path) -> tuple[Path, Path]:
    """An app whose clients read a file that is none of its own, and its exported sweep."""
    folder = tmp_path_factory.mktemp("app")
    shutil.copy(template, folder / "mlflow.db")
    (folder / "beside").write_text("1.0")
    app = Path(shutil.copytree(APPS / "numpy_quick", folder / "app"))
    client = app / "numpy_quick" / "client_app.py"
    old, new = "weights + context", f"weights * float(open({str(folder / 'beside')!r}).read()) + c"
    assert old in client.read_text()
    client.write_text(client.read_text().replace(old, f"{new}ontext"))
    words = [
        "run_config.lr=0.25,0.5", "problem.column.scale=1,2", "lower=train.train_loss",
        "resources.engine=inline", "tracking.figures=none", f"tracking.output={folder}",
    ]  # fmt: skip
    here = os.getcwd()
    os.chdir(folder)  # what its server saves goes there
    try:
        assert main(["app", "app", *words, "--name", "apps", "--quiet"]) == 0
    finally:
        os.chdir(here)
    assert main(["export", "apps", str(folder / "apps.zip"), f"tracking.output={folder}"]) == 0
    return folder, folder / "apps.zip"


def test_an_apps_trials_have_the_same_bits_again(
    of_app: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where its folder is as the command says, or elsewhere; nothing is left behind."""
    folder, file = of_app
    before = sorted(folder.iterdir())
    monkeypatch.chdir(folder)
    assert main(["verify", str(file), "--sample", "3"]) == 0
    out = capsys.readouterr().out
    assert out.count("the same bits") == 3
    assert "again: lr=0.5 scale=2.0" in out
    monkeypatch.chdir(folder.parent)
    assert main(["verify", str(file), "--sample", "1", "--app", str(folder / "app")]) == 0
    assert sorted(folder.iterdir()) == before
    with zipfile.ZipFile(file) as packed:
        assert "`--app FOLDER`" in packed.read("README.md").decode()


def test_an_app_that_is_not_there_or_is_another_or_reads_otherwise_is_told(
    of_app: tuple[Path, Path], exported: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    folder, file = of_app
    monkeypatch.chdir(tmp_path)
    assert main(["verify", str(file), "--sample", "1"]) == 1
    assert "it can't be composed here: ConfigError: app is no Flower app" in capsys.readouterr().out
    assert main(["verify", str(file), "--sample", "1", "--app", str(APPS / "numpy_quick")]) == 1
    assert "it is another trial here" in capsys.readouterr().out

    beside = folder / "beside"
    beside.write_text("0.5")
    try:
        assert main(["verify", str(file), "--sample", "1", "--app", str(folder / "app")]) == 1
        out = capsys.readouterr().out
        assert "not the same: the final weights, evaluate.eval_error, server.norm, train." in out
        beside.unlink()
        assert main(["verify", str(file), "--sample", "1", "--app", str(folder / "app")]) == 2
        assert "all 4 clients that were asked to train failed; the first: FileNotFoundError" in (
            capsys.readouterr().err
        )
    finally:
        beside.write_text("1.0")

    assert main(["verify", str(exported[1]), "--app", "app"]) == 2
    assert "are of no Flower app" in capsys.readouterr().err
