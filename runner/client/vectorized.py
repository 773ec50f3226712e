"""All clients of a chunk trained in one batched program. Imports torch and NumPy only.

:func:`train_many` gives every client what :func:`runner.client.training.train` gives it, up to rounding: the same
batches in the same order, each client with weights and optimizer state of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.client.batched import MAX_BLOCK, Program
from runner.client.dual import DualLayer, pays
from runner.client.layers import Draws, UnsupportedError, Weights
from runner.client.pool import Examples
from runner.client.schedule import Schedule, Task
from runner.client.training import LocalTraining, precision_of

DUAL_FLOATS = 2**22
"""Floats of the examples of a block in dual form, and of what is computed of them."""

SCORED_FLOATS = 2**18
"""Logits kept until they are scored: a dozen operations for many steps instead of each one."""


def train_many(
    program: Program,
    start: Tensor,
    examples: Examples,
    places: Sequence[tuple[int, int]],
    hp: LocalTraining,
    seeds: Sequence[int],
    *,
    correction: Tensor | None = None,
    anchor: Tensor | None = None,
    mu: Tensor | None = None,
) -> tuple[list[Tensor], list[dict[str, float]]]:
    """Train every client of a chunk.

    Parameters
    ----------
    program : Program
        The network.
    start : Tensor
        Weights of the round's start, (P,) for all clients or (C, P).
    examples : Examples
        Of all clients.
    places : sequence of (int, int)
        Each client's first row, and its number of rows.
    hp : LocalTraining
        Hyperparameters.
    seeds : sequence of int
        One per client, as ``train`` takes it.
    correction : Tensor, optional
        (C, P), added to each step's gradient: SCAFFOLD's c - c_i.
    anchor : Tensor, optional
        Where the proximal term pulls, like ``start``; ``start`` by default.
    mu : Tensor, optional
        (C,), each client's own weight of the proximal term; ``hp.proximal_mu`` by default.

    Returns
    -------
    list of Tensor
        Each client's weights (P,), in the program's memory: they hold until it trains again.
    list of dict
        What ``train`` returns, per client.
    """
    if hp.precision == "bf16":
        raise UnsupportedError("training.precision=bf16 has no batched form")
    tasks = [Task.of(place, hp, seed, examples.x.shape[-1]) for place, seed in zip(places, seeds, strict=True)]
    order = sorted(range(len(tasks)), key=lambda c: (-tasks[c].steps, -tasks[c].count, c))
    out = program.buffer("values", (len(tasks), program.num_params), start)
    out.copy_(start if start.ndim == 1 else start[order])
    results: list[dict[str, float]] = [{}] * len(tasks)
    done = 0
    while done < len(order):
        left = [tasks[c] for c in order[done:]]
        clients, in_dual = _block(program, left, hp, start.device, drift=correction is not None or anchor is not None)
        own = order[done : done + clients]
        penalties = _penalties(start, own, hp, correction, anchor, mu)
        shared = start if start.ndim == 1 else None
        block = _DualBlock if in_dual else _Block
        values = out[done : done + clients]
        with precision_of(hp, start.device):
            own_seeds = [seeds[c] for c in own]
            loss_sum, correct = block(
                program, values, shared, examples, left[:clients], hp, penalties, own_seeds
            ).train()
        for c, task, loss, hits in zip(own, left, loss_sum, correct, strict=False):
            results[c] = {"loss": loss / task.seen, "accuracy": hits / task.seen, "steps": task.steps}
        done += clients
    rows = {c: row for row, c in enumerate(order)}
    return [out[rows[c]] for c in range(len(tasks))], results


def _block(
    program: Program, tasks: Sequence[Task], hp: LocalTraining, device: torch.device, *, drift: bool
) -> tuple[int, bool]:
    """Return how many of the tasks go together, and whether their first layer trains in its dual form."""
    clients, columns = program.block(tasks[0].batch, device)
    if program.first_linear and hp.optimizer == "sgd" and hp.augment == "none" and tasks[0].batch <= columns:
        outputs, inputs = program.first_linear
        n = max(task.count for task in tasks)
        together = _even(len(tasks), max(1, min(MAX_BLOCK, DUAL_FLOATS // (n * (inputs + 4 * outputs + n)))))
        seen, steps = (sum(getattr(task, what) for task in tasks[:together]) / together for what in ("seen", "steps"))
        if pays(inputs, outputs, n, seen, steps, drift=drift):
            return together, True
    return _even(len(tasks), clients), False


def _even(count: int, most: int) -> int:
    """Return the size of equal blocks of so many at most."""
    return ceil(count / ceil(count / most))


@dataclass(frozen=True)
class _Penalties:
    """What is added to each step's gradient: decay w + push - pull w_0."""

    decay: Tensor  # (C, 1)
    pull: Tensor | None  # (C, 1)
    push: Tensor | None  # (C, P)


def _penalties(
    start: Tensor,
    own: list[int],
    hp: LocalTraining,
    correction: Tensor | None,
    anchor: Tensor | None,
    mu: Tensor | None,
) -> _Penalties | None:
    """Return those of some clients, or None where there are none."""
    if correction is None and mu is None and not (hp.proximal_mu or hp.weight_decay):
        return None
    weight = start.new_full((len(own), 1), hp.proximal_mu) if mu is None else mu[own].unsqueeze(1)
    push = None if correction is None else correction[own]
    if anchor is not None:
        towards = weight * (anchor if anchor.ndim == 1 else anchor[own])
        push = towards.neg_() if push is None else push - towards
    pulls = anchor is None and (mu is not None or hp.proximal_mu)
    return _Penalties(weight + hp.weight_decay, weight if pulls else None, push)


class _Block:
    """Clients that train together: ``values`` (C, P) in place.

    Parameters
    ----------
    shared : Tensor, optional
        The weights (P,) that all start from, where they are the same.
    tasks : sequence of Task
        One per client; the first takes the most steps.
    seeds : sequence of int
        Of what the model draws, one per client.
    """

    def __init__(
        self,
        program: Program,
        values: Tensor,
        shared: Tensor | None,
        examples: Examples,
        tasks: Sequence[Task],
        hp: LocalTraining,
        penalties: _Penalties | None,
        seeds: Sequence[int],
    ) -> None:
        self._program, self._values, self._shared, self._examples = program, values, shared, examples
        self._tasks, self._hp, self._penalties = tasks, hp, penalties
        self._schedule = Schedule.make(tasks, values)
        self._columns = program.block(max(task.batch for task in tasks), values.device)[1]
        self._skip = self._layers = 0  # parameters and layers that are left out
        self._generators = []
        if program.draws:
            if max(self._schedule.longest) > self._columns:
                raise UnsupportedError(f"dropout in batches of more than {self._columns} examples")
            self._generators = [torch.Generator(values.device).manual_seed(seed) for seed in seeds]

    @property
    def _in_place(self) -> bool:
        """Return whether a step's gradients go straight into the weights: nothing else needs them."""
        plain = self._hp.optimizer == "sgd" and not self._hp.momentum and self._penalties is None
        return plain and max(self._schedule.longest) <= self._columns

    def train(self) -> tuple[list[float], list[int]]:
        """Return each client's summed loss, and its hits."""
        hp, schedule, values = self._hp, self._schedule, self._values[:, self._skip :]
        in_place = self._in_place
        grads = values if in_place else self._program.buffer("grads", values.shape, values)
        constant = self._constant(values)
        adam = hp.optimizer == "adam"
        moments = [self._program.buffer(use, values.shape, values).zero_() for use in ("m", "v")] if adam else None
        momentum, last = 0.0 if moments else hp.momentum, 0
        scores = _Scores(schedule, self._examples.y)
        for step, (active, longest) in enumerate(zip(schedule.active, schedule.longest, strict=True)):
            if active != last:
                w, g, last = values[:active], grads[:active], active
                weights = self._program.views(w, g, self._layers)
            beta = 1.0 if in_place else momentum if step else 0.0
            if self._penalties:
                # g = momentum g + decay w + push - pull w_0; the batch's own gradient is added to it.
                g = g.mul_(beta) if beta else g.zero_()
                g.addcmul_(w, self._penalties.decay[:active])
                beta = 1.0
            if constant is not None:
                g.add_(constant[:active])
            for begin in range(0, longest, self._columns):
                part = slice(begin, min(begin + self._columns, longest))
                logits, kept = self._forward(weights, step, part)
                d_logits = scores.take(step, active, part, logits)
                if in_place:  # all gradients are multiples of this one
                    d_logits.mul_(-hp.lr)
                self._backward(weights, kept, d_logits, step, beta)
                beta = 1.0
            if moments:
                _adam(w, g, moments[0][:active], moments[1][:active], hp.lr, step + 1)
            elif not in_place:
                w.add_(g, alpha=-hp.lr)
        return scores.sums()

    def _constant(self, start: Tensor) -> Tensor | None:
        """Return push - pull w_0 (C, P - skip)."""
        if self._penalties is None:
            return None
        push = None if self._penalties.push is None else self._penalties.push[:, self._skip :]
        if self._penalties.pull is None:
            return push
        constant = torch.mul(start, self._penalties.pull).neg_()
        return constant if push is None else constant.add_(push)

    def _forward(self, weights: list[Weights], step: int, part: slice) -> tuple[Tensor, Any]:
        """Return logits (active, b, classes), and what ``_backward`` needs, of a part of a step's batches."""
        rows = self._schedule.rows[step, : self._schedule.active[step], part]
        how = self._schedule.how
        if how is not None:
            how = how[step, : len(rows), part].flatten(0, 1)
        x = self._examples.images(rows.flatten(), how).view(*rows.shape, -1)
        draws = Draws(self._generators, self._schedule.sizes[step][: len(rows)]) if self._generators else None
        return self._program.forward(weights, x, draws=draws)

    def _backward(self, weights: list[Weights], kept: Any, d_logits: Tensor, step: int, beta: float) -> None:
        """Set the gradients to beta times themselves plus that of the logits."""
        del step
        self._program.backward(weights, kept, d_logits, beta)


class _DualBlock(_Block):
    """A block whose first layer is linear and trains in its dual form; a batch is never taken in parts."""

    _in_place = False  # the dual form is given the gradients

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._layers, self._skip = 1, sum(map(prod, self._program.layers[0].shapes))
        self._columns = max(self._schedule.longest)

    def train(self) -> tuple[list[float], list[int]]:
        """Return each client's summed loss, and its hits."""
        rows, self._at = self._schedule.in_order_of_use(self._tasks)
        penalties, first = self._penalties, self._first(self._values)
        push = None if penalties is None or penalties.push is None else self._first(penalties.push)
        self._dual = DualLayer(
            self._examples.images(rows.flatten()).view(*rows.shape, -1),
            first if self._shared is None else [t[0] for t in self._first(self._shared.unsqueeze(0))],
            push,
            lr=self._hp.lr,
            momentum=self._hp.momentum,
            decay=penalties.decay if penalties else None,
            pull=penalties.pull if penalties else None,
        )
        scores = super().train()
        self._dual.finish(first)
        return scores

    def _first(self, flat: Tensor) -> list[Tensor]:
        """Return the first layer's matrix and bias in flat parameters (C, P)."""
        shapes = self._program.layers[0].shapes
        parts = flat[:, : self._skip].split([prod(shape) for shape in shapes], 1)
        return [part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]

    def _forward(self, weights: list[Weights], step: int, part: slice) -> tuple[Tensor, Any]:
        del part
        outputs = self._dual.outputs(self._schedule.active[step], self._at[step])
        draws = Draws(self._generators, self._schedule.sizes[step][: len(outputs)]) if self._generators else None
        return self._program.forward(weights, outputs, 1, draws)

    def _backward(self, weights: list[Weights], kept: Any, d_logits: Tensor, step: int, beta: float) -> None:
        g = self._program.backward(weights, kept, d_logits, beta, 1)
        self._dual.step(g, self._at[step])


class _Scores:
    """Losses and hits of a block, counted for many steps at once."""

    def __init__(self, schedule: Schedule, y: Tensor) -> None:
        self._schedule, self._y = schedule, y.take(schedule.rows)
        self._loss_sum = schedule.weights.new_zeros(schedule.rows.shape[1], dtype=torch.float64)
        self._hits = torch.zeros_like(self._y[0, :, 0])
        self._logits = self._targets = schedule.weights.new_empty(0)
        self._from = self._to = 0  # the steps that the tensors are for

    def take(self, step: int, active: int, part: slice, logits: Tensor) -> Tensor:
        """Keep the logits (active, b, classes) of a part of a step's batches; return the loss's gradient there."""
        if step >= self._to:
            self._next(step, logits.shape[2])
        here = step - self._from, slice(active), part
        self._logits[here] = logits
        weights = self._schedule.weights[step, :active, part].unsqueeze(2)
        return logits.softmax(2).mul_(weights).sub_(self._targets[here])

    def sums(self) -> tuple[list[float], list[int]]:
        """Return each client's summed loss, and its hits."""
        self._count()
        return self._loss_sum.tolist(), self._hits.tolist()

    def _next(self, step: int, classes: int) -> None:
        """Score what was kept, and make room for the steps from this one on."""
        self._count()
        y, weights = self._y[step:], self._schedule.weights[step:]
        steps = max(1, SCORED_FLOATS // (y[0].numel() * classes))
        y, weights = y[:steps].unsqueeze(3), weights[:steps].unsqueeze(3)
        self._from, self._to = step, step + len(y)
        self._logits = weights.new_zeros(*y.shape[:3], classes)
        self._targets = torch.zeros_like(self._logits).scatter_(3, y, weights)

    def _count(self) -> None:
        if self._from == self._to:
            return
        steps = slice(self._from, self._to)
        y, used = self._y[steps], self._schedule.weights[steps] > 0
        losses = self._logits.log_softmax(3).gather(3, y.unsqueeze(3)).squeeze(3)
        self._loss_sum -= torch.where(used, losses, 0.0).double().sum((0, 2))
        self._hits += ((self._logits.argmax(3) == y) & used).sum((0, 2))


def _adam(w: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: float, step: int) -> None:
    """Take torch.optim.Adam's step, with its default betas and eps."""
    m.lerp_(g, 0.1)
    v.mul_(0.999).addcmul_(g, g, value=0.001)
    denominator = v.sqrt().div_((1 - 0.999**step) ** 0.5).add_(1e-8)
    w.addcdiv_(m, denominator, value=-lr / (1 - 0.9**step))


@torch.no_grad()  # not inference_mode: the program's memory is written again by training
def predict_many(
    program: Program, values: Tensor, examples: Examples, places: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Return the logits (n, classes) of each model, values (C, P), on examples of its own, or of all on the same."""
    longest = max(count for _, count in places)
    clients, columns = program.block(longest, values.device)
    logits: list[Tensor] = []
    for i in range(0, len(places), clients):
        own = torch.tensor(places[i : i + clients])
        # A set shorter than its block's longest is filled up with its own last row.
        rows = own[:, :1] + torch.minimum(torch.arange(longest), own[:, 1:] - 1)
        weights = program.views(values[i : i + clients], values[i : i + clients])
        parts = [
            program.forward(weights, examples.images(r.flatten()).view(*r.shape, -1))[0]
            for r in rows.to(values.device).split(columns, 1)
        ]
        logits += [all_rows[:count] for all_rows, count in zip(torch.cat(parts, 1), own[:, 1].tolist(), strict=True)]
    return logits


@torch.no_grad()  # not inference_mode: the program's memory is written again by training
def losses_of_each(
    program: Program, values: Tensor, examples: Examples, places: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Return the cross-entropy float64 (n, K) of each client's examples under each of K models, values (K, P)."""
    rows = torch.cat([torch.arange(first, first + count) for first, count in places]).to(values.device)
    at_once = max(1, program.columns(values.device) // len(values))
    parts = []
    for part in rows.split(at_once):
        logits = program.logits_of_each(values, examples.images(part).flatten(1)).double()
        y = examples.y.index_select(0, part).expand(len(values), -1)
        parts.append(F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(len(values), -1).t())
    return list(torch.cat(parts).split([count for _, count in places]))
