"""``python -m benchmarks.gate``: how often does each method split clients that do not differ, and does it still split
those that do? Digits, ``configs/experiment/gate.yaml``; every trial from its data to its clusters, in this process.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runner.compose import compose
from runner.data.sources import ImageData, load_images
from runner.prepare import make_split
from runner.records import RoundRecord
from runner.stats import EXACT
from runner.trial import quiet_flower, run_trial

METHODS: dict[str, tuple[str, ...]] = {
    "kmeans, k given": ("strategy=kmeans", "strategy.gate=0.01"),
    "kmeans, k by silhouette": ("strategy=kmeans", "strategy.gate=0.01", "strategy.choose_k=silhouette"),
    "flhc": ("strategy=flhc",),
    "fedclust": ("strategy=fedclust",),
    "fedgroup": ("strategy=fedgroup",),
    "fesem": ("strategy=fesem",),
    "pacfl": ("strategy=pacfl",),
    "stocfl": ("strategy=stocfl",),
    "cfl": ("strategy=cfl", "rounds=20"),
}
"""Methods that can tell whether there are groups, as they come. Where the gate is off by default it is at .01."""

SHIFTS = ("none", "rotation", "label_permutation", "label_groups")


@dataclass(frozen=True)
class Outcome:
    """What a method made of the clients of one shift, over seeds."""

    split: int  # trials that ended with more than one cluster
    recovered: int  # trials whose clusters are the known groups; without a shift, that are one cluster
    trials: int


def outcome(words: Sequence[str], shift: str, seeds: Sequence[int], images: ImageData) -> Outcome:
    """Run a method on a shift, once per seed."""
    split = recovered = 0
    for seed in seeds:
        config = compose(["experiment=gate", "rounds=1", *words, f"shift={shift}", f"seed={seed}"])
        *_, last = (e for e in run_trial(config, images, make_split(images, config)) if isinstance(e, RoundRecord))
        clusters = len(set(last.assignments["cluster"]))
        split += clusters > 1
        recovered += last.metrics.get("2_clusters/ari", float(clusters == 1)) > EXACT
    return Outcome(split, recovered, len(seeds))


def measure(
    methods: Sequence[str], shifts: Sequence[str], seeds: Sequence[int], said: Callable[[str], None] = print
) -> dict[tuple[str, str], Outcome]:
    """Return the outcome of each method on each shift; a line of the table is said as soon as it is there."""
    quiet_flower()
    base = compose(["experiment=gate"])
    images = load_images(base.dataset, base.data)
    found = {}
    columns = ["false splits" if shift == "none" else f"{shift} recovered" for shift in shifts]
    said(f"| method | {' | '.join(columns)} |")
    said("|---|" + "---:|" * len(shifts))
    for method in methods:
        cells = []
        for shift in shifts:
            result = found[method, shift] = outcome(METHODS[method], shift, seeds, images)
            cells.append(f"{result.split if shift == 'none' else result.recovered} of {result.trials}")
        said(f"| {method} | " + " | ".join(cells) + " |")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS), help=f"all by default: {', '.join(METHODS)}")
    parser.add_argument("--seeds", default="20:40", help="first:end, 20:40 by default: the gate was made on 0 to 19")
    parser.add_argument("--shifts", nargs="*", default=SHIFTS, help=f"all by default: {', '.join(SHIFTS)}")
    given = parser.parse_args()
    if unknown := set(given.methods) - METHODS.keys():
        parser.error(f"unknown method {', '.join(sorted(unknown))}; methods are {', '.join(METHODS)}")
    first, end = map(int, given.seeds.split(":"))
    began = time.monotonic()
    measure(given.methods, given.shifts, range(first, end))
    print(f"\nseeds {first} to {end - 1}, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
