"""Full disks, locked databases, foreign checkpoints: one line, or the sweep goes on;
nothing is lost either way.
"""

import errno
import os
import pickle
import resource
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ray.exceptions import OutOfDiskError

from fedsweep.cli import main
from fedsweep.errors import CheckpointError, RunnerError, no_room
from fedsweep.records import RoundRecord
from fedsweep.sweeps import kinds
from fedsweep.tracking import ops
from fedsweep.tracking.runs import TrialRun
from fedsweep.tracking.store import Store
from fedsweep.trial import checkpoint
from tests.unit.test_sweep import WORDS, Place, place  # noqa: F401 - a fixture


def at_round(monkeypatch: pytest.MonkeyPatch, number: int, act: object) -> None:
    """Do something once, in the driver, before it logs a round."""
    log, left = TrialRun.round, [act]

    def round_(self: TrialRun, record: RoundRecord) -> None:
        if record.round == number and left:
            left.pop()()  # type: ignore[operator]
        log(self, record)

    monkeypatch.setattr(TrialRun, "round", round_)


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "make room there"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "make room there"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "mend that"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "mend that"),
    ],
    ids=lambda value: getattr(value, "strerror", None),
)
def test_storage_that_takes_no_more_stops_trials_alone_and_loses_nothing(
    place: Place,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: OSError,
    mend: str,
) -> None:
    """It takes none from round 2 of the first trial on, and is well again for the second one."""
    full, write = [False], checkpoint.write_atomically
    at_round(monkeypatch, 1, lambda: full.__setitem__(0, True))

    def refuse(fs: object, path: str, data: bytes) -> None:
        if full[0]:
            full[0] = False
            raise error
        write(fs, path, data)

    monkeypatch.setattr(checkpoint, "write_atomically", refuse)
    words = ["sweep", "default", *WORDS, f"tracking.output={place.out}", "seed=0,1"]
    assert main(words) == 3
    out, err = capsys.readouterr()
    assert "retry" not in out  # another try would find the same disk
    assert "1 of 2 trials ended; to go on, mend the storage and run the same command again" in out
    [told] = [line for line in err.splitlines() if line.startswith("STOPPED ")]
    assert told.startswith("STOPPED shift=none partition=iid seed=0: no checkpoint can be written")
    assert told.endswith(f"{error.strerror}; {mend}")
    states = {run.info.status: run.data.tags.get("reason", "") for run in place.runs()}
    assert error.strerror in states.pop("KILLED")
    assert states == {"FINISHED": ""}
    assert main(words) == 0
    assert "goes on after round 1" in capsys.readouterr().out
    assert [
        (run.info.status, place.steps(run), run.data.tags.get("reason")) for run in place.runs()
    ] == [("FINISHED", [0, 1, 2], None)] * 2


def test_a_disk_that_ray_finds_full_stops_a_trial_too(
    place: Place,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the trial's first word, so that its run is made to keep the reason."""

    def full(*args: object, **kwargs: object) -> Iterator[object]:
        raise OutOfDiskError
        yield

    with monkeypatch.context() as patch:
        patch.setattr(kinds, "run_trial", full)
        outcome, text = place.run("seed=0")
    assert (outcome.exit_status, outcome.failures, outcome.rows) == (3, [], [])
    assert "retry" not in text
    [run] = place.runs()
    assert run.info.status == "KILLED"
    assert run.data.tags["reason"].startswith("OutOfDiskError: ")
    assert place.run("seed=0")[0].exit_status == 0


def test_a_full_disk_is_known_across_processes() -> None:
    """A trial's process writes checkpoints, the driver's ends with the status;
    causes do not travel.
    """

    def raised(cause: Exception) -> CheckpointError:
        try:
            raise CheckpointError("no checkpoint can be written") from cause
        except CheckpointError as error:
            return error

    full = raised(OSError(errno.ENOSPC, "No space left on device"))
    full.add_note("of a trial")
    for _ in range(2):
        full = pickle.loads(pickle.dumps(full))
        assert no_room(full)
        assert (type(full), str(full)) == (CheckpointError, "no checkpoint can be written")
        assert full.__notes__ == ["of a trial"]
    assert not no_room(pickle.loads(pickle.dumps(raised(OSError(errno.EROFS, "read-only")))))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize(
    "full", ["the lock's folder", "the database's folder", "the checkpoints' storage"]
)
def test_a_disk_that_is_full_from_the_start_has_a_status_of_its_own(
    place: Place,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    full: str,
    number: int,
) -> None:
    """Nothing is wrong with what was given: 3, and 2 where the folder can't be written."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    if full == "the lock's folder":  # which takes an empty file
        monkeypatch.setattr("fedsweep.tracking.claim.os.pwrite", refuse)
    elif full == "the database's folder":
        monkeypatch.setattr("fedsweep.tracking.database.tempfile.TemporaryFile", refuse)
    else:
        monkeypatch.setattr("fedsweep.sweeps.resume.write_atomically", refuse)
    status = main(["sweep", "default", *WORDS, f"tracking.output={place.out}", "seed=0"])
    assert status == (2 if number == errno.EACCES else 3)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert os.strerror(number) in error
    assert error.count("\n") == 1
    assert place.runs() == []
    assert list(place.out.glob(".claim*")) == []


def test_a_full_database_is_a_full_disk() -> None:
    """As SQLite says it, under the error of whoever asked it."""
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA max_page_count = 2")
    with pytest.raises(sqlite3.Error) as caught:
        database.executescript("CREATE TABLE a (x); CREATE TABLE b (x); CREATE TABLE c (x);")
    database.close()
    told = RunnerError("the store can't be used")
    told.__cause__ = caught.value
    assert no_room(told)
    assert not no_room(RunnerError("the store can't be used"))


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_database_that_cannot_grow_delays_and_loses_nothing(
    place: Place,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From round 1 on SQLite's writes fail, as on a full disk;
    what is logged waits in files until it can be sent.
    """
    limits: list[object] = []

    def fill() -> None:
        limits.append(no_file_larger_than(1 << 16))
        limits[0].__enter__()  # type: ignore[attr-defined]

    at_round(monkeypatch, 1, fill)
    outcome, _ = place.run("seed=0", "tracking.patience_s=0.1")
    limits[0].__exit__(None, None, None)  # type: ignore[attr-defined]
    assert (outcome.exit_status, outcome.failures) == (1, [])
    assert outcome.missing.startswith(
        "the report of sweep 'default' is missing: MLflow did not answer, "
    )
    store = f"tracking.output={place.out}"
    assert outcome.missing.endswith(
        f"make it with: fedsweep flush {store} && fedsweep report default {store}"
    )
    assert list((place.out / "spill").iterdir())
    assert main(["flush", f"tracking.output={place.out}"]) == 0
    [run] = place.runs()
    assert (run.info.status, place.steps(run)) == ("FINISHED", [0, 1, 2])
    assert not list((place.out / "spill").iterdir())
    report = [
        "report",
        "default",
        f"tracking.output={place.out}",
        "--out",
        str(place.out / "report"),
    ]
    assert main(report) == 0
    assert (place.out / "report" / "report.md").exists()


def test_a_database_that_another_process_holds_delays_and_loses_nothing(
    place: Place,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = threading.Event()

    def hold() -> None:
        def work() -> None:
            database = sqlite3.connect(place.out / "mlflow.db", timeout=20, isolation_level=None)
            database.execute("BEGIN EXCLUSIVE")
            held.set()
            time.sleep(7)  # longer than SQLite waits for a lock
            database.execute("ROLLBACK")
            database.close()

        threading.Thread(target=work).start()
        assert held.wait(20)

    at_round(monkeypatch, 1, hold)
    begin = time.monotonic()
    outcome, _ = place.run("seed=0")
    assert outcome.exit_status == 0
    assert time.monotonic() - begin > 5
    [run] = place.runs()
    assert (run.info.status, place.steps(run)) == ("FINISHED", [0, 1, 2])


def test_a_run_that_is_deleted_while_it_is_written_costs_that_run_alone(
    place: Place,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody deletes the first trial in the UI;
    the other is whole, and the next session runs the first again.
    """

    def delete() -> None:
        deadline = time.monotonic() + 20
        while not (found := place.runs()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        place.client.delete_run(found[0].info.run_id)

    at_round(monkeypatch, 1, delete)
    outcome, text = place.run("seed=0,1")
    assert (outcome.exit_status, outcome.failures, len(outcome.rows)) == (1, [], 2)
    assert "not whole in the store: 'no shift iid seed=0' (" in outcome.missing
    assert text.count("could not be written") == 1
    assert [(run.info.status, place.steps(run)) for run in place.runs()] == [
        ("FINISHED", [0, 1, 2])
    ]
    again, text = place.run("seed=0,1")
    assert "run before: 1 finished, 0 failed; 1 to run" in text
    assert again.exit_status == 0
    assert [row.metrics["acc"] for row in again.rows] == [
        row.metrics["acc"] for row in outcome.rows
    ]
    assert [(run.info.status, place.steps(run)) for run in place.runs()] == [
        ("FINISHED", [0, 1, 2])
    ] * 2


def test_an_entry_that_is_refused_is_made_good_by_the_next_session(
    place: Place,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apply, left = ops.apply, ["once"]

    def refuse(op: ops.Op, store: Store, runs: dict[str, str]) -> None:
        if op.kind == "batch" and op.data.get("metrics") and left:
            left.pop()
            raise ValueError("no such thing")
        apply(op, store, runs)

    monkeypatch.setattr(ops, "apply", refuse)
    outcome, _ = place.run("seed=0,1")
    assert (outcome.exit_status, outcome.failures) == (1, [])
    assert "seed=0' (ValueError: no such thing)" in outcome.missing
    assert sorted((run.info.status, place.steps(run)) for run in place.runs()) == [
        ("FINISHED", [0, 1, 2]), ("KILLED", []),
    ]  # fmt: skip
    again, _ = place.run("seed=0,1")
    assert again.exit_status == 0
    assert [row.metrics["acc"] for row in again.rows] == [
        row.metrics["acc"] for row in outcome.rows
    ]
    assert [(run.info.status, place.steps(run)) for run in place.runs()] == [
        ("FINISHED", [0, 1, 2])
    ] * 2


def test_a_database_that_is_held_from_the_start_is_refused_in_one_line(
    place: Place,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    database = sqlite3.connect(place.out / "mlflow.db", isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    try:
        assert main(["sweep", "default", *WORDS, f"tracking.output={place.out}", "seed=0"]) == 2
    finally:
        database.close()
    error = capsys.readouterr().err
    assert error.startswith("error: tracking.uri=sqlite:///")
    assert "database is locked" in error
    assert error.count("\n") == 1


def test_a_checkpoint_of_another_version_is_refused_in_one_line(
    place: Place,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def dead() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        at_round(patch, 1, dead)
        assert place.run("seed=0")[0].exit_status == 130
    monkeypatch.setattr(checkpoint, "VERSION", 3)
    words = ["sweep", "default", *WORDS, f"tracking.output={place.out}", "seed=0"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "is a checkpoint of version 2, but this is version 3; start over with --fresh" in error
    assert error.count("\n") == 1
    assert main([*words, "--fresh", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_an_empty_grid_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "default", "seed=range(0,0)"]) == 2
    assert "error: the grid is empty: 'seed=range(0,0)' has no value" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_refused_in_one_line(
    place: Place,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    place.run("seed=0")
    (place.out / "file").write_text("")
    assert (
        main(["report", "default", f"tracking.output={place.out}", "--out", f"{place.out}/file/x"])
        == 2
    )
    error = capsys.readouterr().err
    assert "can't be written" in error
    assert error.count("\n") == 1
