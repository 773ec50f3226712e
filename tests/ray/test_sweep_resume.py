"""Contract 7: a sweep that is interrupted ends as one that nobody disturbed;
kills: test_soak.py.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedsweep.catalog import CATALOG
from tests.patience import PATIENCE_S, SETTLED_S

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 8
GRID = [
    "shift=rotation", "shift.groups=2", "partition=iid", "strategy.num_clusters=1,2", "seed=0",
    "num_clients=4", f"rounds={ROUNDS}", "strategy.warmup_rounds=2", "tracking.log_models=false",
    "tracking.figures=none",
]  # fmt: skip
SAME_TRAFFIC = "4_comm/mb_client_server"
"""All clients train here, so that it is the same whoever serves a cluster."""


class Session:
    """A driver in a process of its own, started as a user starts it."""

    def __init__(self, out: Path, *words: str, program: tuple[str, ...] = ("fedsweep",)) -> None:
        self.log = out / f"session-{time.time_ns()}.log"
        out.mkdir(exist_ok=True)
        command = [sys.executable, "-m", *program, "sweep", "default", *GRID]
        command += [f"tracking.output={out}", *words]
        with self.log.open("w") as file:
            env = {**os.environ, "PYTHONUNBUFFERED": "1"}
            env.pop("RAY_ADDRESS", None)
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )

    @property
    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def wait_for(self, pattern: str, seconds: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + seconds
        while not any(re.search(pattern, line) for line in self.lines):
            assert time.monotonic() < deadline, "\n".join(self.lines)
            if self.process.poll() is not None:
                return
            time.sleep(0.02)

    def end(self, seconds: float = PATIENCE_S) -> int:
        return self.process.wait(seconds)


def stored(out: Path) -> dict[str, tuple[str, str, dict]]:
    """Return each trial's status, weights and learning metrics;
    check that every metric is there once per step.
    """
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    experiment = client.get_experiment_by_name("fedsweep")
    found = {}
    for run in client.search_runs([experiment.experiment_id], "tags.kind = 'trial'"):
        learning = {}
        for key in run.data.metrics:
            history = sorted(
                (m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)
            )
            steps = [step for step, _ in history]
            assert len(steps) == len(set(steps)), f"{run.info.run_name} {key}: steps {steps}"
            if key == SAME_TRAFFIC or CATALOG.follows(key) == "learning":
                learning[key] = history
        assert run.info.run_name not in found, "a trial has two runs"
        found[run.info.run_name] = (
            run.info.status,
            run.data.tags.get("weights_sha256", ""),
            learning,
        )
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("undisturbed")
    words = ["resources.engine=inline", "tracking.log_models=true", "tracking.figures=all"]
    session = Session(out, *words, program=("tests.watched", str(out / "late")))
    assert session.end() == 0, "\n".join(session.lines)
    assert (out / "late").read_text() == "", "imported while threads work side by side"
    return stored(out)


def test_an_interrupt_ends_the_sweep_in_order(undisturbed: dict, tmp_path: Path) -> None:
    words = ["resources.trials=1"]
    session = Session(tmp_path, *words)
    session.wait_for(r"round 2/")
    os.killpg(session.process.pid, signal.SIGINT)
    assert session.end() == 130, "\n".join(session.lines)
    text = "\n".join(session.lines)
    assert "to go on, run the same command again" in text
    assert "Traceback" not in text
    assert {status for status, _, _ in stored(tmp_path).values()} == {"KILLED"}
    assert left_behind(session.process.pid) == []
    again = Session(tmp_path, *words)
    assert again.end() == 0, "\n".join(again.lines)
    assert any(re.search("goes on after round", line) for line in again.lines)
    assert stored(tmp_path) == undisturbed


def test_halving_goes_on_after_its_driver_is_killed(tmp_path: Path) -> None:
    """One of three goes on from the rung at round 2, whatever the kill interrupted;
    the others end there.
    """
    words = [
        "strategy.num_clusters=2", "training.lr=.0001,.1,.001", "halving.axis=training.lr",
        "halving.min_rounds=2",
    ]  # fmt: skip
    session = Session(tmp_path, *words)
    session.wait_for(r"round 2/")
    session.process.kill()
    assert session.process.wait() == -signal.SIGKILL
    again = Session(tmp_path, *words)
    assert again.end() == 0, "\n".join(again.lines)
    found = stored(tmp_path)
    last = {
        re.findall(r"lr=(\S+)", name)[0]: learning["1_global/acc"][-1][0]
        for name, (_, _, learning) in found.items()
    }
    assert last == {"0.0001": 2, "0.1": ROUNDS, "0.001": 2}
    assert {status for status, _, _ in found.values()} == {"FINISHED"}
    assert [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()] == []


def left_behind(group: int) -> list[str]:
    """Return the processes of a session that outlived its driver by seconds."""
    import psutil

    deadline = time.monotonic() + SETTLED_S
    while True:
        alive = []
        for process in psutil.process_iter(["pid", "cmdline", "status"]):
            try:
                if (
                    os.getsid(process.pid) == group
                    and process.info["status"] != psutil.STATUS_ZOMBIE
                ):
                    alive.append(" ".join(process.info["cmdline"] or [])[:80])
            except ProcessLookupError:
                continue
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.2)
