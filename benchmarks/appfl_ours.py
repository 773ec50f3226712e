"""The same devices and draws as APPFL's simulator has them, in virtual time of ours.

A trial under a schedule of one's own (``appfl_draws.py``), on two hosts, an arrival at a time.
"""

import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
from flwr.app import ArrayRecord, RecordDict

from benchmarks.appfl_work import AT_WORK, EXPONENT, MIXING, SEED, Arrival, Fleet, turn
from benchmarks.contender import ROOT, serve
from benchmarks.ours import ENDLESS, hosts, images_of, split_of
from benchmarks.work import WORKS, Work, make_model, rows_of
from fedsweep.engine.executors import Host
from fedsweep.engine.wire import count_bytes
from fedsweep.pace.clock import TRAINING_PASSES
from fedsweep.records import RoundRecord
from fedsweep.sweeps.compose import compose
from fedsweep.training.modules import forward_flop
from fedsweep.trial.trial import run_trial


def trace(work: Work) -> str:
    """Return the devices as a file of ours, for tasks of an epoch."""
    model = make_model(work)
    flop = forward_flop(model, torch.zeros(1, *work.shape)) * TRAINING_PASSES * work.examples
    steps = -(-work.examples // work.batch_size)
    weights = model.state_dict()
    numbers = sum(weight.nbytes for weight in weights.values())
    sent = count_bytes(RecordDict({"arrays": ArrayRecord(weights)}))  # arrays have heads there
    return Fleet.drawn(work.clients).trace(flop, steps, sent / numbers)


def arrivals(name: str, folder: str, at_work: int, pool: list[Host] | None) -> Iterator[Arrival]:
    """Yield what arrives in a trial of a work's clients."""
    work = WORKS[name]
    images = images_of(folder, work.data)
    split = split_of(rows_of(name, np.asarray(images.train_y)))
    with tempfile.TemporaryDirectory() as kept:
        path = Path(kept) / "devices.csv"
        path.write_text(trace(work))
        config = compose(
            [
                f"dataset={work.data}", f"model={work.model}", f"num_clients={work.clients}",
                f"training.lr={work.lr}", f"training.batch_size={work.batch_size}",
                "training.epochs=1", "training.momentum=0", f"seed={SEED}",
                f"rounds={ENDLESS}", f"evaluate_every={ENDLESS}", "strategy.fraction_evaluate=0",
                "devices=trace", f"devices.path={path}",
                f"schedule={ROOT}/benchmarks/appfl_draws.py:AsAppfl", f"schedule.draws={SEED}",
                f"schedule.concurrency={at_work}", f"schedule.mixing={MIXING}",
                f"schedule.exponent={EXPONENT}",
            ]
        )  # fmt: skip
    for event in run_trial(config, images, split, pool):
        if isinstance(event, RoundRecord) and event.round:
            of = event.tasks
            yield (
                int(of["client"][0]),
                float(of["ended_s"][0]),
                event.round - 1 - int(of["version"][0]),
            )


def cpu_s() -> float:
    """Return the processor time so far of this process and those that it started."""
    me = psutil.Process()
    times = [one.cpu_times() for one in (me, *me.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def main(name: str, folder: str, *count: str) -> None:
    logging.disable(logging.INFO)
    with hosts() as pool:
        serve(turn(arrivals(name, folder, AT_WORK, pool), cpu_s, *map(int, count)))


if __name__ == "__main__":
    main(*sys.argv[1:])
