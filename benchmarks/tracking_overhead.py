"""What logging costs: a trial of 1,000 clients, 10 metrics a round, in SQLite, on full cores.

    python -m benchmarks.tracking_overhead [--rounds 20] [--round-s 2.0] [--clients 1000]

Every core is kept busy with a fixed amount of work a round. ``tracking_overhead`` is the share of
the trial's wall time that its logging takes: processor time of the writer thread (start, figures,
models and end of the run included), spread over the cores that would else compute, and the time
that calls held the driver up. ``wall_ratio`` is the same as a difference of wall times, tracked
rounds against untracked ones in turn; it holds the machine's noise too.
"""

import argparse
import json
import multiprocessing
import os

os.environ["OMP_NUM_THREADS"] = "1"  # a core each is what the fixed work is meant for
import tempfile
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from fedsweep.config import RunConfig, TrackingConfig
from fedsweep.models import build_model
from fedsweep.records import DataSummary, LoadSample, RoundRecord, TrialResult, TrialStarted
from fedsweep.tracking import Tracker
from fedsweep.trial.metrics import CLIENT_COLUMNS


def work(units: int) -> None:
    matrix = np.ones((128, 128), np.float32)
    for _ in range(units):
        matrix = matrix @ matrix / 128


def calibrate(seconds: float) -> int:
    begin = time.perf_counter()
    work(2000)
    return max(1, int(2000 * seconds / (time.perf_counter() - begin)))


def record(number: int, clients: int, rng: np.random.Generator) -> RoundRecord:
    columns: dict[str, Any] = {name: rng.random(clients).tolist() for name in CLIENT_COLUMNS}
    columns |= {
        "round": [number] * clients,
        "client": list(range(clients)),
        "host": ["host-0"] * clients,
    }
    assigned: dict[str, Any] = {
        "round": [number] * clients, "client": list(range(clients)),
        "cluster": [i % 4 for i in range(clients)], "server": [i < 4 for i in range(clients)],
        "score": rng.random(clients).tolist(), "tenure": [1] * clients,
    }  # fmt: skip
    metrics = {f"{i % 6 + 1}_section/metric_{i}": float(rng.random()) for i in range(40)}
    load = tuple(
        LoadSample(time.time(), f"host-{i}", "node", 90.0, 300.0, 90.0, 50.0) for i in range(4)
    )
    return RoundRecord(number, metrics, columns, assigned, load)


def started(clients: int, rng: np.random.Generator) -> TrialStarted:
    example = rng.integers(0, 255, (16, 1, 28, 28), np.uint8), np.arange(16) % 10
    data = DataSummary(
        "mnist", "iid", "none", "f" * 32, "memory", tuple("0123456789"),
        rng.integers(1, 90, (clients, 10)), np.zeros(clients, int), {0: example}, 60000, 10000,
    )  # fmt: skip
    return TrialStarted("key", data)


def result() -> TrialResult:
    state = {
        name: value.numpy()
        for name, value in build_model("lenet", (1, 28, 28), 10).state_dict().items()
    }
    models = dict.fromkeys(("global", "cluster_0", "cluster_1", "cluster_2", "cluster_3"), state)
    return TrialResult("key", models, "hash", {"acc": 0.9}, np.eye(10, dtype=int), (1, 28, 28))


def thread_clock(thread: threading.Thread) -> Callable[[], float]:
    """Return what reads the processor time of another thread of this process, in seconds."""
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)
    return lambda: time.clock_gettime(clock)


def measure(rounds: int, round_s: float, clients: int) -> dict[str, float]:
    cores = len(os.sched_getaffinity(0))
    units, rng = calibrate(round_s), np.random.default_rng(0)
    trial = RunConfig.model_validate(
        {"model": {"name": "lenet"}, "strategy": {"name": "kmeans"}, "rounds": rounds}
    )
    walls: dict[bool, list[float]] = {True: [], False: []}
    held = 0.0
    with (
        tempfile.TemporaryDirectory() as folder,
        multiprocessing.get_context("spawn").Pool(cores) as pool,
    ):
        pool.map(work, [1] * cores)
        tracker = Tracker(TrackingConfig(output=folder))
        writer = next(thread for thread in threading.enumerate() if thread.name == "mlflow-writer")
        cpu = thread_clock(writer)
        before = tracker.start_trial(
            trial
        )  # pays what a process pays once: imports, the first trace, the fonts
        before.started(started(clients, rng))
        before.round(record(1, clients, rng))
        before.finish(result())
        tracker.writer.flush()
        begin = cpu()
        run = tracker.start_trial(trial)
        run.started(started(clients, rng))
        for number in range(1, rounds + 1):
            for tracked in (True, False) if number % 2 else (False, True):
                logged = record(number, clients, rng)
                start = time.perf_counter()
                if tracked:
                    run.round(logged)
                    held += time.perf_counter() - start
                pool.map(work, [units] * cores)
                walls[tracked].append(time.perf_counter() - start)
                tracker.writer.flush()
        in_rounds = cpu() - begin
        start = time.perf_counter()
        run.finish(result())
        held += time.perf_counter() - start
        tracker.writer.flush()
        spent = cpu() - begin
        tracker.close()
    wall = rounds * median(walls[False])
    return {
        "tracking_overhead": (spent / cores + held) / wall,
        "rounds_alone": (in_rounds / cores + held) / wall,
        "wall_ratio": median(walls[True]) / median(walls[False]),
        "cpu_ms_a_round": in_rounds / rounds * 1000,
        "cpu_s_a_trial": spent,
        "held_ms_a_round": held / rounds * 1000,
        "round_s": median(walls[False]),
        "rounds": rounds,
        "clients": clients,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--round-s", type=float, default=2.0)
    parser.add_argument("--clients", type=int, default=1000)
    given = parser.parse_args()
    print(
        json.dumps(
            {k: round(v, 4) for k, v in measure(given.rounds, given.round_s, given.clients).items()}
        )
    )
