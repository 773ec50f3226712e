"""The tables of a trial, as they grow with its rounds."""

from dataclasses import fields
from typing import Any

from fedsweep.escape import storable
from fedsweep.records import Columns, LoadSample, RoundRecord

_LOAD = [field.name for field in fields(LoadSample)]

PART_ROWS = 2_000
"""Rows of a part of a table, about: it is written anew with each of its rounds."""


def rounds_a_part(num_clients: int) -> int:
    """Return how many rounds share the parts of a trial's tables."""
    return max(1, PART_ROWS // num_clients)


class Parts:
    """A trial's tables, as they grow.

    A table is a folder (``clients.parquet/part-00000.parquet``) that pandas and pyarrow read as
    one. A part is named after the first of its rounds and is written whole with each of them: few
    files, however many rounds there are, and a round that comes twice takes the place of itself.

    Parameters
    ----------
    rounds : int
        How many rounds share a part.
    """

    def __init__(self, rounds: int) -> None:
        self._rounds, self._first = rounds, -1
        self._tables: dict[str, dict[str, list[Any]]] = {}
        self._last = -1

    def add(self, record: RoundRecord) -> dict[str, bytes]:
        """Take a round's rows, and return the parts that they are in; rounds come in order."""
        first = record.round - record.round % self._rounds
        if first != self._first:
            self._first, self._tables = first, {}
        touched = {}
        for name, columns in _tables(record).items():
            table = self._tables.setdefault(name, {})
            if record.round > self._last:
                before = max(map(len, table.values()), default=0)
                for column in {**columns, **table}:
                    rows = table.setdefault(column, [None] * before)
                    rows.extend(columns.get(column, [None] * _rows(columns)))
            touched[f"{name}.parquet/part-{first:05d}.parquet"] = to_parquet(table)
        self._last = max(self._last, record.round)
        return touched


def _tables(record: RoundRecord) -> dict[str, Columns]:
    """Return a round's rows in each table that it has rows in."""
    load = {name: [getattr(row, name) for row in record.load] for name in _LOAD}
    tables: dict[str, Columns] = {
        "clients": record.clients, "assignments": record.assignments, "tasks": record.tasks,
        "load": load,
    }  # fmt: skip
    return {name: columns for name, columns in tables.items() if _rows(columns)}


def _rows(columns: Columns) -> int:
    return max(map(len, columns.values()), default=0)


def to_parquet(columns: Columns) -> bytes:
    """Return a table as one Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(
        pa.table({storable(name): list(values) for name, values in columns.items()}), sink
    )
    return bytes(sink.getvalue())
