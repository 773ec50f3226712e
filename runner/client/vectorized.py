"""All clients of a chunk trained in one batched program. Imports torch and NumPy only.

:func:`train_many` gives every client what :func:`runner.client.training.train` gives it, up to rounding: the same
batches in the same order, each client with weights and optimizer state of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from torch import Tensor

from runner.client.batched import Program
from runner.client.training import LocalTraining, passes


@dataclass(frozen=True)
class _Schedule:
    """Which rows each client of a block takes in each step: (steps, C, batch); a weight of 0 fills up a short batch."""

    rows: Tensor
    weights: Tensor  # 1 / (examples in the batch)
    longest: list[int]  # examples in the longest batch of each step
    active: list[int]  # clients that still train in each step: always the first ones

    @classmethod
    def make(cls, orders: list[list[np.ndarray]], offsets: list[int], batch: int, like: Tensor) -> "_Schedule":
        counts = [sum(-(-len(order) // batch) for order in own) for own in orders]
        rows = np.zeros((counts[0], len(orders), batch), np.int64)
        sizes = np.zeros((counts[0], len(orders)), np.int64)
        for c, own in enumerate(orders):
            rows[:, c] = offsets[c]
            step = 0
            for order in own:
                full, rest = divmod(len(order), batch)
                rows[step : step + full, c] = order[: full * batch].reshape(full, batch) + offsets[c]
                sizes[step : step + full, c] = batch
                step += full
                if rest:
                    rows[step, c, :rest] = order[full * batch :] + offsets[c]
                    sizes[step, c] = rest
                    step += 1
        filled = np.arange(batch) < sizes[:, :, None]
        weights = filled / np.maximum(sizes, 1)[:, :, None]
        return cls(
            torch.from_numpy(rows).to(like.device),
            torch.from_numpy(weights).to(like),
            sizes.max(1).tolist(),
            (sizes > 0).sum(1).tolist(),
        )


def train_many(
    program: Program,
    start: Tensor,
    x: Tensor,
    y: Tensor,
    places: Sequence[tuple[int, int]],
    hp: LocalTraining,
    seeds: Sequence[int],
    correction: Tensor | None = None,
) -> tuple[list[Tensor], list[dict[str, float]]]:
    """Train every client of a chunk.

    Parameters
    ----------
    program : Program
        The network.
    start : Tensor
        Weights of the round's start, (P,) for all clients or (C, P).
    x, y : Tensor
        Examples of all clients, (N, C, H, W) and int64 (N,).
    places : sequence of (int, int)
        Each client's first row, and its number of rows.
    hp : LocalTraining
        Hyperparameters.
    seeds : sequence of int
        One per client, as ``train`` takes it.
    correction : Tensor, optional
        (C, P), added to each step's gradient: SCAFFOLD's c - c_i.

    Returns
    -------
    list of Tensor
        Each client's weights (P,), in the program's memory: they hold until it trains again. Clipping a client's
        update is an operation on them minus ``start``.
    list of dict
        What ``train`` returns, per client.
    """
    offsets, sizes = [start for start, _ in places], [count for _, count in places]
    batch = max(min(hp.batch_size or size, size) for size in sizes)
    order = [[p.numpy() for p in passes(size, hp, seed)] for size, seed in zip(sizes, seeds, strict=True)]
    steps = [sum(-(-len(p) // min(hp.batch_size or n, n)) for p in own) for own, n in zip(order, sizes, strict=True)]
    by_steps = sorted(range(len(sizes)), key=lambda c: (-steps[c], -sizes[c], c))
    clients, columns = program.block(batch, x.device)
    clients = ceil(len(sizes) / ceil(len(sizes) / clients))  # blocks of equal size
    x = x.flatten(1)
    out = program.buffer("values", (len(sizes), program.num_params), start)
    out.copy_(start if start.ndim == 1 else start[by_steps])
    results: list[dict[str, float]] = [{}] * len(sizes)
    for i in range(0, len(sizes), clients):
        own = by_steps[i : i + clients]
        in_block = max(min(hp.batch_size or sizes[c], sizes[c]) for c in own)
        schedule = _Schedule.make([order[c] for c in own], [offsets[c] for c in own], in_block, start)
        loss_sum, correct = _train_block(
            program, out[i : i + clients], x, y, schedule, columns, hp, None if correction is None else correction[own]
        )
        for c, loss, hits in zip(own, loss_sum, correct, strict=True):
            seen = sum(len(p) for p in order[c])
            results[c] = {"loss": loss / seen, "accuracy": hits / seen, "steps": steps[c]}
    rows = {c: row for row, c in enumerate(by_steps)}
    return [out[rows[c]] for c in range(len(sizes))], results


def _train_block(
    program: Program,
    values: Tensor,
    x: Tensor,
    y: Tensor,
    schedule: _Schedule,
    columns: int,
    hp: LocalTraining,
    correction: Tensor | None,
) -> tuple[list[float], list[int]]:
    """Train the clients of a block, (C, P) in place; return each one's summed loss and hits."""
    grads = program.buffer("grads", values.shape, values).zero_()
    start = program.buffer("start", values.shape, values).copy_(values) if hp.proximal_mu else None
    adam = hp.optimizer == "adam"
    moments = [program.buffer(use, values.shape, values).zero_() for use in ("m", "v")] if adam else None
    momentum = 0.0 if moments else hp.momentum
    loss_sum = values.new_zeros(len(values), dtype=torch.float64)
    correct = torch.zeros(len(values), dtype=torch.int64, device=values.device)
    minus_one = values.new_full((1, 1, 1), -1.0)
    weights, last = program.views(values, grads), len(values)
    for step, (active, longest) in enumerate(zip(schedule.active, schedule.longest, strict=True)):
        if active < last:
            weights, last = program.views(values[:active], grads[:active]), active
        w, g = values[:active], grads[:active]
        beta = momentum if step else 0.0
        if hp.weight_decay or start is not None or correction is not None:
            # g = momentum g + weight_decay w + mu (w - w_0) + correction; the batch's own gradient is added to it.
            g.mul_(beta).add_(w, alpha=hp.weight_decay + hp.proximal_mu)
            if start is not None:
                g.sub_(start[:active], alpha=hp.proximal_mu)
            if correction is not None:
                g.add_(correction[:active])
            beta = 1.0
        for begin in range(0, longest, columns):
            part = slice(begin, min(begin + columns, longest))
            rows, weight = schedule.rows[step, :active, part], schedule.weights[step, :active, part]
            x_b = x.index_select(0, rows.flatten()).view(active, rows.shape[1], -1)
            y_b = y.take(rows).unsqueeze(2)
            logits, kept = program.forward(weights, x_b)
            log_p = logits.log_softmax(2)
            used = weight > 0
            loss_sum[:active] -= (log_p.gather(2, y_b).squeeze(2).double() * used).sum(1)
            correct[:active] += ((logits.argmax(2) == y_b.squeeze(2)) & used).sum(1)
            d_logits = log_p.exp_().scatter_add_(2, y_b, minus_one.expand(y_b.shape))
            program.backward(weights, kept, d_logits.mul_(weight.unsqueeze(2)), beta)
            beta = 1.0
        if moments:
            _adam(w, g, moments[0][:active], moments[1][:active], hp.lr, step + 1)
        else:
            w.add_(g, alpha=-hp.lr)
    return loss_sum.tolist(), correct.tolist()


def _adam(w: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: float, step: int) -> None:
    """Take torch.optim.Adam's step, with its default betas and eps."""
    m.lerp_(g, 0.1)
    v.mul_(0.999).addcmul_(g, g, value=0.001)
    denominator = v.sqrt().div_((1 - 0.999**step) ** 0.5).add_(1e-8)
    w.addcdiv_(m, denominator, value=-lr / (1 - 0.9**step))


@torch.inference_mode()
def predict_many(program: Program, values: Tensor, x: Tensor, places: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Return the logits (n, classes) of each model on examples of its own, or of all on the same.

    ``values`` (C, P) are the models, ``x`` (N, channels, H, W) everybody's images, ``places`` as in :func:`train_many`.
    """
    x, longest = x.flatten(1), max(count for _, count in places)
    clients, columns = program.block(longest, x.device)
    logits: list[Tensor] = []
    for i in range(0, len(places), clients):
        own = places[i : i + clients]
        # A set shorter than its block's longest is filled up with its own last row.
        rows = torch.tensor([[start + min(k, count - 1) for k in range(longest)] for start, count in own])
        rows = rows.to(x.device)
        weights = program.views(values[i : i + clients], values[i : i + clients])
        parts = [
            program.forward(weights, x.index_select(0, r.flatten()).view(*r.shape, -1), keep=False)[0]
            for r in rows.split(columns, 1)
        ]
        logits += [all_rows[:count] for all_rows, (_, count) in zip(torch.cat(parts, 1), own, strict=True)]
    return logits
