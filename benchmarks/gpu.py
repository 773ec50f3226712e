"""Local training on one GPU, one JSON line. Needs this repository, PyTorch and NumPy, and nothing else.

``python -m benchmarks.gpu`` trains logistic regression, the MLP and LeNet on MNIST-shaped and the CNN on CIFAR-shaped
clients (50 images, batch 10, one epoch), one client after the other and a cohort at once, for cohorts of 16, 64, 256.
Per row: milliseconds a client, their ratio, the peak of memory, and the share of the card's measured float32 rate for
large matrix products (TF32 off). ``--cpu`` runs one small row on the CPU, to see that the script works. A row that does
not fit in memory says so.
"""

import json
import sys
import time
from collections.abc import Callable
from math import prod
from typing import Any

import torch

from models import build_model
from runner.client.batched import Program
from runner.client.pool import Examples
from runner.client.training import LocalTraining, train
from runner.client.vectorized import train_many

IMAGES = 50
ROWS = [("logreg", (1, 28, 28)), ("mlp", (1, 28, 28)), ("lenet", (1, 28, 28)), ("cnn", (3, 32, 32))]


def timed(run: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """Return the least wall seconds of a call, after one that does not count."""
    best = float("inf")
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


def operations(program: Program) -> float:
    """Return the floating-point operations of one training example: forward, and twice that backward."""
    positions = [prod(layer.out[1:]) if len(layer.out) == 3 else 1 for layer in program.layers]
    return sum(
        6.0 * prod(layer.shapes[0]) * n for layer, n in zip(program.layers, positions, strict=True) if layer.shapes
    )


def row(name: str, shape: tuple[int, int, int], cohort: int, device: torch.device, peak: float) -> dict[str, Any]:
    """Measure one model and cohort."""
    torch.manual_seed(0)
    model = build_model(name, shape, 10).to(device)
    start = torch.cat([value.flatten() for value in model.state_dict().values()])
    x = torch.randn(cohort * IMAGES, *shape, device=device)
    y = torch.randint(10, (cohort * IMAGES,), device=device)
    hp, program, alone = LocalTraining(lr=0.1, batch_size=10), Program(model, shape), min(cohort, 8)
    places = [(client * IMAGES, IMAGES) for client in range(cohort)]

    def loop() -> None:
        for first, count in places[:alone]:
            train(model, x[first : first + count], y[first : first + count], hp, first)

    result: dict[str, Any] = {"model": name, "shape": shape, "cohort": cohort}
    try:
        one = timed(loop, device) / alone
        many = timed(lambda: train_many(program, start, Examples(x, y), places, hp, range(cohort)), device) / cohort
    except torch.OutOfMemoryError as error:
        return result | {"not_measured": str(error).splitlines()[0]}
    result |= {
        "sequential_ms": round(one * 1e3, 3),
        "vectorized_ms": round(many * 1e3, 3),
        "ratio": round(one / many, 2),
    }
    result["utilisation"] = round(operations(program) * IMAGES / many / peak, 4)
    if device.type == "cuda":
        result["peak_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
        torch.cuda.reset_peak_memory_stats()
    return result


def main() -> None:
    on_cpu = "--cpu" in sys.argv
    if not on_cpu and not torch.cuda.is_available():
        print(json.dumps({"gpu": None, "rows": [], "not_measured": "PyTorch sees no GPU here"}))
        return
    device = torch.device("cpu") if on_cpu else torch.device("cuda", 0)
    side = 512 if on_cpu else 8192
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    peak = 2 * side**3 / timed(lambda: a @ b, device)
    plan = [(ROWS[0], 4)] if on_cpu else [(model, cohort) for model in ROWS for cohort in (16, 64, 256)]
    rows = [row(*model, cohort, device, peak) for model, cohort in plan]
    name = "cpu" if on_cpu else torch.cuda.get_device_name(device)
    print(json.dumps({"gpu": name, "torch": torch.__version__, "peak_tflops": round(peak / 1e12, 2), "rows": rows}))


if __name__ == "__main__":
    main()
