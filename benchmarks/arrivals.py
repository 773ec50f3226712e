"""``python -m benchmarks.arrivals CLIENTS ARRIVALS [none]``: the cost of virtual time alone.

FedBuff with 1,000 clients at work, whose tasks do nothing, in this process. With ``none`` there is
no clock: synchronous rounds of as many replies. It prints JSON.
"""

import json
import logging
import sys
import time

import numpy as np
import psutil
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg

from benchmarks.apps import echo_app
from fedsweep.engine.flower import quiet
from fedsweep.engine.grid import inline_grid
from fedsweep.engine.host import AppSpec
from fedsweep.engine.wire import count_bytes
from fedsweep.pace.clock import DeviceClock, TaskWork
from fedsweep.pace.ledger import TimeLedger
from fedsweep.pace.policies import Aggregation, Policies, Underway
from fedsweep.pace.schedule import Scene
from fedsweep.pace.schedules import schedule_of
from fedsweep.scenario.devices import devices_of
from fedsweep.trial.rounds import Loop, run_rounds

AT_WORK, BUFFER = 1000, 10


def main(clients: int, arrivals: int, *, timed: bool) -> dict[str, float]:
    """Return the seconds of so many arrivals, and the process's memory after them, in MiB."""
    quiet()
    logging.disable(logging.INFO)
    share = BUFFER / clients
    strategy = FedAvg(
        fraction_train=share, min_train_nodes=BUFFER, fraction_evaluate=0.0, min_available_nodes=1
    )
    grid = inline_grid(AppSpec("arrivals", echo_app, {}, clients, {}))
    policies, settle = Policies(), None
    if timed:
        table = devices_of("lognormal", rate_sigma=1.5).table(clients, 0)
        clock = DeviceClock(table, TaskWork(1e6, 1, np.full(clients, 100)), count_bytes)
        scene = Scene(table.presence, clock, strategy, BUFFER)
        schedule = schedule_of("fedbuff", buffer=BUFFER, concurrency=AT_WORK)
        policies, ledger = schedule.policies(scene), TimeLedger(clock, stale=True)

        def settle(number: int, due: Aggregation, underway: Underway):
            return ledger.settle(number, due, underway.now)

    model = ArrayRecord({"w": Array(np.zeros(10, np.float32))})
    rounds = arrivals // BUFFER
    loop = Loop(
        rounds, 0, ConfigRecord(), evaluate_every=rounds + 1, policies=policies, settle=settle
    )
    began = time.perf_counter()
    virtual_s = 0.0
    for done in run_rounds(strategy, grid, model, loop):
        virtual_s = done.virtual_s
    seconds = time.perf_counter() - began
    mb = psutil.Process().memory_full_info().uss / 2**20
    return {"seconds": seconds, "mb": mb, "virtual_s": virtual_s}


if __name__ == "__main__":
    count, replies, *rest = sys.argv[1:]
    print(json.dumps(main(int(count), int(replies), timed=rest != ["none"])))
