"""Training, losses and predictions for C clients: one by one for any network, or batched in a program.

A client has the same examples, batches and hyperparameters either way; its numbers differ by
rounding. Which one is used is known to ``runner.client.app`` and ``runner.client.together`` alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from runner.client.arrays import read_weights
from runner.client.batched import Program
from runner.client.layers import UnsupportedError
from runner.client.pool import Examples
from runner.client.training import (
    LocalTraining,
    alone,
    batch_norms,
    cut,
    distort,
    distortions,
    evaluate,
    optimizer_of,
    passes,
    precision_of,
    predict,
    seeded,
    train,
)
from runner.client.vectorized import logits_of_each, losses_of_each, predict_many, train_many
from strategies.arrays import write_array
from strategies.clients import Batch, Gradient, Steps, Trained
from strategies.models import Models

Place = tuple[int, int]
"""Where a client's examples lie: the first row, and how many."""


@dataclass(frozen=True)
class Penalty:
    """What is added to the gradients of C clients, beside what the hyperparameters say."""

    anchor: Models | None = None  # where the proximal term pulls; the start by default
    mu: Sequence[float] | None = None  # its weight per client; the hyperparameters' by default
    correction: NDArray[Any] | None = None  # (C, P)


class Trainer(Protocol):
    """What a client part's ``Work`` stands on."""

    def train(
        self,
        start: Models,
        examples: Examples,
        places: Sequence[Place],
        hp: LocalTraining,
        seeds: Sequence[int],
        penalty: Penalty,
    ) -> Trained:
        """Train each of C models on its client's examples."""

    def losses(self, models: Models, examples: Examples, places: Sequence[Place]) -> list[NDArray[np.float64]]:
        """Return the cross-entropy of each client's examples under K models, (n, K)."""

    def scores(self, models: Models, examples: Examples, places: Sequence[Place]) -> list[tuple[float, int]]:
        """Return the summed loss, and the hits, of each of C models on examples of its own."""

    def logits_on_all(self, models: Models, examples: Examples, place: Place) -> Iterator[Tensor]:
        """Yield the logits (n, classes) of each of C models on the same examples."""

    def steps(
        self,
        examples: Examples,
        places: Sequence[Place],
        hp: LocalTraining,
        seeds: Sequence[int],
    ) -> "Stepping":
        """Return training whose steps are the method's own."""


class Stepping(Protocol):
    """Batches that models of the same clients train on by steps of a method's own."""

    def batches(self) -> Iterator[Batch]:
        """Yield the batches that ``train`` would take."""

    def begin(self, start: Models, *, proximal: bool) -> Steps:
        """Return C models to be trained by steps; with the proximal term, or without."""


class OneByOne:
    """Any network, client by client.

    Parameters
    ----------
    load : callable
        Returns the process's network, as new, with a record's weights.
    """

    def __init__(self, load: Callable[[ArrayRecord], nn.Module]) -> None:
        self._load = load

    def train(
        self,
        start: Models,
        examples: Examples,
        places: Sequence[Place],
        hp: LocalTraining,
        seeds: Sequence[int],
        penalty: Penalty,
    ) -> Trained:
        """Train each of C models on its client's examples."""
        records, results = [], []
        for c, (record, place, seed) in enumerate(zip(start.records, places, seeds, strict=True)):
            model = self._load(record)
            own = hp if penalty.mu is None else replace(hp, proximal_mu=penalty.mu[c])
            anchor = None if penalty.anchor is None else _split(penalty.anchor.rows[c], model)
            offset = None if penalty.correction is None else _split(penalty.correction[c], model)
            x, y = _of(examples, place)
            results.append(train(model, x, y, own, seed, anchor=anchor, offset=offset))
            records.append(read_weights(model))
        return Trained(start.with_records(records), results)

    def losses(self, models: Models, examples: Examples, places: Sequence[Place]) -> list[NDArray[np.float64]]:
        """Return the cross-entropy of each client's examples under K models, (n, K)."""
        columns: list[list[Tensor]] = [[] for _ in places]
        for record in models.records:
            model = self._load(record)
            for own, place in zip(columns, places, strict=True):
                x, y = _of(examples, place)
                with torch.inference_mode():
                    logits = predict(model, x).double()
                    own.append(F.cross_entropy(logits, y, reduction="none"))
        return [torch.stack(own, dim=1).cpu().numpy() for own in columns]

    def scores(self, models: Models, examples: Examples, places: Sequence[Place]) -> list[tuple[float, int]]:
        """Return the summed loss, and the hits, of each of C models on examples of its own."""
        sums = []
        for record, place in zip(models.records, places, strict=True):
            x, y = _of(examples, place)
            result = evaluate(self._load(record), x, y)
            sums.append((result["loss_sum"], int(result["correct"])))
        return sums

    def logits_of_one(self, model: Models, examples: Examples, places: Sequence[Place]) -> Tensor:
        """Return the logits of one model on everybody's examples, in large parts."""
        network = self._load(model.records[0])
        rows = torch.cat([torch.arange(first, first + count) for first, count in places])
        parts = rows.to(examples.y.device).split(4096)
        return torch.cat([predict(network, examples.images(part)) for part in parts])

    def logits_on_all(self, models: Models, examples: Examples, place: Place) -> Iterator[Tensor]:
        """Yield the logits (n, classes) of each of C models on the same examples."""
        x, _ = _of(examples, place)
        if models.same:
            logits = predict(self._load(models.records[0]), x)
            yield from [logits] * len(models)
            return
        for record in models.records:
            yield predict(self._load(record), x)

    def steps(
        self,
        examples: Examples,
        places: Sequence[Place],
        hp: LocalTraining,
        seeds: Sequence[int],
    ) -> "ModuleStepping":
        """Return training whose steps are the method's own."""
        return ModuleStepping(self._load, examples, places, hp, seeds)


class Batched:
    """All clients of a chunk in one program, for networks that have one.

    Parameters
    ----------
    make : callable
        Returns the network's program, or raises ``UnsupportedError``. It is called when first
        needed: one model on everybody's examples is scored by the network itself, whatever it is.
    one_by_one : OneByOne
        Does that.
    """

    def __init__(self, make: Callable[[], Program], one_by_one: OneByOne) -> None:
        self._make, self._one_by_one = make, one_by_one

    @cached_property
    def _program(self) -> Program:
        return self._make()

    def train(
        self,
        start: Models,
        examples: Examples,
        places: Sequence[Place],
        hp: LocalTraining,
        seeds: Sequence[int],
        penalty: Penalty,
    ) -> Trained:
        """Train each of C models on its client's examples."""
        device = examples.y.device
        more: dict[str, Tensor] = {}
        if penalty.anchor is not None:
            more["anchor"] = self._values(penalty.anchor, device)
        if penalty.mu is not None:
            more["mu"] = torch.tensor(penalty.mu, dtype=torch.float32, device=device)
        if penalty.correction is not None:
            more["correction"] = torch.from_numpy(np.array(penalty.correction)).to(device)
        rows, results = train_many(self._program, self._values(start, device), examples, places, hp, seeds, **more)
        # A copy: the program's memory is used again by the next training.
        return Trained(start.with_rows(torch.stack(rows).cpu().numpy()), results)

    def losses(self, models: Models, examples: Examples, places: Sequence[Place]) -> list[NDArray[np.float64]]:
        """Return the cross-entropy of each client's examples under K models, (n, K)."""
        values = self._all_values(models, examples.y.device)
        losses = losses_of_each(self._program, values, examples, places)
        return [own.cpu().numpy() for own in losses]

    def scores(self, models: Models, examples: Examples, places: Sequence[Place]) -> list[tuple[float, int]]:
        """Return the summed loss, and the hits, of each of C models on examples of its own."""
        if models.same:
            logits = self._one_by_one.logits_of_one(models, examples, places)
        else:
            values = self._all_values(models, examples.y.device)
            logits = torch.cat(predict_many(self._program, values, examples, places))
        labels, sizes = examples.labels(places), [count for _, count in places]
        losses = F.cross_entropy(logits.double(), labels, reduction="none").split(sizes)
        correct = (logits.argmax(1) == labels).split(sizes)
        return [(float(loss.sum()), int(hits.sum())) for loss, hits in zip(losses, correct, strict=True)]

    def logits_on_all(self, models: Models, examples: Examples, place: Place) -> Iterator[Tensor]:
        """Yield the logits (n, classes) of each of C models on the same examples."""
        if models.same:
            yield from self._one_by_one.logits_on_all(models, examples, place)
            return
        values = self._all_values(models, examples.y.device)
        yield from logits_of_each(self._program, values, examples, place)

    def steps(
        self,
        examples: Examples,
        places: Sequence[Place],
        hp: LocalTraining,
        seeds: Sequence[int],
    ) -> Stepping:
        """Refuse: steps of a method's own have no batched form yet."""
        raise UnsupportedError("the method trains by steps of its own")

    def _values(self, models: Models, device: torch.device) -> Tensor:
        """Return models as weights (C, P), or (P,) where they are the same."""
        values = self._all_values(models, device, rows=1 if models.same else None)
        return values[0] if models.same else values

    def _all_values(self, models: Models, device: torch.device, rows: int | None = None) -> Tensor:
        """Return models as weights (R, P).

        Raises
        ------
        UnsupportedError
            One has other names or shapes than the model.
        """
        if any(shapes != self._program.shapes for shapes in models.shapes):
            raise UnsupportedError("arrays that do not fit the model")
        values = np.ascontiguousarray(models.rows[:rows], np.float32)
        return torch.from_numpy(values if values.flags.writeable else values.copy()).to(device)


class ModuleStepping:
    """Any network, client by client, by steps of a method's own."""

    def __init__(
        self,
        load: Callable[[ArrayRecord], nn.Module],
        examples: Examples,
        places: Sequence[Place],
        hp: LocalTraining,
        seeds: Sequence[int],
    ) -> None:
        self._load, self.hp, self._seeds = load, hp, seeds
        self._sets = [_of(examples, place) for place in places]
        self.draws = [_Draws(examples.y.device, seed) for seed in seeds]
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
        least = 2 if self.normed else 1
        pairs = zip(self._sets, self._seeds, strict=True)
        own = [_batches(x, y, self.hp, seed, least) for (x, y), seed in pairs]
        for number, examples in enumerate(zip_longest(*own)):
            sizes = np.array([0 if own is None else len(own[1]) for own in examples])
            yield Batch(number, sizes, examples)


class ModuleSteps:
    """C models under training by steps of a method's own: :class:`strategies.clients.Steps`."""

    def __init__(self, training: ModuleStepping, start: Models, states: "list[_State]", mu: float) -> None:
        self._training, self._start, self._states, self._mu = training, start, states, mu
        self._rows: NDArray[Any] | None = None  # as they were asked for, until the next step
        self._first = [{p: p.detach().clone() for p in state.params.values()} for state in states if mu]

    @property
    def rows(self) -> NDArray[Any]:
        """The trained parameters as they are now, (C, P)."""
        if self._rows is None:
            self._rows = np.stack([_joined(state.params.values()) for state in self._states])
        return self._rows

    @property
    def models(self) -> Models:
        """The models as they are now."""
        pairs = zip(self._start.records, self._states, strict=True)
        return self._start.with_records([state.record(like) for like, state in pairs])

    def gradient(self, batch: Batch, at: NDArray[Any] | None = None) -> Gradient:
        """Return the gradient of the models, or of others ``at`` (C, P) in their place."""
        rows, losses, hits = [], np.zeros(len(self._states)), np.zeros(len(self._states), np.int64)
        for c, (state, own) in enumerate(zip(self._states, batch.examples, strict=True)):
            if own is None:
                rows.append(np.zeros_like(_joined(state.params.values())))
                continue
            x, y = own
            params, buffers = state.params, state.buffers
            if at is not None:
                params = _like(at[c], params)
                buffers = {name: values.clone() for name, values in buffers.items()}
            with (
                self._training.draws[c],
                precision_of(self._training.hp, x.device),
                alone(self._training.normed, len(y)),
            ):
                logits = functional_call(self._training.network, {**params, **buffers}, (x,))
                loss = F.cross_entropy(logits, y)
                slopes = torch.autograd.grad(loss, list(params.values()))
            rows.append(_joined(slopes))
            losses[c], hits[c] = float(loss.detach()), int((logits.argmax(1) == y).sum())
        return Gradient(np.stack(rows), losses, hits)

    def step(self, batch: Batch, gradient: NDArray[Any]) -> None:
        """Have the optimizers of the clients that have a batch step along (C, P)."""
        self._rows = None
        for c, (state, own) in enumerate(zip(self._states, batch.examples, strict=True)):
            if own is None:
                continue
            params = list(state.params.values())
            slopes = _like(gradient[c], state.params).values()
            for p, slope in zip(params, slopes, strict=True):
                p.grad = slope.detach()
                if self._mu:
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
        params = {name: nn.Parameter(p.detach().clone()) for name, p in network.named_parameters() if p.requires_grad}
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
        self._device = device
        with seeded(device, seed):
            self._state = self._generator.get_state()

    @property
    def _generator(self) -> torch.Generator:
        if self._device.type == "cuda":
            return torch.cuda.default_generators[self._device.index]
        return torch.default_generator

    def __enter__(self) -> None:
        self._outside = self._generator.get_state()
        self._generator.set_state(self._state)

    def __exit__(self, *_: object) -> None:
        self._state = self._generator.get_state()
        self._generator.set_state(self._outside)


def _of(examples: Examples, place: Place) -> tuple[Tensor, Tensor]:
    """Return a client's images (n, C, H, W) and labels (n,)."""
    rows = slice(place[0], sum(place))
    return examples.images(rows), examples.y[rows]


def _batches(x: Tensor, y: Tensor, hp: LocalTraining, seed: int, least: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a client's batches as ``training.train`` takes them."""
    draws = distortions(len(y), hp, seed, x.shape[-1])
    for order in passes(len(y), hp, seed, least):
        seen = x if hp.augment == "none" else distort(x, next(draws).to(x.device))
        for rows in cut(order.to(x.device), len(y), hp.batch_size, least):
            # A full batch needs no gather, and its sums must not depend on a shuffle.
            whole = len(rows) == len(y)
            yield (seen, y) if whole else (seen.index_select(0, rows), y.index_select(0, rows))


def _split(row: NDArray[Any], model: nn.Module) -> list[Tensor]:
    """Return a row (P,) as one tensor per trained parameter of a network."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return [values.detach() for values in _like(row, params).values()]


def _like(row: NDArray[Any], params: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return a row (P,) as parameters of these shapes, types and memory formats."""
    values, start = {}, 0
    for name, p in params.items():
        part = torch.from_numpy(np.array(row[start : start + p.numel()]))
        values[name] = nn.Parameter(torch.empty_like(p).detach().copy_(part.view(p.shape)))
        start += p.numel()
    return values


def _joined(tensors: Any) -> NDArray[Any]:
    """Return tensors as one row (P,)."""
    return np.concatenate([values.detach().cpu().numpy().ravel() for values in tensors])
