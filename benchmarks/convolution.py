"""``python -m benchmarks.convolution``: wide ones by minimal filtering or PyTorch, on a core.

Milliseconds of CPU of a forward and a backward pass for 10 examples, taking turns, and the largest
errors over the largest values against float64; then where a step of ``simple_cnn`` goes, layer by
layer, beside an eager step.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.training import take_turns
from fedsweep.models import build_model
from fedsweep.training.batched import Program
from fedsweep.training.layers import Weights
from fedsweep.training.local import LocalTraining, train
from fedsweep.training.pool import Examples
from fedsweep.training.vectorized import train_many

BATCH, TURNS, IMAGES, CLIENTS, SHAPE = 10, 40, 50, 4, (3, 32, 32)
LAYERS = {"simple_cnn, CIFAR-10": (30, 3, 0), "cnn, MNIST": (14, 5, 2), "cnn, CIFAR-10": (16, 5, 2)}


def passes(x: Tensor, module: nn.Conv2d, g: Tensor) -> list[Tensor]:
    """Return PyTorch's output, and the gradients of input and weights."""
    x = x.detach().requires_grad_()
    y = F.conv2d(x, module.weight, module.bias, padding=module.padding)
    return [y.detach(), *torch.autograd.grad(y, (x, module.weight, module.bias), g)[:2]]  # type: ignore[arg-type]


def our_passes(x: Tensor, module: nn.Conv2d, g: Tensor) -> Callable[..., list[Tensor]]:
    """Return what gives ours of the same images."""
    layer = Program(nn.Sequential(module), x.shape[1:]).layers[1]
    values = tuple(p.detach().unsqueeze(0) for p in module.parameters())
    weights = Weights(values, tuple(map(torch.zeros_like, values)))
    x, g = (
        t.permute(2, 3, 0, 1).contiguous().permute(3, 0, 1, 2).unsqueeze(0) for t in (x, g)
    )  # channels last

    @torch.no_grad()
    def run(keep: bool = False) -> list[Tensor]:
        y, kept = layer.forward(weights, x, None)
        y = y.clone() if keep else y  # its memory is used again
        d_x = layer.backward(weights, kept, g, 0.0, True)
        return [y[0].permute(3, 0, 1, 2), d_x[0].permute(3, 0, 1, 2), weights.grads[0][0]]

    return run


def compare(side: int, kernel: int, padding: int) -> str:
    """Return a line about one layer."""
    torch.manual_seed(0)
    module = nn.Conv2d(32, 64, kernel, padding=padding).to(memory_format=torch.channels_last)
    x = torch.randn(BATCH, 32, side, side).contiguous(memory_format=torch.channels_last)
    g = torch.randn_like(module(x).detach())
    ours, library = our_passes(x, module, g), partial(passes, x, module, g)
    found = library(), ours(keep=True)
    exact = passes(x.double(), deepcopy(module).double(), g.double())
    errors = [
        ", ".join(
            f"{float((a - e).abs().max() / e.abs().max()):.1e}"
            for a, e in zip(own, exact, strict=True)
        )
        for own in found
    ]
    spent = {
        name: 1e3 * s for name, s in take_turns({"library": library, "ours": ours}, TURNS).items()
    }
    return (
        f"PyTorch {spent['library']:.2f} ms, ours {spent['ours']:.2f} ms; errors of outputs and "
        f"of the inputs' and weights' gradients: PyTorch {errors[0]}, ours {errors[1]}"
    )


def step_by_layer() -> None:
    """Print where a step of simple_cnn goes."""
    torch.manual_seed(0)
    model, eager = build_model("simple_cnn", SHAPE, 10), build_model("simple_cnn", SHAPE, 10)
    eager = eager.to(memory_format=torch.channels_last)
    examples = Examples(
        torch.randn(CLIENTS * IMAGES, *SHAPE), torch.randint(10, (CLIENTS * IMAGES,))
    )
    places = [(client * IMAGES, IMAGES) for client in range(CLIENTS)]
    hp, program = LocalTraining(lr=0.01, momentum=0.0, batch_size=BATCH), Program(model, SHAPE)
    start = torch.cat([value.flatten() for value in model.state_dict().values()])
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, run: Callable[..., Any], *args: Any) -> Any:
        began = time.thread_time()
        result = run(*args)
        spent[name] += time.thread_time() - began
        return result

    for i, layer in enumerate(program.layers):
        for pass_ in ("forward", "backward"):
            name = f"{i} {type(layer).__name__.removesuffix('Layer')} {pass_}"
            setattr(layer, pass_, partial(timed, name, getattr(layer, pass_)))

    def one_by_one() -> None:
        eager.load_state_dict(model.state_dict())
        for first, count in places:
            train(
                eager,
                examples.x[first : first + count],
                examples.y[first : first + count],
                hp,
                first,
            )

    steps = CLIENTS * IMAGES // BATCH
    together = partial(train_many, program, start, examples, places, hp, range(CLIENTS))
    taken = take_turns({"eager": one_by_one, "program": together}, TURNS)
    eagerly, program_ms = (1e3 * taken[name] / steps for name in ("eager", "program"))
    print(f"a step of simple_cnn: eager {eagerly:.1f} ms, program {program_ms:.1f} ms, of which")
    for name, seconds in spent.items():
        print(f"  {name}: {1e3 * seconds / steps / TURNS:.2f}")


def main() -> None:
    torch.set_num_threads(1)
    for name, (side, kernel, padding) in LAYERS.items():
        print(f"{name}, 32 to 64 channels, {kernel}x{kernel}: {compare(side, kernel, padding)}")
    step_by_layer()


if __name__ == "__main__":
    main()
