"""Devices that a file tells: a row for each, in CSV or Parquet.

Columns: ``id`` (0, 1, 2, ...), ``rate`` (GFLOP a second), ``downlink`` and ``uplink`` (Mbit a
second); where wanted ``memory`` (relative), ``watt``, and when the device is there: ``on``, begins
and ends in seconds (``0-3600 7200-9000``), or the columns of FedScale's traces (Lai et al. 2022,
arXiv:2105.11367), ``active`` and ``inactive``, lists of begins and ends in seconds
(``[0, 7200]``), and ``finish_time``, after which they come again. ``duration`` may be there and
says nothing more.
"""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from fedsweep.errors import shown
from fedsweep.scenario.device import GFLOP, MBIT, DeviceTable, TimedDevices, stream
from fedsweep.scenario.presence import Always, Intervals, Presence

Span = tuple[float, float]
_NEEDED = ("id", "rate", "downlink", "uplink")
_ALLOWED = (*_NEEDED, "memory", "watt", "on", "active", "inactive", "finish_time", "duration")


@dataclass(frozen=True)
class _Row:
    """A device of the file."""

    numbers: Mapping[str, float]
    on: tuple[Span, ...] | None  # None: always
    period: float


class Trace(TimedDevices):
    """Measured devices, and when they were there."""

    path: str = Field("", description="the file: .csv or .parquet")
    pick: Literal["in_order", "drawn"] = Field(
        "in_order",
        description="client i has row i, or each has one that is drawn, several perhaps the same",
    )

    _rows: tuple[_Row, ...] = PrivateAttr(())
    _content: str = PrivateAttr("")

    @model_validator(mode="after")
    def _read(self) -> Self:
        if not self.path:
            raise ValueError("devices=trace needs its file; set devices.path")
        path = Path(self.path).expanduser()
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{self.path} can't be read: {error.strerror}") from error
        self._content = hashlib.sha256(data).hexdigest()[:12]
        self._rows = tuple(_rows(path))
        if not self._rows:
            raise ValueError(f"{self.path} has no row; each is a device")
        return self

    @property
    def may_be_away(self) -> bool:
        """Whether clients may be away when somebody is asked."""
        return any(row.on is not None for row in self._rows)

    def canonical(self) -> dict[str, Any]:
        """Return what defines the devices: the file's content, not its place."""
        values = super().canonical() | {"content": self._content}
        return {key: value for key, value in values.items() if key != "path"}

    def check_in(self, num_clients: int) -> None:
        """Refuse a file of fewer devices than clients."""
        if self.pick == "in_order" and num_clients > len(self._rows):
            raise ValueError(
                f"{self.path} has {len(self._rows)} devices for num_clients={num_clients}; lower "
                "num_clients, or set devices.pick=drawn"
            )

    def table(self, num_clients: int, seed: int) -> DeviceTable:
        """Return the clients' devices."""
        drawn_N = np.arange(num_clients)
        if self.pick == "drawn":
            draws_N = stream(seed, "row").random(num_clients)
            drawn_N = (draws_N * len(self._rows)).astype(np.int64)
        rows = [self._rows[place] for place in drawn_N]

        def of(key: str, unit: float = 1.0) -> np.ndarray:
            return np.array([unit * row.numbers[key] for row in rows])

        links = of("downlink", MBIT), of("uplink", MBIT)
        return DeviceTable(
            of("rate", GFLOP), *links, self._presence(rows), of("memory"), of("watt")
        )

    def _presence(self, rows: Sequence[_Row]) -> Presence:
        if not self.may_be_away:
            return Always(len(rows))
        on = [((0.0, inf),) if row.on is None else row.on for row in rows]
        return Intervals(on, [row.period for row in rows])


def _rows(path: Path) -> Iterator[_Row]:
    """Yield the rows of a file, checked.

    Raises
    ------
    ValueError
        In one line: file, line, what is wrong and what is allowed.
    """
    seen: dict[int, int] = {}
    for line, cells in _cells(path):
        where = f"{path.name}, line {line}"
        if line == 2 or not seen:
            _check_columns(path, cells)
        number = _number(where, "id", cells["id"], least=-1)
        if number != len(seen):
            other = seen.get(int(number))
            why = f" is that of line {other} too" if other else ""
            raise ValueError(
                f"{where}: id {shown(str(cells['id']))}{why}; ids have to be 0, 1, 2, ... without "
                f"a gap, and this one {len(seen)}"
            )
        seen[int(number)] = line
        numbers = {key: _number(where, key, cells[key]) for key in _NEEDED[1:]}
        numbers["memory"] = _number(where, "memory", cells.get("memory") or 1.0)
        watt = cells.get("watt")
        numbers["watt"] = nan if watt in (None, "") else _number(where, "watt", watt)
        yield _Row(numbers, *_intervals(where, cells))


def _cells(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a table by column, and their lines: a header is line 1."""
    if path.suffix == ".parquet":
        import pandas as pd

        try:
            frame = pd.read_parquet(path)
        except Exception as error:  # what PyArrow raises of bytes that are no table
            raise ValueError(f"{path.name} is no Parquet file: {shown(str(error))}") from error
        missing = frame.isna().to_numpy()
        for line, record in enumerate(frame.to_dict("records"), start=2):
            cells = zip(record.items(), missing[line - 2], strict=True)
            yield line, {str(key): "" if lacks else value for (key, value), lacks in cells}
        return
    if path.suffix != ".csv":
        raise ValueError(f"{path.name} is neither .csv nor .parquet")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path.name}, line {reader.line_num}: it has not as many cells as the header"
                )
            yield reader.line_num, dict(row)


def _check_columns(path: Path, cells: Mapping[str, Any]) -> None:
    missing = [key for key in _NEEDED if key not in cells]
    unknown = [shown(key) for key in cells if key not in _ALLOWED]
    halves = ("active", "inactive", "finish_time")
    half = [key for key in halves if key not in cells] if any(k in cells for k in halves) else []
    if missing or unknown or half:
        what = f"lacks {', '.join(missing or half)}" if missing or half else f"has {unknown[0]}"
        raise ValueError(f"{path.name}, line 1: it {what}; columns are {', '.join(_ALLOWED)}")
    if "on" in cells and "active" in cells:
        raise ValueError(f"{path.name}, line 1: it has both on and active; leave out one of them")


def _number(where: str, key: str, given: Any, least: float = 0.0) -> float:
    try:
        number = float(given)
    except (TypeError, ValueError):
        number = nan
    if not isfinite(number) or number <= least:
        raise ValueError(f"{where}: {key}={shown(str(given))} has to be a number above {least:g}")
    return number


def _intervals(where: str, cells: Mapping[str, Any]) -> tuple[tuple[Span, ...] | None, float]:
    """Return when a device is there, and after which time that comes again."""
    period = inf
    if "active" in cells:
        period = _number(where, "finish_time", cells["finish_time"])
        spans = _fedscale(where, cells, period)
    elif cells.get("on") is None or (isinstance(cells["on"], str) and not cells["on"].strip()):
        return None, inf
    else:
        spans = [_span(where, text) for text in str(cells["on"]).split()]
    last = 0.0
    for begin, end in spans:
        if not last <= begin < end <= period:
            raise ValueError(
                f"{where}: the interval from {begin:g} to {end:g} s has to begin at {last:g} s or "
                f"later, to end after that" + (f", at {period:g} s at most" if period < inf else "")
            )
        last = end
    return _joined(spans), period


def _span(where: str, text: str) -> Span:
    begin, dash, end = text.partition("-")
    try:
        found = float(begin), float(end)
    except ValueError:
        dash, found = "", (0.0, 0.0)
    if not dash or not all(map(isfinite, found)):
        raise ValueError(f"{where}: on={shown(text)} has to be intervals as 0-3600 7200-9000")
    return found


def _fedscale(where: str, cells: Mapping[str, Any], period: float) -> list[Span]:
    """Return FedScale's lists as intervals: a device is there from an ``active`` to the next end.

    Where it begins at work, the first end has no begin; where it is at work when the period is
    over, the last begin has no end.
    """
    begins, ends = (_list(where, key, cells[key]) for key in ("active", "inactive"))
    if ends and (not begins or ends[0] < begins[0]):
        begins = [0.0, *begins]
    if len(begins) == len(ends) + 1:
        ends = [*ends, period]
    if len(begins) != len(ends):
        raise ValueError(
            f"{where}: active has {len(begins)} times and inactive {len(ends)}; they have to take "
            "turns"
        )
    return [(begin, end) for begin, end in zip(begins, ends, strict=True) if begin < end]


def _list(where: str, key: str, given: Any) -> list[float]:
    try:
        values = json.loads(given) if isinstance(given, str) else given
        return [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: {key}={shown(str(given))} has to be a list of seconds, as [0, 7200]"
        ) from error


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Return intervals with those joined that touch: nobody leaves and comes at one moment."""
    found: list[Span] = []
    for begin, end in spans:
        if found and found[-1][1] == begin:
            found[-1] = (found[-1][0], end)
        else:
            found.append((begin, end))
    return tuple(found)
