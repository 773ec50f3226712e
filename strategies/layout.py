"""What a model's arrays are: which are trained, which are averaged state, which are carried along.

The client that builds the model knows it (``query.init`` tells it); from there it travels with the
model. All maths on models is maths on the *trained* arrays, as one vector. Shapes: R models, P
trained parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedsweep.strategies.insides import aggregate_arrayrecords


@dataclass(frozen=True)
class Layout:
    """The names of a model's arrays by kind, each kind in the model's order.

    Attributes
    ----------
    trained : tuple of str
        Parameters that gradients reach: server optimizers, clipping, noise, distances and control
        variates see these.
    averaged : tuple of str
        Floating buffers, as BatchNorm's running statistics: averaged by examples, and nothing else.
    carried : tuple of str
        What a mean would spoil: integers, and parameters that are frozen. They come from the reply
        of the client with the most examples, of equal ones that of the lowest node id.
    """

    trained: tuple[str, ...]
    averaged: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()

    @classmethod
    def by_dtype(cls, arrays: ArrayRecord) -> "Layout":
        """Return what can be told without the model: floats are trained, others are carried.

        It takes BatchNorm's statistics and frozen layers for trained:
        give a strategy the model's own layout.
        """
        floating = {name for name, array in arrays.items() if is_floating(array)}
        return cls(
            tuple(name for name in arrays if name in floating),
            carried=tuple(name for name in arrays if name not in floating),
        )

    @classmethod
    def from_config(cls, config: ConfigRecord) -> "Layout":
        """Return what :meth:`to_config` wrote."""
        kinds = ([str(name) for name in config[kind]] for kind in _KINDS)  # type: ignore[union-attr]
        return cls(*map(tuple, kinds))

    def to_config(self) -> ConfigRecord:
        """Return the layout as it travels beside a model."""
        return ConfigRecord({kind: list(getattr(self, kind)) for kind in _KINDS})

    @property
    def has_state(self) -> bool:
        """Whether there is anything but trained arrays."""
        return bool(self.averaged or self.carried)

    def last_layer(self) -> list[str]:
        """Return the trained arrays of the last layer that has any."""
        return last_layer_keys(self.trained)

    def vector(self, record: ArrayRecord) -> NDArray[np.float32]:
        """Return a model's trained parameters as one vector (P,)."""
        return flatten(record, self.trained)

    def rows(self, records: Sequence[ArrayRecord]) -> NDArray[np.float32]:
        """Return the models' trained parameters, one row each (R, P)."""
        return np.stack([self.vector(record) for record in records])

    def with_trained(self, record: ArrayRecord, model_P: NDArray[np.float32]) -> ArrayRecord:
        """Return a model with other trained parameters (P,), in its dtypes."""
        arrays, place = dict(record), 0
        for name in self.trained:
            shape = tuple(record[name].shape)
            size = int(np.prod(shape, dtype=np.int64))
            values = model_P[place : place + size].reshape(shape)
            arrays[name] = Array(values.astype(record[name].dtype, copy=False))
            place += size
        return ArrayRecord(arrays)

    def trained_of(self, record: ArrayRecord) -> ArrayRecord:
        """Return a model's trained arrays alone; the record itself where there are no others."""
        return part(record, self.trained) if self.has_state else record

    def state_of(self, record: ArrayRecord) -> ArrayRecord:
        """Return all of a model but its trained arrays."""
        trained = set(self.trained)
        return part(record, [name for name in record if name not in trained])

    def mean(
        self, records: Sequence[ArrayRecord], weights: Sequence[float], heaviest: int | None = None
    ) -> ArrayRecord:
        """Return the weighted mean of models; what is carried comes from one of them.

        Parameters
        ----------
        records : sequence of R ArrayRecords
            The models, or the same part of each.
        weights : sequence of R numbers
            Their weights; they need not add up to 1.
        heaviest : int, optional
            Which model the carried arrays come from; the one of the largest weight, the first of
            equals, by default.
        """
        carried = set(self.carried).intersection(records[0])
        if not carried:
            return weighted_mean(records, weights)
        names = [name for name in records[0] if name not in carried]
        mean = weighted_mean([part(record, names) for record in records], weights)
        chosen = records[int(np.argmax(weights)) if heaviest is None else heaviest]
        return ArrayRecord(
            {name: chosen[name] if name in carried else mean[name] for name in records[0]}
        )


_KINDS = ("trained", "averaged", "carried")


class WithLayout:
    """A strategy that does its own maths on models; ``layout`` is set before the first round.

    On plain Flower, where nobody sets it, the layout is read off the dtypes:
    :meth:`Layout.by_dtype`.
    """

    layout: Layout | None = None

    def laid_out(self, arrays: ArrayRecord) -> Layout:
        """Return the layout of the strategy's models, of which this is one."""
        if self.layout is None:
            self.layout = Layout.by_dtype(arrays)
        return self.layout


def is_finite(record: ArrayRecord) -> bool:
    """Return whether all floating-point numbers of a record are finite."""
    return all(np.isfinite(array.numpy()).all() for array in record.values() if is_floating(array))


def is_floating(array: Array) -> bool:
    """Return whether an array holds floating-point numbers."""
    return bool(np.issubdtype(np.dtype(array.dtype), np.floating))


def part(record: ArrayRecord, names: Sequence[str]) -> ArrayRecord:
    """Return some of a record's arrays, the objects themselves."""
    return ArrayRecord({name: record[name] for name in names})


def joined(like: ArrayRecord, *parts: Mapping[str, Array]) -> ArrayRecord:
    """Return a record with the names of another, in its order, of arrays that the parts hold."""
    found = {name: array for each in parts for name, array in each.items()}
    return ArrayRecord({name: found[name] for name in like})


def last_layer_keys(keys: Sequence[str]) -> list[str]:
    """Return names of the last one's module: ``fc.weight``, ``fc.bias`` of a torch state dict."""
    module, dot, _ = keys[-1].rpartition(".")
    return [key for key in keys if key.rpartition(".")[:2] == (module, dot)] if dot else [keys[-1]]


def of_last_layers(keys: Sequence[str], layers: int) -> list[str]:
    """Return those of some arrays that belong to the last layers, in their order."""
    left = list(keys)
    for _ in range(layers):
        if not left:
            break
        last = set(last_layer_keys(left))
        left = [key for key in left if key not in last]
    below = set(left)
    return [key for key in keys if key not in below]


def flatten(record: ArrayRecord, keys: Sequence[str]) -> NDArray[np.float32]:
    """Return the named arrays as one vector (P,)."""
    return np.concatenate(
        [record[key].numpy().ravel().astype(np.float32, copy=False) for key in keys]
    )


def between(start: ArrayRecord, end: ArrayRecord, step: float) -> ArrayRecord:
    """Return start + step (end - start), each array of the start's type; a step of 1 is the end."""
    if step == 1.0:
        return end
    moved = ArrayRecord()
    for name, array in end.items():
        values = start[name].numpy()
        moved[name] = Array(np.asarray(values + step * (array.numpy() - values), values.dtype))
    return moved


def weighted_mean(records: Sequence[ArrayRecord], weights: Sequence[float]) -> ArrayRecord:
    """Return the weighted mean of all arrays, in the order given and by FedAvg's arithmetic."""
    contents = [
        RecordDict({"arrays": record, "metrics": MetricRecord({"weight": weight})})
        for record, weight in zip(records, weights, strict=True)
    ]
    return aggregate_arrayrecords(contents, "weight")
