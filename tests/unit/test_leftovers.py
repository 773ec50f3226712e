"""Where a Ray session keeps its files, and what becomes of those of a driver that was killed."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil
import pytest

from fedsweep.config import TrackingConfig
from fedsweep.engine.leftovers import SESSION, _remove_leftover, session_folder
from fedsweep.errors import ResourceError
from fedsweep.tracking import Tracker


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch):
    """A short folder for temporary files: pytest's own is too long for Ray."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def test_a_session_has_a_folder_of_its_own_and_none_after_it(root: Path) -> None:
    with session_folder() as first, session_folder() as second:
        assert {first.parent, second.parent} == {root}
        assert first != second
        assert first.stat().st_mode & 0o777 == 0o700
        (first / "log").write_text("x")
    assert list(root.iterdir()) == []


def test_a_dead_drivers_folder_and_processes_go_and_a_living_ones_stay(root: Path) -> None:
    dead, alive, foreign = root / "fedray-dead", root / "fedray-alive", root / "other"
    for folder in (dead, alive, foreign):
        folder.mkdir()
    (dead / "log").write_text("x")
    lock = os.open(alive, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    left, kept = (
        subprocess.Popen(sleep, env=os.environ | {SESSION: str(folder)}) for folder in (dead, alive)
    )
    # as a worker of Ray's: it has written its title over its environment
    worker = (
        f"import time; from ray._raylet import setproctitle; log = open('{dead}/log');"
        "setproctitle('ray::IDLE'); print(flush=True); time.sleep(600)"
    )
    titled = subprocess.Popen([sys.executable, "-c", worker], stdout=subprocess.PIPE)
    titled.stdout.readline()
    try:
        with session_folder():
            found = [psutil.pid_exists(process.pid) for process in (left, titled, kept)]
            assert found == [False, False, True]
        assert sorted(path.name for path in root.iterdir()) == ["fedray-alive", "other"]
    finally:
        for process in (left, kept, titled):
            process.kill()
            process.wait()
        os.close(lock)


@pytest.mark.parametrize("others", ["before", "holds"])
def test_a_folder_that_another_start_took_for_a_leftover_is_made_anew(
    root: Path, monkeypatch: pytest.MonkeyPatch, others: str
) -> None:
    """Ten jobs of an array start in one second: a folder that is not locked yet looks left."""
    made: list[str] = []
    make = tempfile.mkdtemp

    def mkdtemp(**named: str) -> str:
        made.append(make(**named))
        if len(made) == 1 and others == "before":
            _remove_leftover(Path(made[0]))
        elif len(made) == 1:  # it has the lock, and removes the folder in a moment
            handle = os.open(made[0], os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
            threading.Timer(0.3, lambda: (shutil.rmtree(made[0]), os.close(handle))).start()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    with session_folder() as folder:
        assert len(made) == 2
        assert str(folder) == made[1]
        assert folder.is_dir()
        _remove_leftover(folder)
        assert folder.is_dir()  # it is locked
    assert list(root.iterdir()) == []


def test_what_can_not_hold_rays_sockets_is_passed_over_and_said(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    long = root / ("x" * 60)
    long.mkdir()
    for value, why in ((str(long), "too long a path"), (str(root / "missing"), "is not a folder")):
        caplog.clear()
        monkeypatch.setenv("TMPDIR", value)
        with session_folder() as folder:
            assert folder.parent == Path("/tmp")
        assert f"TMPDIR={value} is" in caplog.text
        assert why in caplog.text
        assert "Ray's files go to /tmp" in caplog.text
    monkeypatch.setenv("RAY_TMPDIR", str(root))
    with session_folder() as folder:
        assert folder.parent == root


def test_no_folder_at_all_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsweep.engine.leftovers._problem", lambda folder: "can't be written")
    message = r"TMPDIR=.* can't be written, /tmp can't be written; set TMPDIR to a"
    with pytest.raises(ResourceError, match=message), session_folder():
        raise AssertionError


def test_a_draft_of_a_database_that_a_killed_driver_left_is_removed(
    template: Path, tmp_path: Path
) -> None:
    (tmp_path / "mlflow.db").write_bytes(template.read_bytes())
    left = [".mlflow.db.0a1b2c3d", ".mlflow.db.0a1b2c3d-journal"]
    kept = [".mlflow.db.backup", ".other.db.0a1b2c3d"]
    for name in left + kept:
        (tmp_path / name).write_text("x")
    Tracker(TrackingConfig(output=str(tmp_path))).close()
    found = {path.name for path in tmp_path.iterdir()}
    assert found & {*left, *kept} == set(kept)
