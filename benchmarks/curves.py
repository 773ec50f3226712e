"""``python -m benchmarks.curves [--seeds N]``: does pfl's CIFAR-10 benchmark learn alike in pfl and here?

Prints the central accuracy of both after 10, 30 and 50 rounds for each seed (weights, users drawn, batches, dropout),
and the difference of the means in its standard errors (Welch's t). It takes seven minutes a seed on two cores.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean, median, variance

from benchmarks.__main__ import alternate, lay_down, ours, pfl, ratio, seconds

ROUNDS = (10, 30, 50)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("--seeds", type=int, default=4, help="how many seeds, 2 at least (4)")
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error("--seeds must be 2 at least: one seed has no noise to compare with")
    curves: dict[str, list[list[float]]] = {"pfl": [], "ours": []}
    with tempfile.TemporaryDirectory(prefix="fedsweep-bench-") as folder:
        print(f"data: {lay_down(Path(folder), 'cifar10')}")
        print("| seed | " + " | ".join(f"{who} after {n}" for who in curves for n in ROUNDS) + " | pfl / ours |")
        print("|---" * (2 + 2 * len(ROUNDS)) + "|", flush=True)
        for seed in map(str, range(given.seeds)):
            turns = alternate(
                [lambda s=seed: pfl("cifar10", folder, s), lambda s=seed: ours("cifar10", folder, s)], ROUNDS[-1]
            )
            for own, answers in zip(curves.values(), turns, strict=True):
                reached = {answer["round"]: answer["accuracy"] for answer in answers if "round" in answer}
                own.append([100 * reached[n] for n in ROUNDS])
            cells = [f"{value:.1f}" for own in curves.values() for value in own[-1]]
            speed = ratio("", seconds(turns[0]), seconds(turns[1]), ">= 1.3", "")
            print(
                f"| {seed} | {' | '.join(cells)} | {speed.value:.2f} ({speed.low:.2f} to {speed.high:.2f}) |",
                flush=True,
            )
    for i, n in enumerate(ROUNDS):
        theirs, mine = ([own[i] for own in curves[who]] for who in curves)
        error = ((variance(theirs) + variance(mine)) / given.seeds) ** 0.5
        gap = mean(mine) - mean(theirs)
        print(
            f"after {n} rounds: pfl {mean(theirs):.1f} %, ours {mean(mine):.1f} %, difference {gap:+.1f} points, "
            f"{gap / error:+.1f} standard errors (medians {median(theirs):.1f} and {median(mine):.1f} %)"
        )


if __name__ == "__main__":
    main()
