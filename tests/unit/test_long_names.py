"""Names and paths longer than a file system takes: one line, with what to change behind them."""

import os
import time
from pathlib import Path

import pytest

from fedsweep.cli import main
from fedsweep.config import TrackingConfig
from fedsweep.errors import RunnerError
from fedsweep.parts.registry import FOLDERS
from fedsweep.scenario.dataset import Datasets
from fedsweep.sweeps.compose import options
from fedsweep.tracking.store import open_store

LONG = "x" * 300
DEEP = "/".join(["y" * 150] * 4)
"""Each part is one that file systems take; the whole is more than SQLite opens."""

SWEEP = ("sweep", "smoke", "resources.engine=inline")
FOLDER = ("dataset=folder", "dataset.path=.")
REFUSED = {
    "an output folder": ([*SWEEP, f"tracking.output={LONG}"], "; name another folder"),
    "an output folder, by its path": (
        [*SWEEP, f"tracking.output={DEEP}"],
        "; set tracking.output or tracking.uri to a shorter one",
    ),
    "a database": (
        [*SWEEP, f"tracking.uri=sqlite:///{LONG}.db"],
        "File name too long: *. Start or mend that store, or set tracking.uri",
    ),
    "a database, by its path": (
        [*SWEEP, f"tracking.uri=sqlite:///{DEEP}/mlflow.db"],
        "; set tracking.output or tracking.uri to a shorter one",
    ),
    "an experiment": ([*SWEEP, f"tracking.experiment={'x' * 600}"], "or set tracking.uri"),
    "a folder of checkpoints": ([*SWEEP, f"checkpoint.storage_path={LONG}"], "give a shorter one"),
    "a cache": ([*SWEEP, f"data.cache={LONG}"], "give a shorter one"),
    "a folder of data": ([*SWEEP, "dataset=mnist", f"data.root={LONG}"], "give a shorter one"),
    "a data set": ([*SWEEP, "dataset=folder", f"dataset.path={LONG}"], "give a shorter one"),
    "a training set": (
        [*SWEEP, *FOLDER, f"dataset.train={LONG}", "dataset.test=b"],
        "name a folder of classes or a table",
    ),
    "a sweep": (["sweep", LONG], f"Valid: {', '.join(options('sweep'))}."),
    "a method": (["run", f"strategy={LONG}"], "."),
    "a file of a method": (["run", f"strategy=./{LONG}.py"], "there is no file "),
    "a network": (["run", f"model.name={LONG}.{LONG}", "resources=inline"], ""),
    "what is flushed": (["flush", f"tracking.output={DEEP}"], "to a shorter one"),
    "what is looked at": (["ui", f"tracking.output={LONG}"], "run `make sweep` first"),
    "a sweep of a report": (["report", LONG], ""),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_too_long_is_refused_in_one_line(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At once: MLflow tries for minutes to make a database whose path SQLite does not take."""
    monkeypatch.chdir(tmp_path)
    words, end = REFUSED[what]
    begin = time.monotonic()
    assert main(words) == 2
    assert time.monotonic() - begin < 60
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert len(err) < 2100
    for part in end.split("*"):
        assert part in err


def test_a_folder_of_parts_that_no_path_can_name_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(FOLDERS, f"/{LONG}")
    with pytest.raises(ValueError, match=rf"\${FOLDERS} names /x*, which is no folder"):
        list(Datasets())


def test_the_longest_path_that_sqlite_takes_is_taken(tmp_path: Path) -> None:
    """The draft's name is ten bytes longer than the database's, and SQLite adds eight."""

    def folder(size: int) -> Path:
        path = tmp_path
        while (left := size - len(os.fsencode(path / "mlflow.db"))) > 1:
            path /= "z" * min(left - 1, 200) if left != 202 else "z" * 100
        assert len(os.fsencode(path / "mlflow.db")) == size
        return path

    store = open_store(TrackingConfig(output=str(folder(494))))
    assert store.experiment_id
    with pytest.raises(RunnerError, match="its path has 495 bytes, and 494 is the most"):
        open_store(TrackingConfig(output=str(folder(495))))


def test_what_is_wrong_with_a_long_name_is_said_behind_it() -> None:
    told = str(RunnerError(f"{'p' * 5000} and http://me:secret@{'h' * 900} can't be: the reason"))
    assert "…pppppppppp" in told
    assert "p and http://***@hhh" in told
    assert told.endswith("hhhhhhhhhh can't be: the reason")
    assert "secret" not in told
    assert len(told) < 900
