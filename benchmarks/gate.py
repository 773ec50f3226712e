"""``python -m benchmarks.gate``: how often does each method split clients that do not differ, and
does it still split those that do? Digits, ``configs/experiment/gate.yaml``; every trial from its
data to its clusters, in this process.

Another experiment can take its place (one round, unless the words say otherwise), a setting is
tried by its words, and any metrics of the last round can be shown in place of the counts::

    python -m benchmarks.gate fedclust --experiment rotated_mnist_show --shifts rotation --seeds 0:5
    python -m benchmarks.gate "strategy=stocfl strategy.merge_cosine=0.65" --shifts rotation
    python -m benchmarks.gate "strategy=clove rounds=15" --metrics 2_clusters/ari 3_clients/acc
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedsweep.data.sources import ImageData, load_images
from fedsweep.engine.flower import quiet
from fedsweep.records import RoundRecord
from fedsweep.report.stats import EXACT
from fedsweep.sweeps.compose import compose
from fedsweep.sweeps.prepare import make_split
from fedsweep.trial.trial import run_trial

METHODS: dict[str, tuple[str, ...]] = {
    "kmeans, k given": ("strategy=kmeans", "strategy.gate=0.01"),
    "kmeans, k by silhouette": (
        "strategy=kmeans",
        "strategy.gate=0.01",
        "strategy.choose_k=silhouette",
    ),
    "flhc": ("strategy=flhc",),
    "fedclust": ("strategy=fedclust",),
    "fedgroup": ("strategy=fedgroup",),
    "fesem": ("strategy=fesem",),
    "pacfl": ("strategy=pacfl",),
    "stocfl": ("strategy=stocfl",),
    "cfl": ("strategy=cfl", "rounds=20"),
}
"""Methods that can tell whether there are groups, as they come.

Where the gate is off by default it is at .01.
"""

SHIFTS = ("none", "rotation", "label_permutation", "label_groups")


@dataclass(frozen=True)
class Outcome:
    """What a method made of the clients of one shift, over seeds."""

    split: int  # trials that ended with more than one cluster
    recovered: (
        int  # trials whose clusters are the known groups; without a shift, that are one cluster
    )
    last: tuple[Mapping[str, float], ...]  # each trial's metrics of its last round

    def mean(self, metric: str) -> str:
        """Return a metric's mean and deviation over seeds; nan where a trial lacks it."""
        values = [metrics.get(metric, float("nan")) for metrics in self.last]
        return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def outcome(words: Sequence[str], seeds: Sequence[int], images: ImageData) -> Outcome:
    """Run a trial's words once per seed."""
    split = recovered = 0
    lasts = []
    for seed in seeds:
        config = compose([*words, f"seed={seed}"])
        *_, last = (
            e
            for e in run_trial(config, images, make_split(images, config))
            if isinstance(e, RoundRecord)
        )
        clusters = len(set(last.assignments.get("cluster", [0])))
        split += clusters > 1
        recovered += last.metrics.get("2_clusters/ari", float(clusters == 1)) > EXACT
        lasts.append(last.metrics)
    return Outcome(split, recovered, tuple(lasts))


def measure(
    methods: Sequence[str],
    shifts: Sequence[str],
    seeds: Sequence[int],
    metrics: Sequence[str] = (),
    experiment: str = "gate",
    said: Callable[[str], None] = print,
) -> dict[tuple[str, str], Outcome]:
    """Return the outcome of each method on each shift; each line of the table is said at once.

    Parameters
    ----------
    methods : sequence of str
        Names of ``METHODS``, or words of a configuration in one string.
    metrics : sequence of str
        Show their means over seeds, in place of how many seeds were split or recovered.
    experiment : str
        Whose data and settings are taken.
    """
    quiet()
    base = compose([f"experiment={experiment}"])
    images = load_images(base.dataset, base.data)
    found = {}
    columns = ["false splits" if shift == "none" else f"{shift} recovered" for shift in shifts]
    if metrics:
        columns = [f"{shift}: {metric}" for shift in shifts for metric in metrics]
    said(f"| method | {' | '.join(columns)} |")
    said("|---|" + "---:|" * len(columns))
    for method in methods:
        cells = []
        for shift in shifts:
            words = (f"experiment={experiment}", f"shift={shift}", "rounds=1")
            own = METHODS.get(method) or method.split()
            result = found[method, shift] = outcome((*words, *own), seeds, images)
            count = result.split if shift == "none" else result.recovered
            cells += [result.mean(metric) for metric in metrics] or [f"{count} of {len(seeds)}"]
        said(f"| {method} | " + " | ".join(cells) + " |")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    about = f"all by default: {', '.join(METHODS)}; or words, such as 'strategy=clove rounds=15'"
    parser.add_argument("methods", nargs="*", default=list(METHODS), help=about)
    parser.add_argument(
        "--seeds", default="20:40", help="first:end, 20:40 by default: the gate was made on 0 to 19"
    )
    parser.add_argument(
        "--shifts", nargs="*", default=SHIFTS, help=f"all by default: {', '.join(SHIFTS)}"
    )
    about = "whose data and settings; gate by default"
    parser.add_argument("--experiment", default="gate", help=about)
    about = "show the means of these metrics of the last round, 2_clusters/ari for one"
    parser.add_argument("--metrics", nargs="*", default=(), help=about)
    given = parser.parse_args()
    if unknown := {method for method in given.methods if "=" not in method} - METHODS.keys():
        parser.error(
            f"unknown method {', '.join(sorted(unknown))}; methods are {', '.join(METHODS)}"
        )
    first, end = map(int, given.seeds.split(":"))
    began = time.monotonic()
    measure(given.methods, given.shifts, range(first, end), given.metrics, given.experiment)
    print(f"\nseeds {first} to {end - 1}, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
