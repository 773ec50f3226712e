"""APFL's local training: a global and a local model on the same batches. Imports torch only."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from runner.client.training import LocalTraining, alone, batch_norms, cut, passes


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
    """Train the global model w in place and the local v beside it, both by plain gradient steps.

    Per batch, with m = alpha v + (1 - alpha) w: w <- w - lr grad f(w); v <- v - lr alpha grad f(m). With ``adaptive``,
    alpha is renewed at the round's first batch: alpha <- clip(alpha - lr <v - w, grad f(m)>, 0, 1).
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
        Learning rate and batches count; momentum, weight decay and the optimizer's kind do not apply.
    alpha : float
        Share of v in [0, 1].

    Returns
    -------
    (result, v, alpha)
        ``result`` holds loss, accuracy and steps of w as ``training.train`` returns them, and ``personal_loss``.
    """
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    v = {name: value.detach().clone() for name, value in local.items()}
    model.train()
    loss_sum = personal_sum = correct = 0.0
    seen = steps = 0
    normed = batch_norms(model)
    least = 2 if normed else 1
    for order in passes(len(y), hp, seed, least):
        for rows in cut(order.to(x.device), len(y), hp.batch_size, least):
            x_b, y_b = (x, y) if len(rows) == len(y) else (x.index_select(0, rows), y.index_select(0, rows))
            mixed = {n: (alpha * v[n] + (1 - alpha) * p.detach()).requires_grad_() for n, p in params.items()}
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            with alone(normed, len(rows)):
                personal = F.cross_entropy(functional_call(model, {**buffers, **mixed}, (x_b,)), y_b)
            gradients = dict(zip(mixed, torch.autograd.grad(personal, list(mixed.values())), strict=True))
            with alone(normed, len(rows)):
                out = model(x_b)
            loss = F.cross_entropy(out, y_b)
            steepest = torch.autograd.grad(loss, list(params.values()))
            with torch.no_grad():
                if adaptive and steps == 0:
                    slope = sum(float(((v[n] - p) * gradients[n]).sum()) for n, p in params.items())
                    alpha = min(1.0, max(0.0, alpha - hp.lr * slope))
                for (n, p), gradient in zip(params.items(), steepest, strict=True):
                    p.sub_(gradient, alpha=hp.lr)
                    v[n].sub_(gradients[n], alpha=hp.lr * alpha)
            steps, seen = steps + 1, seen + len(y_b)
            loss_sum += len(y_b) * float(loss.detach())
            personal_sum += len(y_b) * float(personal.detach())
            correct += int((out.argmax(1) == y_b).sum())
    v.update({name: buffer.clone() for name, buffer in model.named_buffers() if name in v})
    result = {"loss": loss_sum / seen, "accuracy": correct / seen, "steps": steps, "personal_loss": personal_sum / seen}
    return result, v, alpha
