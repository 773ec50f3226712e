"""Local training against a plain PyTorch loop, and FLUTE's MNIST: rows of ``make bench``.

``train_*_vs_bare`` is the loop's time over ours on one core, for 100 clients of 60 MNIST-shaped
images and one epoch, in CPU seconds, which other work on the machine moves least.
``flute_lr_mnist_s`` is a whole trial's wall time on Ray, with 2 hosts: 1,000 clients, 10 a round,
batch 10, learning rate 0.03, 100 rounds; everything but imports and the start of the hosts.
``python -m benchmarks.training [name ...]`` prints ratios alone, in one JSON line.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.contender import serve
from fedsweep.engine.chunks import TOGETHER, make_chunks
from fedsweep.models import build_model
from fedsweep.training.batched import Program
from fedsweep.training.local import LocalTraining
from fedsweep.training.pool import Examples
from fedsweep.training.vectorized import train_many

CLIENTS, IMAGES, SHAPE, CLASSES = 100, 60, (1, 28, 28), 10
ROWS = {
    "train_logreg_vs_bare": ("logreg", 10),
    "train_mlp_vs_bare": ("mlp", 10),
    "train_lenet10_vs_bare": ("lenet", 10),
    "train_lenet32_vs_bare": ("lenet", 32),
}


def bare(model: nn.Module, start: dict[str, Tensor], x: Tensor, y: Tensor, batch: int) -> None:
    """Train every client in the loop that one writes first."""
    for client in range(CLIENTS):
        own = slice(client * IMAGES, (client + 1) * IMAGES)
        x_own, y_own = x[own], y[own]
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for rows in torch.randperm(IMAGES).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(x_own[rows]), y_own[rows]).backward()
            optimizer.step()


def ours(program: Program, start: Tensor, examples: Examples, batch: int) -> None:
    """Train the same clients in the chunks that the engine makes of them."""
    hp = LocalTraining(lr=0.05, momentum=0.9, batch_size=batch)
    for chunk in make_chunks(["train"] * CLIENTS, [1.0] * CLIENTS, together=TOGETHER):
        train_many(
            program, start, examples, [(client * IMAGES, IMAGES) for client in chunk], hp, chunk
        )


def contestants(name: str, batch: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return the loop and our trainer, ready to run on the same clients."""
    torch.manual_seed(0)
    model = build_model(name, SHAPE, CLASSES)
    images, y = (
        torch.randint(256, (CLIENTS * IMAGES, *SHAPE)).byte(),
        torch.randint(CLASSES, (CLIENTS * IMAGES,)),
    )
    examples = Examples(
        images, y, torch.full((1, 1, 1), 0.13), torch.full((1, 1, 1), 0.31)
    )  # bytes, as in a trial
    x = examples.images(slice(None))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    flat = torch.cat([value.flatten() for value in state.values()])
    program = Program(model, SHAPE)
    return lambda: bare(model, state, x, y, batch), lambda: ours(program, flat, examples, batch)


def ratio(name: str, batch: int, repeats: int = 5) -> float:
    """Return the plain loop's time over ours."""
    runs = contestants(name, batch)
    for run in runs:
        run()
    return median(seconds(runs[0]) / seconds(runs[1]) for _ in range(repeats))


def turns(key: str) -> None:
    """Be a contender: CPU seconds of the loop and of ours, or a trial's wall seconds, each time."""
    if key == "flute_lr_mnist_s":
        with flute_trials() as trial:
            serve(lambda: {"seconds": trial()})
        return
    loop, mine = contestants(*ROWS[key])
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
    names = sys.argv[1:] or list(ROWS)
    print(json.dumps({name: round(ratio(*ROWS[name]), 2) for name in names}))


if __name__ == "__main__":
    main()
