"""Parquet and Arrow files: their labels, and their encoded images batch by batch."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fedsweep.data.layout import listed
from fedsweep.errors import DataError, shown, unknown

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 2000  # rows
_FEW = 20
"""So many classes are believed without names, however few images each of them has."""


@dataclass(frozen=True)
class Table:
    """One Parquet or Arrow file.

    Parameters
    ----------
    path : Path
        The file.
    kind : str
        ``parquet`` or ``arrow``.
    image, label : str
        Columns.
    """

    path: Path
    kind: str
    image: str
    label: str

    @property
    def where(self) -> str:
        """The file, for messages."""
        return shown(str(self.path), 200)

    def batches(self, column: str) -> Iterator["pa.Array"]:
        """Yield a column, some rows at a time.

        Raises
        ------
        DataError
            The file is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            if self.kind == "parquet":
                with pq.ParquetFile(self.path) as file:
                    for batch in file.iter_batches(_BATCH, columns=[column]):
                        yield batch.column(column)
                return
            with _open_arrow(self.path) as reader:
                for batch in reader:
                    for start in range(0, batch.num_rows, _BATCH):
                        yield batch.column(column).slice(start, _BATCH)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from error

    def names(self) -> list[str]:
        """Return the names of all columns."""
        return list(self.schema().names)

    def schema(self) -> "pa.Schema":
        """Return the file's schema, once its two columns are known to hold images and labels.

        Raises
        ------
        DataError
            The file is damaged, or a column is missing or holds something else.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            if self.kind == "parquet":
                schema = pq.read_schema(self.path)
            else:
                with _open_arrow(self.path) as reader:
                    schema = reader.schema
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from error
        for key in ("image", "label"):
            name = getattr(self, key)
            count = schema.names.count(name)
            if count != 1:
                what = (
                    unknown("column", name, map(shown, schema.names))
                    if not count
                    else f"two columns '{name}'."
                )
                raise DataError(f"{self.where}: {what} Set dataset.{key}")
        image, label = schema.field(self.image).type, schema.field(self.label).type
        encoded = image.field("bytes").type if _is_feature(image) else image
        if not (
            _is_bytes(encoded) or pa.types.is_null(encoded)
        ):  # missing ones are named with their row
            raise DataError(
                f"{self.where}: column '{shown(self.image)}' holds {_named(image)}, "
                "not images (encoded, as bytes or as the Hub's struct of bytes and path); "
                "set dataset.image, or take dataset=tabular if it is no table of images"
            )
        label = label.value_type if pa.types.is_dictionary(label) else label
        if not (pa.types.is_integer(label) or pa.types.is_boolean(label) or _is_text(label)):
            raise DataError(
                f"{self.where}: column '{shown(self.label)}' holds {_named(label)}, "
                "not class labels; set dataset.label"
            )
        return schema

    def labels(self) -> tuple[tuple[str, ...] | None, np.ndarray]:
        """Return the class names that the file declares, and the labels as they stand in it.

        Raises
        ------
        DataError
            A label is missing, or none of the declared classes.
        """
        names = _class_names(self.schema(), self.label)
        if names is not None and len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{self.where}: two classes are called {shown(twice)}; rename one")
        columns = [np.empty(0, object)]
        row = 0
        for batch in self.batches(self.label):
            if batch.null_count:
                at = row + batch.is_null().to_numpy(zero_copy_only=False).argmax()
                raise DataError(
                    f"{self.where}, row {at}: column '{shown(self.label)}' has missing labels; "
                    "remove those rows first"
                )
            columns.append(np.array(batch.to_pylist(), object))
            row += len(batch)
        values = np.concatenate(columns)
        if not len(values):
            raise DataError(
                f"{self.where}: a split is empty; set dataset.train_split and dataset.test_split "
                "to others"
            )
        if names is not None and not isinstance(values[0], str):
            numbers = values.astype(np.int64)
            wrong = (numbers < 0) | (numbers >= len(names))
            if wrong.any():
                at = int(wrong.argmax())
                raise DataError(
                    f"{self.where}, row {at}: label {numbers[at]}, and column "
                    f"'{shown(self.label)}' declares {len(names)} classes: labels outside "
                    f"0..{len(names) - 1} have no name; renumber or "
                    "remove such rows first"
                )
        return names, values

    def _damaged(self, error: Exception) -> DataError:
        lines = str(error).strip().splitlines()
        return DataError(
            f"{self.where} can't be read as {self.kind}: "
            f"{lines[0] if lines else type(error).__name__}"
        )


def cells(batch: "pa.Array", rows: Sequence[int]) -> list[bytes | None]:
    """Return the encoded images of some rows of a batch."""
    values = (batch[row].as_py() for row in rows)
    return [value["bytes"] if isinstance(value, dict) else value for value in values]


_Labels = tuple[tuple[str, ...] | None, np.ndarray]
"""The class names that a file declares, and its labels as they stand in it."""


class Labelled(Protocol):
    """What has labels: a table, or LEAF's files."""

    @property
    def where(self) -> str:
        """What it is, for messages."""

    @property
    def label(self) -> str:
        """What its labels are called."""

    def labels(self) -> _Labels:
        """Return the class names that it declares, and the labels as they stand in it."""


def class_numbers(tables: Sequence[Labelled]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Return class names, and per file labels 0..K-1, int64 (rows,).

    One label has one meaning: where files declare names, a class is its name, whatever its number
    in a file. Without names, classes are the values, in order.

    Raises
    ------
    DataError
        Some files declare names and others do not, labels are of two kinds, or are none.
    """
    read = [table.labels() for table in tables]
    named = [names is not None for names, _ in read]
    if any(named) and not all(named):
        with_names, without = tables[named.index(True)], tables[named.index(False)]
        raise DataError(
            f"{with_names.where} declares the names of its classes and {without.where} does not: "
            "what a label means in the second is not known; write both alike"
        )
    return _by_name(tables, read) if all(named) else _by_value(tables, read)


def _by_name(
    tables: Sequence[Labelled], read: Sequence[_Labels]
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Return what :func:`class_numbers` does, of files that declare the names of their classes."""
    classes = tuple(dict.fromkeys(name for names, _ in read for name in names or ()))
    place = {name: number for number, name in enumerate(classes)}
    numbers = []
    for table, (names, values) in zip(tables, read, strict=True):
        if isinstance(values[0], str):
            strange = sorted(set(values) - set(names or ()))
            if strange:
                raise DataError(
                    f"{table.where}: labels that it does not declare: {listed(strange)}"
                )
            numbers.append(np.array([place[value] for value in values], np.int64))
        else:
            own = np.array([place[name] for name in names or ()], np.int64)
            numbers.append(own[values.astype(np.int64)])
    return classes, numbers


def _by_value(
    tables: Sequence[Labelled], read: Sequence[_Labels]
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Return what :func:`class_numbers` does, of files that declare no names."""
    kinds = {type(values[0]) for _, values in read}
    if len(kinds) > 1:
        raise DataError(
            f"{tables[0].where} and the other files have labels of different types "
            f"({', '.join(sorted(kind.__name__ for kind in kinds))}); write them alike"
        )
    total = sum(len(values) for _, values in read)
    found = sorted(set().union(*(set(values) for _, values in read)))
    if len(found) > max(_FEW, total // 2):
        raise DataError(
            f"{tables[0].where}: column '{shown(tables[0].label)}' has {len(found):,} different "
            f"values in {total:,} rows ({listed(map(str, found), 3)}): these are no classes; "
            "set dataset.label to another column"
        )
    order = {value: number for number, value in enumerate(found)}
    return tuple(map(str, found)), [
        np.array([order[value] for value in values], np.int64) for _, values in read
    ]


def _open_arrow(path: Path) -> Any:
    """Open an Arrow file: of the stream format, which datasets writes, or of the file format."""
    import pyarrow as pa

    with path.open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
    source = pa.memory_map(str(path))
    if not is_file:
        return pa.ipc.open_stream(source)
    return _FileFormat(pa.ipc.open_file(source))


class _FileFormat:
    """A reader of Arrow's file format that is used as one of its stream format is."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.schema = reader.schema

    def __enter__(self) -> "_FileFormat":
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.__exit__(*_)

    def __iter__(self) -> Iterator[Any]:
        return (self._reader.get_batch(number) for number in range(self._reader.num_record_batches))


def _class_names(schema: "pa.Schema", label: str) -> tuple[str, ...] | None:
    """Return the names of a ClassLabel, which datasets keeps in the schema's metadata."""
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = told["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _is_feature(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _is_bytes(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _named(kind: "pa.DataType") -> str:
    return shown(str(kind))
