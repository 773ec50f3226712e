"""``python -m benchmarks.long_trial``: what grows in a trial of many rounds, by kind of process.

A small sweep on Ray is watched from outside: the memory that each kind of process has for itself
(USS), and the files that lie in the output folder.
"""

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks.soak import VICTIMS, Session

WORDS = (
    "strategy=fedavg", "shift=none", "partition=iid", "seed=0", "num_clients=4", "model=logreg",
    "tracking.figures=none", "tracking.log_models=false",
)  # fmt: skip
EVERY = 100
"""Rounds between two looks."""


def memory(session: Session, kind: str) -> float:
    """Return the MiB that processes of a kind have for themselves."""
    found = 0.0
    for process in session.victims(kind):
        with suppress(psutil.Error):  # it has ended
            found += process.memory_full_info().uss / 2**20
    return found


def files(folder: Path) -> int:
    """Return how many files lie in a folder."""
    return sum(path.is_file() for path in folder.rglob("*"))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_trial", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1200)
    args = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        session = Session(folder, *WORDS, f"rounds={args.rounds}")
        print(f"| round | files | {' | '.join(VICTIMS)} |\n{'|---' * (2 + len(VICTIMS))}|")
        due = EVERY
        try:
            while session.process.poll() is None:
                if (now := session.rounds.total()) >= due:
                    due += EVERY
                    cells = (f"{memory(session, kind):.1f}" for kind in VICTIMS)
                    print(f"| {now} | {files(folder)} | {' | '.join(cells)} |", flush=True)
                time.sleep(0.2)
        finally:
            session.end()
        print(f"ended with status {session.process.returncode}, {files(folder)} files")
        return int(session.process.returncode)


if __name__ == "__main__":
    sys.exit(main())
