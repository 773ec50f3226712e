"""What waited on disk, against a real store: overtaken, damaged, made up by somebody else."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedsweep.cli import main
from fedsweep.config import TrackingConfig
from fedsweep.records import RoundRecord, TrialResult
from fedsweep.tracking import Tracker, TrialRun
from fedsweep.tracking.past import past_sweep, past_trials, supersede
from tests.unit.test_tracking import TRIAL, result, started

OTHER = TRIAL.model_copy(update={"seed": 1})


@dataclass
class Place:
    """A store, and an output folder for each machine that writes to it."""

    folder: Path

    def cfg(self, machine: str) -> TrackingConfig:
        return TrackingConfig(
            uri=f"sqlite:///{self.folder}/mlflow.db",
            output=str(self.folder / machine),
            figures="none",
            patience_s=0.0,
        )

    def spill(self, machine: str) -> Path:
        return self.folder / machine / "spill"

    def flush(self, machine: str) -> int:
        cfg = self.cfg(machine)
        return main(["flush", f"tracking.uri='{cfg.uri}'", f"tracking.output={cfg.output}"])

    @property
    def client(self):
        with Tracker(self.cfg("reader")) as tracker:
            return tracker.store.client

    def state(self) -> dict[str, object]:
        """All that counts in the store: runs, what was logged of them (each time), models."""
        client = self.client
        [experiment] = [e for e in client.search_experiments() if e.name == "fedsweep"]
        found = {}
        for run in client.search_runs([experiment.experiment_id], order_by=["start_time"]):
            points = client.get_metric_history(run.info.run_id, "1_global/acc")
            models = client.search_logged_models(
                [experiment.experiment_id], f"source_run_id = '{run.info.run_id}'"
            )
            found[run.info.run_id] = (
                run.info.run_name,
                run.info.status,
                sorted((point.step, point.timestamp) for point in points),
                sorted(model.name for model in models),
            )
        return found


@pytest.fixture
def place(template, tmp_path):
    shutil.copy(template, tmp_path / "mlflow.db")
    return Place(tmp_path)


def cut_off(tracker: Tracker) -> None:
    """Have the store not answer from now on."""
    tracker.writer.flush()

    def no_answer(*args: object, **kwargs: object) -> None:
        raise ConnectionError("unreachable")

    tracker.writer._delivery.send = no_answer


def rounds(trial: TrialRun, first: int, last: int) -> None:
    for number in range(first, last + 1):
        trial.round(RoundRecord(number, {"1_global/acc": number / 10}, time_s=1000.0 + number))


def session(place: Place, machine: str, cut: str = "", end: str = "finish", config=TRIAL) -> None:
    """Run the sweep as a driver does, from what the store has; ``cut``: when it falls silent."""
    with Tracker(place.cfg(machine)) as tracker:
        past = past_trials(tracker.store, "grid", [config.key]).get(config.key)
        above = past_sweep(tracker.store, "grid", "key")
        if cut == "before":
            cut_off(tracker)
        sweep = tracker.start_sweep("grid", "key", past=above)
        trial = tracker.start_trial(config, {"seed": str(config.seed)}, "", sweep, past)
        trial.started(started())
        rounds(trial, 0, 1)
        if cut == "at round 2":
            cut_off(tracker)
        rounds(trial, 2, 2)
        if end == "finish":
            trial.finish(result())
            sweep.finish()
        elif end == "killed":
            trial.killed()
            sweep.killed()


@pytest.mark.parametrize("later", ["finish", "killed"])
@pytest.mark.parametrize("cut", ["before", "at round 2"])
@pytest.mark.parametrize("begun", [False, True])
def test_what_another_session_went_on_with_is_not_doubled(place, capsys, begun, cut, later):
    """Machine A can't send the end of a trial; B goes on with it from the store;
    then A's outbox is sent.
    """
    if begun:
        session(place, "0", end="killed")
    session(place, "A", cut)
    assert list(place.spill("A").iterdir())
    session(place, "B", end=later)
    before = place.state()
    assert place.flush("A") == 0
    assert place.state() == before
    assert [run[0] for run in before.values()].count("seed=0") == 1
    out, err = capsys.readouterr()
    assert out.startswith("sent 0 events, put ")
    assert "another session has" in err
    assert "Traceback" not in err
    [aside] = place.spill("A").iterdir()
    assert "another session" in (aside / "why.txt").read_text()
    assert str(aside) in err
    assert place.flush("A") == 0
    assert capsys.readouterr() == ("sent 0 events\n", "")


def test_what_only_one_session_has_is_sent(place):
    """B ran another trial of the same sweep: A's comes to it, and A's own sweep run does not."""
    session(place, "A", "before")
    session(place, "B", config=OTHER)
    assert place.flush("A") == 0
    runs = place.client.search_runs(["1"], "tags.kind = 'trial'")
    assert sorted(run.info.run_name for run in runs) == ["seed=0", "seed=1"]
    [sweep] = place.client.search_runs(["1"], "tags.kind = 'sweep'")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {sweep.info.run_id}
    assert {run.info.status for run in [*runs, sweep]} == {"FINISHED"}


def test_a_trial_that_was_started_anew_is_not_brought_back(place):
    session(place, "A", "before")
    session(place, "B")
    with Tracker(place.cfg("B")) as tracker:
        supersede(tracker.store, "grid")
    session(place, "B")
    before = place.state()
    assert place.flush("A") == 0
    assert place.state() == before


def test_a_trial_on_its_own_is_run_anew_where_it_ended(place):
    """The run from before is no later life of it; the one from afterwards is."""
    clock = iter(range(1000, 2000)).__next__
    for machine, cut in (("A", False), ("A", True), ("B", True), ("C", False)):
        with Tracker(place.cfg(machine), clock=clock) as tracker:
            if cut:
                cut_off(tracker)
            trial = tracker.start_trial(TRIAL)
            rounds(trial, 0, 1)
            trial.finish(result())
        if machine == "A" and cut:
            assert place.flush("A") == 0
            assert len(place.state()) == 2
    assert place.flush("B") == 0
    assert len(place.state()) == 3


def test_an_outbox_that_was_copied_is_sent_once(place):
    session(place, "A", "at round 2")
    shutil.copytree(place.folder / "A", place.folder / "copy")
    assert place.flush("A") == 0
    before = place.state()
    assert place.flush("copy") == 0
    assert place.state() == before
    assert {run[1] for run in before.values()} == {"FINISHED"}


def test_a_run_that_was_deleted_meanwhile_stays_deleted(place, capsys):
    session(place, "A", "at round 2")
    [trial] = [run_id for run_id, run in place.state().items() if run[0] == "seed=0"]
    place.client.delete_run(trial)
    assert place.flush("A") == 0
    assert [run[:2] for run in place.state().values()] == [("grid", "FINISHED")]
    assert "was deleted in the store" in capsys.readouterr().err


def rewritten(path: Path, **changes: object) -> None:
    head = json.loads((path / "op.json").read_text())
    (path / "op.json").write_text(json.dumps(head | changes))


def linked(path: Path, name: str) -> None:
    (path / name).unlink()
    (path / name).symlink_to("/etc/passwd")


def file_in_place(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("x")


def folder_in_place(path: Path, name: str) -> None:
    (path / name).unlink()
    (path / name).mkdir()


def pipe_in_place(path: Path, name: str) -> None:
    (path / name).unlink()
    os.mkfifo(path / name)


def elsewhere(path: Path) -> None:
    path.rename(path.parent.parent.parent / "moved")
    path.symlink_to(path.parent.parent.parent / "moved")


DAMAGES = {
    "a line that was cut off": lambda op: (op / "op.json").write_text(
        '{"version": 1, "kind": "fil'
    ),
    "an empty file": lambda op: (op / "op.json").write_bytes(b""),
    "no text": lambda op: (op / "op.json").write_bytes(b"\xff\x00\x80"),
    "nested without end": lambda op: (op / "op.json").write_text("[" * 100_000),
    "a list": lambda op: (op / "op.json").write_text("[1]"),
    "no such file": lambda op: (op / "op.json").unlink(),
    "a kind that is no text": lambda op: rewritten(op, kind=3),
    "data that are no mapping": lambda op: rewritten(op, data="x"),
    "data of another kind": lambda op: rewritten(op, data={"status": "FINISHED"}),
    "a batch of wrong types": lambda op: rewritten(
        op, kind="batch", data={"metrics": [["a", "b", 1, 2]]}
    ),
    "a batch of short rows": lambda op: rewritten(op, kind="batch", data={"metrics": [["a"]]}),
    "a model without its description": lambda op: rewritten(
        op, kind="model", data={"name": "global"}
    ),
    "files that are no list": lambda op: rewritten(op, files={"a": 1}),
    "an unknown operation": lambda op: rewritten(op, kind="drop"),
    "another version": lambda op: rewritten(op, version=99),
    "no version": lambda op: (op / "op.json").write_text(
        '{"kind": "files", "run": "x", "data": {}}'
    ),
    "another run's": lambda op: rewritten(op, run="f" * 32),
    "a token with quotes": lambda op: rewritten(op, run="x' or 'a' = 'a"),
    "a file that is missing": lambda op: (op / "file0").unlink(),
    "more files than there are": lambda op: rewritten(op, files=["a", "b"]),
    "a file's name twice": lambda op: rewritten(op, files=["a", "a"]),
    "a path that leads out": lambda op: rewritten(op, files=["../../out.txt"]),
    "a path that leads out later": lambda op: rewritten(op, files=["a/../../../out.txt"]),
    "an absolute path": lambda op: rewritten(op, files=["/tmp/out.txt"]),
    "a path of Windows": lambda op: rewritten(op, files=["..\\out.txt"]),
    "a NUL": lambda op: rewritten(op, files=["a\0b"]),
    "a name that is too long": lambda op: rewritten(op, files=["a" * 300]),
    "a file that is a link": lambda op: linked(op, "file0"),
    "an operation that is a link": lambda op: linked(op, "op.json"),
    "a folder that is a link": elsewhere,
    "a folder for a file": lambda op: folder_in_place(op, "file0"),
    "a folder for an operation": lambda op: folder_in_place(op, "op.json"),
    "a file for a folder": file_in_place,
    "a pipe": lambda op: pipe_in_place(op, "file0"),
}


@pytest.fixture(scope="module")
def boxes(template, tmp_path_factory):
    """A store with two outboxes: one about trials seed=0 and seed=1, one about seed=2."""
    folder = tmp_path_factory.mktemp("boxes")
    shutil.copy(template, folder / "mlflow.db")
    cfg = TrackingConfig(output=str(folder), figures="none", log_models=False, patience_s=0.0)
    trackers = (
        Tracker(cfg),
        Tracker(cfg),
    )  # before anything waits: the second sends nothing of the first
    for tracker, seeds in zip(trackers, ("01", "2"), strict=True):
        cut_off(tracker)
        for seed in seeds:
            trial = tracker.start_trial(
                TRIAL.model_copy(update={"seed": int(seed)}), {"seed": seed}
            )
            rounds(trial, 0, 2)
            trial.finish(TrialResult("key", {}, "hash", {"acc": 0.5}, None, (1, 8, 8)))
        tracker.close()
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_event_costs_its_run_alone(boxes, tmp_path, capsys, damage):
    """Of the run that it is of, nothing more is written but its end; all others are whole."""
    shutil.copytree(boxes, tmp_path / "out")
    place = Place(tmp_path / "out")
    spill = tmp_path / "out" / "spill"
    box, other = sorted(spill.iterdir(), key=lambda path: -len(list(path.iterdir())))
    os.utime(other, (2**31, 2**31))  # comes last
    op = next(
        path for path in sorted(box.iterdir()) if (path / "file0").exists()
    )  # config.yaml of seed=0
    DAMAGES[damage](op)
    assert main(["flush", f"tracking.output={place.folder}"]) == 1
    out, err = capsys.readouterr()
    state = {run[0]: run[1:3] for run in place.state().values()}
    whole = [(number, 1000 * (1000 + number)) for number in range(3)]
    assert state == {
        "seed=0": ("KILLED", []),
        "seed=1": ("FINISHED", whole),
        "seed=2": ("FINISHED", whole),
    }
    assert "Traceback" not in err
    assert err.count("\n") == 1
    [aside] = spill.iterdir()
    assert aside.name == f"aside-{box.name}"
    assert op.name in (aside / "why.txt").read_text()
    assert f", put {len(list(aside.glob('0*')))} aside" in out
    assert not list(tmp_path.rglob("out.txt"))
    assert not Path("/tmp/out.txt").exists()


@pytest.mark.parametrize(
    "damage", ["runs.json is empty", "runs.json is a link", "runs.json is a list", "it is missing"]
)
def test_what_is_known_of_runs_is_found_again(place, damage):
    session(place, "A", "at round 2")
    [box] = place.spill("A").iterdir()
    kept = (box / "runs.json").read_text()
    (box / "runs.json").unlink()
    if damage == "runs.json is empty":
        (box / "runs.json").write_text("")
    elif damage == "runs.json is a link":
        (place.folder / "elsewhere").write_text(kept.replace('"', "'"))
        (box / "runs.json").symlink_to(place.folder / "elsewhere")
    elif damage == "runs.json is a list":
        (box / "runs.json").write_text("[1, 2]")
    assert place.flush("A") == 0
    assert {run[1] for run in place.state().values()} == {"FINISHED"}
    assert not list(place.spill("A").iterdir())


def test_an_event_that_vanished_leaves_no_run_that_looks_whole(place, capsys):
    session(place, "A", "at round 2")
    [box] = place.spill("A").iterdir()
    shutil.rmtree(sorted(path for path in box.iterdir() if path.is_dir())[1])
    assert place.flush("A") == 1
    assert {run[1] for run in place.state().values()} == {"KILLED"}
    assert "has vanished" in capsys.readouterr().err


def test_strangers_are_put_aside(place, capsys):
    session(place, "A", "at round 2")
    [box] = place.spill("A").iterdir()
    (box / "00000001").mkdir()  # of an earlier version
    (box / "12ab").write_text("")
    assert place.flush("A") == 1
    assert {run[1] for run in place.state().values()} == {"FINISHED"}
    [aside] = place.spill("A").iterdir()
    assert {path.name for path in aside.iterdir()} == {"00000001", "12ab", "why.txt"}
    assert "00000001, 12ab: no operation of this version" in capsys.readouterr().err


def test_what_waits_for_another_store_is_told_of(place, capsys):
    (place.spill("A") / "0123456789ab-01234567").mkdir(parents=True)
    assert place.flush("A") == 0
    assert "waits for another store and was left alone" in capsys.readouterr().err
