"""Output folders that move, are copied, shared, read-only, full, or have names that mean more."""

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from fedsweep.cli import main
from fedsweep.config import TrackingConfig
from fedsweep.drivers import driver_name
from fedsweep.errors import RunnerError, TrackingError
from fedsweep.tracking import Tracker, noise
from fedsweep.tracking.claim import claim, writer_of
from fedsweep.tracking.database import database_of, sqlite_uri
from fedsweep.tracking.read import read_sweep
from fedsweep.tracking.store import open_store, tracking_uri
from tests.unit.test_sweep import WORDS, Place, place  # noqa: F401 - a fixture
from tests.unit.test_tracking import TRIAL, record
from tests.unit.test_trouble import at_round

ROOT = Path(__file__).resolve().parents[2]


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """All files by name: their bytes and when they were written."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def tables_of(out: Path, trials: int) -> None:
    """Check that a report finds all tables of a sweep's trials."""
    stored = read_sweep(TrackingConfig(output=str(out)), "default")
    assert len(stored.trials) == trials
    for trial in stored.trials:
        assert trial.table("clients")["round"].tolist() == [1, 1, 2, 2]
        assert trial.table("split") is not None


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_store_elsewhere_is_whole_and_leaves_the_old_place_alone(
    place: Place,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """It is reported, extended, and an interrupted trial goes on from its checkpoint there."""

    def dead() -> None:
        raise KeyboardInterrupt

    words = ["tracking.figures=none"]
    place.run("seed=0", *words)
    place.client.create_logged_model("1", name="global")
    with monkeypatch.context() as patch:
        at_round(patch, 1, dead)
        assert place.run("seed=0,1", *words)[0].exit_status == 130
    old, new = place.out, tmp_path_factory.mktemp("new") / "a b"
    before = files_of(old)
    if how == "moved":
        shutil.move(old, new)
    else:
        shutil.copytree(old, new)
    _artifact_repos_cache.clear()  # of this process: who goes on there is another one
    there = Place(new)
    assert main(["report", "default", f"tracking.output='{new}'", "--quiet"]) == 0
    [line] = [record.message for record in caplog.records if "moved or copied" in record.message]
    assert line.startswith(
        f"the store was moved or copied from {old}: its 4 runs have their files in {new}"
    )
    outcome, text = there.run("seed=0,1,2", *words)
    assert outcome.exit_status == 0
    assert "goes on after round 1" in text
    tables_of(new, 3)
    assert old.exists() == (how == "copied")
    if how == "copied":
        assert files_of(old) == before
    assert os.listdir(new.parent) == [new.name]
    client = there.client
    for run in client.search_runs(["1"]):
        assert run.info.artifact_uri.startswith((new / "artifacts").as_uri())
        client.list_artifacts(run.info.run_id)
    [model] = client.search_logged_models(["1"])
    assert model.artifact_location.startswith((new / "artifacts").as_uri())


def test_a_database_without_its_files_is_refused(
    place: Place,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    place.run("seed=0", "tracking.figures=none")
    new = tmp_path_factory.mktemp("new")
    shutil.copy(place.out / "mlflow.db", new)
    before = files_of(new)
    with pytest.raises(
        TrackingError, match=f"from {place.out} without the files of its runs; move or copy"
    ):
        open_store(TrackingConfig(output=str(new)))
    assert files_of(new) == before
    shutil.copytree(place.out / "artifacts", new / "artifacts")
    tables_of(new, 1)


def test_another_name_of_the_same_folder_is_no_move(
    place: Place,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    place.run("seed=0", "tracking.figures=none")
    link = tmp_path_factory.mktemp("new") / "link"
    link.symlink_to(place.out)
    before = files_of(place.out)["mlflow.db"][0]
    tables_of(link, 1)
    assert (place.out / "mlflow.db").read_bytes() == before


def test_experiments_of_others_keep_their_files_where_they_are(
    place: Place,  # noqa: F811
    tmp_path: Path,
) -> None:
    location = (tmp_path / "elsewhere" / "artifacts").as_uri()
    place.client.create_experiment("theirs", artifact_location=location)
    open_store(TrackingConfig(output=str(place.out)))
    assert place.client.get_experiment_by_name("theirs").artifact_location == location


def test_a_store_that_is_written_elsewhere_does_not_move(place: Place, tmp_path: Path) -> None:  # noqa: F811
    """One folder under two names on two machines: the second must not take it from the first."""
    place.run("seed=0", "tracking.figures=none")
    with sqlite3.connect(place.out / "mlflow.db") as database:  # as the first machine knows it
        there = "file:///mnt/other/artifacts"
        database.execute(
            "UPDATE experiments SET artifact_location = ? WHERE name = 'fedsweep'", (there,)
        )
    database.close()
    holder = hold(place.out, "sweep 'x'")
    try:
        with pytest.raises(
            TrackingError, match=f"is being written by process {holder.pid} of .* by another name"
        ):
            open_store(TrackingConfig(output=str(place.out)))
    finally:
        holder.kill()
        holder.wait()
    open_store(TrackingConfig(output=str(place.out)))


def hold(folder: Path, what: str) -> "subprocess.Popen[str]":
    """Have another process run something in a folder."""
    code = (
        "import sys; from pathlib import Path; from fedsweep.drivers import driver_name\n"
        "from fedsweep.tracking.claim import claim\n"
        "with claim(Path(sys.argv[1]), sys.argv[2], driver_name()): print('held', flush=True); "
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), what],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_of_two_drivers_that_start_at_once_one_is_refused(
    place: Place,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second starts when the first has not made a run yet; a dead one is in nobody's way."""
    words = [
        "sweep",
        "default",
        *WORDS,
        f"tracking.output={place.out}",
        "tracking.figures=none",
        "seed=0",
    ]
    holder = hold(place.out, "sweep 'default' of experiment fedsweep")
    try:
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith(
            "error: sweep 'default' of experiment fedsweep is being run by process "
        )
        assert f"process {holder.pid} of {os.uname().nodename} since 20" in error
        assert error.count("\n") == 1
        assert place.runs() == []
        assert main([*words, "tracking.experiment=other"]) == 0
    finally:
        holder.kill()  # no time to tidy up
        holder.wait()
    assert main(words) == 0
    assert not list(place.out.glob(".claim*"))


def test_a_sweep_holds_its_claim_to_its_end(
    place: Place,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its store is other drivers' at once when all is written, and not before;
    other sweeps never wait.
    """
    seen: list[str] = []

    def look() -> None:
        what = "sweep 'default' of experiment fedsweep"
        with (
            pytest.raises(RunnerError, match=f"is being run by process {os.getpid()} "),
            claim(place.out, what, "x"),
        ):
            pass
        with claim(place.out, "sweep 'other' of experiment fedsweep", driver_name()):
            seen.append(writer_of(place.out))

    at_round(monkeypatch, 1, look)
    place.run("seed=0", "tracking.figures=none")
    assert seen == [""]  # nobody but this process
    assert not list(place.out.glob(".claim*"))


NAMES = [
    "a?b",
    "a%20b",
    "a#b",
    "a b",
    "ä ☃",
    "a'b",
    'a"b',
    "a;b",
    "a::b",
    "a[b]",
    "a*b",
    "a&b=c",
    "a@b:c",
    "a\\b",
    "~",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_store_lies_in_its_folder_whatever_that_is_called(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in" / name
    folder.mkdir(parents=True)
    shutil.copy(template, folder / "mlflow.db")
    for uri in (None, sqlite_uri(folder / "mlflow.db")):
        cfg = TrackingConfig(output=str(folder), uri=uri)
        assert database_of(tracking_uri(cfg)) == folder / "mlflow.db"
        store = open_store(cfg)
        run = store.client.create_run(store.experiment_id).info.run_id
        source = tmp_path / "in" / name / "file.txt"
        source.write_text("x")
        store.client.log_artifact(run, str(source))
        assert (folder / "artifacts" / run / "artifacts" / "file.txt").exists()
    assert os.listdir(tmp_path) == ["in"]
    assert os.listdir(tmp_path / "in") == [name]


def test_a_sweep_in_a_folder_with_a_hostile_name(template: Path, tmp_path: Path) -> None:
    """Checkpoints, outboxes and reports lie there too."""
    out = tmp_path / "a::b?c#d%20e [f]*"
    out.mkdir()
    shutil.copy(template, out / "mlflow.db")
    words = [*WORDS, f"tracking.output='{out}'", "tracking.figures=none", "seed=0"]
    assert main(["sweep", "default", *words, "--quiet"]) == 0
    assert main(["report", "default", f"tracking.output='{out}'", "--quiet"]) == 0
    tables_of(out, 1)
    assert os.listdir(tmp_path) == [out.name]
    assert set(os.listdir(out)) >= {"mlflow.db", "artifacts", "reports", "checkpoints"}


def test_what_mlflow_says_of_a_failed_try_goes_to_a_file(
    place: Place,  # noqa: F811
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its tracebacks are hundreds of lines; the user gets one that names the file."""
    cfg = TrackingConfig(output=str(place.out), figures="none", patience_s=0.0)
    with Tracker(cfg) as tracker:
        trial = tracker.start_trial(TRIAL)
        tracker.writer.flush()
        with sqlite3.connect(place.out / "mlflow.db") as database:
            database.execute("DROP TABLE metrics")
        database.close()
        trial.round(record(1))
    assert tracker.spilled > 0
    [log] = (place.out / "logs").iterdir()
    assert "Traceback" in log.read_text()
    assert "no such table: metrics" in log.read_text()
    [line] = [line for line in caplog.messages if "does not answer" in line]
    assert line.endswith(f"events wait on disk; more in {log}")
    assert "\n" not in line
    assert "Traceback" not in "".join(capfd.readouterr())


def test_where_the_output_folder_is_full_it_goes_to_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And where that is too, nowhere: nothing is printed about it, nothing fails."""
    (tmp_path / "out").write_text("no folder")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    noise.keep_aside(tmp_path / "out")
    assert noise.told() == ""
    logging.getLogger("mlflow.store.db.utils").error("no answer from http://me:hunter2@host\ud800")
    [log] = (tmp_path / "tmp").iterdir()
    assert noise.told() == f"; more in {log}"
    assert "http://***@host" in log.read_text()
    shutil.rmtree(tmp_path / "tmp")
    logging.getLogger("mlflow.store.db.utils").error("again")
    noise.keep_aside(tmp_path / "other")
    assert capfd.readouterr() == ("", "")
