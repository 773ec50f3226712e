"""DP-SGD in one client: batches drawn at random, each example's gradient clipped, noise on the sum.

Abadi et al. 2016, "Deep Learning with Differential Privacy" (CCS, arXiv:1607.00133), algorithm 1.
Gradients of single examples are ``torch.func``'s: they need no wrapper around the network, whose
arrays keep their names, and all draws are the trial's.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from fedsweep.accounting import batches_of
from fedsweep.training.local import (
    LocalTraining,
    batch_norms,
    distort,
    distortions,
    optimizer_of,
    precision_of,
    predict,
    score,
    seeded,
)
from fedsweep.training.targets import counted_hits, hits_at, loss_of

_NOISE, _DRAW = 0x5EED_0015E, 0x5EED_D4A3
"""What tells a client's generators apart, which all begin with its seed."""

_AT_ONCE = 256
"""Examples whose gradients are held at once."""


def train_privately(
    model: nn.Module, x: Tensor, y: Tensor, hp: LocalTraining, seed: int
) -> dict[str, float]:
    """Train the model in place by steps of noised sums of clipped gradients.

    A step follows (sum_i g_i min(1, S / |g_i|) + N(0, (z S)^2)) / b over the examples of its batch,
    each of which is in it with probability b / n; a batch of none is noise alone. The optimizer and
    the proximal term make of that what they make of a gradient.

    Parameters
    ----------
    model : nn.Module
        The model, holding the weights of the round's start.
    x, y : Tensor
        Examples (N, ...) as the network takes them, and their targets (N,).
    hp : LocalTraining
        Hyperparameters: S is ``dp_norm``, z ``dp_noise``, b ``batch_size``.
    seed : int
        Fixes the batches, the noise and the model's own draws (dropout).

    Returns
    -------
    dict[str, float]
        ``loss``, ``accuracy`` over the examples seen while training, and ``steps``.

    Raises
    ------
    ValueError
        The network normalises by its batch: then no example has a gradient of its own.
    """
    if batch_norms(model):
        raise ValueError(
            "privacy=local_sgd needs the gradient of each example, and the network normalises by "
            "its batch (BatchNorm); take another model"
        )
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    start = [p.detach().clone() for p in params.values()] if hp.proximal_mu else []
    draw, noise = (torch.Generator().manual_seed(seed ^ each) for each in (_DRAW, _NOISE))
    shifts = distortions(len(y), hp, seed, x.shape[-1])
    rate, steps = batches_of(len(y), hp.batch_size, hp.epochs, hp.steps)
    optimizer = optimizer_of([*params.values()], hp)
    model.train()
    loss_sum, correct, seen = 0.0, 0, 0
    with seeded(x.device, seed), precision_of(hp, x.device):
        for _ in range(steps):
            rows = (torch.rand(len(y), generator=draw) < rate).nonzero().flatten()
            x_b, y_b = x[rows.to(x.device)], y[rows.to(y.device)]
            if hp.augment != "none" and len(rows):
                x_b = distort(x_b, next(shifts)[rows].to(x.device))
            sums, losses, hits = clipped_sums(model, params, x_b, y_b, hp.dp_norm)
            for name, p in params.items():
                drawn = torch.randn(p.shape, generator=noise).to(p.device, p.dtype)
                p.grad = (sums[name] + hp.dp_noise * hp.dp_norm * drawn) / (rate * len(y))
            for p, p_0 in zip(params.values(), start, strict=False):  # empty without the term
                assert p.grad is not None
                p.grad.add_(p.detach() - p_0, alpha=hp.proximal_mu)
            optimizer.step()
            loss_sum, correct, seen = loss_sum + losses, correct + hits, seen + len(rows)
    if not seen:  # nobody was drawn: what there is to tell is how it does now
        now = score(predict(model, x), y)
        return {"loss": now["loss"], "accuracy": now["correct"] / len(y), "steps": steps}
    accuracy = counted_hits(correct, y) / seen
    return {"loss": loss_sum / seen, "accuracy": accuracy, "steps": steps}


def clipped_sums(
    model: nn.Module, params: dict[str, nn.Parameter], x: Tensor, y: Tensor, norm: float
) -> tuple[dict[str, Tensor], float, int]:
    """Return the sum of the examples' clipped gradients, of their losses, and how many are right.

    An example whose gradient is not finite can't be clipped, and adds nothing to the first.

    Parameters
    ----------
    model : nn.Module
        The network.
    params : dict
        Its trained parameters by name.
    x, y : Tensor
        The examples, (n, ...) and (n,); there may be none.
    norm : float
        S: a gradient, over all parameters as one vector, is scaled down to this length.
    """
    fixed = {
        name: value.detach()
        for name, value in [*model.named_parameters(), *model.named_buffers()]
        if name not in params
    }

    def one(weights: dict[str, Tensor], x_1: Tensor, y_1: Tensor) -> tuple[Tensor, Tensor]:
        outputs = functional_call(model, {**weights, **fixed}, (x_1.unsqueeze(0),))
        return loss_of(outputs, y_1.unsqueeze(0)), outputs.squeeze(0)

    each = vmap(grad_and_value(one, has_aux=True), in_dims=(None, 0, 0), randomness="different")
    weights = {name: p.detach() for name, p in params.items()}
    sums = {name: torch.zeros_like(value) for name, value in weights.items()}
    losses, hits = 0.0, 0
    if not len(y):
        return sums, losses, hits
    for x_b, y_b in zip(x.split(_AT_ONCE), y.split(_AT_ONCE), strict=True):
        gradients, (loss, outputs) = each(weights, x_b, y_b)
        squares = [g.double().reshape(len(g), -1).square().sum(1) for g in gradients.values()]
        lengths = torch.stack(squares).sum(0).sqrt()
        fine = lengths.isfinite()
        factors = (norm / lengths[fine].clamp(min=norm)).to(loss.dtype)
        for name, g in gradients.items():
            sums[name] += torch.einsum("n,n...->...", factors, g[fine])
        losses += float(loss.sum())
        hits += int(hits_at(outputs, y_b).sum())
    return sums, losses, hits
