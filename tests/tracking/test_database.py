"""A local store whose folder has an odd name, can't be written, was moved, or was copied."""

import errno
import hashlib
import os
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest

from runner.config import TrackingConfig
from runner.errors import TrackingError
from runner.records import RoundRecord
from runner.tracking import Tracker
from runner.tracking import database as local
from runner.tracking.database import BESIDE, database_of, sqlite_uri
from runner.tracking.store import open_store, store_name, tracking_uri
from tests.unit.test_tracking import TRIAL, result, started

ODD = ["a?b", "a%20b", "a b", "a#b", "a%", "a&b=c", "a'b", "a;b", "ä", "a@b:c", "?mode=ro", "file:a"]


def cfg(folder: Path) -> TrackingConfig:
    return TrackingConfig(output=str(folder), figures="none", patience_s=0.0)


def trial(folder: Path, seed: int) -> None:
    """Write a run with files and a model."""
    with Tracker(cfg(folder)) as tracker:
        config = TRIAL.model_copy(update={"seed": seed})
        run = tracker.start_trial(config, {"seed": str(seed)})
        run.started(started())
        run.round(RoundRecord(0, {"1_global/acc": 0.5}))
        run.finish(result())


def content(folder: Path) -> dict[str, str]:
    """Return all files under a folder, each with a digest of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def places(folder: Path) -> tuple[int, set[str]]:
    """Return how many runs a store has, and what each file of theirs lies under that can be read."""
    store = open_store(cfg(folder))
    runs = store.client.search_runs([store.experiment_id])
    models = store.client.search_logged_models([store.experiment_id])
    assert len(models) == len(runs)
    uris = {run.info.artifact_uri for run in runs} | {model.artifact_location for model in models}
    for run in runs:
        assert Path(store.client.download_artifacts(run.info.run_id, "config.yaml")).exists()
    for model in models:
        assert Path(local._path(model.artifact_location), "MLmodel").exists()
    return len(runs), {str(local._path(uri).parents[1].parent) for uri in uris}


@pytest.fixture(scope="module")
def written(template, tmp_path_factory):
    """An output folder with one run."""
    folder = tmp_path_factory.mktemp("written") / "out"
    folder.mkdir()
    shutil.copy(template, folder / "mlflow.db")
    trial(folder, 0)
    return folder


@pytest.fixture
def out(written, tmp_path):
    """An output folder with one run, which nobody has moved."""
    folder = tmp_path / "out"
    shutil.copytree(written, folder)
    open_store(cfg(folder))
    return folder


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_names_its_own_folder(template, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(template, folder / "mlflow.db")
    assert database_of(tracking_uri(cfg(folder))) == folder / "mlflow.db"
    trial(folder, 0)
    trial(folder, 1)  # what the first one wrote is found
    store = open_store(cfg(folder))
    runs = store.client.search_runs([store.experiment_id])
    assert len(runs) == 2
    assert Path(store.client.download_artifacts(runs[0].info.run_id, "config.yaml")).is_relative_to(folder)
    assert os.listdir(tmp_path) == [name]
    assert sorted(os.listdir(folder)) == ["artifacts", "mlflow.db"]


def test_a_database_in_an_odd_folder_is_made_there(tmp_path):
    folder = tmp_path / "a?b%20c"
    open_store(cfg(folder))
    assert os.listdir(tmp_path) == ["a?b%20c"]
    assert os.listdir(folder) == ["mlflow.db"]


@pytest.mark.parametrize("name", ODD)
def test_the_uri_of_a_database_names_it(tmp_path, name):
    assert database_of(sqlite_uri(tmp_path / name / "mlflow.db")) == tmp_path / name / "mlflow.db"


def test_options_of_a_uri_are_refused(tmp_path):
    with pytest.raises(TrackingError, match="has options behind a"):
        tracking_uri(cfg(tmp_path).model_copy(update={"uri": f"sqlite:///{tmp_path}/a.db?mode=ro"}))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_that_cannot_be_written_is_refused_at_once(template, tmp_path, monkeypatch, number, exists):
    """MLflow would try again for minutes."""
    if exists:
        shutil.copy(template, tmp_path / "mlflow.db")

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    begin = time.monotonic()
    with pytest.raises(TrackingError, match=os.strerror(number)) as caught:
        open_store(cfg(tmp_path))
    assert time.monotonic() - begin < 2
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == (["mlflow.db"] if exists else [])


def test_a_store_that_is_only_read_needs_no_room(out, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    assert open_store(cfg(out), write=False).experiment_id


def test_a_moved_folder_finds_its_files_and_goes_on_there(out, tmp_path, caplog):
    assert places(out) == (1, {str(out)})
    there = tmp_path / "somewhere" / "else?"
    there.parent.mkdir()
    out.rename(there)
    assert places(there) == (1, {str(there)})
    [told] = caplog.messages
    assert told == f"the store was moved or copied from {out}: its 1 runs have their files in {there} now"
    trial(there, 1)
    assert places(there) == (2, {str(there)})
    assert not out.exists()
    assert len(caplog.messages) == 1  # said once


def test_a_copy_that_is_extended_leaves_the_original_alone(out, tmp_path):
    before = content(out)
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    trial(copy, 1)
    assert content(out) == before
    assert places(copy) == (2, {str(copy)})
    assert places(out) == (1, {str(out)})


def test_a_store_of_an_earlier_version_is_known_by_its_note(out, tmp_path):
    with closing(sqlite3.connect(out / "mlflow.db", isolation_level=None)) as opened:
        opened.execute("DELETE FROM experiment_tags WHERE key = ?", BESIDE[:1])
    there = out.rename(tmp_path / "there")
    assert places(there) == (1, {str(there)})


def test_a_database_without_its_files_is_refused(out, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(out / "mlflow.db", alone)
    with pytest.raises(TrackingError, match=f"without the files of its runs; move or copy {out}/artifacts to {alone}"):
        open_store(cfg(alone))
    shutil.copytree(out / "artifacts", alone / "artifacts")
    assert places(alone) == (1, {str(alone)})


def test_another_name_of_the_same_folder_is_no_other_place(out, tmp_path, caplog):
    (tmp_path / "link").symlink_to(out)
    before = content(out)
    assert places(tmp_path / "link") == (1, {str(out)})
    assert content(out) == before
    assert caplog.messages == []


def test_an_experiment_of_others_stays_as_it_is(out, tmp_path):
    elsewhere = (tmp_path / "elsewhere" / "artifacts").as_uri()
    store = open_store(cfg(out))
    theirs = store.client.create_experiment("theirs", artifact_location=elsewhere)
    there = out.rename(tmp_path / "there")
    assert open_store(cfg(there)).client.get_experiment(theirs).artifact_location == elsewhere


def test_a_store_in_the_output_folder_is_called_by_its_place_there(tmp_path):
    """So what waits for it, and its checkpoints, are found where the folder was moved."""
    one, two = cfg(tmp_path / "one"), cfg(tmp_path / "two")
    assert store_name(one, tracking_uri(one)) == store_name(two, tracking_uri(two)) == "mlflow.db"
    assert store_name(two, tracking_uri(one)) == tracking_uri(one)
