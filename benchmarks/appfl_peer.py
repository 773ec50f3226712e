"""APPFL's virtual-time simulator, ``appfl.vsim``: FedAsync, client after client, in one process.

Runs in ``.venv-bench``. Its agents, trainer, scheduler and aggregator are its own; networks and
data come from memory, as its classes allow, and its loggers keep still.
"""

import logging
import sys
import time
from collections.abc import Iterator

import torch
from appfl.agent import SimClientAgent, SimServerAgent
from appfl.vsim import AsyncSimDriver, ClientProfile
from torch.utils.data import TensorDataset

from benchmarks.appfl_work import AT_WORK, EXPONENT, MIXING, SEED, STEP_S, Arrival, Fleet, turn
from benchmarks.contender import serve
from benchmarks.work import WORKS, Work, load, make_model

ENDLESS = 10**9


def accuracy(true, predicted) -> float:
    """Return the share that is right: a metric, which its trainer wants of each task."""
    return float((predicted.argmax(1) == true).mean())


class Server(SimServerAgent):
    """A server of a network of ours."""

    def __init__(self, config: dict, work: Work) -> None:
        self._work = work
        super().__init__(config)

    def _load_model(self) -> None:
        self.model = make_model(self._work, SEED)


class Client(SimClientAgent):
    """A client of a network of ours."""

    def __init__(self, config: dict, number: int, work: Work, data: TensorDataset) -> None:
        self._work = work
        super().__init__(config, client_id=str(number), client_dataset=data)

    def _load_model(self) -> None:
        self.model = make_model(self._work, SEED)

    def _load_metric(self) -> None:
        self.metric = accuracy


class Driver(AsyncSimDriver):
    """The simulator, an arrival at a time."""

    def arrivals(self) -> Iterator[Arrival]:
        """Yield what arrives, for ever."""
        while True:
            self._wanted = len(self.history) + 1
            self.run()
            last = self.history[-1]
            yield int(last["cid"]), last["vtime"], last["staleness"]

    def _training_finished(self) -> bool:
        return len(self.history) == self._wanted


def simulator(name: str, folder: str, at_work: int, *, collects: bool) -> Driver:
    """Return the simulator of a work's clients.

    Parameters
    ----------
    collects : bool
        Whether it collects garbage several times a task (``optimize_memory``), as it does unless
        one says otherwise.
    """
    work = WORKS[name]
    x, y = load(folder, name)
    config = {
        "server_configs": {"optimize_memory": collects},
        "log_configs": {"logging_output_filename": "", "client_logging_output_filename": ""},
        "algorithm_configs": {
            "num_global_epochs": ENDLESS,
            "scheduler": "AsyncScheduler",
            "scheduler_kwargs": {"num_clients": work.clients, "optimize_memory": collects},
            "aggregator": "FedAsyncAggregator",
            "aggregator_kwargs": {
                "alpha": MIXING, "staleness_fn": "polynomial",
                "staleness_fn_kwargs": {"a": EXPONENT}, "optimize_memory": collects,
            },
            "trainer": "VanillaTrainer",
            "trainer_kwargs": {
                "mode": "epoch", "num_local_epochs": 1, "train_batch_size": work.batch_size,
                "optim": "SGD", "optim_args": {"lr": work.lr, "fused": True},
                "loss_fn": "CrossEntropyLoss", "optimize_memory": collects,
            },
        },
    }  # fmt: skip
    server = Server(config, work)
    clients = [Client(config, n, work, TensorDataset(x[n], y[n])) for n in range(work.clients)]
    for each in clients:
        each.optimize_memory = collects
        each.logger.logger.setLevel(logging.ERROR)
    server.logger.logger.setLevel(logging.ERROR)
    fleet = Fleet.drawn(work.clients)
    devices = zip(fleet.slower_N.tolist(), fleet.mbit_N.tolist(), strict=True)
    profiles = {str(n): ClientProfile(*device) for n, device in enumerate(devices)}
    still = logging.getLogger("benchmarks.still")
    still.setLevel(logging.ERROR)
    return Driver(server, clients, profiles, at_work, still, seed=SEED, base_step_time=STEP_S)


def main(name: str, folder: str, untimed: str, timed: str, *told: str) -> None:
    torch.set_num_threads(1)
    driver = simulator(name, folder, AT_WORK, collects="collects" in told)
    serve(turn(driver.arrivals(), time.process_time, int(untimed), int(timed)))


if __name__ == "__main__":
    main(*sys.argv[1:])
