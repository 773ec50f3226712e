"""``python -m benchmarks.curves [--seeds N]``: does pfl's CIFAR-10 learn alike in pfl and here?

Prints the central accuracy of both after 10, 30 and 50 rounds for each seed (weights, users drawn,
batches, dropout), and the difference of the means in its standard errors (Welch's t). It takes
eight minutes a seed on two cores.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean, variance

from benchmarks.__main__ import CURVE, lay_down, pfl_cifar10_of_seed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("--seeds", type=int, default=4, help="how many seeds, 2 at least (4)")
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error("--seeds must be 2 at least: one seed has no noise to compare with")
    curves: list[list[list[float]]] = []  # (seeds, pfl and ours, rounds)
    with tempfile.TemporaryDirectory(prefix="fedsweep-bench-") as folder:
        print(f"data: {lay_down(Path(folder), 'cifar10')}")
        print(
            "| seed | "
            + " | ".join(f"{who} after {n}" for who in ("pfl", "ours") for n in CURVE)
            + " | pfl / ours |"
        )
        print("|---" * (2 + 2 * len(CURVE)) + "|", flush=True)
        for seed in range(given.seeds):
            row, own = pfl_cifar10_of_seed(folder, seed)
            curves.append(own)
            cells = [f"{value:.1f}" for curve in own for value in curve]
            print(
                f"| {seed} | {' | '.join(cells)} | {row.value:.2f} ({row.low:.2f} to "
                f"{row.high:.2f}) |",
                flush=True,
            )
    for i, n in enumerate(CURVE):
        theirs, mine = ([own[who][i] for own in curves] for who in (0, 1))
        error = ((variance(theirs) + variance(mine)) / given.seeds) ** 0.5
        gap = mean(mine) - mean(theirs)
        print(
            f"after {n} rounds: pfl {mean(theirs):.1f} %, ours {mean(mine):.1f} %, "
            f"difference {gap:+.1f} points, {gap / error:+.1f} standard errors"
        )


if __name__ == "__main__":
    main()
