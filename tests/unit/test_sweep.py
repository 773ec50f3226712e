"""What a sweep does with trials run before or dying, and with drivers dead or alive.

Everything runs in this process against a real SQLite store; killed drivers are tested in tests/ray.
"""

import io
import os
import platform
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from rich.console import Console

from fedsweep.cli import main
from fedsweep.drivers import driver_name, is_alive
from fedsweep.errors import (
    CheckpointError,
    ResourceError,
    RunnerError,
    TrackingError,
    TrialError,
)
from fedsweep.records import RoundRecord
from fedsweep.sweeps import kinds, schedule
from fedsweep.sweeps.compose import Trial, compose, expand
from fedsweep.sweeps.interrupts import Interrupts
from fedsweep.sweeps.kinds import longest_first
from fedsweep.sweeps.prepare import Prepared
from fedsweep.sweeps.resume import Restart
from fedsweep.sweeps.schedule import Schedule
from fedsweep.sweeps.sweep import Outcome, SweepPlan, run_sweep
from fedsweep.sweeps.views import LineView
from fedsweep.trial.trial import run_trial

WORDS = [
    "shift=none", "partition=iid", "strategy=fedavg", "num_clients=2", "rounds=2", "model=logreg",
    "resources.engine=inline", "tracking.log_models=false", "tracking.figures=none",
]  # fmt: skip


@dataclass
class Place:
    """A folder with a store, in which sweeps are run one after the other."""

    out: Path

    def run(
        self, *words: str, restart: Restart | None = None, alone: bool = False
    ) -> tuple[Outcome, str]:
        """Run the small sweep (or one trial) and return what became of it, and what it said."""
        words = (*WORDS, f"tracking.output={self.out}", *words)
        trials = [Trial(compose(words), {}, words)] if alone else expand("default", words)[1]
        plan = SweepPlan(
            None if alone else "default", "", "the command", trials, restart or Restart()
        )
        text = io.StringIO()
        outcome, _ = run_sweep(plan, LineView(Console(file=text, width=200)))
        return outcome, text.getvalue()

    def runs(self, kind: str = "trial") -> list[Run]:
        client = self.client
        experiment = client.get_experiment_by_name("fedsweep").experiment_id
        return list(
            client.search_runs(
                [experiment], f"tags.kind = '{kind}'", order_by=["attributes.start_time"]
            )
        )

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.out}/mlflow.db")

    def steps(self, run: Run, key: str = "1_global/acc") -> list[int]:
        return sorted(
            metric.step for metric in self.client.get_metric_history(run.info.run_id, key)
        )


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Place:
    shutil.copy(template, tmp_path / "mlflow.db")
    return Place(tmp_path)


@pytest.fixture
def dies(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Have trials of seed 0 raise after a round, so many times."""

    def set_up(after: int, times: int) -> None:
        left = [times]

        def dying(config: object, *args: object, **kwargs: object) -> Iterator[object]:
            for event in run_trial(config, *args, **kwargs):  # type: ignore[arg-type]
                yield event
                if (
                    isinstance(event, RoundRecord)
                    and event.round == after
                    and left[0]
                    and config.seed == 0
                ):  # type: ignore[attr-defined]
                    left[0] -= 1
                    raise TrialError("on purpose")

        monkeypatch.setattr(kinds, "run_trial", dying)

    return set_up


def test_only_what_is_new_is_run(place: Place) -> None:
    first, _ = place.run("seed=0,1")
    again, text = place.run("seed=0,1")
    assert again.rows == first.rows
    assert "run before: 2 finished, 0 failed; 0 to run" in text
    more, text = place.run("seed=0,1,2")
    assert "run before: 2 finished, 0 failed; 1 to run" in text
    assert more.rows[:2] == first.rows
    assert len(place.runs()) == 3
    newest = place.runs("sweep")[-1]
    assert all("driver's process" in run.data.tags["cluster"] for run in [newest, *place.runs()])
    assert {run.data.tags["mlflow.parentRunId"] for run in place.runs()} == {newest.info.run_id}
    fresh, _ = place.run("seed=0", restart=Restart(fresh=True))
    assert len(place.runs()) == 4
    assert fresh.rows[0].metrics["acc"] == first.rows[0].metrics["acc"]


def test_a_trial_that_dies_goes_on_from_its_checkpoint(
    place: Place, dies: Callable[[int, int], None]
) -> None:
    dies(1, 2)
    outcome, text = place.run("seed=0,1")
    assert outcome.exit_status == 0
    assert "died, goes on (retry 2 of 2): on purpose" in text
    assert [place.steps(run) for run in place.runs()] == [[0, 1, 2], [0, 1, 2]]
    kept = [path.name for path in (place.out / "checkpoints").rglob("*") if path.is_file()]
    assert sorted(kept) == ["000002.json"] * 2 + ["000002.safetensors"] * 2


def test_a_trial_that_dies_too_often_fails_alone_and_can_be_tried_again(
    place: Place, dies: Callable[[int, int], None]
) -> None:
    dies(1, 3)
    outcome, text = place.run("seed=0,1", "resources.max_retries=2")
    assert (outcome.exit_status, outcome.failures) == (
        1,
        [("shift=none partition=iid seed=0", "on purpose")],
    )
    assert "FAILED: on purpose" in text
    assert {run.info.status for run in place.runs()} == {"FAILED", "FINISHED"}
    outcome, text = place.run("seed=0,1")
    assert outcome.exit_status == 1
    assert "--retry-failed tries it again" in outcome.failures[0][1]
    outcome, text = place.run("seed=0,1", restart=Restart(retry_failed=True))
    assert outcome.exit_status == 0
    assert "goes on after round 1" in text
    assert [(run.info.status, place.steps(run)) for run in place.runs()] == [
        ("FINISHED", [0, 1, 2])
    ] * 2
    assert all("reason" not in run.data.tags for run in [*place.runs(), *place.runs("sweep")])
    assert [run.info.status for run in place.runs("sweep")] == ["FINISHED"]


def test_a_trial_with_too_few_replies_keeps_its_clients_tracebacks(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("no images of cats")

    monkeypatch.setattr("fedsweep.training.trainers.train", broken)
    outcome, _ = place.run("seed=0", "training.engine=sequential", "resources.max_retries=0")
    assert outcome.exit_status == 1
    [[_, reason]] = outcome.failures
    assert reason.startswith(
        "round 1: 0 of 2 clients trained, fewer than strategy.min_fit_fraction=0.5"
    )
    [run] = place.runs()
    kept = Path(place.client.download_artifacts(run.info.run_id, "traceback.txt")).read_text()
    assert (
        kept.count("in broken") == kept.count('raise ZeroDivisionError("no images of cats")') == 2
    ), kept


def test_a_round_whose_log_was_lost_is_logged_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver dies when rounds 1 and 2 are computed, but only round 0 is in the store."""
    from fedsweep.tracking.runs import TrialRun

    log = TrialRun.round

    def lossy(self: TrialRun, record: RoundRecord) -> None:
        if record.round == 0:
            log(self, record)

    def dead(self: object, *args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrialRun, "round", lossy)
        patch.setattr(TrialRun, "finish", dead)
        outcome, _ = place.run("seed=0")
    assert outcome.exit_status == 130
    [run] = place.runs()
    assert (run.info.status, place.steps(run)) == ("KILLED", [0])
    outcome, text = place.run("seed=0")
    assert "goes on after round 2" in text
    [run] = place.runs()
    assert (run.info.status, place.steps(run), outcome.exit_status) == ("FINISHED", [0, 1, 2], 0)


def test_a_trial_on_its_own_is_run_anew_once_it_ended(place: Place) -> None:
    for count in (1, 2):
        outcome, _ = place.run("seed=0", alone=True)
        assert (outcome.exit_status, len(place.runs())) == (0, count)


def leave_running(place: Place, driver: str) -> None:
    place.run("seed=0")
    for run in [*place.runs(), *place.runs("sweep")]:
        place.client.set_tag(run.info.run_id, "driver", driver)
        place.client.update_run(run.info.run_id, status="RUNNING")


def test_runs_of_a_dead_driver_are_closed_and_gone_on_with(place: Place) -> None:
    leave_running(
        place, f"{platform.node()} {os.getpid()} 1.00"
    )  # this process id, started at another time
    outcome, _ = place.run("seed=0")
    assert outcome.exit_status == 0
    assert [run.info.status for run in [*place.runs(), *place.runs("sweep")]] == [
        "FINISHED",
        "FINISHED",
    ]


def test_a_living_driver_is_left_alone(place: Place) -> None:
    leave_running(place, driver_name().replace(str(os.getpid()), str(os.getppid())))
    parent = os.getppid()
    from fedsweep.drivers import process_started

    for run in [*place.runs(), *place.runs("sweep")]:
        place.client.set_tag(
            run.info.run_id, "driver", f"{platform.node()} {parent} {process_started(parent):.2f}"
        )
    with pytest.raises(
        RunnerError, match=rf"sweep 'default' is being run by process {parent}; wait for it"
    ):
        place.run("seed=0")


def test_a_driver_of_another_machine_is_asked_about(place: Place) -> None:
    leave_running(place, "elsewhere 12 3.00 abcd1234:bcde2345:4026531836")
    with pytest.raises(
        RunnerError,
        match="left RUNNING, by process 12 of elsewhere, .* add --take-over if it is gone",
    ):
        place.run("seed=0")
    outcome, _ = place.run("seed=0", restart=Restart(take_over=True))
    assert outcome.exit_status == 0


def test_who_is_alive() -> None:
    assert is_alive(driver_name()) is True
    assert is_alive("") is False
    assert is_alive("elsewhere 12 3.00") is None


@pytest.mark.parametrize(
    ("there", "alive"),
    [
        ("aaaa:bbbb:1", True),  # this machine, as it runs
        ("", True),  # an earlier version wrote no machine
        ("aaaa:cccc:1", False),  # this machine before it was started anew
        ("dddd:cccc:1", None),  # another machine of this name
        ("dddd:bbbb:1", None),  # another container, with files of its own
        ("aaaa:bbbb:2", None),  # another container of one image
        (":cccc:1", None),  # it says too little
    ],
)
def test_who_is_alive_of_one_host_name(
    there: str, alive: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine's process is not taken for dead because its number is nobody's here."""
    monkeypatch.setattr("fedsweep.drivers.machine", lambda: "aaaa:bbbb:1")
    host, pid, started, _ = driver_name().split(" ")
    assert is_alive(f"{host} {pid} {started} {there}".rstrip()) is alive
    nobody = f"{host} 999999999 {started} {there}".rstrip()
    assert is_alive(nobody) is (False if alive else alive)


def test_storage_that_cannot_be_written_is_refused(place: Place) -> None:
    (place.out / "file").write_text("")
    with pytest.raises(
        CheckpointError, match=r"storage_path: .*/file/x.* can't be written .*; name another folder"
    ):
        place.run("seed=0", f"checkpoint.storage_path={place.out}/file/x")
    assert place.runs("sweep") == []


def test_long_trials_come_first() -> None:
    def trial(*words: str) -> Trial:
        return Trial(compose(words), {}, words)

    trials = [
        trial("rounds=2"),
        trial("rounds=4"),
        trial("rounds=2", "training.epochs=3"),
        trial("rounds=2", "seed=1"),
    ]
    prepared = {t.config.key: Prepared(None, None, 100, 1000, "") for t in trials}
    same = {t.config.key: 650 for t in trials}
    assert longest_first(trials, prepared, same) == [trials[2], trials[1], trials[0], trials[3]]
    larger = same | {trials[3].config.key: 65_000}  # its network is a hundred times as large
    assert longest_first(trials, prepared, larger) == [trials[3], trials[2], trials[1], trials[0]]


def test_halving_ends_the_losers_and_goes_on_after_an_interrupt(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rungs at rounds 1 and 2 of 4; one of three goes on.

    The driver ends while the first trial waits.
    """
    words = ["seed=0", "rounds=4", "training.lr=.0001,.1,.001", "halving.axis=training.lr"]

    def dead(self: object, *args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(schedule.Halving, "wait", dead)
        assert place.run(*words)[0].exit_status == 130
    assert [(run.info.status, place.steps(run)) for run in place.runs()] == [("KILLED", [0, 1])]
    outcome, text = place.run(*words)
    assert (outcome.exit_status, len(outcome.rows)) == (0, 3)
    runs = {run.data.params["training.lr"]: run for run in place.runs()}
    assert {lr: place.steps(run) for lr, run in runs.items()} == {
        "0.0001": [0, 1], "0.1": [0, 1, 2, 3, 4], "0.001": [0, 1]
    }  # fmt: skip
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert "stopped" not in runs["0.1"].data.tags
    assert "is not among the best 1 of 3" in runs["0.001"].data.tags["stopped"]
    _, text = place.run(*words)
    assert "3 finished, 0 failed; 0 to run" in text


def test_a_sweep_with_nothing_left_does_not_start_ray(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.run("seed=0")

    def no_ray(*args: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("fedsweep.sweeps.sweep.Engine", no_ray)
    outcome, text = place.run("seed=0", "resources.engine=ray")
    assert "1 finished, 0 failed; 0 to run" in text
    assert outcome.exit_status == 0
    with pytest.raises(AssertionError, match="Ray was started"):
        place.run("seed=0,1", "resources.engine=ray")


def report_of(place: Place) -> tuple[str, bool]:
    """What the newest sweep's run says of its report, and whether it has one."""
    run = place.runs("sweep")[-1]
    files = {entry.path for entry in place.client.list_artifacts(run.info.run_id)}
    return run.data.tags["report"], "report.md" in files


def test_a_lost_report_is_told_and_made_by_the_same_command(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fedsweep.tracking.writer.Writer.settle", lambda self: False)
        outcome, _ = place.run("seed=0")
    assert (outcome.exit_status, outcome.failures, len(outcome.rows)) == (1, [], 1)
    assert outcome.missing.startswith("the report of sweep 'default' is missing: ")
    assert "fedsweep report default" in outcome.missing
    assert report_of(place)[0].startswith("missing: ")
    assert not report_of(place)[1]
    outcome, text = place.run("seed=0")
    assert "1 finished, 0 failed; 0 to run" in text
    assert (outcome.exit_status, outcome.missing, report_of(place)) == (0, "", ("made", True))


def test_a_report_that_cannot_be_made_ends_no_sweep(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise ValueError("no axes")

    monkeypatch.setattr("fedsweep.sweeps.sweep.report", broken)
    outcome, _ = place.run("seed=0")
    assert outcome.exit_status == 1
    assert (
        "is missing: ValueError: no axes; make it with: fedsweep report default" in outcome.missing
    )
    assert [run.info.status for run in [*place.runs(), *place.runs("sweep")]] == [
        "FINISHED",
        "FINISHED",
    ]


def test_rows_have_the_grids_order_and_a_trial_its_own_rounds(place: Place) -> None:
    """The longest trial runs first, and all end after a round: none changes its cell.

    A sweep whose trials a larger one took along still has them.
    """
    from fedsweep.tracking.read import read_sweep
    from fedsweep.tracking.store import open_store

    store = open_store(compose([f"tracking.output={place.out}"]).tracking)
    words = ["seed=1,0", "stop.target=0", "model=mlp,logreg"]
    first, _ = place.run("rounds=2", *words)
    [run] = place.runs("sweep")
    outcome, _ = place.run("rounds=3,2", *words)
    grid = [("32"[i % 2], "10"[i // 4], ("mlp", "logreg")[i // 2 % 2]) for i in range(8)]
    order = ("rounds", "seed", "model")
    places = [tuple(row.axes[key] for key in order) for row in outcome.rows]
    assert places == [tuple(trial.axes[key] for key in order) for trial in outcome.trials]
    assert sorted(places) == sorted(grid)
    assert places != [tuple(row.axes[key] for key in order) for row in outcome.ended.values()]
    stored = read_sweep(store, "default")
    assert stored.axes == outcome.axes == ("shift", "partition", "seed", "rounds", "model")
    assert [dict(row.axes) for row in stored.rows()] == [dict(row.axes) for row in outcome.rows]
    assert {row.metrics["rounds"] for row in stored.rows()} == {1.0}
    old = read_sweep(store, run.info.run_id)
    assert (old.absent, len(old.trials)) == (0, 4)
    assert [row.axes["model"] for row in old.rows()] == [row.axes["model"] for row in first.rows]
    assert [row.metrics["acc"] for row in old.rows()] == [row.metrics["acc"] for row in first.rows]


def test_a_sweep_of_an_earlier_version_is_refused_and_told_anew_by_its_command(
    place: Place,
) -> None:
    place.run("seed=0")
    [run] = place.runs("sweep")
    place.client.delete_tag(run.info.run_id, "layout")
    report = [
        "report",
        "default",
        f"tracking.output={place.out}",
        "--out",
        str(place.out / "report"),
        "--quiet",
    ]
    assert main(report) == 2
    place.run("seed=0")
    assert main(report) == 0


def test_a_second_interrupt_ends_at_once() -> None:
    told: list[str] = []
    with Interrupts(lambda: told.append("once")) as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert (interrupts.asked, told) == (True, ["once"])
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert told == ["once"]


def test_a_ray_that_does_not_come_back_keeps_what_has_ended(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no bad input: what has ended counts, and the same command goes on with the rest."""
    take, left = Schedule._take_round, [3]

    def dies(self: Schedule, events: object, record: RoundRecord) -> None:
        take(self, events, record)  # type: ignore[arg-type]
        if record.round == 1 and record.metrics:
            left[0] -= 1
            if left[0] == 1:  # in the second trial
                raise ResourceError("Ray on this machine died 3 times in a row: it is full")

    monkeypatch.setattr(Schedule, "_take_round", dies)
    outcome, said = place.run("seed=0,1")
    assert outcome.exit_status == 1
    assert outcome.missing == (
        "trials that did not end: Ray on this machine died 3 times in a row: it is full"
    )
    assert "stopped: 1 of 2 trials ended; to go on, run the same command again:" in said
    assert [run.info.status for run in place.runs()] == ["FINISHED", "KILLED"]
    [sweep] = place.runs("sweep")
    assert sweep.info.status == "KILLED"
    monkeypatch.undo()
    outcome, _ = place.run("seed=0,1")
    assert (outcome.exit_status, outcome.missing) == (0, "")
    assert [place.steps(run) for run in place.runs()] == [[0, 1, 2]] * 2


def test_a_store_that_falls_silent_at_the_start_is_refused_in_a_line(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*words: object, **named: object) -> None:
        raise MlflowException("API request failed with exception Max retries exceeded")

    monkeypatch.setattr(MlflowClient, "search_runs", silent)
    with pytest.raises(TrackingError, match=r"mlflow.db can't be used: .*Max retries exceeded; "):
        place.run("seed=0")


def test_bad_input_has_exit_status_2(place: Place, capsys: pytest.CaptureFixture) -> None:
    (place.out / "file").write_text("")
    words = [*WORDS, f"tracking.output={place.out}"]
    assert main(["sweep", "default", *words, f"checkpoint.storage_path={place.out}/file/x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: checkpoint.storage_path:")
    assert "Traceback" not in error
    assert main(["sweep", "defalt", *words]) == 2
    assert "unknown sweep 'defalt'. Did you mean 'default'" in capsys.readouterr().err


def test_a_reader_that_leaves_ends_no_sweep(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """``| head -1`` once ended it, its runs KILLED; in ASCII the table was a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    words = ["sweep", "default", *WORDS, f"tracking.output={place.out}"]
    for number, stream in enumerate((os.fdopen(writing, "w"), ascii_only)):
        monkeypatch.setattr("sys.stdout", stream)
        assert main([*words, f"seed={number}"]) == 0
    assert [run.info.status for run in place.runs()] == ["FINISHED", "FINISHED"]
    ascii_only.seek(0)
    assert "+-" in ascii_only.read()
