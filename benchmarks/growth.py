"""``python -m benchmarks.growth [CURVE ...]``: what costs grow with, as curves over the size.

Prints a table a curve, with the exponent of its growth (the slope in logarithms: 0 is flat, 1 is
proportional), and draws all of them in one picture. Contenders of one curve take turns.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.__main__ import alternate, lay_down, measured, ours
from benchmarks.contender import ROOT
from benchmarks.sweeps import fedsweep, run_sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = Mapping[str, Mapping[int, float]]
"""What was measured -> size -> its value."""

TURNS = 5
SKETCH = 256  # numbers that stand for a client
TINY = (
    "shift=none", "partition=iid", "strategy=fedavg", "model=logreg", "num_clients=2", "rounds=1",
    "training.epochs=1", "tracking.figures=none", "tracking.log_models=false",
)  # fmt: skip
"""A trial that is nearly all ours."""


@dataclass(frozen=True)
class Curve:
    """A cost over a size.

    Parameters
    ----------
    over : str
        What the size counts.
    sizes : tuple of int
        Those that are measured, ascending.
    measure : callable
        Takes the sizes, and returns what it measured.
    """

    over: str
    sizes: tuple[int, ...]
    measure: Callable[[Sequence[int]], Points]


def exponent(points: Mapping[int, float]) -> float:
    """Return the slope of logarithm over logarithm, by least squares; nan of one point."""
    if len(points) < 2:
        return math.nan
    slope, _ = np.polyfit(np.log(list(points)), np.log(list(points.values())), 1)
    return float(slope)


# What is measured


def population(sizes: Sequence[int]) -> Points:
    """Time rounds of 100 clients among so many, on Ray; the memory of the process that drives."""
    with tempfile.TemporaryDirectory(prefix="fedsweep-bench-") as folder:
        lay_down(Path(folder))
        answers = alternate([partial(ours, "population", str(n), folder) for n in sizes], TURNS)
    taken = dict(zip(sizes, answers, strict=True))
    return {
        "a round of 100 (ms)": {
            n: 1000 * median(turn["seconds"] for turn in turns) for n, turns in taken.items()
        },
        "driver's memory (MiB)": {
            n: median(turn["rss_mb"] for turn in turns) for n, turns in taken.items()
        },
    }


def cohort(sizes: Sequence[int]) -> Points:
    """Time a task that echoes 10 kB, in rounds of so many of them, on Ray."""
    rounds = {n: max(1, 2000 // n) for n in sizes}
    starts = [partial(ours, "noop", f"{n},{n},{rounds[n]}") for n in sizes]
    return {
        "a task (ms)": {
            n: 1000 * median(turn["seconds"] for turn in turns) / n
            for n, turns in zip(sizes, alternate(starts, TURNS), strict=True)
        }
    }


def clustering(sizes: Sequence[int]) -> Points:
    """Time the server's K-means on so many sketches, each in a process of its own."""
    answers = {n: measured("benchmarks.growth", "--alone", str(n)) for n in sizes}
    return {
        "grouping (s)": {n: got["seconds"] for n, got in answers.items()},
        "memory's rise (MiB)": {n: got["mb"] for n, got in answers.items()},
    }


def group(clients: int) -> dict[str, float]:
    """Group sketches of four known groups; return the seconds, the peak's rise and the ARI."""
    from benchmarks.ours import memory
    from fedsweep.engine.flower import quiet
    from fedsweep.strategies.registry import STRATEGIES
    from fedsweep.trial.metrics import agreement

    quiet()
    rng = np.random.default_rng(0)
    known = np.arange(clients) % 4
    centres = rng.standard_normal((4, SKETCH), np.float32)
    rows = centres[known] + rng.standard_normal((clients, SKETCH), np.float32)
    strategy = STRATEGIES["kmeans"](num_clusters=4, sketch=SKETCH)
    strategy.group_rows([1, 2, 3, 4], rows[:4])  # what is imported once
    before, began = memory("VmRSS"), time.perf_counter()
    strategy.group_rows(list(range(1, clients + 1)), rows)
    seconds = time.perf_counter() - began
    mb = memory("VmHWM") - before
    return {"seconds": seconds, "mb": mb, "ari": agreement(strategy.assignment, known)["ari"]}


def arrivals(sizes: Sequence[int]) -> Points:
    """Time 10,000 arrivals of FedBuff in virtual time among so many clients that do nothing."""
    count = 10_000
    seconds = {
        n: median(measured("benchmarks.arrivals", str(n), str(count))["seconds"] for _ in range(3))
        for n in sizes
    }
    return {"an arrival (ms)": {n: 1000 * value / count for n, value in seconds.items()}}


def trials(sizes: Sequence[int]) -> Points:
    """Make a sweep of tiny trials longer and longer; then ask what is left, and for its report."""
    points: dict[str, dict[int, float]] = {
        "a trial (s)": {}, "nothing left (s)": {}, "report (s)": {}, "files a trial": {},
        "kB a trial": {},
    }  # fmt: skip
    before = 0
    with tempfile.TemporaryDirectory(prefix="fedsweep-bench-") as output:
        for n in sizes:
            words = [*TINY, f"seed=range({n})"]
            events = run_sweep(words, output, timeout_s=3600)
            began, *_, ended = (event["time"] for event in events if event["event"] != "report")
            points["a trial (s)"][n] = (ended - began) / (n - before)
            before = n
            again = partial(run_sweep, words, output, timeout_s=3600)
            points["nothing left (s)"][n] = _seconds(again)
            report = partial(_told, "report", "default", f"tracking.output={output}")
            points["report (s)"][n] = _seconds(report)
            files = [path for path in Path(output).rglob("*") if path.is_file()]
            points["files a trial"][n] = len(files) / n
            points["kB a trial"][n] = sum(path.stat().st_size for path in files) / 1000 / n
    return points


def rounds(sizes: Sequence[int]) -> Points:
    """Run one trial of as many rounds as the last size; time the tenth of them before each size."""
    words = [word for word in TINY if not word.startswith("rounds=")]
    with tempfile.TemporaryDirectory(prefix="fedsweep-bench-") as output:
        events = run_sweep([*words, "seed=0", f"rounds={sizes[-1]}"], output, timeout_s=3600)
    ended = {event["round"]: event["time"] for event in events if event["event"] == "round"}
    spans = {n: max(1, n // 10) for n in sizes}
    return {
        "a round (ms)": {n: 1000 * (ended[n] - ended[n - span]) / span for n, span in spans.items()}
    }


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _told(*words: str) -> str:
    done = subprocess.run(fedsweep(*words), cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


CURVES = {
    "population": Curve("clients", (1_000, 10_000, 100_000, 1_000_000), population),
    "cohort": Curve("clients a round", (100, 1_000, 10_000), cohort),
    "clustering": Curve("clients", (1_000, 10_000, 100_000), clustering),
    "arrivals": Curve("clients", (1_000, 10_000, 100_000, 1_000_000), arrivals),
    "trials": Curve("trials", (30, 100, 300, 1_000), trials),
    "rounds": Curve("round", (10, 100, 300, 1_000), rounds),
}


# What is said of it


def table(curve: Curve, points: Points) -> str:
    """Return the rows of what was measured over the sizes, in Markdown, with exponents."""
    sizes = sorted({size for line in points.values() for size in line})
    head = [curve.over, *(f"{size:,}" for size in sizes), "exponent"]
    lines = [head, ["---"] * len(head)]
    for what, line in points.items():
        values = [f"{line[size]:.3g}" if size in line else "" for size in sizes]
        lines.append([what, *values, f"{exponent(line):+.2f}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def picture(found: Mapping[str, Points]) -> "Figure":
    """Draw a panel a curve, in logarithms; each line's exponent is in the legend."""
    from fedsweep.figures.canvas import PALETTE, legend, new_figure

    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure, axes = new_figure(4.2 * columns, 3.1 * rows, "", rows=rows, columns=columns)
    for ax, (name, points) in zip(axes, found.items(), strict=False):
        drawn = {}
        for colour, (what, line) in zip(PALETTE, points.items(), strict=False):
            [shown] = ax.plot(list(line), list(line.values()), "o-", color=colour, ms=4, lw=1.4)
            drawn[f"{what}: {exponent(line):+.2f}"] = shown
        ax.set(xscale="log", yscale="log", xlabel=CURVES[name].over, title=name)
        ax.title.set_fontsize(9)
        ax.margins(y=0.35)
        ax.grid(alpha=0.25)
        legend(ax, drawn, outside=False, framealpha=0.7)
    for spare in axes[len(found) :]:
        spare.set_axis_off()
    return figure


def main() -> None:
    """Measure the curves that are asked for, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("curve", nargs="*", help=f"{', '.join(CURVES)} (all)")
    parser.add_argument("--largest", type=int, help="leave out larger sizes, but for the first")
    parser.add_argument("--picture", type=Path, help="where the curves are drawn, as PNG")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        print(json.dumps(group(given.alone)))
        return
    if unknown := set(given.curve) - CURVES.keys():
        parser.error(
            f"no curve is called {', '.join(sorted(unknown))}; there are {', '.join(CURVES)}"
        )
    found: dict[str, Points] = {}
    for name in given.curve or CURVES:
        curve = CURVES[name]
        sizes = [n for n in curve.sizes if not given.largest or n <= given.largest]
        sizes = sizes or [curve.sizes[0]]
        found[name] = curve.measure(sizes)
        print(f"\n{name}\n\n{table(curve, found[name])}", flush=True)
    if given.picture:
        from fedsweep.figures.canvas import new_layouts, to_png

        given.picture.write_bytes(to_png(picture(found), 110, new_layouts()))


if __name__ == "__main__":
    sys.exit(main())
