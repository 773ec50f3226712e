"""How a local store is called, and what is asked of its folder before MLflow is."""

import errno
import os
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest

from fedsweep.config import TrackingConfig
from fedsweep.errors import TrackingError
from fedsweep.tracking.database import BESIDE, create, database_of, sqlite_uri
from fedsweep.tracking.store import open_store, store_name, tracking_uri
from fedsweep.tracking.template import keep_as_template, template_of_mlflow

ODD = [
    "a?b",
    "a%20b",
    "a b",
    "a#b",
    "a%",
    "a&b=c",
    "a'b",
    "a;b",
    "ä",
    "a@b:c",
    "?mode=ro",
    "file:a",
]


def cfg(folder: Path) -> TrackingConfig:
    return TrackingConfig(output=str(folder), figures="none", patience_s=0.0)


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
def test_a_folder_that_cannot_be_written_is_refused_at_once(
    template, tmp_path, monkeypatch, number, exists
):
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


def test_a_store_that_is_only_read_needs_no_room(template, tmp_path, monkeypatch):
    shutil.copy(template, tmp_path / "mlflow.db")
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    assert open_store(cfg(tmp_path), write=False).experiment_id


def test_an_experiment_that_another_machine_made_at_the_same_moment_is_shared(
    template, tmp_path, monkeypatch
):
    """It was not there when it was looked for, and is when it is to be made."""
    from mlflow import MlflowClient

    shutil.copy(template, tmp_path / "mlflow.db")
    first = open_store(cfg(tmp_path))
    look, looks = MlflowClient.get_experiment_by_name, []

    def late(self, name):
        looks.append(name)
        return None if len(looks) == 1 else look(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
    assert open_store(cfg(tmp_path)).experiment_id == first.experiment_id
    assert len(looks) == 2


def test_a_store_of_an_earlier_version_is_known_by_its_note(template, tmp_path):
    """Its experiment has no tag that says where its files lie."""
    shutil.copy(template, tmp_path / "mlflow.db")
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as opened:
        opened.execute("DELETE FROM experiment_tags WHERE key = ?", BESIDE[:1])
    store = open_store(cfg(tmp_path))
    location = store.client.get_experiment(store.experiment_id).artifact_location
    assert location == (tmp_path / "artifacts").as_uri()


def test_a_store_in_the_output_folder_is_called_by_its_place_there(tmp_path):
    """So what waits for it, and its checkpoints, are found where the folder was moved."""
    one, two = cfg(tmp_path / "one"), cfg(tmp_path / "two")
    assert store_name(one, tracking_uri(one)) == store_name(two, tracking_uri(two)) == "mlflow.db"
    assert store_name(two, tracking_uri(one)) == tracking_uri(one)


def contents(database: Path) -> tuple[list[tuple[str, str]], dict[str, list[tuple[object, ...]]]]:
    """Return a database's schema, and the rows of its tables without their times."""
    with closing(sqlite3.connect(database)) as opened:
        schema = opened.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
        tables = [name for name, sql in schema if sql and sql.startswith("CREATE TABLE")]
        rows = {name: opened.execute(f'SELECT * FROM "{name}"').fetchall() for name in tables}
    told = [row[:4] for row in rows["experiments"]]
    return schema, rows | {"experiments": told}


def never(*_: object, **__: object) -> None:
    raise AssertionError("MLflow was asked to make a database")


def test_a_second_store_is_a_copy_and_holds_what_mlflow_makes(tmp_path, monkeypatch):
    """No migration is run for it, and its first experiment names its own process's folder."""
    monkeypatch.setenv("FEDSWEEP_CACHE", str(tmp_path / "cache"))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        create(tmp_path / name / "mlflow.db")
        monkeypatch.setattr("mlflow.store.db.utils._initialize_tables", never)
    (schema, first), (again, second) = (
        contents(tmp_path / name / "mlflow.db") for name in ("first", "second")
    )
    assert schema == again
    [(_, _, folder, _)] = second.pop("experiments")
    first.pop("experiments")
    assert first == second
    assert Path(folder) == tmp_path / "second" / "mlruns" / "0"
    assert [path.name for path in (tmp_path / "second").iterdir()] == ["mlflow.db"]
    assert open_store(cfg(tmp_path / "second")).client.search_experiments()


@pytest.mark.parametrize("damage", ["no database", "half of one", "of another revision", "runs"])
def test_a_template_that_is_no_good_is_made_anew(tmp_path, template, monkeypatch, damage):
    monkeypatch.setenv("FEDSWEEP_CACHE", str(tmp_path / "cache"))
    kept = template_of_mlflow()
    keep_as_template(template)
    good = kept.read_bytes()
    if damage == "no database":
        kept.write_bytes(b"nothing")
    elif damage == "half of one":
        kept.write_bytes(good[: len(good) // 2])
    elif damage == "of another revision":
        with closing(sqlite3.connect(kept)) as opened:
            opened.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
            opened.commit()
    else:
        kept.write_bytes(template.read_bytes())  # it has experiments
    create(tmp_path / "mlflow.db")
    # Checks of a table come in any order: names are compared.
    assert dict(contents(tmp_path / "mlflow.db")[0]).keys() == dict(contents(template)[0]).keys()
    assert contents(kept)[1]["experiments"] == []
    assert contents(kept)[1]["alembic_version"] == contents(template)[1]["alembic_version"]
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_a_cache_that_cannot_be_written_costs_no_store(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("FEDSWEEP_CACHE", str(tmp_path / "cache"))
    create(tmp_path / "mlflow.db")
    assert contents(tmp_path / "mlflow.db")[1]["experiments"]
