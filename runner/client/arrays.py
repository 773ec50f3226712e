"""Flower's arrays into and out of a torch model, and their weighted mean."""

from collections.abc import Sequence

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import nn

from runner.arrays import read_array, write_array


def load_weights(model: nn.Module, arrays: ArrayRecord) -> None:
    """Copy a record into a model's state dict.

    Raises
    ------
    ValueError
        Names or shapes differ from the model's.
    """
    state = model.state_dict()
    if state.keys() != arrays.keys():
        missing, unexpected = sorted(state.keys() - arrays.keys()), sorted(arrays.keys() - state.keys())
        raise ValueError(
            f"the arrays received do not fit the model: missing {missing}, unexpected {unexpected}; "
            "strategy and clients must use the same model"
        )
    for name, target in state.items():
        values = read_array(arrays[name])
        if values.shape != target.shape:
            raise ValueError(f"array '{name}' has shape {values.shape}, but the model's is {tuple(target.shape)}")
        if values.dtype.kind == "f" and not target.is_floating_point():
            values = np.rint(values)  # a weighted mean of BatchNorm's counters: 3 clients at 2 give 1.9999999
        target.copy_(torch.from_numpy(np.array(values)))


def read_weights(model: nn.Module) -> ArrayRecord:
    """Return a model's state dict as a record."""
    record = ArrayRecord()
    for name, values in model.state_dict().items():
        record[name] = write_array(values.cpu().numpy())
    return record


def weighted_mean(records: Sequence[ArrayRecord], weights: Sequence[float]) -> ArrayRecord:
    """Return the weighted mean of records, bit for bit that of Flower's ``aggregate_arrayrecords``.

    The operations and their order are Flower's: weights are normalised first, then records are added one after another.
    """
    total = sum(weights)
    mean: dict[str, np.ndarray] = {}
    for record, weight in zip(records, [w / total for w in weights], strict=True):
        for key, array in record.items():
            term = read_array(array) * weight
            if key in mean:
                mean[key] += term
            else:
                mean[key] = term
    result = ArrayRecord()
    for key, values in mean.items():
        result[key] = write_array(np.asarray(values))
    return result
