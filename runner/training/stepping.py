"""Training by steps of a method's own: module by module, or batched in a program.

Batches, optimizers and draws are those of ordinary training; which gradient is taken where, and
what becomes of it, is the method's: :class:`fedsweep.strategies.clients.Steps`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, zip_longest

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn
from torch.func import functional_call

from fedsweep.strategies.arrays import ModelRows, write_array
from fedsweep.strategies.clients import Batch, Gradient
from fedsweep.strategies.models import Models
from fedsweep.training.batched import KeptByLayer, Program
from fedsweep.training.blocks import step_adam
from fedsweep.training.layers import Draws, UnsupportedError, Weights
from fedsweep.training.local import (
    LocalTraining,
    alone,
    batch_norms,
    batches,
    generator_of,
    least_batch,
    optimizer_of,
    precision_of,
    seeded,
)
from fedsweep.training.pool import Examples, Place
from fedsweep.training.targets import hits_at, is_real, loss_of, losses_at, slopes_of
from fedsweep.training.timetable import Timetable, longest_first, passes_of


@dataclass(frozen=True)
class LocalData:
    """What C clients train on, and how."""

    examples: Examples  # of all clients
    places: Sequence[Place]  # of each client's own
    hp: LocalTraining
    seeds: Sequence[int]  # of what is drawn for each client


class BatchedStepping:
    """All clients of a chunk in one program.

    Inside, clients stand in the order of their steps, the most first: those that still train are
    always the first ones.
    """

    def __init__(self, program: Program, data: LocalData) -> None:
        self.program, self.examples, self.hp = program, data.examples, data.hp
        passes = passes_of(data.examples, data.places, data.hp, data.seeds)
        self.order = longest_first(passes)
        device = data.examples.y.device
        self.timetable = Timetable.make(
            [passes[c] for c in self.order], torch.empty(0, dtype=torch.float32, device=device)
        )
        self.columns = max(1, program.columns(device) // len(passes))
        if program.draws and max(self.timetable.longest) > self.columns:
            raise UnsupportedError(f"dropout in batches of more than {self.columns} examples")
        self.generators = [
            torch.Generator(device).manual_seed(data.seeds[c]) for c in self.order if program.draws
        ]

    def begin(self, start: Models, *, proximal: bool) -> "BatchedSteps":
        """Return C models to be trained by steps; with the proximal term, or without."""
        return BatchedSteps(self, start, self.hp.proximal_mu if proximal else 0.0)

    def batches(self) -> Iterator[Batch]:
        """Yield the batches that ``train`` would take."""
        for step, ordered in enumerate(self.timetable.sizes):
            sizes = np.zeros(len(self.order), np.int64)
            sizes[self.order] = ordered
            yield Batch(step, sizes, step)

    def values(self, rows: ModelRows) -> Tensor:
        """Return rows (C, P) of all clients in the order of this class."""
        return torch.from_numpy(np.ascontiguousarray(rows[self.order])).to(self.examples.y.device)

    def rows(self, values: Tensor) -> ModelRows:
        """Return what :meth:`values` was given; zeros for clients that are not in it."""
        rows = np.zeros((len(self.order), values.shape[1]), np.float32)
        rows[self.order[: len(values)]] = values.cpu().numpy()
        return rows


class BatchedSteps:
    """C models under training by a method's own steps: ``fedsweep.strategies.clients.Steps``."""

    def __init__(self, training: BatchedStepping, start: Models, mu: float) -> None:
        self._training, self._start, self._mu = training, start, mu
        self._values = training.values(start.rows)
        self._first = self._values.clone() if mu else self._values
        moments = 2 if training.hp.optimizer == "adam" else 1
        self._moments = [torch.zeros_like(self._values) for _ in range(moments)]
        self._steps = 0  # of the clients that have batches left: they took part in each
        self._rows: ModelRows | None = None  # as they were asked for, until the next step

    @property
    def rows(self) -> ModelRows:
        """The trained parameters as they are now, (C, P)."""
        if self._rows is None:
            self._rows = self._training.rows(self._values)
        return self._rows

    @property
    def models(self) -> Models:
        """The models as they are now."""
        return self._start.with_rows(self.rows)

    def gradient(self, batch: Batch, at: ModelRows | None = None) -> Gradient:
        """Return the gradient of the models, or of others ``at`` (C, P) in their place."""
        training, program, timetable = (
            self._training,
            self._training.program,
            self._training.timetable,
        )
        step: int = batch.examples
        active, clients = timetable.active[step], len(self._values)
        w = (self._values if at is None else training.values(at))[:active]
        g = torch.empty_like(w)
        weights = program.views(w, g)
        losses, hits = np.zeros(clients), np.zeros(clients, np.int64)
        here = training.order[:active]
        with torch.no_grad(), precision_of(training.hp, w.device):
            for begin in range(0, timetable.longest[step], training.columns):
                part = slice(begin, min(begin + training.columns, timetable.longest[step]))
                logits, kept = self._forward(weights, step, part)
                y = training.examples.y[timetable.rows[step, :active, part]]
                share = timetable.weights[step, :active, part]
                slopes = slopes_of(logits, y, share)
                program.backward(weights, kept, slopes, 1.0 if begin else 0.0)
                own = losses_at(logits, y) * share
                losses[here] += own.double().sum(1).cpu().numpy()
                hits[here] += (hits_at(logits, y) & (share > 0)).sum(1).cpu().numpy()
        right = np.full(clients, np.nan) if is_real(training.examples.y) else hits
        return Gradient(training.rows(g), losses, right)

    def step(self, batch: Batch, gradient: ModelRows) -> None:
        """Have the optimizers of the clients that have a batch step along (C, P)."""
        training, hp, step = self._training, self._training.hp, int(batch.examples)
        active = slice(training.timetable.active[step])
        w, g = self._values[active], training.values(gradient)[active]
        if self._mu:
            g.add_(w - self._first[active], alpha=self._mu)
        if hp.weight_decay:
            g.add_(w, alpha=hp.weight_decay)
        moments = [moment[active] for moment in self._moments]
        self._steps += 1
        if hp.optimizer == "adam":
            step_adam(w, g, moments[0], moments[1], hp.lr, self._steps)
        else:
            [momentum] = moments
            w.add_(momentum.mul_(hp.momentum).add_(g), alpha=-hp.lr)
        self._rows = None

    def _forward(
        self, weights: list[Weights], step: int, part: slice
    ) -> tuple[Tensor, KeptByLayer]:
        """Return logits (active, b, classes), and what the backward pass needs."""
        training, timetable = self._training, self._training.timetable
        x = timetable.images(training.examples, step, part)
        counts = timetable.counts(step)
        draws = Draws(training.generators, counts) if training.generators else None
        return training.program.forward(weights, x, draws=draws)


class ModuleStepping:
    """Any network, client by client, by steps of a method's own."""

    def __init__(self, load: Callable[[ArrayRecord], nn.Module], data: LocalData) -> None:
        self._load, self.hp, self._seeds = load, data.hp, data.seeds
        self._sets = [data.examples.at(place) for place in data.places]
        self.draws = [_Draws(data.examples.y.device, seed) for seed in data.seeds]
        self.used: dict[int, list[bool]] = {}  # client -> which parameters its last loss depends on
        self._network: nn.Module | None = None

    @property
    def network(self) -> nn.Module:
        """The process's network; whatever weights it holds are nobody's."""
        if self._network is None:
            raise RuntimeError("a client part asked for batches before it began to train a model")
        return self._network

    @cached_property
    def normed(self) -> list[nn.Module]:
        """The network's layers that normalise by a batch."""
        return batch_norms(self.network)

    def begin(self, start: Models, *, proximal: bool) -> "ModuleSteps":
        """Return C models to be trained by steps; with the proximal term, or without."""
        states = []
        for record in start.records:
            self._network = self._load(record)
            states.append(_State.of(self._network, self.hp))
        return ModuleSteps(self, start, states, self.hp.proximal_mu if proximal else 0.0)

    def batches(self) -> Iterator[Batch]:
        """Yield the batches that ``train`` would take."""
        self.network.train()
        least = least_batch(self.normed)
        pairs = zip(self._sets, self._seeds, strict=True)
        own = [chain.from_iterable(batches(x, y, self.hp, seed, least)) for (x, y), seed in pairs]
        for number, examples in enumerate(zip_longest(*own)):
            sizes = np.array([0 if own is None else len(own[1]) for own in examples])
            yield Batch(number, sizes, examples)


class ModuleSteps:
    """C models under training by a method's own steps: ``fedsweep.strategies.clients.Steps``."""

    def __init__(
        self, training: ModuleStepping, start: Models, states: "list[_State]", mu: float
    ) -> None:
        self._training, self._start, self._states, self._mu = training, start, states, mu
        self._rows: ModelRows | None = None  # as they were asked for, until the next step
        self._first = [
            {p: p.detach().clone() for p in state.params.values()} for state in states if mu
        ]

    @property
    def rows(self) -> ModelRows:
        """The trained parameters as they are now, (C, P)."""
        if self._rows is None:
            self._rows = np.stack([_joined(state.params.values()) for state in self._states])
        return self._rows

    @property
    def models(self) -> Models:
        """The models as they are now."""
        pairs = zip(self._start.records, self._states, strict=True)
        return self._start.with_records([state.record(like) for like, state in pairs])

    def gradient(self, batch: Batch, at: ModelRows | None = None) -> Gradient:
        """Return the gradient of the models, or of others ``at`` (C, P) in their place."""
        rows, losses, hits = [], np.zeros(len(self._states)), np.zeros(len(self._states), np.int64)
        for c, (state, own) in enumerate(zip(self._states, batch.examples, strict=True)):
            if own is None:
                rows.append(np.zeros_like(_joined(state.params.values())))
                continue
            x, y = own
            params, buffers = state.params, state.buffers
            if at is not None:
                params = as_parameters(at[c], params)
                buffers = {name: values.clone() for name, values in buffers.items()}
            with (
                self._training.draws[c],
                precision_of(self._training.hp, x.device),
                alone(self._training.normed, len(y)),
            ):
                logits = functional_call(self._training.network, {**params, **buffers}, (x,))
                loss = loss_of(logits, y)
                slopes = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
            self._training.used[c] = [slope is not None for slope in slopes]
            pairs = zip(slopes, params.values(), strict=True)
            rows.append(_joined(torch.zeros_like(p) if g is None else g for g, p in pairs))
            losses[c], hits[c] = float(loss.detach()), int(hits_at(logits, y).sum())
        real = any(own is not None and is_real(own[1]) for own in batch.examples)
        right = np.full(len(hits), np.nan) if real else hits
        return Gradient(np.stack(rows), losses, right)

    def step(self, batch: Batch, gradient: ModelRows) -> None:
        """Have the optimizers of the clients that have a batch step along (C, P)."""
        self._rows = None
        for c, (state, own) in enumerate(zip(self._states, batch.examples, strict=True)):
            if own is None:
                continue
            params = list(state.params.values())
            slopes = as_parameters(gradient[c], state.params).values()
            for p, slope, used in zip(params, slopes, self._training.used[c], strict=True):
                p.grad = slope.detach() if used else None  # as ordinary training leaves it alone
                if self._mu and p.grad is not None:
                    p_0 = self._first[c][p]
                    p.grad.add_(p.detach() - p_0, alpha=self._mu)
            state.optimizer.step()


@dataclass(frozen=True)
class _State:
    """One model under training by steps."""

    params: dict[str, nn.Parameter]  # the trained ones
    buffers: dict[str, Tensor]
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, network: nn.Module, hp: LocalTraining) -> "_State":
        params = {
            name: nn.Parameter(p.detach().clone())
            for name, p in network.named_parameters()
            if p.requires_grad
        }
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        return cls(params, buffers, optimizer_of(list(params.values()), hp))

    def record(self, like: ArrayRecord) -> ArrayRecord:
        """Return the model; what is neither trained nor a buffer is as it was."""
        now = {**self.params, **self.buffers}
        return ArrayRecord(
            {
                name: write_array(now[name].detach().cpu().numpy()) if name in now else array
                for name, array in like.items()
            }
        )


class _Draws:
    """A client's own state of the global generator that the network draws from."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self._generator = generator_of(device)
        with seeded(device, seed):
            self._state = self._generator.get_state()

    def __enter__(self) -> None:
        self._outside = self._generator.get_state()
        self._generator.set_state(self._state)

    def __exit__(self, *_: object) -> None:
        self._state = self._generator.get_state()
        self._generator.set_state(self._outside)


def as_parameters(row: ModelRows, params: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return a row (P,) as parameters of these shapes, types and memory formats."""
    values, start = {}, 0
    for name, p in params.items():
        part = torch.from_numpy(np.array(row[start : start + p.numel()]))
        values[name] = nn.Parameter(torch.empty_like(p).detach().copy_(part.view(p.shape)))
        start += p.numel()
    return values


def _joined(tensors: Iterable[Tensor]) -> ModelRows:
    """Return tensors as one row (P,)."""
    return np.concatenate([values.detach().cpu().numpy().ravel() for values in tensors])
