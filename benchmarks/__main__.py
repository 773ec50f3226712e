"""``python -m benchmarks [ROW ...]``: run the benchmarks, one at a time;
print one table, write ``bench.json``.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from benchmarks.appfl_work import Arrival
from benchmarks.contender import ROOT, Contender, ContenderError
from benchmarks.work import PROCESSES, WORKS, save

TEST = 2000
"""Central test images, the first ones."""

CURVE = (10, 30, 50)
"""Rounds after which models of pfl's CIFAR-10 benchmark are compared;
it ends with the last of them.
"""

PEERS_PYTHON = ROOT / ".venv-bench" / "bin" / "python"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    key: str
    value: float
    low: float  # of the repetitions
    high: float
    goal: str  # ">= 20"
    what: str  # medians of what was measured, and how often

    @property
    def reached(self) -> bool:
        """Whether the goal is met."""
        relation, limit = self.goal.split()
        return self.value >= float(limit) if relation == ">=" else self.value <= float(limit)


def ours(*arguments: str) -> Contender:
    return Contender(["-m", "benchmarks.ours", *arguments])


def flower(*arguments: str) -> Contender:
    return Contender(["-m", "benchmarks.flower_peer", *arguments])


def pfl(*arguments: str) -> Contender:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    return Contender([*launcher, "-m", "benchmarks.pfl_peer", *arguments], PEERS_PYTHON)


def alternate(
    contenders: Sequence[Callable[[], Contender]], repeats: int
) -> list[list[dict[str, float]]]:
    """Start the contenders one after the other, then let them take turns; return their answers."""
    with ExitStack() as stack:
        alive = [stack.enter_context(start()) for start in contenders]
        answers: list[list[dict[str, float]]] = [[] for _ in alive]
        for _ in range(repeats):
            for contender, got in zip(alive, answers, strict=True):
                got.append(contender.turn())
    return answers


def seconds(answers: list[dict[str, float]]) -> list[float]:
    return [answer["seconds"] for answer in answers]


def spread(key: str, values: Sequence[float], goal: str, what: str) -> Row:
    """Return the row of a figure that was measured several times."""
    return Row(key, median(values), min(values), max(values), goal, what)


def ratio(key: str, slow: Sequence[float], fast: Sequence[float], goal: str, names: str) -> Row:
    """Return the row of a ratio: of the medians;
    its spread is that of the pairs, each measured side by side.
    """
    pairs = [a / b for a, b in zip(slow, fast, strict=True)]
    what = f"{names}: {_time(median(slow))} / {_time(median(fast))}, {len(pairs)} turns each"
    return Row(key, median(slow) / median(fast), min(pairs), max(pairs), goal, what)


def _time(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def noop(folder: str) -> list[Row]:
    tasks = 1000
    mine, theirs = alternate(
        [lambda: ours("noop", f"{tasks},{tasks},5"), lambda: flower("noop", f"{tasks},{tasks},1")],
        3,
    )
    per_task = [value / tasks * 1000 for value in seconds(mine)]
    return [
        ratio(
            "noop_vs_flower",
            seconds(theirs),
            seconds(mine),
            ">= 20",
            "1,000 echoes of 10 kB, Flower / ours",
        ),
        spread("noop_ms_per_task", per_task, "<= 0.4", "ms a task; 3 turns of 5 rounds"),
    ]


def lenet(folder: str) -> list[Row]:
    peers = {"flower": flower, "bare": lambda *a: Contender(["-m", "benchmarks.bare", *a])}
    if PEERS_PYTHON.exists():
        peers["pfl"] = pfl
    starts = [
        lambda: ours("lenet", folder),
        *(lambda start=start: start("lenet", folder) for start in peers.values()),
    ]
    mine, *others = alternate(starts, 7)
    goals = {"flower": ">= 2.5", "bare": ">= 0.95", "pfl": ">= 1.3"}
    return [
        ratio(
            f"lenet_vs_{name}",
            seconds(theirs),
            seconds(mine),
            goals[name],
            f"a round, {name} / ours",
        )
        for name, theirs in zip(peers, others, strict=True)
    ]


def app(folder: str) -> list[Row]:
    starts = [lambda e=e: Contender(["-m", "benchmarks.app_peer", e]) for e in ("ours", "flower")]
    mine, theirs = alternate(starts, 5)
    what = "a round of the NumPy quickstart, 100 clients, Flower / ours"
    return [ratio("app_vs_flower", seconds(theirs), seconds(mine), ">= 3", what)]


def startup(folder: str) -> list[Row]:
    mine, theirs = [], []
    for _ in range(3):
        for start, times in ((ours, mine), (flower, theirs)):
            with start("startup", folder) as contender:
                times.append(contender.turn()["seconds"])
    return [
        ratio(
            "startup_vs_flower",
            theirs,
            mine,
            ">= 2",
            "ray.init to the end of round 1 of LeNet, Flower / ours",
        )
    ]


def flute(folder: str) -> list[Row]:
    mine, theirs = alternate([lambda: ours("flute", folder), lambda: flower("flute", folder)], 4)
    what = "a round (100 rounds in 4 turns of 25), Flower / ours"
    return [ratio("flute_lr_mnist_vs_flower", seconds(theirs), seconds(mine), ">= 20", what)]


def population(folder: str) -> list[Row]:
    big, small = alternate(
        [lambda n=n: ours("population", str(n), folder) for n in (1_000_000, 1_000)], 7
    )
    growth = [a["rss_mb"] - b["rss_mb"] for a, b in zip(big, small, strict=True)]
    return [
        ratio(
            "population_1m_vs_1k",
            seconds(big),
            seconds(small),
            "<= 1.1",
            "a round of 100 clients, 1M / 1k",
        ),
        spread("population_rss_mb", growth, "<= 200", "driver's memory, 1M less 1k clients"),
    ]


def cohort_memory(folder: str) -> list[Row]:
    with ours("cohort_memory", "1000,25") as contender:
        answers = [contender.turn() for _ in range(2)]
    a_round = _time(median(seconds(answers)))
    what = f"driver's peak above idle; 1,000 x 25 MB, {a_round} a round, 2 rounds"
    values = [answer["mb"] for answer in answers]
    return [Row("cohort_memory_mb", max(values), min(values), max(values), "<= 500", what)]


def skewed(folder: str) -> list[Row]:
    with ours("skewed", folder) as contender:
        answers = [contender.turn() for _ in range(7)]
    a_round = _time(median(seconds(answers)))
    what = f"round / max(total work / hosts, largest client); {a_round} a round, 7 rounds"
    return [spread("skewed_makespan", [answer["ratio"] for answer in answers], "<= 1.1", what)]


TRAINING = {
    "train_logreg_vs_bare": ">= 4",
    "train_mlp_vs_bare": ">= 2.5",
    "train_lenet10_vs_bare": ">= 2",
    "train_lenet32_vs_bare": ">= 1.5",
    "train_table_mlp_vs_bare": ">= 2.5",
    "train_synthetic_logreg_vs_bare": ">= 4",
    "train_lstm_vs_bare": ">= 0.9",
}
"""Local training: row -> what it should reach."""


def training(folder: str) -> list[Row]:
    rows = []
    for key, goal in TRAINING.items():
        with Contender(["-m", "benchmarks.training", "turns", key]) as contender:
            answers = [contender.turn() for _ in range(7)]
        loop, mine = ([answer[who] for answer in answers] for who in ("bare", "ours"))
        rows.append(
            ratio(
                key,
                loop,
                mine,
                goal,
                "100 clients on one core, plain PyTorch loop / ours, CPU time",
            )
        )
    return rows


def flute_alone(folder: str) -> list[Row]:
    with Contender(["-m", "benchmarks.training", "turns", "flute_lr_mnist_s"]) as contender:
        times = seconds([contender.turn() for _ in range(3)])
    what = "a trial of 100 rounds on 2 hosts, all but imports and the hosts' start, 3 turns"
    return [spread("flute_lr_mnist_s", times, "<= 10", what)]


def pfl_cifar10(folder: str) -> list[Row]:
    if not PEERS_PYTHON.exists():
        return []
    data = lay_down(Path(folder), "cifar10")
    row, curves = pfl_cifar10_of_seed(folder, 0)
    reached = [", ".join(f"{value:.1f} %" for value in curve) for curve in curves]
    what = (
        f"a round of its CIFAR-10 IID benchmark ({data}; the same first weights, "
        f"central accuracy after rounds 10, 30 and 50: pfl {reached[0]}; ours {reached[1]}), "
        f"{row.what}"
    )
    return [replace(row, what=what)]


def pfl_cifar10_of_seed(folder: str, seed: int) -> tuple[Row, list[list[float]]]:
    """Return the row of a seed's weights and draws, and accuracies (%) of pfl and ours at CURVE."""
    word = str(seed)
    theirs, mine = alternate(
        [lambda: pfl("cifar10", folder, word), lambda: ours("cifar10", folder, word)], CURVE[-1]
    )
    curves = [
        [100 * answer["accuracy"] for answer in answers if answer.get("round") in CURVE]
        for answers in (theirs, mine)
    ]
    return ratio(
        "pfl_cifar10_vs_pfl", seconds(theirs), seconds(mine), ">= 1.3", "pfl / ours"
    ), curves


def tracking(folder: str) -> list[Row]:
    got = measured("benchmarks.tracking_overhead")
    rounds = f"{got['rounds']:.0f} rounds of {got['round_s']:.1f} s"
    what = f"share of a trial's time; 1,000 clients x 10 metrics, {rounds}"
    return [Row("tracking_overhead", *[got["tracking_overhead"]] * 3, "<= 0.02", what)]


def sweep_efficiency(folder: str) -> list[Row]:
    got = measured("benchmarks.sweeps", "efficiency")
    trials = f"{got['trials']} trials of {got['shortest_s']:.1f} to {got['longest_s']:.1f} s"
    what = f"client compute / cores / wall: {trials} in {got['wall_s']:.0f} s"
    return [Row("sweep_efficiency", *[got["efficiency"]] * 3, ">= 0.85", what)]


def warm_start(folder: str) -> list[Row]:
    waits = measured("benchmarks.sweeps", "warm_start")["seconds"]
    return [
        spread(
            "warm_trial_start_s",
            waits,
            "<= 1",
            f"last round to the next trial's round 1; {len(waits)} times",
        )
    ]


def measured(*words: str) -> dict[str, Any]:
    """Return what a benchmark of its own process prints, as JSON on its last line."""
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ContenderError(
            f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def cluster_10k(folder: str) -> list[Row]:
    with Contender(["-m", "benchmarks.clustering", "10000", folder]) as contender:
        got = contender.turn()
    at_once = f"K-means on 10,000 clients' sketches, made by the hosts; ARI {got['ari']:.2f}"
    return [
        spread(
            "cluster_10k_s",
            [got["seconds"]],
            "<= 120",
            f"s, {got['server_s']:.1f} of them the server's; {at_once}",
        ),
        spread(
            "cluster_10k_mb",
            [got["mb"]],
            "<= 500",
            f"driver's rise; the models are {got['models_mb']:.0f} MB",
        ),
    ]


def arrivals(folder: str) -> list[Row]:
    count, tens = 100_000, 10_000
    timed, plain = (
        measured("benchmarks.arrivals", "131072", str(count), *more) for more in ([], ["none"])
    )
    large, small = (
        [measured("benchmarks.arrivals", str(clients), str(tens))["seconds"] for _ in range(3)]
        for clients in (1_000_000, 1_000)
    )
    told = f"{count:,} arrivals at 131,072 clients, 1,000 at work, FedBuff, no-op clients"
    grown = timed["mb"] - plain["mb"]
    return [
        spread("arrivals_100k_s", [timed["seconds"]], "<= 60", told),
        spread("arrivals_mb", [grown], "<= 300", "memory beyond that of a trial without a clock"),
        ratio("arrivals_1m_vs_1k", large, small, "<= 2", f"{tens:,} arrivals, 1M / 1k clients"),
    ]


def asynchronous(folder: str) -> list[Row]:
    got = measured("benchmarks.asynchronous", folder)
    a_task = {name: [1 / speed for speed in speeds] for name, speeds in got.items()}
    told = "a task of LeNet, 100 clients at work, in rounds / by FedBuff in tens"
    both = a_task["sync"], a_task["fedbuff"]
    return [ratio("async_vs_sync_tasks_per_s", *both, ">= 0.8", told)]


def appfl(folder: str) -> list[Row]:
    if not PEERS_PYTHON.exists():
        return []
    rows, orders = [], []
    for key, (name, told, counts, repeats) in BESIDE_APPFL.items():
        peer = ["-m", "benchmarks.appfl_peer", name, folder, *counts, *told]
        own = ["-m", "benchmarks.appfl_ours", name, folder, "64", "200"]
        theirs, mine = alternate(
            [
                lambda words=peer: Contender(words, PEERS_PYTHON, timeout_s=1800),
                lambda words=own: Contender(words),
            ],
            repeats,
        )
        cpu = [_time(median(one["cpu_s"] for one in each)) for each in (theirs, mine)]
        how = "as it comes" if told else "optimize_memory=false"
        names = f"a task of {name} under FedAsync, APPFL {how} / ours (CPU {' / '.join(cpu)})"
        rows.append(ratio(key, seconds(theirs), seconds(mine), ">= 5", names))
        orders.append([[a for one in each for a in one["arrivals"]] for each in (theirs, mine)])
    return [*rows, same_order(orders)]


BESIDE_APPFL: dict[str, tuple[str, tuple[str, ...], tuple[str, str], int]] = {
    "async_vs_appfl": ("lenet", ("collects",), ("1", "10"), 2),
    "async_vs_appfl_lean": ("lenet", (), ("64", "200"), 3),
    "async_mlp_vs_appfl_lean": ("mlp", (), ("64", "200"), 3),
}
"""Row -> the work, how APPFL is told to run it, its arrivals before time is taken and of which it
is, turns. As it comes a task takes it seconds.
"""


def same_order(orders: Sequence[Sequence[Sequence[Arrival]]]) -> Row:
    """Return how many arrivals two simulators have in common, one by one: who, and how late."""
    pairs = [pair for theirs, mine in orders for pair in zip(theirs, mine, strict=False)]
    same = [a[0] == b[0] and a[2] == b[2] for a, b in pairs]
    apart = max(abs(a[1] - b[1]) / a[1] for a, b in pairs)
    what = f"share of arrivals: of {len(same)} in {len(orders)} trials, times within {apart:.1g}"
    share = sum(same) / len(same)
    return Row("arrivals_as_appfl", share, share, share, ">= 1", what)


def tuning(folder: str) -> list[Row]:
    got = measured("benchmarks.tuning")
    mine, theirs = got["ours"], got["usual"]
    pairs = [a - b for a, b in zip(mine, theirs, strict=True)]
    lost = f"{mean(mine):.2f} and {mean(theirs):.2f} points, {len(pairs)} searches each"
    what = f"regret of the winner, ours less Ray Tune's with Optuna, in points: {lost}"
    orders = float(got["winners_of_one_seed"])
    told = "winners of one search of Ray Tune's whose runs end in five orders; ours has one"
    return [
        Row("tuning_regret_vs_tune", mean(pairs), min(pairs), max(pairs), "<= 0", what),
        Row("tuning_winners_of_tune", orders, orders, orders, ">= 1", told),
    ]


def searches(folder: str) -> list[Row]:
    got = measured("benchmarks.searches")
    ours, usual = got["ours"], got["usual"]
    winners = " and ".join("the same" if one["same"] else "another" for one in (ours, usual))
    share = f"of {ours['rounds']} and {usual['rounds']}"
    told = (
        f"rounds trained again after kill -9 at half, ours; Ray Tune's {usual['again']:g}, "
        f"{share}; winners then: {winners}"
    )
    beside = (
        f"s a trial beside its rounds, ours less Ray Tune's: {ours['overhead_s']:.2f} and "
        f"{usual['overhead_s']:.2f}"
    )
    gap = ours["overhead_s"] - usual["overhead_s"]
    again = float(ours["again"])
    return [
        Row("search_again_rounds", again, again, again, "<= 2", told),
        Row("search_overhead_vs_tune_s", gap, gap, gap, "<= 0", beside),
    ]


GROUPS: dict[Callable[[str], list[Row]], tuple[str, ...]] = {
    noop: ("noop_vs_flower", "noop_ms_per_task"),
    lenet: ("lenet_vs_flower", "lenet_vs_bare", "lenet_vs_pfl"),
    startup: ("startup_vs_flower",),
    app: ("app_vs_flower",),
    flute: ("flute_lr_mnist_vs_flower",),
    population: ("population_1m_vs_1k", "population_rss_mb"),
    cohort_memory: ("cohort_memory_mb",),
    skewed: ("skewed_makespan",),
    training: tuple(TRAINING),
    flute_alone: ("flute_lr_mnist_s",),
    pfl_cifar10: ("pfl_cifar10_vs_pfl",),
    tracking: ("tracking_overhead",),
    sweep_efficiency: ("sweep_efficiency",),
    warm_start: ("warm_trial_start_s",),
    arrivals: ("arrivals_100k_s", "arrivals_mb", "arrivals_1m_vs_1k"),
    asynchronous: ("async_vs_sync_tasks_per_s",),
    appfl: (*BESIDE_APPFL, "arrivals_as_appfl"),
    cluster_10k: ("cluster_10k_s", "cluster_10k_mb"),
    tuning: ("tuning_regret_vs_tune", "tuning_winners_of_tune"),
    searches: ("search_again_rounds", "search_overhead_vs_tune_s"),
}


def lay_down(folder: Path, data: str = "mnist") -> str:
    """Write a data set as all contenders read it;
    return what it is: its images, or noise of their shape.
    """
    from fedsweep.data.sources import load_images
    from fedsweep.errors import DataError
    from fedsweep.sweeps.compose import compose

    config = compose([f"dataset={data}"])
    try:
        images = load_images(config.dataset, config.data)
        x, y, name = np.asarray(images.train_x), np.asarray(images.train_y), data
        test_x, test_y = np.asarray(images.test_x[:TEST]), np.asarray(images.test_y[:TEST])
    except DataError:
        rng = np.random.default_rng(0)
        shape = next(work.shape for work in WORKS.values() if work.data == data)
        x = rng.integers(0, 256, (60_000, *shape), np.uint8)
        test_x, test_y = x[:TEST], rng.integers(0, 10, TEST)
        y, name = (
            rng.integers(0, 10, 60_000),
            f"noise of the shape of {data} (set FEDSWEEP_DATA for the images)",
        )
    scale = np.stack([x.mean((0, 2, 3)), x.std((0, 2, 3))]) / 255
    np.savez(folder / f"{data}-images.npz", x=x, y=y, test_x=test_x, test_y=test_y, scale=scale)
    for work in [work for work in WORKS if WORKS[work].data == data]:
        save(folder, work, x, y, scale)
    return name


TABLE_HEAD = "| key | value | spread | goal | | what was run |\n|---|---:|---|---|---|---|"


def line(row: Row) -> str:
    """Return a row as a line of a Markdown table."""
    mark = "yes" if row.reached else "**no**"
    spread = f"{row.low:.3g} to {row.high:.3g}"
    return f"| `{row.key}` | {row.value:.3g} | {spread} | {row.goal} | {mark} | {row.what} |"


def keep(output: Path, rows: Sequence[Row], missing: Sequence[str], machine: str) -> None:
    """Write what was measured so far."""
    values = {row.key: row.value for row in rows}
    details = {row.key: asdict(row) | {"reached": row.reached} for row in rows}
    text = json.dumps(
        {**values, "not_measured": missing, "details": details, "machine": machine}, indent=2
    )
    output.write_text(text + "\n")


def main() -> int:
    keys = [key for group in GROUPS.values() for key in group]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help=f"which rows, all by default: {', '.join(keys)}"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("bench.json"), help="where the figures go (bench.json)"
    )
    given = parser.parse_args()
    if unknown := set(given.rows) - set(keys):
        parser.error(f"unknown row {', '.join(sorted(unknown))}; rows are {', '.join(keys)}")
    rows: list[Row] = []
    missing: list[str] = []
    failed = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedsweep-bench-") as folder:
        data = lay_down(Path(folder))
        machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, data: {data}"
        print(TABLE_HEAD, flush=True)
        for run, group in GROUPS.items():
            if given.rows and not set(group) & set(given.rows):
                continue
            print(f"running {', '.join(group)} ...", file=sys.stderr, flush=True)
            try:
                measured = run(folder)
            except ContenderError as error:
                measured, failed = [], failed + 1
                print(error, file=sys.stderr)
            print("".join(f"{line(row)}\n" for row in measured), end="", flush=True)
            rows += measured
            missing += [key for key in group if key not in {row.key for row in measured}]
            keep(given.output, rows, missing, machine)
    if missing:
        print(
            f"\nnot measured: {', '.join(missing)}"
            + ("" if PEERS_PYTHON.exists() else " (.venv-bench is missing)")
        )
    print(
        f"\n{machine}; load average {os.getloadavg()[0]:.1f}; {time.monotonic() - began:.0f} s in "
        "all"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
