"""fedsweep's engine, driven as a trial drives it: pool, grid, round loop, ClientApp."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import ray
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from torch import nn

from benchmarks.apps import echo_app
from benchmarks.contender import say, serve
from benchmarks.work import PROCESSES, WORKS, Work, make_model, rows_of, score
from fedsweep.config import HostGroup, ResourcesConfig, RunConfig
from fedsweep.data.federated import Rows
from fedsweep.data.shift import ClientGroups
from fedsweep.data.sources import ImageData
from fedsweep.engine.executors import Host
from fedsweep.engine.grid import EngineGrid, ray_grid
from fedsweep.engine.host import AppSpec
from fedsweep.engine.pool import HostPool, ray_session
from fedsweep.scenario.shifts import shift_of
from fedsweep.sweeps.compose import compose
from fedsweep.trial.rounds import Loop, Round, run_rounds
from fedsweep.trial.trial import Split, initial_model, make_grid, train_config

logging.getLogger("flwr").setLevel(logging.WARNING)
ENDLESS = 10**6


@contextmanager
def hosts() -> Iterator[list[Host]]:
    """Start Ray and the hosts for as long as the context lasts."""
    with ray_session(None, num_cpus=PROCESSES):
        pool = HostPool(ResourcesConfig(hosts={"cpu": HostGroup(count=PROCESSES)}))
        pool.warm("fedsweep.client.app")
        try:
            yield pool.hosts
        finally:
            pool.close()


def images_of(folder: str, data: str = "mnist") -> ImageData:
    """Return a data set that the benchmark laid down."""
    with np.load(f"{folder}/{data}-images.npz") as file:
        x, y = file["x"], file["y"]
        mean, std = (tuple(map(float, v)) for v in file["scale"])
    names = tuple(str(label) for label in range(10))
    return ImageData(data, "bench", folder, names, x, y, x[:10], y[:10], mean, std)


def no_shift(clients: int) -> ClientGroups:
    return ClientGroups.build(shift_of(), clients, 10, seed=0)


def split_of(rows: Sequence[np.ndarray]) -> Split:
    """Return a split with no examples held back: clients train on what the peers' train on."""
    nothing = Rows(np.empty(0, np.int64), np.zeros(len(rows), np.int64))
    return Split(Rows.of(rows), nothing, no_shift(len(rows)))


def config_of(work: Work) -> RunConfig:
    return compose(
        [
            f"dataset={work.data}", f"model={work.model}", f"num_clients={work.clients}",
            f"training.lr={work.lr}", "training.momentum=0",
            f"training.batch_size={work.batch_size}", "training.epochs=1",
        ]
    )  # fmt: skip


def fedavg(clients: int, cohort: int) -> FedAvg:
    return FedAvg(
        fraction_train=cohort / clients,
        fraction_evaluate=0.0,
        min_train_nodes=cohort,
        min_evaluate_nodes=0,
    )


def echo_grid(actors: list[Host], clients: int) -> EngineGrid:
    return ray_grid(AppSpec("echo", echo_app, {}, clients, {}), actors)


def learning_rounds(
    actors: list[Host], work: Work, images: ImageData, split: Split, cohort: int, seed: int = 0
) -> tuple[Iterator[Round], EngineGrid]:
    config = config_of(work)
    grid = make_grid(config, split.on(images), actors, ray.put(images), ray.put(split))
    loop = Loop(ENDLESS, seed, train_config(config.training), evaluate_every=ENDLESS)
    compared = (
        work.score_every > 0
    )  # its models are: they start from the weights that the peer's start from
    start = ArrayRecord(make_model(work, seed).state_dict()) if compared else initial_model(grid)[0]
    return run_rounds(fedavg(work.clients, cohort), grid, start, loop), grid


def nothing(last: Round) -> dict[str, float]:
    """Tell nothing of a round."""
    return {}


def timed(
    rounds: Iterator[Round], count: int = 1, tell: Callable[[Round], dict[str, float]] = nothing
) -> Callable[[], dict[str, float]]:
    """Return a turn: so many rounds; seconds a round, and what there is to tell of the last.

    Two rounds warm up.
    """
    next(rounds)
    next(rounds)

    def run() -> dict[str, float]:
        started = time.perf_counter()
        for _ in range(count):
            last = next(rounds)
        return {"seconds": (time.perf_counter() - started) / count} | tell(last)

    return run


def noop(argument: str) -> None:
    """Echo a 10 kB model."""
    clients, cohort, count = (int(n) for n in argument.split(","))
    with hosts() as actors:
        model = ArrayRecord({"w": Array(np.zeros(2500, np.float32))})
        loop = Loop(ENDLESS, 0, ConfigRecord(), evaluate_every=ENDLESS)
        serve(
            timed(
                run_rounds(fedavg(clients, cohort), echo_grid(actors, clients), model, loop), count
            )
        )


def learn(name: str, folder: str, seed: str = "0") -> None:
    """Take turns of a work's rounds."""
    work, images = WORKS[name], images_of(folder, WORKS[name].data)
    with hosts() as actors:
        split = split_of(list(rows_of(name, images.train_y)))
        rounds, _ = learning_rounds(actors, work, images, split, work.cohort, int(seed))
        serve(
            timed(
                rounds,
                work.rounds,
                lambda last: score(last.number, name, folder, lambda: model_of(last, work)),
            )
        )


def model_of(last: Round, work: Work) -> nn.Module:
    """Return a round's global model."""
    model = make_model(work)
    model.load_state_dict(last.arrays.to_torch_state_dict())
    return model


def startup(folder: str) -> None:
    """Tell the seconds from before ``ray.init`` to the end of the first round of LeNet."""
    work, images = WORKS["lenet"], images_of(folder)
    split = split_of(list(rows_of("lenet", images.train_y)))
    say(ready=True)
    started = time.perf_counter()
    with hosts() as actors:
        rounds, _ = learning_rounds(actors, work, images, split, work.cohort)
        next(rounds)
        say(seconds=time.perf_counter() - started)


def population(clients: str, folder: str) -> None:
    """Take turns of 10 rounds of 100 clients among so many; tell the process's memory too."""
    n, per_client = int(clients), 8
    work = Work(n, 100, per_client, 4, 0.03, "logreg", 10)
    images = images_of(folder)
    flat = np.arange(n * per_client) % len(images.train_y)
    with hosts() as actors:
        split = split_of(Rows(flat, np.arange(1, n + 1) * per_client))
        rounds, _ = learning_rounds(actors, work, images, split, work.cohort)
        run = timed(rounds, work.rounds)
        serve(lambda: run() | {"rss_mb": memory("VmRSS")})


def cohort_memory(argument: str) -> None:
    """Average 1,000 replies of a 25 MB model;
    tell how far the driver's memory rose above what it was before.
    """
    clients, megabytes = (int(n) for n in argument.split(","))
    with hosts() as actors:
        grid = echo_grid(actors, clients)
        grid.send_and_receive([Message(RecordDict({"arrays": ArrayRecord()}), 1, "train")])
        idle = memory("VmRSS")
        layers = {f"w{i}": np.full(megabytes * 2**20 // 4 // 5, i, np.float32) for i in range(5)}
        loop = Loop(ENDLESS, 0, ConfigRecord(), evaluate_every=ENDLESS)
        model = ArrayRecord({key: Array(value) for key, value in layers.items()})
        rounds = run_rounds(fedavg(clients, clients), grid, model, loop)

        def run() -> dict[str, float]:
            started = time.perf_counter()
            next(rounds)
            return {"mb": memory("VmHWM") - idle, "seconds": time.perf_counter() - started}

        serve(run)


def skewed(folder: str) -> None:
    """Train clients of log-normal sizes; tell the round's time over its tasks' lower bound."""
    work, images = WORKS["lenet"], images_of(folder)
    sizes = np.random.default_rng(0).lognormal(0.0, 1.5, work.clients)
    sizes = np.maximum(1, np.round(sizes / sizes.sum() * work.clients * work.examples)).astype(int)
    rng = np.random.default_rng(1)
    with hosts() as actors:
        split = split_of([rng.integers(0, len(images.train_y), size) for size in sizes])
        rounds, _ = learning_rounds(actors, work, images, split, work.cohort)
        next(rounds)

        def run() -> dict[str, float]:
            done = next(rounds)
            walls = [task.wall_s for task in done.train.tasks]
            bound = max(sum(walls) / PROCESSES, max(walls))
            return {
                "ratio": sum(done.seconds.values()) / bound,
                "seconds": sum(done.seconds.values()),
            }

        serve(run)


def memory(field: str) -> float:
    """Return a line of /proc/self/status in MiB: VmRSS is now, VmHWM the highest so far."""
    with open("/proc/self/status") as file:
        [line] = [line for line in file if line.startswith(field + ":")]
    return int(line.split()[1]) / 1024


WHAT = {
    "noop": noop, "startup": startup, "population": population, "cohort_memory": cohort_memory,
    "skewed": skewed,
}  # fmt: skip

if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what in WORKS:
        learn(what, *arguments)
    else:
        WHAT[what](*arguments)
