"""Local training and evaluation of one client's model.

Imports torch and NumPy only, so it runs on a bare GPU machine.

:func:`train` is the reference trainer: one client, one model, changed in place. Which examples form
which batch is fixed by :func:`passes` alone, so another trainer (vectorized, compiled) that draws
from it does the same arithmetic.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsweep.batching import Cut
from fedsweep.training.targets import counted_hits, hits_at, loss_of

OPTIMIZERS = ("sgd", "adam")
AUGMENTATIONS = ("none", "flip", "crop_flip")
PRECISIONS = ("float32", "tf32", "bf16")


@dataclass(frozen=True)
class LocalTraining:
    """Hyperparameters of one round on one client;
    meanings and defaults are those of ``TrainingConfig``.
    """

    optimizer: str = "sgd"
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 0.0
    epochs: int = 1
    steps: int = 0  # optimizer steps instead of epochs; 0: epochs count
    batch_size: int = 10  # 0: all examples
    proximal_mu: float = 0.0
    augment: str = "none"
    precision: str = "float32"
    dp_norm: float = 0.0  # S, of an example's gradient; 0: no DP-SGD
    dp_noise: float = 0.0  # z

    def __post_init__(self) -> None:
        for what, valid in (
            ("optimizer", OPTIMIZERS),
            ("augment", AUGMENTATIONS),
            ("precision", PRECISIONS),
        ):
            if getattr(self, what) not in valid:
                raise ValueError(
                    f"unknown {what} '{getattr(self, what)}'. Valid: {', '.join(valid)}."
                )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "LocalTraining":
        """Read the hyperparameters that a strategy sent; what it did not send keeps its default.

        Keys are the fields' names with dashes (``batch-size``). ``lr`` is that of round 1; the
        learning rate used is ``lr * lr-decay ** (server-round - 1)``. Keys meant for others are
        ignored.
        """
        given = {
            f.name: config[key] for f in fields(cls) if (key := f.name.replace("_", "-")) in config
        }
        rounds_done = int(config.get("server-round", 1)) - 1
        lr = float(given.pop("lr", cls.lr)) * float(config.get("lr-decay", 1.0)) ** rounds_done
        return cls(lr=lr, **given)


def passes(num_examples: int, hp: LocalTraining, seed: int, least: int = 1) -> Iterator[Tensor]:
    """Yield pass after pass over the examples: new orders of row numbers, int64 on the CPU.

    A pass is cut into batches of ``hp.batch_size``: see :func:`cut`. With ``hp.steps`` the last
    pass ends early.
    """
    if num_examples == 0:
        raise ValueError("a client without examples can't train")
    sizes = batch_sizes(num_examples, hp.batch_size, least)
    left = hp.steps or hp.epochs * len(sizes)
    generator = torch.Generator().manual_seed(seed)
    while left > 0:
        yield torch.randperm(num_examples, generator=generator)[: sum(sizes[:left])]
        left -= len(sizes)


def batch_sizes(num_examples: int, batch_size: int, least: int = 1) -> list[int]:
    """Return the sizes of a pass's batches: full ones, then what is left, or joined to the last."""
    return Cut.of(num_examples, batch_size, least).sizes


def cut(order: Tensor, num_examples: int, batch_size: int, least: int = 1) -> list[Tensor]:
    """Return the batches of one of the :func:`passes` over so many examples."""
    sizes = batch_sizes(num_examples, batch_size, least)
    steps = int(np.searchsorted(np.cumsum(sizes), len(order))) + 1
    return list(order.split(sizes[:steps]))


def batches(
    x: Tensor, y: Tensor, hp: LocalTraining, seed: int, least: int = 1
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Yield pass after pass over examples (N, ...) and targets (N,): each the batches of both."""
    draws = distortions(len(y), hp, seed, x.shape[-1])
    for order in passes(len(y), hp, seed, least):
        seen = x if hp.augment == "none" else distort(x, next(draws).to(x.device))
        rows = cut(order.to(x.device), len(y), hp.batch_size, least)
        yield (_batch(seen, y, own) for own in rows)


def _batch(x: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    # A full batch needs no gather, and its sums must not depend on a shuffle.
    whole = len(rows) == len(y)
    return (x, y) if whole else (x.index_select(0, rows), y.index_select(0, rows))


def batches_of_weights(
    weights: Tensor | None, y: Tensor, hp: LocalTraining, seed: int, least: int = 1
) -> Iterator[Iterator[Tensor | None]]:
    """Yield the weights (N,) of the examples in :func:`batches`; None for each without weights."""
    if weights is None:
        return repeat(repeat(None))
    # An order depends on the seed alone: weights are cut as examples are.
    alike = batches(weights, y, replace(hp, augment="none"), seed, least)
    return ((own for own, _ in of_pass) for of_pass in alike)


def distortions(num_examples: int, hp: LocalTraining, seed: int, side: int) -> Iterator[Tensor]:
    """Yield what becomes of each example by passes, int64 (N, 3): shift down, right, mirrored.

    Shifts are at most an eighth of the side. The draws have a generator of their own: batches stay
    those of a run without augmentation.
    """
    generator = torch.Generator().manual_seed(seed ^ 0x5EED)
    most = side // 8 if hp.augment == "crop_flip" else 0
    while True:
        shifts = torch.randint(-most, most + 1, (num_examples, 2), generator=generator)
        yield torch.cat([shifts, torch.randint(2, (num_examples, 1), generator=generator)], 1)


def distort(x: Tensor, how: Tensor) -> Tensor:
    """Return images (n, C, H, W), bytes or floats, each shifted and mirrored as ``how`` says.

    What comes into view is the image reflected at its edge. It is one gather, whatever the draws.
    """
    _, channels, height, width = x.shape
    down = _reflected(torch.arange(height, device=x.device) + how[:, :1], height)
    right = torch.arange(width, device=x.device).expand(len(x), -1)
    right = _reflected(torch.where(how[:, 2:] > 0, width - 1 - right, right) + how[:, 1:2], width)
    cells = (
        (down.unsqueeze(2) * width + right.unsqueeze(1))
        .view(len(x), 1, -1)
        .expand(-1, channels, -1)
    )
    return x.flatten(2).gather(2, cells).view(x.shape)


def _reflected(index: Tensor, size: int) -> Tensor:
    """Return indices outside 0 to size - 1 reflected at the edge, which is not repeated."""
    return size - 1 - (size - 1 - index.abs()).abs()


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    hp: LocalTraining,
    seed: int,
    anchor: Sequence[Tensor] | None = None,
    offset: Sequence[Tensor] | None = None,
    only: Collection[str] | None = None,
    added: Callable[[Tensor], Tensor] | None = None,
    weights: Tensor | None = None,
) -> dict[str, float]:
    """Train the model in place on one client's examples.

    Parameters
    ----------
    model : nn.Module
        The model, holding the weights of the round's start.
    x : Tensor
        Examples (N, ...) as the network takes them, on the model's device: normalised images,
        float (N, C, H, W).
    y : Tensor
        Targets (N,): int64 classes, or float numbers.
    hp : LocalTraining
        Hyperparameters.
    seed : int
        Fixes the batches and the model's own draws (dropout). The process's generators are left as
        they were.
    anchor : sequence of Tensor, optional
        Where the proximal term pulls, one tensor per trained parameter;
        the weights of the round's start by default.
    offset : sequence of Tensor, optional
        Added to the gradient of each step, one tensor per trained parameter (SCAFFOLD's c - c_i).
    only : collection of str, optional
        The trained parameters that move; all by default.
    added : callable, optional
        Returns what is added to the loss of a batch (b, C, H, W) that the model has just seen.
    weights : Tensor, optional
        Float32 (N,), what an example's loss is multiplied by; 1 by default. A batch's loss stays
        a sum over its examples divided by how many they are.

    Returns
    -------
    dict[str, float]
        ``loss`` (without penalties) and ``accuracy`` (nan of a real target), averaged over the
        examples seen while training, and ``steps``; with weights, each example's loss and hit
        times its weight. A loss that is not finite is returned like any other.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    params = list(named.values())
    start = list(anchor or [p.detach().clone() for p in params]) if hp.proximal_mu else []
    moving = params if only is None else [p for name, p in named.items() if name in only]
    optimizer = optimizer_of(moving, hp)
    model.train()
    normed = batch_norms(model)
    least = least_batch(normed)
    seen, steps, loss_sum = 0, 0, 0.0
    correct: float = 0
    with seeded(x.device, seed), precision_of(hp, x.device):
        passes_of_both = zip(
            batches(x, y, hp, seed, least),
            batches_of_weights(weights, y, hp, seed, least),
            strict=False,  # what has no weights has no end of them
        )
        for of_pass, of_weights in passes_of_both:
            losses, logits, labels, shares = [], [], [], []
            for (x_b, y_b), w_b in zip(of_pass, of_weights, strict=False):
                optimizer.zero_grad()
                with alone(normed, len(y_b)):
                    out = model(x_b)
                loss = loss_of(out, y_b) if w_b is None else weighted_loss(out, y_b, w_b)
                (loss if added is None else loss + added(x_b)).backward(inputs=moving)
                for p, p_0 in zip(
                    params, start, strict=False
                ):  # start is empty without a proximal term
                    if p.grad is not None:
                        p.grad.add_(p.detach() - p_0, alpha=hp.proximal_mu)
                for p, more in zip(params, offset or [], strict=False):  # empty without an offset
                    p.grad = more.clone() if p.grad is None else p.grad.add_(more)
                optimizer.step()
                losses.append(loss.detach())
                logits.append(out.detach())
                labels.append(y_b)
                if w_b is not None:
                    shares.append(w_b)
            # Scored once a pass: three operations a step less, and on a GPU one wait instead of one
            # a step.
            sizes = [len(y_b) for y_b in labels]
            loss_sum += sum(n * v for n, v in zip(sizes, torch.stack(losses).tolist(), strict=True))
            hits = hits_at(torch.cat(logits), torch.cat(labels))
            correct += float((hits * torch.cat(shares)).sum()) if shares else int(hits.sum())
            seen += sum(sizes)
            steps += len(sizes)
    accuracy = counted_hits(correct, y) / seen
    return {"loss": loss_sum / seen, "accuracy": accuracy, "steps": steps}


def weighted_loss(outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over n examples of their losses times their weights (n,)."""
    return (loss_of(outputs, y, reduction="none") * weights).mean()


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return the layers that normalise by a batch's own mean and variance."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def least_batch(normed: Sequence[nn.Module]) -> int:
    """Return how many examples a batch has at least, where a network has such layers."""
    return 2 if normed else 1


@contextmanager
def alone(normed: Sequence[nn.Module], examples: int) -> Iterator[None]:
    """Have these layers use running statistics for a batch of one example: it has no variance."""
    if examples != 1 or not normed:
        yield
        return
    training = [module.training for module in normed]
    for module in normed:
        module.eval()
    try:
        yield
    finally:
        for module, was in zip(normed, training, strict=True):
            module.train(was)


def generator_of(device: torch.device) -> torch.Generator:
    """Return the global generator that models on a device draw from."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index]
    return torch.default_generator


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the device's global generator, which dropout draws from; put its state back later.

    ``torch.random.fork_rng`` does the same in ten times the time, as much as two steps of a small
    model.
    """
    generator = generator_of(device)
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


@contextmanager
def precision_of(hp: LocalTraining, device: torch.device) -> Iterator[None]:
    """Have products in the precision that the hyperparameters name;
    the process's settings are put back afterwards.
    """
    if hp.precision == "tf32" and device.type != "cuda":
        raise ValueError(
            "training.precision=tf32 is a format of NVIDIA GPUs; this host trains on its CPU"
        )
    if hp.precision == "float32":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = hp.precision == "tf32"
    try:
        # Its cache would keep the weights of the round's first step for all steps.
        on = hp.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=on, cache_enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def optimizer_of(params: list[nn.Parameter], hp: LocalTraining) -> torch.optim.Optimizer:
    """Return a new optimizer: clients of a round share nothing but the weights they start from."""
    if hp.optimizer == "adam":
        return torch.optim.Adam(params, lr=hp.lr, weight_decay=hp.weight_decay, fused=True)
    return torch.optim.SGD(
        params, lr=hp.lr, momentum=hp.momentum, weight_decay=hp.weight_decay, fused=True
    )


@torch.inference_mode()
def predict(model: nn.Module, x: Tensor, batch_size: int = 512) -> Tensor:
    """Return the model's outputs, float (N, outputs), for examples (N, ...)."""
    model.eval()
    return torch.cat([model(x_b) for x_b in x.split(batch_size)])


def score(logits: Tensor, y: Tensor) -> dict[str, float]:
    """Return ``loss`` (a mean), ``loss_sum``, ``correct``, ``count`` of outputs (N, outputs).

    The last three are sums over the rows.
    """
    loss_sum = float(loss_of(logits.double(), y, reduction="sum"))
    correct = counted_hits(int(hits_at(logits, y).sum()), y)
    return {"loss": loss_sum / len(y), "loss_sum": loss_sum, "correct": correct, "count": len(y)}


@dataclass(frozen=True)
class Sums:
    """A model's scores on some examples, as sums."""

    loss: float = 0.0
    correct: float = 0  # nan of a real target
    table: np.ndarray | None = None  # see fedsweep.training.targets.table_of; None: nobody asked


def evaluate(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 512) -> dict[str, float]:
    """Return the :func:`score` of the model on examples (N, ...) and targets (N,)."""
    return score(predict(model, x, batch_size), y)
