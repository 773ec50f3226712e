"""Flower's arrays read and written at the cost of a copy.

``Array.numpy()`` and ``Array(ndarray)`` run NumPy's file format each time, some 40 microseconds an array: several per
cent of a small client task. The bytes here are the same, but the header is made once per shape.
"""

from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import nn

_C_ORDER = b"'fortran_order': False"


def read_array(array: Array) -> np.ndarray:
    """Return the values of an Array as a read-only view of its bytes where its layout allows, else as a copy."""
    dtype, data = np.dtype(array.dtype), array.data
    size = int(np.prod(array.shape)) * dtype.itemsize
    if size == 0 or array.stype != "numpy.ndarray" or _C_ORDER not in data[:128]:
        return array.numpy()
    # NumPy's format is a header and then the raw values, up to the end.
    return np.frombuffer(data, dtype, offset=len(data) - size).reshape(array.shape)


def write_array(values: np.ndarray) -> Array:
    """Return ``Array(values)``: the same bytes where the values are C-ordered, else the same values in C order."""
    dtype, shape = str(values.dtype), tuple(values.shape)
    return Array(dtype, shape, "numpy.ndarray", _header(dtype, shape) + values.tobytes())


@lru_cache(maxsize=4096)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return the header that ``np.save`` writes before the values of a C-ordered array."""
    file = BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


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
