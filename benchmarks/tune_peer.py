"""Ray Tune with Optuna, as its pages have it: ``python -m benchmarks.tune_peer FOLDER SAMPLES``.

A sample is so many short rounds of the learning curve of :mod:`benchmarks.tuning`; it reports each
with a checkpoint, and goes on from its last one. A search whose folder is there is restored, its
unfinished samples with it. Rounds are told by a line each in ``FOLDER/events.jsonl``; the last line
of the output is JSON: the winner's settings.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.tuning import LR, OTHER, reached

ROUNDS = 6
ROUND_S = 0.2
"""Seconds of a round: long enough that a kill comes between two of them."""


def sample(settings: dict[str, Any]) -> None:
    """Train by these settings, so to say."""
    from ray import tune

    name, before = tune.get_context().get_trial_id(), tune.get_checkpoint()
    done = 0
    if before is not None:
        with before.as_directory() as folder:
            done = int((Path(folder) / "round").read_text())
    for number in range(done + 1, ROUNDS + 1):
        began = time.time()
        time.sleep(ROUND_S)
        event = {"key": name, "round": number, "time": time.time(), "s": time.time() - began}
        with Path(settings["events"]).open("a") as file:
            file.write(json.dumps(event) + "\n")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "round").write_text(str(number))
            kept = tune.Checkpoint.from_directory(folder)
            tune.report({"acc": reached(_searched(settings), number, 0)}, checkpoint=kept)


def _searched(settings: dict[str, Any]) -> dict[str, Any]:
    return {LR: settings[LR], OTHER: settings[OTHER]}


def main() -> int:
    """Run a search to its end, or go on with it."""
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    folder, samples = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    space = {
        LR: tune.loguniform(1e-3, 1), OTHER: tune.uniform(0, 1),
        "events": str(folder / "events.jsonl"),
    }  # fmt: skip
    if tune.Tuner.can_restore(str(folder / "search")):
        tuner = tune.Tuner.restore(str(folder / "search"), sample, resume_unfinished=True)
    else:
        config = tune.TuneConfig(
            metric="acc", mode="max", num_samples=samples, search_alg=OptunaSearch(seed=0),
            max_concurrent_trials=1,
        )  # fmt: skip
        where = tune.RunConfig(name="search", storage_path=str(folder), verbose=0)
        tuner = tune.Tuner(sample, param_space=space, tune_config=config, run_config=where)
    found = tuner.fit()
    best = found.get_best_result("acc", "max")
    assert best.config is not None
    print(json.dumps(_searched(best.config)))
    sys.stdout.flush()
    os._exit(0)  # what Ray leaves behind is its session's, which the benchmark ends


if __name__ == "__main__":
    sys.exit(main())
