"""Local training on one GPU, one JSON line.

Needs this repository, PyTorch and NumPy, and nothing else.

``python -m benchmarks.gpu [--pfl SECONDS] [--cpu]``; a row that could not be measured says so.

``rows``
    Logistic regression, the MLP and LeNet on MNIST-shaped, the CNNs on CIFAR-shaped clients (50
    images, batch 10, one epoch), one client after the other and a cohort at once, for cohorts of
    16, 64, 256: milliseconds a client, their ratio, the peak of memory, and the share of the card's
    measured float32 rate for large products (TF32 off).
``gpu_utilisation``
    That share for simple_cnn at a cohort of 256.
``hosts``
    The same cohort by 1, 2 and 4 processes that share the GPU (``num_gpus`` 1, 0.5, 0.25):
    seconds a round.
``gpu_pfl_cifar10_s``
    pfl-research's CIFAR-10 IID benchmark (1,000 users x 50 images, cohort 50, 1,500 rounds, lr 0.1,
    its CNN), as many rounds as take 20 s, times 1,500; ``gpu_pfl_cifar10_vs_pfl`` is pfl's time
    over it, given as ``--pfl``: run its benchmarks/image_classification/pytorch on the same card.

``--cpu`` runs one small row of each on the CPU, to see that the script works.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from math import prod
from typing import Any

import torch

from fedsweep.models import build_model
from fedsweep.training.batched import Program
from fedsweep.training.local import LocalTraining, train
from fedsweep.training.pool import Examples
from fedsweep.training.vectorized import train_many

IMAGES = 50
CIFAR = (3, 32, 32)
ROWS = [
    ("logreg", (1, 28, 28)), ("mlp", (1, 28, 28)), ("lenet", (1, 28, 28)), ("cnn", CIFAR),
    ("simple_cnn", CIFAR)
]  # fmt: skip
PFL_ROUNDS, PFL_COHORT = 1_500, 50
NO_GPU = "could not be measured: PyTorch sees no GPU here"


def wait(device: torch.device) -> None:
    """Wait for what was asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(run: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """Return the least wall seconds of a call, after one that does not count."""
    best = float("inf")
    for _ in range(repeats + 1):
        wait(device)
        started = time.perf_counter()
        run()
        wait(device)
        best = min(best, time.perf_counter() - started)
    return best


def operations(program: Program) -> float:
    """Return one training example's floating-point operations: forward, and twice that backward."""
    positions = [prod(layer.out[1:]) if len(layer.out) == 3 else 1 for layer in program.layers]
    return sum(
        6.0 * prod(layer.shapes[0]) * n
        for layer, n in zip(program.layers, positions, strict=True)
        if layer.shapes
    )


class Cohort:
    """Clients of one model on a device."""

    def __init__(
        self, name: str, shape: tuple[int, int, int], clients: int, device: torch.device
    ) -> None:
        torch.manual_seed(0)
        self.model = build_model(name, shape, 10).to(device)
        self.start = torch.cat([value.flatten() for value in self.model.state_dict().values()])
        x = torch.randint(256, (clients * IMAGES, *shape)).byte().to(device)
        mean, std = (torch.full((shape[0], 1, 1), value, device=device) for value in (0.45, 0.25))
        self.examples = Examples(x, torch.randint(10, (clients * IMAGES,)).to(device), mean, std)
        self.places = [(client * IMAGES, IMAGES) for client in range(clients)]
        self.hp, self.program = (
            LocalTraining(lr=0.1, momentum=0.0, batch_size=10),
            Program(self.model, shape, device),
        )

    def one_by_one(self, clients: int) -> None:
        """Train some clients one after the other."""
        for first, count in self.places[:clients]:
            rows = slice(first, first + count)
            train(self.model, self.examples.images(rows), self.examples.y[rows], self.hp, first)

    def together(self) -> torch.Tensor:
        """Train all clients at once; return the mean of their weights."""
        rows, _ = train_many(
            self.program, self.start, self.examples, self.places, self.hp, range(len(self.places))
        )
        return torch.stack(rows).mean(0)


def row(
    name: str, shape: tuple[int, int, int], clients: int, device: torch.device, peak: float
) -> dict[str, Any]:
    """Measure one model and cohort."""
    result: dict[str, Any] = {"model": name, "shape": shape, "cohort": clients}
    alone = min(clients, 8)
    try:
        cohort = Cohort(name, shape, clients, device)
        one = timed(lambda: cohort.one_by_one(alone), device) / alone
        many = timed(cohort.together, device) / clients
    except torch.OutOfMemoryError as error:
        return result | {"not_measured": f"could not be measured: {str(error).splitlines()[0]}"}
    result |= {
        "sequential_ms": round(one * 1e3, 3),
        "vectorized_ms": round(many * 1e3, 3),
        "ratio": round(one / many, 2),
        "utilisation": round(operations(cohort.program) * IMAGES / many / peak, 4),
    }
    if device.type == "cuda":
        result["peak_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
        torch.cuda.reset_peak_memory_stats()
    return result


def _host(name: str, clients: int, kind: str, rounds: int, ready: Any, times: Any) -> None:
    """Be one of several processes on the device: its share of the cohort, so many rounds."""
    device = torch.device(kind)
    torch.set_num_threads(1)
    cohort = Cohort(name, CIFAR, clients, device)
    cohort.together()
    wait(device)
    ready.wait()
    started = time.perf_counter()
    for _ in range(rounds):
        cohort.together()
    wait(device)
    times.put((time.perf_counter() - started) / rounds)


def hosts(name: str, clients: int, count: int, device: torch.device, rounds: int = 3) -> float:
    """Return the seconds of a round that so many processes share: those of the slowest."""
    spawned = multiprocessing.get_context("spawn")
    ready, times = spawned.Barrier(count), spawned.Queue()
    share = (name, clients // count, str(device), rounds, ready, times)
    processes = [spawned.Process(target=_host, args=share) for _ in range(count)]
    for process in processes:
        process.start()
    slowest = max(times.get(timeout=600) for _ in processes)
    for process in processes:
        process.join()
    return float(slowest)


def pfl_cifar10(device: torch.device, cohort_size: int, seconds: float) -> float:
    """Return seconds of 1,500 rounds, from as many as fit, each on the last one's mean."""
    cohort = Cohort("simple_cnn", CIFAR, cohort_size, device)
    cohort.start = cohort.together()
    wait(device)
    started, rounds = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        cohort.start = cohort.together()
        wait(device)
        rounds += 1
    return (time.perf_counter() - started) / rounds * PFL_ROUNDS


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--pfl", type=float, help="seconds that pfl-research takes for its benchmark on this card"
    )
    parser.add_argument("--cpu", action="store_true", help="one small row of each on the CPU")
    given = parser.parse_args()
    keys = ("gpu_pfl_cifar10_s", "gpu_pfl_cifar10_vs_pfl", "gpu_utilisation", "hosts")
    if not given.cpu and not torch.cuda.is_available():
        print(json.dumps({"gpu": None, "rows": [], **dict.fromkeys(keys, NO_GPU)}))
        return
    device = torch.device("cpu") if given.cpu else torch.device("cuda", 0)
    side = 512 if given.cpu else 8192
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    peak = 2 * side**3 / timed(lambda: a @ b, device)
    plan = (
        [(ROWS[0], 4)]
        if given.cpu
        else [(model, cohort) for model in ROWS for cohort in (16, 64, 256)]
    )
    rows = [row(*model, cohort, device, peak) for model, cohort in plan]
    last = rows[-1]
    ours_s = pfl_cifar10(device, 1 if given.cpu else PFL_COHORT, 0.1 if given.cpu else 20.0)
    figures: dict[str, Any] = {
        "gpu": "cpu" if given.cpu else torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "peak_tflops": round(peak / 1e12, 2),
        "gpu_pfl_cifar10_s": round(ours_s, 1),
        "gpu_pfl_cifar10_vs_pfl": round(given.pfl / ours_s, 2)
        if given.pfl
        else "could not be measured: give --pfl",
        "gpu_utilisation": last.get("utilisation", last.get("not_measured")),
        "hosts": {
            str(count): round(
                hosts("simple_cnn", 4 if given.cpu else 256, count, device, 1 if given.cpu else 3),
                3,
            )
            for count in ((1, 2) if given.cpu else (1, 2, 4))
        },
        "rows": rows,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
