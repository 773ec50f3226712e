"""Flower's arrays into and out of a torch model, and their weighted mean."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from fedsweep.strategies.arrays import read_array, write_array
from fedsweep.strategies.layout import Layout


def layout_of(model: nn.Module) -> Layout:
    """Return what the arrays of a model's record are.

    Raises
    ------
    ValueError
        A parameter is of complex numbers: no strategy here knows what to do with them.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kinds: dict[str, list[str]] = {"trained": [], "averaged": [], "carried": []}
    for name, values in _unique_state(model).items():
        if values.is_complex():
            raise ValueError(f"array '{name}' is complex; models must have real parameters")
        floating = values.is_floating_point()
        if name in parameters:
            kinds["trained" if parameters[name].requires_grad else "carried"].append(name)
        else:
            kinds["averaged" if floating else "carried"].append(name)
    return Layout(*(tuple(names) for names in kinds.values()))


def first_names(model: nn.Module) -> dict[str, str]:
    """Return every name of a model's state dict, and the first name of the same tensor."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: first.setdefault(id(values), name) for name, values in state.items()}


def _unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's state dict with each tensor once: shared weights go by their first name."""
    state = model.state_dict()
    return {name: state[name] for name, first in first_names(model).items() if name == first}


def load_weights(model: nn.Module, arrays: ArrayRecord) -> None:
    """Copy a record into a model's state.

    Raises
    ------
    ValueError
        Names or shapes differ from the model's.
    """
    state = _unique_state(model)
    if state.keys() != arrays.keys():
        missing, unexpected = (
            sorted(state.keys() - arrays.keys()),
            sorted(arrays.keys() - state.keys()),
        )
        raise ValueError(
            f"the arrays received do not fit the model: missing {missing}, unexpected "
            f"{unexpected}; strategy and clients must use the same model"
        )
    for name, target in state.items():
        values = read_array(arrays[name])
        if values.shape != target.shape:
            raise ValueError(
                f"array '{name}' has shape {values.shape}, but the model's is {tuple(target.shape)}"
            )
        if values.dtype.kind == "f" and not target.is_floating_point():
            values = np.rint(
                values
            )  # a weighted mean of BatchNorm's counters: 3 clients at 2 give 1.9999999
        target.copy_(torch.from_numpy(np.array(values)))


def read_weights(model: nn.Module) -> ArrayRecord:
    """Return a model's state as a record, shared weights once."""
    record = ArrayRecord()
    for name, values in _unique_state(model).items():
        record[name] = write_array(values.cpu().numpy())
    return record


def weighted_mean(
    records: Sequence[ArrayRecord],
    weights: Sequence[float],
    carried: Collection[str] = (),
    heaviest: int = 0,
) -> ArrayRecord:
    """Return the weighted mean of records, bit for bit that of Flower's ``aggregate_arrayrecords``.

    The operations and their order are Flower's: weights are normalised first, then records are
    added one after another. Arrays that are ``carried`` are those of the heaviest record, given by
    its place.
    """
    total = sum(weights)
    mean: dict[str, np.ndarray] = {}
    for record, weight in zip(records, [w / total for w in weights], strict=True):
        for key, array in record.items():
            if key in carried:
                continue
            term = read_array(array) * weight
            if key in mean:
                mean[key] += term
            else:
                mean[key] = term
    result = ArrayRecord()
    for key, array in records[heaviest].items():
        result[key] = array if key in carried else write_array(np.asarray(mean[key]))
    return result
