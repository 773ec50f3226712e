"""Flower's arrays read and written at the cost of a copy. Imports NumPy and Flower only.

``Array.numpy()`` and ``Array(ndarray)`` run NumPy's file format each time, some 40 microseconds an
array: several per cent of a small client task. The bytes here are the same, but the header is made
once per shape.
"""

from functools import lru_cache
from io import BytesIO
from math import prod
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)

ModelRows = NDArray[np.floating]
"""Models as rows of trained parameters, (R, P), or one of them, (P,), in the network's own type."""

_C_ORDER = b"'fortran_order': False"


def read_array(array: Array) -> np.ndarray:
    """Return an Array's values as a read-only view of its bytes where it can be, else as a copy."""
    if not array.dtype:  # as Flower turns a NumPyClient's parameters into Arrays
        return array.numpy()
    dtype, data = np.dtype(array.dtype), array.data
    size = prod(array.shape) * dtype.itemsize
    if size == 0 or array.stype != "numpy.ndarray" or _C_ORDER not in data[:128]:
        return array.numpy()
    # NumPy's format is a header and then the raw values, up to the end.
    return np.frombuffer(data, dtype, offset=len(data) - size).reshape(array.shape)


def write_array(values: np.ndarray) -> Array:
    """Return ``Array(values)``: the same bytes if C-ordered, else the same values in C order."""
    dtype, shape = str(values.dtype), tuple(values.shape)
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return Array(dtype, shape, "numpy.ndarray", b"".join((_header(dtype, shape), raw.data)))


def records_of(content: RecordDict, kind: type[R]) -> dict[str, R]:
    """Return a content's records of a kind by their names, to be read.

    Flower's own views, such as ``array_records``, write each record back into the content: some 20
    microseconds, several times a task.
    """
    return {name: record for name, record in content.items() if isinstance(record, kind)}


@lru_cache(maxsize=4096)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return the header that ``np.save`` writes before the values of a C-ordered array."""
    file = BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()
