"""What a trial costs the driver in CPU seconds: its figures, its other tracking, a fresh store.

    python -m benchmarks.trial_costs [--trials 6]

A trial of 20 clients and 10 rounds with five models, in this process. Seconds are of the processor,
the least and the median of so many trials; those of figures are of one split and of one trial.
"""

import argparse
import json
import os

os.environ["OMP_NUM_THREADS"] = "1"
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.tracking_overhead import record, result, started
from fedsweep.config import RunConfig, TrackingConfig
from fedsweep.tracking import Tracker
from fedsweep.tracking.artifacts import Pictures
from fedsweep.tracking.imports import import_all
from fedsweep.tracking.runs import _DRAWN

CLIENTS, ROUNDS = 20, 10
TRIAL = RunConfig.model_validate(
    {"model": {"name": "lenet"}, "strategy": {"name": "kmeans"}, "rounds": ROUNDS}
)


def cpu_s(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def spread(times: list[float]) -> dict[str, float]:
    return {"least": round(min(times), 3), "median": round(median(times), 3)}


def figures(trials: int) -> dict[str, dict[str, float]]:
    """Return what the pictures of a split and of a trial cost, their first ones apart."""
    pictures, times = Pictures(), []
    for seed in range(trials + 1):
        rng = np.random.default_rng(seed)
        data, done = started(CLIENTS, rng).data, result()
        rounds = [record(number, CLIENTS, rng) for number in range(1, ROUNDS + 1)]
        metrics = [
            {"round": number, "1_global/acc": float(rng.random()), "1_global/loss": 1.0}
            for number in range(ROUNDS)
        ]
        clients = [{key: one.clients[key] for key in _DRAWN} for one in rounds]
        load = [sample for one in rounds for sample in one.load]
        assert data is not None
        assigned = [one.assignments for one in rounds]
        split = cpu_s(partial(pictures.of_data, data))
        trial = cpu_s(partial(pictures.of_trial, metrics, clients, assigned, load, data, done))
        times.append((split, trial))
    return {
        "figures of a split": spread([split for split, _ in times[1:]]),
        "figures of a trial": spread([trial for _, trial in times[1:]]),
    }


def tracking(trials: int) -> dict[str, dict[str, float]]:
    """Return what all else costs that is written of a trial, the first ones apart."""
    with tempfile.TemporaryDirectory() as folder:
        tracker = Tracker(TrackingConfig(output=folder, figures="none"))
        import_all(tracker.cfg, [TRIAL])

        def one() -> None:
            rng = np.random.default_rng(0)
            run = tracker.start_trial(TRIAL)
            run.started(started(CLIENTS, rng))
            for number in range(1, ROUNDS + 1):
                run.round(record(number, CLIENTS, rng))
            run.finish(result())
            tracker.writer.flush()

        times = [cpu_s(one) for _ in range(trials + 1)]
        tracker.close()
    return {"tracking without figures": spread(times[1:])}


def stores() -> dict[str, float]:
    """Return what a store costs that MLflow makes, and one that is copied from it."""
    from fedsweep.tracking.database import create

    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("HOME", "")
        os.environ["HOME"] = folder  # where no template is
        made, copied = (cpu_s(partial(create, Path(folder, at))) for at in ("a.db", "b.db"))
        os.environ["HOME"] = before
    return {"store made by MLflow": round(made, 3), "store copied": round(copied, 3)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=6)
    given = parser.parse_args()
    print(json.dumps({**figures(given.trials), **tracking(given.trials), **stores()}, indent=1))
