"""APFL's local training: a global and a local model on the same batches. Imports torch only."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from runner.client.training import (
    LocalTraining,
    alone,
    batch_norms,
    cut,
    distort,
    distortions,
    optimizer_of,
    passes,
    precision_of,
    seeded,
)


def train_mixture(
    model: nn.Module,
    local: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    hp: LocalTraining,
    seed: int,
    alpha: float,
    *,
    adaptive: bool,
) -> tuple[dict[str, float], dict[str, Tensor], float]:
    """Train the global model w in place and the local v beside it, on the same batches.

    Per batch, with m = alpha v + (1 - alpha) w: w steps along grad f(w), v along alpha grad f(m),
    which is the gradient of f(m) by v. With ``adaptive``, alpha is renewed at the round's first
    batch: alpha <- clip(alpha - lr <v - w, grad f(m)>, 0, 1).
    Source: Deng et al. 2020 (arXiv:2003.13461), equations 3 to 6, and algorithm 1.

    Parameters
    ----------
    model : nn.Module
        Holds w. Buffers (BatchNorm's statistics) follow w and are not mixed.
    local : mapping
        v, by the names of the model's state dict.
    x, y : Tensor
        Training images (N, C, H, W) and labels (N,).
    hp : LocalTraining
        As ``training.train`` takes it. w and v have an optimizer each, with momentum and weight
        decay of its own; the proximal term is w's.
    seed : int
        Fixes the batches, the augmentation and the model's own draws.
    alpha : float
        Share of v in [0, 1].

    Returns
    -------
    (result, v, alpha)
        ``result`` holds loss, accuracy and steps of w as ``training.train`` returns them, and ``personal_loss``.
    """
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    start = [p.detach().clone() for p in params.values()] if hp.proximal_mu else []
    v = {name: value.detach().clone() for name, value in local.items()}
    own = {name: nn.Parameter(v[name]) for name in params}
    optimizers = [optimizer_of(list(of.values()), hp) for of in (params, own)]
    model.train()
    loss_sum = personal_sum = correct = 0.0
    seen = steps = 0
    normed = batch_norms(model)
    least = 2 if normed else 1
    draws = distortions(len(y), hp, seed, x.shape[-1])
    whole = x
    with seeded(x.device, seed), precision_of(hp, x.device):
        for order in passes(len(y), hp, seed, least):
            if hp.augment != "none":
                x = distort(whole, next(draws).to(x.device))
            for rows in cut(order.to(x.device), len(y), hp.batch_size, least):
                whole_batch = len(rows) == len(y)
                x_b = x if whole_batch else x.index_select(0, rows)
                y_b = y if whole_batch else y.index_select(0, rows)
                mixed = {name: _mixed(alpha, own[name], p) for name, p in params.items()}
                buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
                with alone(normed, len(rows)):
                    logits = functional_call(model, {**buffers, **mixed}, (x_b,))
                personal = F.cross_entropy(logits, y_b)
                of_mixed = torch.autograd.grad(personal, list(mixed.values()))
                with alone(normed, len(rows)):
                    out = model(x_b)
                loss = F.cross_entropy(out, y_b)
                of_global = torch.autograd.grad(loss, list(params.values()))
                with torch.no_grad():
                    trained = list(zip(params.values(), own.values(), of_global, of_mixed, strict=True))
                    if adaptive and steps == 0:
                        slope = sum(float(((v_p - p) * g_m).sum()) for p, v_p, _, g_m in trained)
                        alpha = min(1.0, max(0.0, alpha - hp.lr * slope))
                    for p, v_p, g_w, g_m in trained:
                        p.grad, v_p.grad = g_w, alpha * g_m
                    for p, p_0 in zip(params.values(), start, strict=False):  # empty without the term
                        p.grad.add_(p - p_0, alpha=hp.proximal_mu)  # type: ignore[union-attr]
                for optimizer in optimizers:
                    optimizer.step()
                steps, seen = steps + 1, seen + len(y_b)
                loss_sum += len(y_b) * float(loss.detach())
                personal_sum += len(y_b) * float(personal.detach())
                correct += int((out.argmax(1) == y_b).sum())
    v.update({name: p.detach() for name, p in own.items()})
    v.update({name: buffer.clone() for name, buffer in model.named_buffers() if name in v})
    result = {"loss": loss_sum / seen, "accuracy": correct / seen, "steps": steps, "personal_loss": personal_sum / seen}
    return result, v, alpha


def _mixed(alpha: float, v: Tensor, w: Tensor) -> Tensor:
    return (alpha * v.detach() + (1 - alpha) * w.detach()).requires_grad_()
