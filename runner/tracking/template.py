"""Fresh SQLite stores as copies of one that MLflow has made before, in the user's cache.

MLflow makes a database by some forty migrations: a second of CPU for each new output folder. What
it made, but for its first experiment, which names a folder, is kept once per release of MLflow. A
copy is opened by MLflow, which compares its revision and makes its first experiment anew. A cache
that can't be read or written, or whose copy is refused, costs that second and nothing else.
"""

import logging
import shutil
import sqlite3
import uuid
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

from fedsweep.environ import cache_folder
from fedsweep.errors import one_line
from fedsweep.files import write_whole

_log = logging.getLogger(__name__)


def template_of_mlflow() -> Path:
    """Return where the database that this release of MLflow makes is kept.

    Raises
    ------
    RuntimeError
        This user has no home.
    """
    return Path(cache_folder()).expanduser() / "stores" / f"mlflow-{version('mlflow')}.db"


def copy_of_template(draft: Path) -> bool:
    """Make a database that MLflow has still to open as a copy; return whether there was one.

    One that is damaged is removed.
    """
    try:
        template = template_of_mlflow()
        shutil.copyfile(template, draft)
        if _is_empty_store(draft):
            return True
        _log.debug("%s is no fresh store: it is made anew", template)
        template.unlink()
    except (OSError, RuntimeError) as error:
        _log.debug("a fresh store is not copied: %s", one_line(error))
    with suppress(OSError):
        draft.unlink(missing_ok=True)
    return False


def drop_template() -> None:
    """Forget a template that MLflow refused."""
    with suppress(OSError, RuntimeError):
        template_of_mlflow().unlink(missing_ok=True)


def keep_as_template(made: Path) -> None:
    """Keep a database that MLflow has just made, without what names a folder."""
    try:
        template = template_of_mlflow()
        template.parent.mkdir(parents=True, exist_ok=True)
        bare = template.with_name(f".{uuid.uuid4().hex}.db")
        try:
            with closing(sqlite3.connect(made)) as source, closing(sqlite3.connect(bare)) as copy:
                source.backup(copy)
                copy.execute("DELETE FROM experiments")
                copy.commit()
            write_whole(template, bare.read_bytes())
        finally:
            bare.unlink(missing_ok=True)
    except (OSError, RuntimeError, sqlite3.Error) as error:
        _log.debug("a fresh store is not kept: %s", one_line(error))


def _is_empty_store(database: Path) -> bool:
    """Return whether a database is whole, and holds neither experiments nor runs."""
    try:
        with closing(sqlite3.connect(database)) as opened:
            whole = opened.execute("PRAGMA quick_check").fetchone() == ("ok",)
            query = "SELECT (SELECT count(*) FROM experiments) + (SELECT count(*) FROM runs)"
            return bool(whole and opened.execute(query).fetchone() == (0,))
    except sqlite3.Error:
        return False
