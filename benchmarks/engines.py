"""``python -m benchmarks.engines``: is the default way of training ever the slower one?

A host's chunk of eight clients is trained as ``training.engine=vectorized`` does it, as
``sequential`` does it, and by the loop that one writes first; on one core, in turns, in CPU
seconds. A table per examples of a client is printed, in Markdown: the loop's time over the
default's, and the sequential trainer's over the default's, by model, images and batch. A client
takes at most two steps.
"""

import argparse
from collections.abc import Callable
from functools import partial
from math import ceil
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.training import Case, bare, one_by_one, places_of, seconds
from fedsweep.training.batched import Program
from fedsweep.training.layers import UnsupportedError
from fedsweep.training.local import LocalTraining
from fedsweep.training.vectorized import train_many
from fedsweep.training.winograd import filtered

MODELS = ("logreg", "mlp", "lenet", "cnn", "simple_cnn", "resnet18")
IMAGES = {"MNIST": (1, 28, 28), "CIFAR-10": (3, 32, 32)}
BATCHES = (1, 10, 32, 50, 64, 128)
EXAMPLES = (20, 60, 600)
CLIENTS, STEPS = 8, 2


def contestants(case: Case, count: int) -> dict[str, Callable[[], object]]:
    """Return the loop, the sequential trainer and the default, for clients of so many examples."""
    torch.manual_seed(0)
    network = case.network()
    last = case.network().to(memory_format=torch.channels_last)
    examples = case.examples()
    start = {name: values.clone() for name, values in network.state_dict().items()}
    steps = min(STEPS, ceil(count / case.batch))
    hp = LocalTraining(lr=0.01, momentum=0.9, batch_size=case.batch, steps=steps)
    places = places_of(CLIENTS, count)

    default: Callable[[], object]
    try:
        program = Program(network, case.shape)
        flat = torch.cat([values.flatten() for values in start.values()])
        default = partial(train_many, program, flat, examples, places, hp, range(CLIENTS))
        default()
    except UnsupportedError:
        places = places[:1]  # each client takes the same
        default = partial(one_by_one_filtered, last, start, examples, places, hp)
    return {
        "loop": partial(bare, network, start, examples.images(slice(None)), examples.y, places, hp),
        "sequential": partial(one_by_one, last, start, examples, places, hp),
        "default": default,
    }


def one_by_one_filtered(model: nn.Module, *more: Any) -> None:
    """Train clients as the default does it where it has no program."""
    with filtered(model):
        one_by_one(model, *more)


def ratios(case: Case, count: int, turns: int) -> tuple[float, float]:
    """Return the loop's time over the default's, and the sequential trainer's."""
    runs = contestants(case, count)
    for run in runs.values():
        run()
    taken = [{name: seconds(run) for name, run in runs.items()} for _ in range(turns)]
    loop, sequential = (
        median(turn[name] / turn["default"] for turn in taken) for name in ("loop", "sequential")
    )
    return loop, sequential


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--examples", nargs="+", type=int, default=EXAMPLES)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for count in args.examples:
        print(f"\n| {count} examples | " + " | ".join(f"batch {b}" for b in args.batches) + " |")
        print("|" + "---|" * (1 + len(args.batches)))
        for model in args.models:
            for images, shape in IMAGES.items():
                cells = [
                    "{:.2f} / {:.2f}".format(*ratios(Case(model, b, shape), count, args.turns))
                    if b <= count
                    else ""
                    for b in args.batches
                ]
                print(f"| {model}, {images} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
