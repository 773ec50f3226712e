"""A local store: its SQLite file, the URIs of what lies beside it, and its folder that may move."""

import glob
import logging
import os
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fedsweep.errors import TrackingError, one_line
from fedsweep.files import lock
from fedsweep.tracking.claim import writer_of
from fedsweep.tracking.template import copy_of_template, drop_template, keep_as_template

_log = logging.getLogger("fedsweep.tracking")

BESIDE = "fedsweep.artifacts", "beside the database"
"""Tag of an experiment whose files lie in ``artifacts/`` beside its database and move with it."""

_OURS = "%run by **fedsweep**%"  # in the note of experiments that earlier versions made
_FRESH_BYTES = 2**20
_LONGEST_PATH = 504
"""Bytes of an absolute path that SQLite opens: it takes 512, and adds ``-journal``."""
_LOCKED_S = 5.0


def sqlite_uri(database: Path) -> str:
    """Return the URI of an SQLite file, whatever its name holds.

    With the driver in it MLflow does not take it for a path: it would make the folders that it
    reads there.
    """
    from sqlalchemy.engine import URL

    uri = URL.create("sqlite", database=str(database)).render_as_string()
    return uri if "%" not in uri else uri.replace("sqlite:", "sqlite+pysqlite:", 1)


def database_of(uri: str) -> Path | None:
    """Return the file of an SQLite store's URI; None of any other URI."""
    scheme, _, rest = uri.partition(":///")
    return Path(unquote(rest)) if scheme.partition("+")[0] == "sqlite" else None


def artifacts_uri(database: Path) -> str:
    """Return where the files of a local store's runs lie."""
    return database.with_name("artifacts").as_uri()


def check(database: Path, write: bool) -> None:
    """Try in a moment what MLflow would try for minutes: to open a database, and to write to it.

    Raises
    ------
    OSError, sqlite3.Error
        That is not possible.
    TrackingError
        Its path is longer than SQLite takes: MLflow would try that for minutes, too.
    """
    size, most = (
        len(os.fsencode(database)),
        _LONGEST_PATH - len(_draft(database).name) + len(database.name),
    )
    if size > most and not database.exists():
        raise TrackingError(
            f"the database {database} can't be made: its path has {size} bytes, "
            f"and {most} is the most; set tracking.output or tracking.uri to a shorter one"
        )
    if database.exists():
        with closing(sqlite3.connect(database, timeout=_LOCKED_S, isolation_level=None)) as opened:
            opened.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            opened.execute("SELECT count(*) FROM sqlite_master")
            opened.execute("ROLLBACK")
    if write:
        database.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=database.parent) as file:
            file.write(b"x" * (1 if database.exists() else _FRESH_BYTES))


def create(database: Path) -> None:
    """Make a fresh SQLite store under another name, as a copy of an earlier one where there is one,
    and link it into place.

    Processes that open one fresh database at once break it for good, and so does a kill in the
    middle of its making. One process at a time makes one, so a draft that it finds is what a killed
    one left.
    """
    from mlflow import MlflowClient

    drafts = f".{glob.escape(database.name)}.{'[0-9a-f]' * 8}"
    if database.exists() and not any(database.parent.glob(f"{drafts}*")):
        return
    with _locked(database.parent):
        for left in database.parent.glob(f"{drafts}*"):
            left.unlink(missing_ok=True)
        if database.exists():
            return
        if not _link_copy(database):
            draft = _draft(database)
            try:
                MlflowClient(sqlite_uri(draft)).search_experiments(max_results=1)
                keep_as_template(draft)
                _link(draft, database)
            finally:
                draft.unlink(missing_ok=True)


def _link_copy(database: Path) -> bool:
    """Make a fresh store as a copy of one that MLflow made before; return whether that went."""
    from mlflow import MlflowClient

    draft = _draft(database)
    try:
        if not copy_of_template(draft):
            return False
        try:
            MlflowClient(sqlite_uri(draft)).search_experiments(max_results=1)
        except Exception as error:  # whatever MLflow says of a copy: it makes one itself
            _log.debug("MLflow refused a copy of a fresh store: %s", one_line(error))
            drop_template()
            return False
        _link(draft, database)
        return True
    finally:
        draft.unlink(missing_ok=True)


def _link(draft: Path, database: Path) -> None:
    with suppress(FileExistsError):  # another process was faster; its database is as good
        os.link(draft, database)


def _draft(database: Path) -> Path:
    return database.with_name(f".{database.name}.{uuid.uuid4().hex[:8]}")


def settle_in(database: Path) -> str:
    """Have the runs of a store that was moved or copied find their files beside it;
    return what is to be said.

    MLflow keeps the whole path of each run's files. As long as it named the old place, a moved
    store would be without its files, and a copy would write into the original.

    Raises
    ------
    TrackingError
        Its files were left behind, or somebody writes to it under another name of its folder.
    sqlite3.Error
        The database can't be read or written.
    """
    there = artifacts_uri(database)
    with closing(sqlite3.connect(database, timeout=_LOCKED_S, isolation_level=None)) as opened:
        if not any(_moved(database, location) for _, location in _locations(opened)):
            return ""
        opened.execute("BEGIN IMMEDIATE")  # of several processes the first one does it
        runs, left = 0, ""
        for experiment, location in _locations(opened):
            if not _moved(database, location):
                continue

            # Nobody may be writing there, and the files have to be here.
            query = "SELECT count(*) FROM runs WHERE experiment_id = ?"
            [count] = opened.execute(query, (experiment,)).fetchone()
            old = _path(location)
            if count and (who := writer_of(database.parent)):
                raise TrackingError(
                    f"the store {database} is being written by {who}, who knows its folder by "
                    "another name; wait for that, or use the same name"
                )
            if count and old.exists() and not database.with_name("artifacts").exists():
                raise TrackingError(
                    f"the store {database} was moved or copied from {old.parent} without the "
                    f"files of its runs; move or copy {old} to {database.parent} too"
                )

            # Every path that begins with the old place begins with the new one.
            for table, column in (("runs", "artifact_uri"), ("logged_models", "artifact_location")):
                opened.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE experiment_id = ? AND substr({column}, 1, ?) = ?",
                    (there, len(location) + 1, experiment, len(location) + 1, f"{location}/"),
                )
            opened.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                (there, experiment),
            )
            runs += count
            left = str(old.parent) if count else left
        opened.execute("COMMIT")
    if not runs:
        return ""
    return (
        f"the store was moved or copied from {left}: "
        f"its {runs} runs have their files in {database.parent} now"
    )


def _locations(opened: sqlite3.Connection) -> list[tuple[int, str]]:
    """Return the experiments whose files lie beside the database, and where that was."""
    query = (
        "SELECT DISTINCT experiments.experiment_id, artifact_location FROM experiments "
        "JOIN experiment_tags ON experiments.experiment_id = experiment_tags.experiment_id "
        "WHERE (key = ? AND value = ?) OR (key = 'mlflow.note.content' AND value LIKE ?)"
    )
    return [
        (experiment, location or "")
        for experiment, location in opened.execute(query, (*BESIDE, _OURS))
    ]


def _moved(database: Path, location: str) -> bool:
    if not location.startswith("file://") or location == artifacts_uri(database):
        return False
    old = _path(location)
    if old.name != "artifacts":
        return False
    with suppress(OSError):
        return not old.parent.samefile(database.parent)  # one folder may have several names
    return True


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, where its file system has locks; it goes with the process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            lock(handle, wait=True)
        yield
    finally:
        os.close(handle)
