"""The work that contenders share: the data as tensors, and local training as a bare PyTorch loop.

No ray, no flwr.

Every contender has the same clients, model, batch size, steps and optimizer: SGD with the
configured learning rate and no momentum, with the fused kernel of PyTorch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedsweep.models import build_model
from fedsweep.training.local import evaluate


@dataclass(frozen=True)
class Work:
    """A learning task."""

    clients: int
    cohort: int
    examples: int  # per client
    batch_size: int
    lr: float
    model: str
    rounds: int  # per turn of a contender
    data: str = "mnist"
    shape: tuple[int, int, int] = (1, 28, 28)
    score_every: int = (
        0  # rounds between tests of the global model, outside of what is timed; 0: none
    )


WORKS = {
    "lenet": Work(clients=100, cohort=100, examples=174, batch_size=32, lr=0.05, model="lenet",
        rounds=1),
    "flute": Work(clients=1000, cohort=10, examples=60, batch_size=10, lr=0.03, model="logreg",
        rounds=25),
    "mlp": Work(clients=100, cohort=100, examples=174, batch_size=32, lr=0.05, model="mlp",
        rounds=1),
    # pfl-research's CIFAR-10 IID benchmark
    "cifar10": Work(clients=1000, cohort=50, examples=50, batch_size=10, lr=0.1, model="simple_cnn",
        rounds=1,
                    data="cifar10", shape=(3, 32, 32), score_every=10),
}  # fmt: skip
PROCESSES = 2
"""Worker processes of every contender: the issue's figures are for two."""


def save(
    folder: Path, name: str, images: np.ndarray, labels: np.ndarray, scale: np.ndarray
) -> None:
    """Write the clients' images and labels, clients x examples x ..., where contenders find them.

    ``scale`` holds mean and deviation per channel of images in [0, 1], (2, channels).
    """
    work = WORKS[name]
    rows = rows_of(name, labels)
    np.savez(folder / f"{name}.npz", x=images[rows], y=labels[rows].astype(np.int64), scale=scale)
    assert rows.shape == (work.clients, work.examples)


def rows_of(name: str, labels: np.ndarray) -> np.ndarray:
    """Return clients' rows, int64 (clients, examples): as they come, or two labels each (FLUTE).

    A data set with fewer rows than the clients need is gone through again.
    """
    work = WORKS[name]
    total = work.clients * work.examples
    if name != "flute":
        return np.arange(total).reshape(work.clients, work.examples) % len(labels)
    by_label = np.argsort(np.resize(labels, total), kind="stable") % len(labels)
    shards = by_label.reshape(2 * work.clients, work.examples // 2)
    order = np.random.default_rng(0).permutation(len(shards))
    return np.concatenate([shards[order[: work.clients]], shards[order[work.clients :]]], axis=1)


def load(folder: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images, float (clients, examples, C, H, W), and labels, int64 (clients, examples)."""
    with np.load(Path(folder) / f"{name}.npz") as file:
        return scaled(file["x"], file["scale"]), torch.from_numpy(file["y"])


def scaled(images: np.ndarray, scale: np.ndarray) -> torch.Tensor:
    """Return uint8 images as float32, less the mean of their channel and over its deviation;
    scale is (2, channels).
    """
    mean, std = torch.from_numpy(scale).float().unsqueeze(2).unsqueeze(3)
    return torch.from_numpy(images).float().div_(255).sub_(mean).div_(std)


def score(number: int, name: str, folder: str, model: Callable[[], nn.Module]) -> dict[str, float]:
    """Return what to tell of a round's global model: its accuracy on the central test, or none."""
    every = WORKS[name].score_every
    if not every or number % every:
        return {}
    with np.load(Path(folder) / f"{WORKS[name].data}-images.npz") as file:
        x, y = scaled(file["test_x"], file["scale"]), torch.from_numpy(file["test_y"])
    result = evaluate(model(), x, y)
    return {"round": number, "accuracy": result["correct"] / result["count"]}


def make_model(work: Work, seed: int = 0) -> nn.Module:
    """Return the network of a work, with the weights that contenders start from."""
    torch.manual_seed(seed)
    return build_model(work.model, work.shape, 10)


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, work: Work) -> float:
    """Train one epoch in place, as anybody would write it; return the mean loss of a batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=work.lr, fused=True)
    total, steps = 0.0, 0
    model.train()
    for rows in torch.randperm(len(y)).split(work.batch_size):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        total, steps = total + float(loss.detach()), steps + 1
    return total / steps
