"""A sweep as a file for others: what is in it, and that it is checked to the bit."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from fedsweep.cli import main


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
