"""``python -m benchmarks.compiling MODEL [BATCH]``: is ``torch.compile`` faster than our batching?

Milliseconds of CPU a client's step (SGD with momentum, 8 clients, 6 batches each) on one core:
eager PyTorch, one client's step compiled, the step of all clients by ``torch.func.vmap``, that
compiled, and the program; and what the first call took.
"""

import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch._inductor.config
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from benchmarks.training import take_turns
from fedsweep.models import build_model
from fedsweep.training.batched import Program
from fedsweep.training.local import LocalTraining, train
from fedsweep.training.pool import Examples
from fedsweep.training.vectorized import train_many

CLIENTS, STEPS, TURNS = 8, 6, 12
SHAPES = {"simple_cnn": (3, 32, 32)}
Weights = dict[str, Tensor]


def contestants(name: str, batch: int) -> dict[str, Callable[[], object]]:
    shape, options = (
        SHAPES.get(name, (1, 28, 28)),
        {"dropout": False} if name == "simple_cnn" else {},
    )
    torch.manual_seed(0)
    model, eager = (build_model(name, shape, 10, **options) for _ in range(2))
    eager = eager.to(memory_format=torch.channels_last)
    start = {key: w.detach().clone() for key, w in model.named_parameters()}
    n, hp = batch * STEPS, LocalTraining(lr=0.02, momentum=0.9, batch_size=batch)
    x, y = torch.randn(CLIENTS, n, *shape), torch.randint(10, (CLIENTS, n))

    def loss(w: Weights, x_b: Tensor, y_b: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, w, (x_b,)), y_b)

    def step(w: Weights, m: Weights, x_b: Tensor, y_b: Tensor) -> tuple[Weights, Weights]:
        g = grad(loss)(w, x_b, y_b)
        m = {key: 0.9 * m[key] + g[key] for key in w}
        return {key: w[key] - 0.02 * m[key] for key in w}, m

    def one_by_one(step: Callable[..., tuple[Weights, Weights]]) -> None:
        for x_c, y_c in zip(x, y, strict=True):
            w, m = dict(start), {key: torch.zeros_like(v) for key, v in start.items()}
            for rows in torch.randperm(n).split(batch):
                w, m = step(w, m, x_c[rows], y_c[rows])

    def together(step: Callable[..., tuple[Weights, Weights]]) -> None:
        w = {key: v.expand(CLIENTS, *v.shape).clone() for key, v in start.items()}
        m = {key: torch.zeros_like(v) for key, v in w.items()}
        for rows in torch.randperm(n).split(batch):
            w, m = step(w, m, x[:, rows], y[:, rows])

    def reference() -> None:
        for c in range(CLIENTS):
            eager.load_state_dict(start)
            train(eager, x[c], y[c], hp, c)

    program, flat = Program(model, shape), torch.cat([w.flatten() for w in start.values()])
    examples, places = Examples(x.flatten(0, 1), y.flatten()), [(c * n, n) for c in range(CLIENTS)]
    return {
        "eager": reference,
        "compiled": partial(one_by_one, torch.compile(step)),
        "vmap": partial(together, vmap(step)),
        "vmap, compiled": partial(together, torch.compile(vmap(step))),
        "program": partial(train_many, program, flat, examples, places, hp, range(CLIENTS)),
    }


def main(name: str = "lenet", batch: str = "10") -> None:
    torch.set_num_threads(1)
    torch._inductor.config.compile_threads = 1
    ways = contestants(name, int(batch))
    first: dict[str, float] = {}
    for what, run in ways.items():
        began = time.perf_counter()
        run()
        first[what] = time.perf_counter() - began
    taken = {
        what: 1e3 * spent / (CLIENTS * STEPS) for what, spent in take_turns(ways, TURNS).items()
    }
    for what, ms in taken.items():
        ratio = taken["eager"] / ms
        print(
            f"{name}, batch {batch}, {what}: {ms:.3f} ms a step, {ratio:.2f} x; "
            f"first {first[what]:.1f} s"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
