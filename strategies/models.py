"""Models of a chunk's clients, as Flower's records and as rows of trained parameters; mixtures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedsweep.strategies.arrays import ModelRows, read_array, write_array
from fedsweep.strategies.layout import Layout, part


class Models:
    """R models of one network: one per client, or one per choice.

    All maths is on ``rows``. What else a model has (running statistics, frozen layers, counters)
    goes along with it. Records and rows are made of each other when they are first asked for: most
    methods never need both.

    Parameters
    ----------
    layout : Layout
        Of the network.
    like : sequence of R ArrayRecords
        The models; with ``rows``, what they have beside these.
    rows : (R, P), optional
        Their trained parameters, where the records are not up to date.
    """

    def __init__(
        self, layout: Layout, like: Sequence[ArrayRecord], rows: ModelRows | None = None
    ) -> None:
        self._layout, self.like = layout, list(like)
        if rows is None:
            self.records = self.like
        else:
            self.rows = rows

    def __len__(self) -> int:
        return len(self.like)

    @cached_property
    def same(self) -> bool:
        """Whether all are one model: the very same arrays, as the copies of one message have."""
        return "records" in vars(self) and all_same(self.records)

    @cached_property
    def records(self) -> list[ArrayRecord]:
        """The models as records."""
        return [self._filled(like, row) for like, row in zip(self.like, self.rows, strict=True)]

    @cached_property
    def rows(self) -> ModelRows:
        """The trained parameters of each, (R, P)."""
        if self.same:
            return np.broadcast_to(row := self._row(self.records[0]), (len(self), len(row)))
        return np.stack([self._row(record) for record in self.records])

    @property
    def names(self) -> list[str]:
        """The arrays' names, which all models have."""
        return list(self.like[0])

    @property
    def trained(self) -> Sequence[str]:
        """The names of the trained arrays."""
        return self._layout.trained

    def where(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """Return which trained parameters belong to the arrays that are named, (P,)."""
        named = set(names)
        parts = [np.full(place.stop - place.start, name in named) for name, place, *_ in self._cuts]
        return np.concatenate(parts)

    @property
    def shapes(self) -> list[dict[str, tuple[int, ...]]]:
        """The arrays' shapes by name, of each model; of one where all are the same."""
        some = self.like[:1] if self.same else self.like
        return [{name: tuple(array.shape) for name, array in like.items()} for like in some]

    def with_rows(self, rows: ModelRows) -> "Models":
        """Return the same models with other trained parameters, (R, P)."""
        return Models(self._layout, self.like, rows)

    def with_records(self, records: Sequence[ArrayRecord]) -> "Models":
        """Return other models of the same network."""
        return Models(self._layout, records)

    def take(self, which: Sequence[int]) -> "Models":
        """Return some of the models, in this order; one may come more than once."""
        return self.with_records([self.records[i] for i in which])

    def part(self, names: Sequence[str]) -> "Models":
        """Return those arrays of each model that are named."""
        return self.with_records([part(record, names) for record in self.records])

    def without(self, names: Sequence[str]) -> "Models":
        """Return those arrays of each model that are not named."""
        left_out = set(names)
        kept = [[name for name in record if name not in left_out] for record in self.records]
        pairs = zip(self.records, kept, strict=True)
        return self.with_records([part(record, own) for record, own in pairs])

    def completed(self, others: "Models") -> "Models":
        """Return the models with the arrays that they lack from R others."""
        pairs = zip(self.records, others.records, strict=True)
        return self.with_records([ArrayRecord({**other, **own}) for own, other in pairs])

    def means(self, weights: Sequence[Sequence[float]]) -> "Models":
        """Return a weighted mean of all models per row of weights (C, R).

        What is carried comes from the model of the row's largest weight.
        """
        return self.with_records([self._layout.mean(self.records, own) for own in weights])

    @cached_property
    def _cuts(self) -> list[tuple[str, slice, tuple[int, ...], str]]:
        """Name, place in a row, shape and dtype of each trained array."""
        cuts, start = [], 0
        for name in self._layout.trained:
            array = self.like[0][name]
            shape = tuple(array.shape)
            cuts.append((name, slice(start, start + prod(shape)), shape, array.dtype))
            start += prod(shape)
        return cuts

    def _filled(self, like: ArrayRecord, row: ModelRows) -> ArrayRecord:
        """Return a record with its trained arrays from a row (P,)."""
        trained = {
            name: write_array(row[place].reshape(shape).astype(dtype, copy=False))
            for name, place, shape, dtype in self._cuts
        }
        if len(trained) == len(like):
            return ArrayRecord(trained)
        return ArrayRecord({name: trained.get(name, array) for name, array in like.items()})

    def _row(self, record: ArrayRecord) -> ModelRows:
        return np.concatenate([read_array(record[name]).ravel() for name in self._layout.trained])


@dataclass(frozen=True)
class Mixture:
    """What C clients predict by: K models together, weighted by each client for itself.

    Of classes the probabilities of the models are averaged, of numbers what they say.

    Parameters
    ----------
    models : Models
        K, the same for all clients.
    weights : (C, K) float64
        Not negative; each row adds up to 1.
    """

    models: Models
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        """Return C."""
        return len(self.weights)

    def take(self, which: Sequence[int]) -> "Mixture":
        """Return those of some of the clients, in this order."""
        return Mixture(self.models, self.weights[list(which)])


def all_same(records: Sequence[ArrayRecord]) -> bool:
    """Return whether records hold the very same arrays, as the copies of one message do."""
    first = records[0]
    return all(
        record.keys() == first.keys() and all(record[name] is first[name] for name in first)
        for record in records[1:]
    )
