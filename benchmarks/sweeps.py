"""Whole sweeps, run and followed as a user does: ``fedsweep sweep ... --json``.

    python -m benchmarks.sweeps efficiency|warm_start [key=value ...]

prints what was measured as JSON; ``benchmarks/__main__.py`` makes rows of it.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.contender import ROOT, ContenderError, environ_of_users

CORES = len(os.sched_getaffinity(0))
EFFICIENCY = [
    "shift=rotation", "partition=dirichlet", "strategy.num_clusters=1,2,4", "seed=0,1,2,3,4,5,6,7",
    "training.epochs=330",
]  # fmt: skip
"""24 trials of the default sweep, with more epochs: 5 to 10 s of client compute each."""

WARM_START = [
    "shift=none",
    "partition=iid",
    "strategy.num_clusters=1,2",
    "seed=0,1,2",
    "resources.trials=1",
]
"""One trial after the other: who waits for the next one sees it."""


def fedsweep(*words: str) -> list[str]:
    """Return the command line of this checkout's tool."""
    return [sys.executable, "-m", "runner", *words]


def run_sweep(words: list[str], folder: str, timeout_s: float = 400.0) -> list[dict[str, Any]]:
    """Run the default sweep with these words; return its events."""
    hosts = f"resources.hosts.cpu.count={CORES}"
    command = fedsweep("sweep", "default", "--json", hosts, f"tracking.output={folder}", *words)
    env = environ_of_users()
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # users keep their compiled modules
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode:
        last = (done.stdout.splitlines() or [""])[-1]  # it tells the failures
        raise ContenderError(
            f"the sweep ended with {done.returncode}:\n{done.stderr[-2000:]}{last[-2000:]}"
        )
    return [json.loads(line) for line in done.stdout.splitlines()]


def efficiency(words: list[str]) -> dict[str, float]:
    """Return the clients' compute over what the cores could do, from pool's start to last trial."""
    with tempfile.TemporaryDirectory(prefix="fedsweep-bench-") as folder:
        events = run_sweep([*EFFICIENCY, *words], folder)
        tables = [pd.read_parquet(path) for path in sorted(Path(folder).rglob("clients.parquet"))]
    [begin] = [event["time"] for event in events if event["event"] == "begin"]
    last = max(event["time"] for event in events if event["event"] == "end")
    compute = [float(table["cpu_s"].sum()) for table in tables]
    return {
        "efficiency": sum(compute) / CORES / (last - begin),
        "trials": len(compute),
        "shortest_s": min(compute),
        "longest_s": max(compute),
        "wall_s": last - begin,
        "report_s": events[-1]["time"] - last,
    }


def warm_start(words: list[str]) -> dict[str, list[float]]:
    """Return seconds from the end of each trial's last round to the next one's first client task.

    The trial's result, the next one's start and the evaluation of its initial model lie between. A
    round's record has the time of its end and its length.
    """
    with tempfile.TemporaryDirectory(prefix="fedsweep-bench-") as folder:
        events = [
            event for event in run_sweep([*WARM_START, *words], folder) if event["event"] == "round"
        ]
    ends = [event["time"] for event in events if event["round"] == event["rounds"]]
    starts = [
        event["time"] - event["metrics"]["5_time/round_s"]
        for event in events
        if event["round"] == 1
    ]
    return {"seconds": [start - end for end, start in zip(ends, starts[1:], strict=False)]}


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    print(json.dumps({"efficiency": efficiency, "warm_start": warm_start}[what](given)))
