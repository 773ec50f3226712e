"""Flower's own engine: ``run_simulation`` with two actors of a core, its FedAvg, its ClientApp."""

import sys
import time

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.apps import echo_app, learning_app
from benchmarks.contender import say, turns
from benchmarks.work import PROCESSES, WORKS, make_model


def main(name: str, folder: str) -> None:
    """Take turns of a work's rounds; ``startup`` runs LeNet's first and tells when it ended."""
    learns = "lenet" if name == "startup" else name
    if name.startswith("noop"):
        clients, cohort, rounds = (int(n) for n in folder.split(","))
        app, arrays = echo_app(), ArrayRecord({"w": Array(np.zeros(2500, np.float32))})
    else:
        work = WORKS[learns]
        clients, cohort, rounds = work.clients, work.cohort, work.rounds
        app, arrays = learning_app(learns, folder), ArrayRecord(make_model(work).state_dict())
    server = ServerApp()
    started = time.perf_counter()

    @server.main()
    def drive(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=cohort / clients, fraction_evaluate=0.0, min_train_nodes=cohort,
            min_evaluate_nodes=0, min_available_nodes=clients,
        )  # fmt: skip
        model = arrays

        def play(number: int) -> None:
            nonlocal model
            replies = grid.send_and_receive(
                strategy.configure_train(number, model, ConfigRecord(), grid)
            )
            model = strategy.aggregate_train(number, replies)[0] or model

        play(1)  # hosts start, data is loaded
        if name == "startup":
            say(ready=True)
            say(seconds=time.perf_counter() - started)
            return
        for _ in turns():
            begun = time.perf_counter()
            for number in range(rounds):
                play(number)
            say(seconds=(time.perf_counter() - begun) / rounds)

    run_simulation(
        server, app, clients,
        backend_config={
            "init_args": {"num_cpus": PROCESSES, "include_dashboard": False,
                "log_to_driver": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
