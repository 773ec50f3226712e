"""``python -m benchmarks.long_trial``: what grows in a trial of many rounds, by kind of process.

A small sweep on Ray is watched from outside: the memory that each kind of process has for itself
(USS), and the files that lie in the output folder.
"""

import argparse
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks.contender import ROOT

WORDS = (
    "strategy=fedavg", "shift=none", "partition=iid", "seed=0", "num_clients=4", "model=logreg",
    "tracking.figures=none", "tracking.log_models=false",
)  # fmt: skip
KINDS = {"_RayClientHost": "hosts", "_trial_task": "trial", "gcs_server": "GCS", "raylet": "raylet"}
EVERY = 100
"""Rounds between two looks."""


def look(driver: psutil.Process) -> Counter[str]:
    """Return the MiB that each kind of process has for itself."""
    found = Counter({"driver": driver.memory_full_info().uss / 2**20})
    for process in driver.children(recursive=True):
        try:
            called = f"{process.name()} {(process.cmdline() or [''])[0]}"
            kind = next((kind for name, kind in KINDS.items() if name in called), "others")
            found[kind] += process.memory_full_info().uss / 2**20
        except psutil.Error:  # it has ended
            continue
    return found


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_trial", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1200)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = [sys.executable, "-m", "fedsweep", "sweep", "default", *WORDS]
        command += [f"rounds={args.rounds}", f"tracking.output={folder}/out"]
        with log.open("w") as file:
            run = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        print("| round | files | " + " | ".join(["driver", *KINDS.values()]) + " |")
        print("|---" * (3 + len(KINDS)) + "|")
        due = EVERY
        while run.poll() is None:
            rounds = re.findall(r"round (\d+)/", log.read_text())
            if rounds and int(rounds[-1]) >= due:
                due += EVERY
                memory = look(psutil.Process(run.pid))
                files = sum(path.is_file() for path in Path(folder, "out").rglob("*"))
                cells = (f"{memory[kind]:.1f}" for kind in ("driver", *KINDS.values()))
                print(f"| {rounds[-1]} | {files} | {' | '.join(cells)} |", flush=True)
            time.sleep(0.2)
        files = sum(path.is_file() for path in Path(folder, "out").rglob("*"))
        print(f"ended with status {run.returncode}, {files} files")
        return run.returncode


if __name__ == "__main__":
    sys.exit(main())
