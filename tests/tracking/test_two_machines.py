"""Machines with an output folder of their own, and one server: of one sweep there is one driver."""

import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from fedsweep.config import TrackingConfig
from fedsweep.errors import RunnerError
from fedsweep.tracking.store import Store, open_store
from fedsweep.tracking.store_claim import claim_in_store
from tests.patience import PATIENCE_S
from tests.trials import SMALL

ROOT = Path(__file__).resolve().parents[2]
MACHINE = """
import platform, sys
platform.node = lambda: sys.argv[1]
from fedsweep.cli import main
sys.exit(main(sys.argv[2:]))
"""
GRID = [
    *SMALL, "strategy=fedavg", "partition=iid", "shift=none", "resources=inline", "seed=0,1",
    "tracking.figures=none", "tracking.log_models=false",
]  # fmt: skip


class Machine:
    """A driver as it would run on another machine."""

    def __init__(self, folder: Path, server: str, name: str, *words: str) -> None:
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        words = (
            *GRID, *words, f"tracking.uri='{server}'", f"tracking.output={folder / name}",
            f"tracking.experiment={folder.name}",
        )  # fmt: skip
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-c", MACHINE, name, "sweep", "default", *words],
                cwd=ROOT,
                stdout=out,
                stderr=err,
            )

    def end(self) -> tuple[int, str]:
        """Wait for its end; return its status and what it said on standard error."""
        return self.process.wait(PATIENCE_S), self.err.read_text()


def store_of(server: str, tmp_path: Path) -> Store:
    cfg = TrackingConfig(uri=server, output=str(tmp_path / "reader"), experiment=tmp_path.name)
    return open_store(cfg)


def stored(store: Store) -> list[tuple[str, str, list[int]]]:
    """Return name, status and logged rounds of each run."""
    return sorted(
        (
            str(run.info.run_name),
            run.info.status,
            sorted(
                point.step
                for point in store.client.get_metric_history(run.info.run_id, "1_global/acc")
            ),
        )
        for run in store.client.search_runs([store.experiment_id])
    )


def claims(store: Store) -> list[str]:
    tags = store.client.get_experiment(store.experiment_id).tags
    return [tag for tag in tags if tag.startswith("fedsweep.claim")]


def test_one_of_two_machines_that_start_at_once_runs_the_sweep(server: str, tmp_path: Path) -> None:
    machines = [Machine(tmp_path, server, name, "rounds=3") for name in ("a", "b")]
    ended = sorted(machine.end() for machine in machines)
    assert [status for status, _ in ended] == [0, 2], ended
    told = ended[1][1]
    assert told.startswith("error: sweep 'default' is being run, or was left RUNNING, by process ")
    assert "wait for it, or add --take-over if it is gone" in told
    assert told.count("\n") == 1
    store = store_of(server, tmp_path)
    rounds = [0, 1, 2, 3]
    expected = [
        ("default", "FINISHED", []),
        *((f"no shift iid seed={s}", "FINISHED", rounds) for s in (0, 1)),
    ]
    assert stored(store) == expected
    assert claims(store) == []
    status, told = Machine(tmp_path, server, "b", "rounds=3").end()
    assert (status, stored(store)) == (0, expected), told
    assert "run before: 2 finished, 0 failed; 0 to run" in (tmp_path / "b.out").read_text()


def test_what_a_killed_machine_left_is_taken_over_and_nothing_is_doubled(
    server: str, tmp_path: Path
) -> None:
    first = Machine(tmp_path, server, "a", "rounds=60")
    deadline = time.monotonic() + PATIENCE_S
    while "round 3/" not in first.out.read_text():
        assert first.process.poll() is None, first.end()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.process.kill()
    first.process.wait()
    status, told = Machine(tmp_path, server, "b", "rounds=60").end()
    assert (status, told.count("\n")) == (2, 1)
    assert "by process" in told
    assert "of a since 20" in told
    assert "add --take-over if it is gone" in told
    second = Machine(tmp_path, server, "b", "rounds=60", "--take-over")
    assert second.end()[0] == 0
    store = store_of(server, tmp_path)
    rounds = list(range(61))
    assert stored(store) == [
        ("default", "FINISHED", []),
        *((f"no shift iid seed={seed}", "FINISHED", rounds) for seed in (0, 1)),
    ]
    assert claims(store) == []


def refuse(driver: str, since: str) -> None:
    if not driver.startswith("gone "):
        raise RunnerError(f"{driver} runs it since {since}")


def test_of_many_that_claim_at_once_one_is_in(server: str, tmp_path: Path) -> None:
    """Whoever is in never meets another, and of those that start together one gets in."""
    store, threads = store_of(server, tmp_path), 5
    inside, most, entered = Counter[str](), [0], Counter[int]()
    lock, together = threading.Lock(), threading.Barrier(threads)

    def drive(number: int) -> None:
        for lap in range(4):
            together.wait()
            with suppress(RunnerError), claim_in_store(store, "x", f"{number} 1 1.0", refuse):
                with lock:
                    inside["now"] += 1
                    most[0] = max(most[0], inside["now"])
                    entered[lap] += 1
                together.wait()  # until the others have given up
                inside["now"] -= 1
                continue
            together.wait()

    at_once = [threading.Thread(target=drive, args=(number,)) for number in range(threads)]
    for thread in at_once:
        thread.start()
    for thread in at_once:
        thread.join(120)
    assert most == [1]
    assert entered == dict.fromkeys(range(4), 1)
    assert claims(store) == []


def test_who_is_in_is_not_disturbed_by_whoever_comes_later(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their tags' order; other sweeps never wait, and claims of the dead are removed."""
    monkeypatch.setattr("fedsweep.tracking.store_claim._WAIT_S", 0.5)
    store = store_of(server, tmp_path)
    with suppress(KeyboardInterrupt), claim_in_store(store, "x", "gone 1 1.0", refuse):
        left = claims(store)
        raise KeyboardInterrupt
    store.client.set_experiment_tag(store.experiment_id, left[0], "gone 1 1.0\n2026")
    with claim_in_store(store, "x", "a 1 1.0", refuse):
        assert len(claims(store)) == 1
        for _ in range(6):
            with (
                pytest.raises(RunnerError, match="a 1 1.0 runs it since 20"),
                claim_in_store(store, "x", "b 1 1.0", refuse),
            ):
                pass
        with claim_in_store(store, "y", "b 1 1.0", refuse):
            assert len(claims(store)) == 2
    assert claims(store) == []
