"""``python -m benchmarks.asynchronous FOLDER``: whether hosts idle where nobody waits for anybody.

A trial of LeNet whose 100 clients are all at work, waited for in rounds, and by FedBuff (K = 10):
of each the clients' tasks per second, after the first model. It prints JSON.
"""

import json
import logging
import sys
import time

import numpy as np

from benchmarks.ours import hosts, images_of, split_of
from benchmarks.work import WORKS, rows_of
from fedsweep.engine.executors import Host
from fedsweep.records import RoundRecord
from fedsweep.sweeps.compose import compose
from fedsweep.trial.trial import run_trial

TASKS, BUFFER = 500, 10
SCHEDULES = {
    "sync": ["schedule=sync"],
    "fedbuff": ["schedule=fedbuff", f"schedule.buffer={BUFFER}"],
}


def tasks_per_s(folder: str, name: str, pool: list[Host]) -> float:
    """Return how many clients train in a second under a schedule."""
    work = WORKS["lenet"]
    a_model = BUFFER if name == "fedbuff" else work.clients
    models = TASKS // a_model + 1
    words = [f"model={work.model}", f"num_clients={work.clients}", "devices=lognormal"]
    words += [f"training.lr={work.lr}", f"rounds={models}", f"evaluate_every={models}"]
    words += ["strategy.fraction_evaluate=0", f"dataset={work.data}", *SCHEDULES[name]]
    words += [f"training.batch_size={work.batch_size}"]
    images = images_of(folder, work.data)
    split = split_of(rows_of("lenet", np.asarray(images.train_y)))
    trained, began = 0.0, time.perf_counter()
    ended = began
    for event in run_trial(compose(words), images, split, pool):
        if isinstance(event, RoundRecord) and event.round == 1:
            began = time.perf_counter()
        elif isinstance(event, RoundRecord) and 1 < event.round < models:
            trained, ended = trained + event.metrics["3_clients/trained"], time.perf_counter()
    return trained / (ended - began)


def main(folder: str) -> dict[str, list[float]]:
    """Return the tasks per second of three turns of each schedule."""
    logging.disable(logging.INFO)
    with hosts() as pool:
        turns = [{name: tasks_per_s(folder, name, pool) for name in SCHEDULES} for _ in range(3)]
    return {name: [turn[name] for turn in turns] for name in SCHEDULES}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
