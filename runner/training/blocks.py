"""Clients that train together, step by step, in one batched program. Imports torch only."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from fedsweep.training.batched import KeptByLayer, Program
from fedsweep.training.dual import DualLayer
from fedsweep.training.layers import Draws, Weights
from fedsweep.training.local import LocalTraining
from fedsweep.training.pool import Examples
from fedsweep.training.targets import hits_at, is_real, losses_at
from fedsweep.training.timetable import Passes, Timetable

SCORED_FLOATS = 2**18
"""Logits kept until they are scored: a dozen operations for many steps instead of each one."""


@dataclass(frozen=True)
class Penalties:
    """What becomes of each step's gradient: moves (gradient + decay w + push - pull w_0)."""

    decay: Tensor  # (C, 1)
    pull: Tensor | None  # (C, 1)
    push: Tensor | None  # (C, P)
    moves: Tensor | None = None  # (P,): 1 where a parameter moves, else 0


class Block:
    """Clients that train together: ``values`` (C, P) in place.

    Parameters
    ----------
    shared : Tensor, optional
        The weights (P,) that all start from, where they are the same.
    passes : sequence of Passes
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
        passes: Sequence[Passes],
        hp: LocalTraining,
        penalties: Penalties | None,
        seeds: Sequence[int],
    ) -> None:
        self._program, self._values, self._shared, self._examples = (
            program,
            values,
            shared,
            examples,
        )
        self._passes, self._hp, self._penalties = passes, hp, penalties
        self._timetable = Timetable.make(passes, values)
        self._columns = program.block(max(each.batch for each in passes), values.device)[1]
        self._skip = self._layers = 0  # parameters and layers that are left out
        self._generators = [
            torch.Generator(values.device).manual_seed(seed) for seed in seeds if program.draws
        ]

    @property
    def _in_place(self) -> bool:
        """Return whether a step's gradients go right into the weights: nothing else needs them."""
        plain = self._hp.optimizer == "sgd" and not self._hp.momentum and self._penalties is None
        return plain and max(self._timetable.longest) <= self._columns

    def train(self) -> tuple[list[float], list[float]]:
        """Return each client's summed loss, and its hits."""
        hp, timetable, values = self._hp, self._timetable, self._values[:, self._skip :]
        in_place = self._in_place
        grads = values if in_place else self._program.buffer("grads", values.shape, values)
        constant = self._constant(values)
        adam = hp.optimizer == "adam"
        moments = (
            [self._program.buffer(use, values.shape, values).zero_() for use in ("m", "v")]
            if adam
            else None
        )
        momentum, last = 0.0 if moments else hp.momentum, 0
        scores = _Scores(timetable, self._examples.y)
        for step, (active, longest) in enumerate(
            zip(timetable.active, timetable.longest, strict=True)
        ):
            if active != last:
                w, g, last = values[:active], grads[:active], active
                weights = self._program.views(w, g, self._layers)
            beta = 1.0 if in_place else momentum if step else 0.0
            if self._penalties:
                # g = momentum g + decay w + push - pull w_0; the batch's own gradient is added to
                # it.
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
            if self._penalties and self._penalties.moves is not None:
                g.mul_(self._penalties.moves)
            if moments:
                step_adam(w, g, moments[0][:active], moments[1][:active], hp.lr, step + 1)
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

    def _forward(
        self, weights: list[Weights], step: int, part: slice
    ) -> tuple[Tensor, KeptByLayer]:
        """Return logits (active, b, classes) of a part of a step, and what ``_backward`` needs."""
        x = self._timetable.images(self._examples, step, part)
        return self._program.forward(weights, x, draws=self._draws(step))

    def _draws(self, step: int) -> Draws | None:
        """Return what the active clients draw from, where the model draws."""
        return Draws(self._generators, self._timetable.counts(step)) if self._generators else None

    def _backward(
        self, weights: list[Weights], kept: KeptByLayer, d_logits: Tensor, step: int, beta: float
    ) -> None:
        """Set the gradients to beta times themselves plus that of the logits."""
        del step
        self._program.backward(weights, kept, d_logits, beta)


class DualBlock(Block):
    """A block whose first layer is linear and trains in its dual form;
    a batch is never taken in parts.
    """

    _in_place = False  # the dual form is given the gradients

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._layers, self._skip = 1, sum(map(prod, self._program.layers[0].shapes))
        self._columns = max(self._timetable.longest)

    def train(self) -> tuple[list[float], list[float]]:
        """Return each client's summed loss, and its hits."""
        rows, self._at = self._timetable.in_order_of_use(self._passes)
        penalties, first = self._penalties, self._first(self._values)
        push = None if penalties is None or penalties.push is None else self._first(penalties.push)
        self._dual = DualLayer(
            self._examples.images(rows.flatten()).view(*rows.shape, -1),
            first
            if self._shared is None
            else [t[0] for t in self._first(self._shared.unsqueeze(0))],
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

    def _forward(
        self, weights: list[Weights], step: int, part: slice
    ) -> tuple[Tensor, KeptByLayer]:
        del part
        outputs = self._dual.outputs(self._timetable.active[step], self._at[step])
        return self._program.forward(weights, outputs, 1, self._draws(step))

    def _backward(
        self, weights: list[Weights], kept: KeptByLayer, d_logits: Tensor, step: int, beta: float
    ) -> None:
        g = self._program.backward(weights, kept, d_logits, beta, 1)
        self._dual.step(g, self._at[step])


class _Scores:
    """Losses and hits of a block, counted for many steps at once."""

    def __init__(self, timetable: Timetable, y: Tensor) -> None:
        self._timetable, self._y = timetable, y.take(timetable.rows)
        self._loss_sum = timetable.weights.new_zeros(timetable.rows.shape[1], dtype=torch.float64)
        counted = torch.int64 if timetable.counts_as is None else torch.float64
        self._hits = torch.zeros_like(self._y[0, :, 0], dtype=counted)
        self._real = is_real(y)
        self._logits = self._targets = timetable.weights.new_empty(0)
        self._from = self._to = 0  # the steps that the tensors are for

    def take(self, step: int, active: int, part: slice, logits: Tensor) -> Tensor:
        """Keep the logits (active, b, classes) of a part of a step's batches;
        return the loss's gradient there.
        """
        if step >= self._to:
            self._score_and_go_on(step, logits.shape[2])
        here = step - self._from, slice(active), part
        self._logits[here] = logits
        weights = self._timetable.shares[step, :active, part].unsqueeze(2)
        if self._real:
            return (logits * (2 * weights)).sub_(self._targets[here])
        return logits.softmax(2).mul_(weights).sub_(self._targets[here])

    def sums(self) -> tuple[list[float], list[float]]:
        """Return each client's summed loss, and its hits; each example's times its own weight."""
        self._count()
        return self._loss_sum.tolist(), self._hits.tolist()

    def _score_and_go_on(self, step: int, classes: int) -> None:
        """Score what was kept, and make room for the steps from this one on."""
        self._count()
        y, weights = self._y[step:], self._timetable.shares[step:]
        steps = max(1, SCORED_FLOATS // (y[0].numel() * classes))
        y, weights = y[:steps].unsqueeze(3), weights[:steps].unsqueeze(3)
        self._from, self._to = step, step + len(y)
        self._logits = weights.new_zeros(*y.shape[:3], classes)
        if self._real:
            self._targets = y * (2 * weights)
            return
        self._targets = torch.zeros_like(self._logits).scatter_(3, y, weights)

    def _count(self) -> None:
        if self._from == self._to:
            return
        steps = slice(self._from, self._to)
        y, used = self._y[steps], self._timetable.weights[steps] > 0
        losses = torch.where(used, losses_at(self._logits, y), 0.0).double()
        hits = hits_at(self._logits, y) & used
        if self._timetable.counts_as is not None:
            counts_as = self._timetable.counts_as[steps].double()
            losses, hits = losses * counts_as, hits * counts_as
        self._loss_sum += losses.sum((0, 2))
        self._hits += hits.sum((0, 2))


def step_adam(w: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: float, step: int) -> None:
    """Take torch.optim.Adam's step, with its default betas and eps."""
    m.lerp_(g, 0.1)
    v.mul_(0.999).addcmul_(g, g, value=0.001)
    denominator = v.sqrt().div_((1 - 0.999**step) ** 0.5).add_(1e-8)
    w.addcdiv_(m, denominator, value=-lr / (1 - 0.9**step))
