"""``python -m benchmarks.tuning``: what a search's winner loses, ours and Ray Tune with Optuna's.

Both have the same budget of rounds, and a learning curve instead of a training: a peak in two
settings, which later rounds come closer to, and noise of each run, as held-out accuracy has it on
few examples. The usual way gives each of Tune's samples one seed and all rounds, four at once, and
they end in any order; its winner is the best value that was seen. Ours has its default settings,
but for rungs. The regret is how far the noiseless peak is above the winner's noiseless value, in
points.

The last line is JSON: the regret of each of ten repeats, and how many winners there are of one seed
where the same runs end in other orders.
"""

import json
import math
import sys
from collections.abc import Mapping
from random import Random
from typing import Any

ROUNDS, TRAINED, BUDGET, NOISE = 9, 10, 4500, 0.01
REPEATS, ORDERS, AT_ONCE = 10, 5, 4
LR, OTHER = "training.lr", "strategy.m"


def whole(values: Mapping[str, Any]) -> float:
    """Return what settings reach without noise."""
    rate = min((math.log10(values[LR]) + 1) ** 2, 4.0)
    return 0.95 - 0.1 * rate - 0.2 * (values[OTHER] - 0.4) ** 2


def reached(values: Mapping[str, Any], rounds: int, seed: int) -> float:
    """Return what a run of a seed shows after so many rounds."""
    noise = Random(repr((seed, rounds, sorted(values.items())))).gauss(0, NOISE)
    return whole(values) - 0.3 / rounds + noise


def regret(values: Mapping[str, Any]) -> float:
    """Return what is lost by settings, in points."""
    return 100 * (whole({LR: 0.1, OTHER: 0.4}) - whole(values))


def ours(repeat: int) -> Mapping[str, Any]:
    """Return the winner of a search."""
    from fedsweep.search.course import Course, Heard
    from fedsweep.search.settings import SearchConfig

    space = {LR: "loguniform(1e-3,1)", OTHER: "uniform(0,1)"}
    config = SearchConfig(space=space, budget=BUDGET, min_rounds=3, seed=repeat)
    default = {LR: 0.02, OTHER: 0.9}
    course = Course(config, config.ranges, ROUNDS, TRAINED, default, repeat=repeat)
    steps = course.steps()
    asks = next(steps)
    try:
        while True:
            heard = {}
            for ask in asks:
                value = reached(course.values(ask.proposal), ask.rounds, ask.seed)
                heard[ask] = Heard(value, 0.0)
            asks = steps.send(heard)
    except StopIteration:
        assert course.winner is not None
        return course.winner.proposal.values


def usual(repeat: int, order: int = 0) -> Mapping[str, Any]:
    """Return the winner of Tune's search with Optuna, whose runs end in some order."""
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    space = {LR: tune.loguniform(1e-3, 1), OTHER: tune.uniform(0, 1)}
    search = OptunaSearch(space=space, metric="acc", mode="max", seed=repeat)
    random, samples = Random(repr((repeat, order))), BUDGET // (ROUNDS * TRAINED)
    running: dict[str, Mapping[str, Any]] = {}
    found: list[tuple[float, Mapping[str, Any]]] = []
    for number in range(samples + AT_ONCE):
        if number < samples:
            running[str(number)] = search.suggest(str(number))
        if running and (number >= samples or len(running) == AT_ONCE):
            ends = random.choice(sorted(running))
            values = running.pop(ends)
            value = reached(values, ROUNDS, repeat)
            found.append((value, values))
            search.on_trial_complete(ends, {"acc": value})
    return max(found, key=lambda both: both[0])[1]


def main() -> int:
    import logging

    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray").setLevel(logging.ERROR)
    orders = [repr(sorted(usual(0, order).items())) for order in range(ORDERS)]
    told = {
        "ours": [regret(ours(repeat)) for repeat in range(REPEATS)],
        "usual": [regret(usual(repeat)) for repeat in range(REPEATS)],
        "winners_of_one_seed": len(set(orders)),
    }
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
