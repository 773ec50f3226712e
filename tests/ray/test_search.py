"""A search on real Ray: several trials at once, its driver killed, ends as one run inline does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fedsweep.config import TrackingConfig
from fedsweep.report.searched import Searched
from fedsweep.tracking.read import read_sweep
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "strategy=fedavg,ditto", "seed=0", "num_clients=2", "rounds=2", "model=logreg",
    "tracking.log_models=false", "tracking.figures=none", "--name", "hunt",
    "search.space.training.lr=loguniform:1e-3:1", "search.space.strategy.ditto_lambda=0.1,1,10",
    "search.budget=64", "search.generation=3", "search.min_rounds=1", "search.most_replicates=3",
]  # fmt: skip


def driver(out: Path, late: Path, *words: str) -> subprocess.Popen:
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.watched", str(late), "sweep", *WORDS]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.pop("RAY_ADDRESS", None)
    with (out / "log").open("a") as log:
        return subprocess.Popen(
            [*command, f"tracking.output={out}", *words],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def ended(out: Path) -> int:
    return (out / "log").read_text().count(": FINISHED")


def searched(out: Path) -> Searched:
    return Searched.from_json(read_sweep(TrackingConfig(output=str(out)), "hunt").searched)


def test_kills_and_parallel_trials_change_nothing_of_a_search(tmp_path: Path) -> None:
    inline, killed = tmp_path / "inline", tmp_path / "killed"
    alone = driver(inline, tmp_path / "late", "resources.engine=inline")
    dies = driver(killed, tmp_path / "dies", "resources.trials=3")
    deadline = time.monotonic() + PATIENCE_S
    while ended(killed) < 9 and dies.poll() is None:
        assert time.monotonic() < deadline, (killed / "log").read_text()
        time.sleep(0.05)
    os.killpg(dies.pid, signal.SIGKILL)
    dies.wait()
    last = driver(killed, tmp_path / "again", "resources.trials=3")
    assert (alone.wait(PATIENCE_S), last.wait(PATIENCE_S)) == (0, 0), (killed / "log").read_text()
    assert (tmp_path / "late").read_text() == "", "imported while threads work side by side"
    assert searched(killed) == searched(inline)
    assert all(tuning.winner is not None for tuning in searched(inline).tunings)
