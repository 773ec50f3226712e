"""Local training against a plain PyTorch loop, and FLUTE's MNIST: rows of ``make bench``.

``train_*_vs_bare`` is the loop's time over ours on one core, for 100 clients of 60 MNIST-shaped
images (or rows of a table, or texts) and one epoch, in CPU seconds, which other work on the machine
moves least. The LSTM has no batched program: its row shows what going one by one costs.
``flute_lr_mnist_s`` is a whole trial's wall time on Ray, with 2 hosts: 1,000 clients, 10 a round,
batch 10, learning rate 0.03, 100 rounds; everything but imports and the start of the hosts.
``python -m benchmarks.training [name ...]`` prints ratios alone, in one JSON line; ``floor [name
...]`` what a step of a client takes, and its share of the rate of a large matrix product, counting
three forward passes a step, as layers are defined.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from statistics import median
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.contender import serve
from fedsweep.engine.chunks import TOGETHER, make_chunks
from fedsweep.models import build_model
from fedsweep.training.batched import Program
from fedsweep.training.layers import UnsupportedError
from fedsweep.training.local import LocalTraining, train
from fedsweep.training.modules import forward_flop
from fedsweep.training.pool import Examples, Place
from fedsweep.training.targets import loss_of
from fedsweep.training.vectorized import train_many

CLIENTS, IMAGES, CLASSES = 100, 60, 10


@dataclass(frozen=True)
class Case:
    """What is trained: a network, its batches, and the examples of each client."""

    model: str
    batch: int
    shape: tuple[int, ...] = (1, 28, 28)
    kind: Literal["images", "features", "number", "symbols"] = "images"
    kwargs: Mapping[str, int] = field(default_factory=dict)

    def examples(self) -> Examples:
        """Return all clients' examples as a trial has them: bytes of images, floats, symbols."""
        total = CLIENTS * IMAGES
        y = torch.randint(CLASSES, (total,))
        if self.kind == "images":
            mean, std = torch.full((1, 1, 1), 0.13), torch.full((1, 1, 1), 0.31)
            return Examples(torch.randint(256, (total, *self.shape)).byte(), y, mean, std)
        if self.kind == "symbols":
            return Examples(torch.randint(CLASSES, (total, *self.shape)).int(), y)
        x = torch.randn(total, *self.shape)
        return Examples(x, torch.randn(total) if self.kind == "number" else y)

    def network(self) -> nn.Module:
        """Return the network, with weights of the global generator."""
        outputs = 1 if self.kind == "number" else CLASSES
        symbols = CLASSES if self.kind == "symbols" else 0
        return build_model(self.model, self.shape, outputs, symbols, **self.kwargs)


ROWS = {
    "train_logreg_vs_bare": Case("logreg", 10),
    "train_mlp_vs_bare": Case("mlp", 10),
    "train_lenet10_vs_bare": Case("lenet", 10),
    "train_lenet32_vs_bare": Case("lenet", 32),
    "train_table_mlp_vs_bare": Case("mlp", 10, (30,), "number"),
    "train_synthetic_logreg_vs_bare": Case("logreg", 10, (60,), "features"),
    "train_lstm_vs_bare": Case("lstm", 10, (20,), "symbols", {"hidden": 64, "layers": 1}),
}


def places_of(clients: int, count: int) -> list[Place]:
    """Return where so many clients' examples lie, one after the other."""
    return [(client * count, count) for client in range(clients)]


def bare(
    model: nn.Module,
    start: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    places: Sequence[Place],
    hp: LocalTraining,
) -> None:
    """Train every client in the loop that one writes first."""
    for first, count in places:
        x_own, y_own = x[first : first + count], y[first : first + count]
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=hp.lr, momentum=hp.momentum)
        for rows in torch.randperm(count).split(hp.batch_size)[: hp.steps or None]:
            optimizer.zero_grad()
            loss_of(model(x_own[rows]), y_own[rows]).backward()
            optimizer.step()


def ours(program: Program, start: Tensor, examples: Examples, hp: LocalTraining) -> None:
    """Train the same clients in the chunks that the engine makes of them."""
    places = places_of(CLIENTS, IMAGES)
    for chunk in make_chunks(["train"] * CLIENTS, [1.0] * CLIENTS, together=TOGETHER):
        train_many(program, start, examples, [places[client] for client in chunk], hp, chunk)


def one_by_one(
    model: nn.Module,
    start: Mapping[str, Tensor],
    examples: Examples,
    places: Sequence[Place],
    hp: LocalTraining,
) -> None:
    """Train them client by client, as networks without a program are."""
    for client, place in enumerate(places):
        model.load_state_dict(start)
        train(model, *examples.at(place), hp, client)


def contestants(case: Case) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return the loop and our trainer, ready to run on the same clients."""
    torch.manual_seed(0)
    model, places = case.network(), places_of(CLIENTS, IMAGES)
    hp = LocalTraining(lr=0.05, momentum=0.9, batch_size=case.batch)
    examples = case.examples()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    flat = torch.cat([value.flatten() for value in state.values()])
    loop = partial(bare, model, state, examples.images(slice(None)), examples.y, places, hp)
    try:
        program = Program(model, case.shape)
    except UnsupportedError:
        return loop, partial(one_by_one, model, state, examples, places, hp)
    return loop, partial(ours, program, flat, examples, hp)


def ratio(case: Case, repeats: int = 5) -> float:
    """Return the plain loop's time over ours."""
    runs = contestants(case)
    for run in runs:
        run()
    return median(seconds(runs[0]) / seconds(runs[1]) for _ in range(repeats))


def floor(case: Case, repeats: int = 5) -> dict[str, float]:
    """Return what a client's step takes, by ours, beside a product of 1,024 x 1,024 matrices."""
    side, run = 1024, contestants(case)[1]
    a, b = torch.randn(side, side), torch.randn(side, side)
    run()
    taken = take_turns({"ours": run, "product": lambda: [a @ b for _ in range(20)]}, repeats)
    rate = 20 * 2 * side**3 / taken["product"]
    x = case.examples().images(slice(0, IMAGES))
    flop = 3 * forward_flop(case.network(), x) * CLIENTS
    return {
        "ms": 1e3 * taken["ours"] / (CLIENTS * ceil(IMAGES / case.batch)),
        "mflop": flop / 1e6 / (CLIENTS * ceil(IMAGES / case.batch)),
        "gflop/s": flop / 1e9 / taken["ours"],
        "product gflop/s": rate / 1e9,
        "share": flop / taken["ours"] / rate,
    }


def turns(key: str) -> None:
    """Be a contender: CPU seconds of the loop and of ours, or a trial's wall seconds, each time."""
    if key == "flute_lr_mnist_s":
        with flute_trials() as trial:
            serve(lambda: {"seconds": trial()})
        return
    loop, mine = contestants(ROWS[key])
    loop()
    mine()
    serve(lambda: {"bare": seconds(loop), "ours": seconds(mine)})


def seconds(run: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def take_turns(runs: Mapping[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Return each one's median CPU seconds of so many calls."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            taken[name].append(seconds(run))
    return {name: median(times) for name, times in taken.items()}


@contextmanager
def flute_trials() -> Iterator[Callable[[], float]]:
    """Start Ray and the hosts; yield what runs FLUTE's trial on MNIST, returning its seconds."""
    import ray

    import fedsweep.client.app  # noqa: F401  what is imported counts for nobody
    from fedsweep.data.sources import load_images
    from fedsweep.engine.pool import HostPool, ray_session
    from fedsweep.sweeps.compose import compose
    from fedsweep.sweeps.prepare import make_split
    from fedsweep.trial.trial import run_trial

    config = compose(
        ["dataset=mnist", "model=logreg", "num_clients=1000", "rounds=100",
         "strategy.fraction_train=0.01",
         "strategy.fraction_evaluate=0.01", "evaluate_every=100", "training.batch_size=10",
         "training.lr=0.03",
         "training.momentum=0", "resources.hosts.cpu.count=2"]
    )  # fmt: skip
    with ray_session(None, 2):
        pool = HostPool(config.resources)
        pool.warm("fedsweep.client.app")
        pool.wait()

        def trial() -> float:
            started = time.perf_counter()
            images = load_images(config.dataset, config.data)
            split = make_split(images, config)
            for _ in run_trial(config, images, split, pool.hosts, ray.put(images), ray.put(split)):
                pass
            return time.perf_counter() - started

        yield trial


def main() -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("FLWR_LOG_LEVEL", "WARNING")
    if sys.argv[1:2] == ["turns"]:
        turns(sys.argv[2])
        return
    if sys.argv[1:2] == ["floor"]:
        for name in sys.argv[2:] or ROWS:
            numbers = {what: round(value, 3) for what, value in floor(ROWS[name]).items()}
            print(json.dumps({name: numbers}), flush=True)
        return
    names = sys.argv[1:] or list(ROWS)
    print(json.dumps({name: round(ratio(ROWS[name]), 2) for name in names}))


if __name__ == "__main__":
    main()
