"""``python -m benchmarks.searches``: whole searches under a kill, ours and Ray Tune's with Optuna.

Each is run undisturbed, then again and killed (``SIGKILL``, its Ray with it) at half of the rounds
that it took, and run once more with the same words. One trial runs at a time in both. Theirs is
:mod:`benchmarks.tune_peer`, with a checkpoint each round; ours trains two clients on digits.

The last line is JSON, for each of the two: ``rounds`` of an undisturbed search, ``again`` (rounds
that were run twice, or that the undisturbed search does not have), ``same`` (whether the winner is
the undisturbed one's) and ``overhead_s``, the seconds of a trial beside its rounds, from the first
round's start to the last one's end. Only the last depends on how busy the machine is.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contender import ROOT, ContenderError, environ_of_users

WORDS = (
    "strategy=fedavg", "seed=0", "num_clients=2", "rounds=6", "model=logreg", "dataset=digits",
    "tracking.log_models=false", "tracking.figures=none", "resources.trials=1",
    "checkpoint.every=1", "search.space.training.lr=loguniform:1e-3:1", "search.budget=96",
    "search.generation=3", "--name", "hunt", "--json",
)  # fmt: skip
SAMPLES = 8
"""Of Tune: one more than ours has."""
SHARE = 0.5
"""Share of the rounds after which a search is killed."""
PATIENCE_S = 900.0


@dataclass(frozen=True)
class Contest:
    """A search that can be run, killed and run again: in a folder, in which it tells its rounds.

    Parameters
    ----------
    words : sequence of str
        What to run after ``python -m``, with ``{}`` for the folder.
    """

    words: Sequence[str]

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        """Start it, or have it go on."""
        folder.mkdir(exist_ok=True)
        with (folder / "out").open("ab") as out, (folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *(word.format(folder) for word in self.words)],
                cwd=ROOT, stdout=out, stderr=log, start_new_session=True,
                env={**environ_of_users(), "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    def run(self, folder: Path, kill_after: int | None = None) -> None:
        """Run it to its end, or until so many rounds were told."""
        process = self.start(folder)
        until = time.monotonic() + PATIENCE_S
        try:
            while process.poll() is None:
                if kill_after is not None and len(self.rounds(folder)) >= kill_after:
                    return
                if time.monotonic() > until:
                    raise ContenderError(f"{self.words[0]} took more than {PATIENCE_S:g} s")
                time.sleep(0.02)
        finally:
            _kill(process)
        if kill_after is not None or process.returncode:
            raise ContenderError(
                f"{self.words[0]} ended with {process.returncode}:\n"
                + (folder / "log").read_text()[-2000:]
            )

    def rounds(self, folder: Path) -> list[dict[str, Any]]:
        """Return the rounds that were trained so far: whose, until when, and how long."""
        raise NotImplementedError

    def winner(self, folder: Path) -> object:
        """Return what the search chose."""
        raise NotImplementedError


class Ours(Contest):
    """A sweep with a search."""

    def rounds(self, folder: Path) -> list[dict[str, Any]]:
        """Return the rounds that its events tell; round 0 trains nothing.

        A round that a checkpoint tells again has the time at which it was trained.
        """
        told = [event for event in _lines(folder / "out") if event.get("event") == "round"]
        found = {
            (event["key"], event["round"], event["time"]): {
                "key": event["key"],
                "time": event["time"],
                "s": event["metrics"]["5_time/round_s"],
            }
            for event in told
            if event["round"]
        }
        return [*found.values()]

    def winner(self, folder: Path) -> object:
        """Return its proposals, their scores and the winner, as the store has them."""
        from fedsweep.config import TrackingConfig
        from fedsweep.tracking.read import read_sweep

        return read_sweep(TrackingConfig(output=str(folder)), "hunt").searched


class Tunes(Contest):
    """A search of Ray Tune's."""

    def rounds(self, folder: Path) -> list[dict[str, Any]]:
        """Return the rounds that its samples tell."""
        return _lines(folder / "events.jsonl")

    def winner(self, folder: Path) -> object:
        """Return the winner's settings."""
        return _lines(folder / "out")[-1]


CONTESTS: Mapping[str, Contest] = {
    "ours": Ours(["runner", "sweep", *WORDS, "tracking.output={}"]),
    "usual": Tunes(["benchmarks.tune_peer", "{}", str(SAMPLES)]),
}


def compared(contest: Contest, folder: Path) -> dict[str, Any]:
    """Return what a kill costs a search, and what its trials cost beside their rounds."""
    whole, killed = folder / "whole", folder / "killed"
    contest.run(whole)
    rounds = contest.rounds(whole)
    contest.run(killed, round(SHARE * len(rounds)))
    contest.run(killed)
    trials = len({one["key"] for one in rounds})
    first, last = rounds[0], rounds[-1]
    took = last["time"] - first["time"] + first["s"] - sum(one["s"] for one in rounds)
    return {
        "rounds": len(rounds),
        "trials": trials,
        "again": len(contest.rounds(killed)) - len(rounds),
        "same": contest.winner(killed) == contest.winner(whole),
        "overhead_s": took / trials,
    }


def _lines(file: Path) -> list[dict[str, Any]]:
    """Return a file's whole lines that are JSON; a line may be under way."""
    if not file.exists():
        return []
    found = []
    for line in file.read_text().splitlines(keepends=True):
        if line.startswith("{") and line.endswith("\n"):
            found.append(dict(json.loads(line)))
    return found


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a search with all that its session holds, such as the Ray that it started."""
    import psutil

    for one in psutil.process_iter():
        try:
            if os.getsid(one.pid) == process.pid or one.ppid() == process.pid:
                one.send_signal(signal.SIGKILL)
        except (psutil.Error, OSError):
            continue
    process.wait()


def main() -> int:
    """Compare those that are named, else both."""
    told = {}
    for name in sys.argv[1:] or CONTESTS:
        with tempfile.TemporaryDirectory(prefix="fedsweep-bench-") as folder:
            told[name] = compared(CONTESTS[name], Path(folder))
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
