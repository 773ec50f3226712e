"""A sweep under kills: ``make soak``. It must end as one that nobody disturbed.

Laps follow each other until so many processes were killed. In a lap one small sweep runs, on Ray,
while its driver, its hosts, its trials and Ray's own processes are killed with SIGKILL at random
moments, some while they start. A driver that was killed is started again with the same words. At
the lap's end each logged point and the hash of each model are held against those of an undisturbed
sweep in one process.

What was done is kept in the output folder after each lap: the same command goes on there, and
begins a lap that was cut off anew.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from fedsweep.catalog import CATALOG

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 100
WORDS = (
    "shift=rotation", "shift.groups=2", "partition=iid", "strategy.num_clusters=1,2", "seed=0",
    "num_clients=4", "model=logreg", "strategy.warmup_rounds=2", "tracking.log_models=false",
    "tracking.figures=none", "resources.max_retries=1000",
    "checkpoint.keep=false",
)  # fmt: skip
VICTIMS = {"host": 10, "trial": 8, "driver": 2, "raylet": 3, "gcs": 1}
"""What is killed in a sweep that runs: so many of each in a row of 24."""
FIRST = {"driver": 2, "raylet": 2, "host": 2}
"""What is killed while a session starts: so many of each in a row of 6."""
AT_START = 0.2
"""Share of the kills that come while a session starts."""
START_S = 5.0
"""Kills at the start come within so many seconds of it."""
UNTIL = 0.8
"""Share of the sweep's rounds within which the kills come: the last one must hit something."""
STARTS = 2
"""Kills at one start, at most."""
ABORTS = ("core_worker_process.cc", "Failed to connect to GCS within")
"""What Ray's code says when it ends our process with the raylet that it registers with, or the GCS
that it waits for."""
PATIENCE_S = 600.0
"""Seconds without a new line after which a session counts as hung."""
SAME_TRAFFIC = "4_comm/mb_client_server"
"""All clients train here, so that it is the same whoever serves a cluster."""
_ROUND = re.compile(r"^(.*): round (\d+)/", re.MULTILINE)
_GOES_ON = re.compile(r"^(.*): goes on after round (\d+)", re.MULTILINE)
_NAMES = {
    "host": "ray::_RayClient", "trial": "ray::_trial_task", "raylet": "raylet", "gcs": "gcs_server",
}  # fmt: skip

Results = dict[str, tuple[str, str, dict[str, list[tuple[int, float]]]]]
"""Trial -> its status, the hash of its models, and its learning metrics' points."""


class Session:
    """A driver, started as a user starts it."""

    def __init__(self, out: Path, *words: str) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.log = out / f"session-{time.time_ns()}.log"
        env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        command = [sys.executable, "-u", "-m", "fedsweep", "sweep", "default", *words]
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [*command, f"tracking.output={out}"],
                cwd=ROOT,
                env=env,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.began = time.monotonic()

    @property
    def text(self) -> str:
        """What it has said."""
        return self.log.read_text()

    @property
    def rounds(self) -> Counter[str]:
        """The last round of each trial that it has shown."""
        return Counter({trial: int(number) for trial, number in _ROUND.findall(self.text)})

    def victims(self, kind: str) -> list[psutil.Process]:
        """Return its processes of a kind."""
        try:
            driver = psutil.Process(self.process.pid)
            children = [driver] if kind == "driver" else driver.children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        if kind == "driver":
            return children
        return [child for child in children if _is(child, _NAMES[kind])]

    def end(self) -> None:
        """Kill it and what it started."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
        self.process.wait()


def _is(process: psutil.Process, name: str) -> bool:
    try:
        title = (process.cmdline() or [""])[0]
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and (process.name() == name or title.startswith(name))
    except psutil.Error:
        return False


def stored(out: Path) -> tuple[Results, list[str]]:
    """Return what a sweep has logged, and what is there twice."""
    results: Results = {}
    with closing(sqlite3.connect(f"file:{out}/mlflow.db?mode=ro", uri=True)) as store:
        tags: dict[str, dict[str, str]] = {}
        for run, key, value in store.execute("select run_uuid, key, value from tags"):
            tags.setdefault(run, {})[key] = value
        points: dict[str, list[tuple[str, int, float]]] = {}
        every = "select run_uuid, key, step, value from metrics order by key, step"
        for run, key, step, value in store.execute(every):
            points.setdefault(run, []).append((key, step, value))
        statuses = dict(store.execute("select run_uuid, status from runs"))
        names = dict(store.execute("select run_uuid, name from runs"))
    trials = [run for run in statuses if tags.get(run, {}).get("kind") == "trial"]
    twice = [name for name, times in Counter(names[run] for run in trials).items() if times > 1]
    for run in trials:
        logged = points.get(run, [])
        seen = Counter((key, step) for key, step, _ in logged)
        doubled = [point for point, times in seen.items() if times > 1]
        twice += [f"{names[run]}: {key} at step {step}" for key, step in doubled]
        learning: dict[str, list[tuple[int, float]]] = {}
        for key, step, value in logged:
            if key == SAME_TRAFFIC or CATALOG.follows(key) == "learning":
                learning.setdefault(key, []).append((step, value))
        results[names[run]] = statuses[run], tags[run].get("weights_sha256", ""), learning
    return results, twice


def differences(found: Results, expected: Results) -> list[str]:
    """Return where two sweeps differ, a line each."""
    told = [f"{trial}: only in one of them" for trial in sorted(found.keys() ^ expected.keys())]
    for trial in sorted(found.keys() & expected.keys()):
        for name, a, b in zip(("status", "models"), found[trial], expected[trial], strict=False):
            if a != b:
                told.append(f"{trial}: {name} {a}, not {b}")
        ours, theirs = (dict(_points(results[trial][2])) for results in (found, expected))
        for point in sorted(ours.keys() | theirs.keys()):
            a, b = ours.get(point), theirs.get(point)
            if a != b:
                told.append(f"{trial}: {point[0]} at step {point[1]} is {a}, not {b}")
    return told


def _points(
    learning: dict[str, list[tuple[int, float]]],
) -> Iterator[tuple[tuple[str, int], float]]:
    for key, values in learning.items():
        for step, value in values:
            yield (key, step), value


@dataclass
class Lap:
    """A sweep that was killed again and again."""

    kills: Counter[str] = field(default_factory=Counter)  # by what was killed and when
    sessions: int = 0
    aborts: int = 0  # sessions that Ray's own code ended together with the process that it lost
    seconds: float = 0.0
    points: int = 0  # learning metrics that were held against the undisturbed ones
    faults: list[str] = field(default_factory=list)
    """Differences, points that are there twice, tracebacks, sessions that gave up."""


def run_lap(
    out: Path,
    words: tuple[str, ...],
    kills: int,
    chance: random.Random,
    expected: Results,
) -> Lap:
    """Run a sweep to its end under kills, and hold it against the undisturbed one."""
    lap, began = Lap(), time.monotonic()
    [rounds] = [int(word.removeprefix("rounds=")) for word in words if word.startswith("rounds=")]
    until = UNTIL * rounds * len(expected)
    moments = sorted(chance.uniform(0, until) for _ in range(round(kills * (1 - AT_START))))
    due = list(zip(moments, _kinds(VICTIMS, len(moments), chance), strict=True))
    first = _kinds(FIRST, kills - len(due), chance)
    done, status = Counter[str](), -signal.SIGKILL
    while status == -signal.SIGKILL:
        session = Session(out, *words)
        lap.sessions += 1
        try:
            for _ in range(min(len(first), STARTS)):
                if _strike_at_start(session, lap, first[0], chance):
                    del first[0]
            _strike_while_it_runs(session, lap, chance, due, done)
        finally:
            session.end()
        text, status = session.text, session.process.returncode
        for trial, number in _GOES_ON.findall(text):
            if int(number) < done[trial]:
                lap.faults.append(f"{trial}: round {done[trial]} was done before, in {session.log}")
        done |= session.rounds
        if "Traceback" in text:
            lap.faults.append(f"a traceback in {session.log}")
        elif status == 1 and any(told in text for told in ABORTS):
            lap.aborts += 1
            status = -signal.SIGKILL
    found, twice = stored(out)
    if status:
        said = " / ".join(text.strip().splitlines()[-3:])
        lap.faults.append(f"status {status}, {session.log}: {said}")
    else:
        lap.faults += differences(found, expected)
        left = [path for path in (out / "checkpoints").rglob("*") if path.is_file()]
        lap.faults += [f"left behind: {path}" for path in left]
    lap.faults += [f"twice: {what}" for what in twice]
    lap.points = sum(1 for _, _, learning in found.values() for _ in _points(learning))
    lap.seconds = time.monotonic() - began
    return lap


def _strike_at_start(session: Session, lap: Lap, kind: str, chance: random.Random) -> int:
    """Kill something within seconds of a start; return how many processes that were."""
    begin, delay = time.monotonic(), chance.uniform(0, START_S)
    _until(session, lambda: time.monotonic() - begin > delay)
    return _until(session, lambda: _strike(session, lap, kind, chance, "start"))


def _strike_while_it_runs(
    session: Session,
    lap: Lap,
    chance: random.Random,
    due: list[tuple[float, str]],
    done: Counter[str],
) -> None:
    """Kill something whenever the sweep has got so far, until the driver is dead or at its end."""
    while due and session.process.poll() is None:
        # Ray that dies thrice without a round between is given up
        moment, kind = due[0]
        _until(session, partial(_got_to, session, moment, done))
        if _until(session, partial(_strike, session, lap, kind, chance, "sweep")):
            del due[0]
    _until(session, lambda: False)


def _got_to(session: Session, moment: float, done: Counter[str]) -> bool:
    rounds = session.rounds
    return bool(rounds) and (done | rounds).total() >= moment


def _kinds(weights: dict[str, int], number: int, chance: random.Random) -> list[str]:
    """Return what is killed, in any order: of each its share, where the number is a whole row."""
    row = [kind for kind, weight in weights.items() for _ in range(weight)]
    rows = [kind for _ in range(-(-number // len(row))) for kind in chance.sample(row, len(row))]
    return rows[:number]


def _strike(session: Session, lap: Lap, kind: str, chance: random.Random, when: str) -> int:
    """Kill one process of a kind, if there is one; a driver's death is waited for."""
    victims = session.victims(kind)
    if not victims:
        return 0
    with suppress(psutil.NoSuchProcess):
        chance.choice(victims).kill()
        if kind == "driver":
            session.process.wait()
        lap.kills[f"{kind}, {when}"] += 1
        return 1
    return 0


def _until(session: Session, found: Callable[[], Any]) -> Any:
    """Wait for something in a session that runs; nothing where it ended before.

    Raises
    ------
    TimeoutError
        The session has said nothing for minutes.
    """
    while not (value := found()):
        if session.process.poll() is not None:
            return 0
        quiet = time.time() - session.log.stat().st_mtime
        if quiet > PATIENCE_S:
            raise TimeoutError(f"nothing new in {session.log} for {quiet:.0f} s")
        time.sleep(0.02)
    return value


def undisturbed(out: Path, words: tuple[str, ...]) -> Results:
    """Run the sweep in one process, or take what an earlier call ran; return what it logged."""
    session = Session(out, *words, "resources.engine=inline")
    session.process.wait()
    found, twice = stored(out)
    if session.process.returncode or twice:
        raise RuntimeError(f"the undisturbed sweep failed: {session.text[-2000:]}")
    return found


def report(laps: list[Lap]) -> str:
    """Return what came out, in Markdown."""
    kills = sum((lap.kills for lap in laps), Counter())
    faults = [fault for lap in laps for fault in lap.faults]
    lines = ["| killed | while it starts | while it runs |", "|---|---|---|"]
    for kind in VICTIMS:
        lines.append(f"| {kind} | {kills[f'{kind}, start']} | {kills[f'{kind}, sweep']} |")
    faults_told = [f"- {fault}" for fault in faults]
    sessions, hours = sum(lap.sessions for lap in laps), sum(lap.seconds for lap in laps) / 3600
    summary = (
        f"{kills.total():,} kills in {len(laps)} sweeps, {sessions} sessions and {hours:.1f} "
        f"hours; {sum(lap.points for lap in laps):,} logged points and the hash of each model were "
        f"compared: {len(faults)} differences. Ray ended {sum(lap.aborts for lap in laps)} "
        "sessions together with a raylet; the same command went on."
    )
    return "\n".join([summary, "", *lines, *faults_told])


def soak(out: Path, kills: int, a_lap: int, seed: int, rounds: int = ROUNDS) -> list[Lap]:
    """Run laps until so many processes were killed; those that an earlier call ran count."""
    words = (*WORDS, f"rounds={rounds}")
    state = out / "laps.json"
    before = json.loads(state.read_text()) if state.exists() else []
    laps = [Lap(**{**lap, "kills": Counter(lap["kills"])}) for lap in before]
    expected = undisturbed(out / "undisturbed", words)
    while (so_far := sum(lap.kills.total() for lap in laps)) < kills:
        # A lap that was cut off starts anew: its driver may run on where this process was killed.
        folder = Path(tempfile.mkdtemp(prefix=f"lap-{len(laps):04}-", dir=out))
        chance = random.Random(f"{seed}/{len(laps)}")
        lap = run_lap(folder, words, min(a_lap, kills - so_far), chance, expected)
        laps.append(lap)
        draft = state.with_suffix(".new")
        draft.write_text(json.dumps([vars(lap) for lap in laps]))
        draft.replace(state)
        so_far += lap.kills.total()
        print(f"lap {len(laps)}: {so_far} of {kills} kills, {len(lap.faults)} faults", flush=True)
        if not lap.faults:
            shutil.rmtree(folder)
    return laps


def main() -> int:
    """Run the command line; the status is 1 where anything differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--a-lap", type=int, default=30, help="kills in one sweep")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "soak")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    laps = soak(args.out, args.kills, args.a_lap, args.seed)
    text = report(laps)
    (args.out / "soak.md").write_text(f"{text}\n")
    print(text)
    return int(any(lap.faults for lap in laps))


if __name__ == "__main__":
    sys.exit(main())
