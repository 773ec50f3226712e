"""Training, losses and predictions for C clients: one by one for any network, or batched.

A client has the same examples, batches and hyperparameters either way; its numbers differ by
rounding. Which one is used is known to ``fedsweep.client.app`` and ``fedsweep.client.together``
alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsweep.strategies.arrays import ModelRows, read_array
from fedsweep.strategies.clients import Batch, Contrast, Steps, Trained
from fedsweep.strategies.models import Mixture, Models
from fedsweep.training.arrays import read_weights
from fedsweep.training.batched import Program
from fedsweep.training.contrast import Contrasting
from fedsweep.training.layers import UnsupportedError
from fedsweep.training.local import LocalTraining, Sums, predict, score, train
from fedsweep.training.pool import Examples, Place
from fedsweep.training.private import train_privately
from fedsweep.training.stepping import BatchedStepping, LocalData, ModuleStepping, as_parameters
from fedsweep.training.targets import counted_hits, hits_at, is_real, loss_of, mixed, table_of
from fedsweep.training.vectorized import logits_of_each, losses_of_each, predict_many, train_many
from fedsweep.training.winograd import filtered


@dataclass(frozen=True)
class Penalty:
    """What changes the gradients of C clients, beside what the hyperparameters say."""

    anchor: Models | None = None  # where the proximal term pulls; the start by default
    mu: Sequence[float] | None = None  # its weight per client; the hyperparameters' by default
    correction: ModelRows | None = None  # (C, P)
    only: Sequence[str] | None = None  # the trained arrays that move; all by default
    contrast: Contrast | None = None  # a loss on representations
    weights: Sequence[NDArray[np.float64]] | None = None
    """Of each client's examples in its loss, (n,); 1 by default."""


class Trainer(Protocol):
    """What a client part's ``Work`` stands on."""

    def train(self, start: Models, data: LocalData, penalty: Penalty) -> Trained:
        """Train each of C models on its client's examples."""

    def losses(
        self, models: Models, examples: Examples, places: Sequence[Place]
    ) -> list[NDArray[np.float64]]:
        """Return the loss of each client's examples under K models, (n, K)."""

    def scores(
        self,
        models: Models | Mixture,
        examples: Examples,
        places: Sequence[Place],
        *,
        by_class: bool = False,
    ) -> list[Sums]:
        """Return the sums of each of C models on examples of its own; by class too, on request."""

    def logits_on_all(
        self, models: Models | Mixture, examples: Examples, place: Place
    ) -> Iterator[Tensor]:
        """Yield the logits (n, classes) of each of C models on the same examples."""

    def steps(self, data: LocalData) -> "Stepping":
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
    filtered : bool
        Whether wide convolutions may be trained by Winograd's filtering, which rounds otherwise.
    """

    def __init__(self, load: Callable[[ArrayRecord], nn.Module], *, filtered: bool = False) -> None:
        self._load, self._filtered = load, filtered

    def train(self, start: Models, data: LocalData, penalty: Penalty) -> Trained:
        """Train each of C models on its client's examples.

        Raises
        ------
        ValueError
            DP-SGD is asked for with what a method adds to gradients: no noise covers that.
        """
        if data.hp.dp_norm and any(added is not None for added in vars(penalty).values()):
            raise ValueError("DP-SGD in clients takes nothing that a method adds to it")
        records, results = [], []
        for c, (record, place, seed) in enumerate(
            zip(start.records, data.places, data.seeds, strict=True)
        ):
            model = self._load(record)
            hp = data.hp if penalty.mu is None else replace(data.hp, proximal_mu=penalty.mu[c])
            anchor = None if penalty.anchor is None else _split(penalty.anchor.rows[c], model)
            offset = None if penalty.correction is None else _split(penalty.correction[c], model)
            x, y = data.examples.at(place)
            weights = None if penalty.weights is None else _float32(penalty.weights[c], y.device)
            if hp.dp_norm:
                trained = train_privately(model, x, y, hp, seed)
            else:
                with self._form(model, hp), _contrasting(model, c, penalty.contrast) as added:
                    trained = train(
                        model, x, y, hp, seed,
                        anchor=anchor, offset=offset, only=penalty.only, added=added,
                        weights=weights,
                    )  # fmt: skip
            results.append(trained)
            records.append(read_weights(model))
        return Trained(start.with_records(records), results)

    def _form(self, model: nn.Module, hp: LocalTraining) -> AbstractContextManager[None]:
        """Return how its convolutions are computed while it is trained."""
        return filtered(model) if self._filtered and hp.precision != "bf16" else nullcontext()

    def losses(
        self, models: Models, examples: Examples, places: Sequence[Place]
    ) -> list[NDArray[np.float64]]:
        """Return the loss of each client's examples under K models, (n, K)."""
        columns: list[list[Tensor]] = [[] for _ in places]
        for record in models.records:
            model = self._load(record)
            for own, place in zip(columns, places, strict=True):
                x, y = examples.at(place)
                with torch.inference_mode():
                    logits = predict(model, x).double()
                    own.append(loss_of(logits, y, reduction="none"))
        return [torch.stack(own, dim=1).cpu().numpy() for own in columns]

    def scores(
        self,
        models: Models | Mixture,
        examples: Examples,
        places: Sequence[Place],
        *,
        by_class: bool = False,
    ) -> list[Sums]:
        """Return the sums of each of C models on examples of its own; by class too, on request."""
        if isinstance(models, Mixture):
            return _sums_of(
                self.logits_of_mixed(models, examples, places), examples, places, by_class
            )
        sums = []
        for record, place in zip(models.records, places, strict=True):
            x, y = examples.at(place)
            logits = predict(self._load(record), x)
            result = score(logits, y)
            table = table_of(logits, y) if by_class else None
            sums.append(Sums(result["loss_sum"], result["correct"], table))
        return sums

    def logits_of_one(self, model: Models, examples: Examples, places: Sequence[Place]) -> Tensor:
        """Return the logits of one model on everybody's examples, in large parts."""
        network = self._load(model.records[0])
        rows = torch.cat([torch.arange(first, first + count) for first, count in places])
        parts = rows.to(examples.y.device).split(4096)
        return torch.cat([predict(network, examples.images(part)) for part in parts])

    def logits_of_mixed(
        self, mixture: Mixture, examples: Examples, places: Sequence[Place]
    ) -> Tensor:
        """Return what C mixtures say of examples of their own, one after the other."""
        sizes = [count for _, count in places]
        of_models = [
            self.logits_of_one(mixture.models.take([k]), examples, places).split(sizes)
            for k in range(len(mixture.models))
        ]
        each = zip(zip(*of_models, strict=True), torch.from_numpy(mixture.weights), strict=True)
        return torch.cat(
            [
                mixed(torch.stack(own), weights.to(own[0].device), real=is_real(examples.y))
                for own, weights in each
            ]
        )

    def logits_on_all(
        self, models: Models | Mixture, examples: Examples, place: Place
    ) -> Iterator[Tensor]:
        """Yield the logits (n, classes) of each of C models on the same examples."""
        x, _ = examples.at(place)
        if isinstance(models, Mixture):
            each = torch.stack([predict(self._load(one), x) for one in models.models.records])
            for weights in models.weights:
                yield mixed(
                    each, torch.from_numpy(weights).to(each.device), real=is_real(examples.y)
                )
            return
        if models.same:
            logits = predict(self._load(models.records[0]), x)
            yield from [logits] * len(models)
            return
        for record in models.records:
            yield predict(self._load(record), x)

    def steps(self, data: LocalData) -> ModuleStepping:
        """Return training whose steps are the method's own."""
        return ModuleStepping(self._load, data)


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

    def train(self, start: Models, data: LocalData, penalty: Penalty) -> Trained:
        """Train each of C models on its client's examples.

        Raises
        ------
        UnsupportedError
            They clip the gradients of single examples, or have a loss on representations.
        """
        if data.hp.dp_norm:
            raise UnsupportedError("DP-SGD has no batched form")
        if penalty.contrast is not None:
            raise UnsupportedError("a loss on representations needs the network itself")
        device = data.examples.y.device
        more: dict[str, Tensor] = {}
        if penalty.only is not None:
            more["moves"] = torch.from_numpy(start.where(penalty.only)).to(device)
        if penalty.anchor is not None:
            more["anchor"] = self._values(penalty.anchor, device)
        if penalty.mu is not None:
            more["mu"] = torch.tensor(penalty.mu, dtype=torch.float32, device=device)
        if penalty.correction is not None:
            more["correction"] = torch.from_numpy(np.array(penalty.correction)).to(device)
        values = self._values(start, device)
        rows, results = train_many(
            self._program, values, data.examples, data.places, data.hp, data.seeds,
            weights=penalty.weights, **more,
        )  # fmt: skip
        # A copy: the program's memory is used again by the next training.
        return Trained(start.with_rows(torch.stack(rows).cpu().numpy()), results)

    def losses(
        self, models: Models, examples: Examples, places: Sequence[Place]
    ) -> list[NDArray[np.float64]]:
        """Return the loss of each client's examples under K models, (n, K)."""
        values = self._all_values(models, examples.y.device)
        losses = losses_of_each(self._program, values, examples, places)
        return [own.cpu().numpy() for own in losses]

    def scores(
        self,
        models: Models | Mixture,
        examples: Examples,
        places: Sequence[Place],
        *,
        by_class: bool = False,
    ) -> list[Sums]:
        """Return the sums of each of C models on examples of its own; by class too, on request."""
        if isinstance(models, Mixture):
            logits = self._one_by_one.logits_of_mixed(models, examples, places)
        elif models.same:
            logits = self._one_by_one.logits_of_one(models, examples, places)
        else:
            values = self._all_values(models, examples.y.device)
            logits = torch.cat(predict_many(self._program, values, examples, places))
        return _sums_of(logits, examples, places, by_class)

    def logits_on_all(
        self, models: Models | Mixture, examples: Examples, place: Place
    ) -> Iterator[Tensor]:
        """Yield the logits (n, classes) of each of C models on the same examples."""
        if isinstance(models, Mixture) or models.same:
            yield from self._one_by_one.logits_on_all(models, examples, place)
            return
        values = self._all_values(models, examples.y.device)
        yield from logits_of_each(self._program, values, examples, place)

    def steps(self, data: LocalData) -> BatchedStepping:
        """Return training whose steps are the method's own."""
        return BatchedStepping(self._program, data)

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


def _sums_of(
    logits: Tensor, examples: Examples, places: Sequence[Place], by_class: bool
) -> list[Sums]:
    """Return the sums of each client, of outputs that stand one after the other."""
    labels, sizes = examples.labels(places), [count for _, count in places]
    losses = loss_of(logits.double(), labels, reduction="none").split(sizes)
    correct = hits_at(logits, labels).split(sizes)
    parts: Iterable[Tensor | None] = [None] * len(places)
    if by_class:
        parts = logits.split(sizes)
    return [
        Sums(
            float(loss.sum()),
            counted_hits(int(hits.sum()), own),
            None if part is None else table_of(part, own),
        )
        for loss, hits, part, own in zip(losses, correct, parts, labels.split(sizes), strict=True)
    ]


def _contrasting(
    network: nn.Module, c: int, contrast: Contrast | None
) -> AbstractContextManager[Contrasting | None]:
    """Return the loss on a client's representations, if there is one."""
    if contrast is None:
        return nullcontext()
    layer = contrast.like.trained[-1].rpartition(".")[0]
    device = next(network.parameters()).device
    like, unlike = (
        {
            name: torch.from_numpy(np.array(read_array(array))).to(device)
            for name, array in models.records[c].items()
        }
        for models in (contrast.like, contrast.unlike)
    )
    return Contrasting(network, layer, like, unlike, contrast.weight, contrast.temperature)


def _float32(weights: NDArray[np.float64], device: torch.device) -> Tensor:
    return torch.from_numpy(weights.astype(np.float32)).to(device)


def _split(row: ModelRows, model: nn.Module) -> list[Tensor]:
    """Return a row (P,) as one tensor per trained parameter of a network."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return [values.detach() for values in as_parameters(row, params).values()]
