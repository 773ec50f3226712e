"""Spaces: which values of a setting a search may propose, as words say or its range suggests."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeAlias

from pydantic.fields import FieldInfo

from fedsweep.errors import ConfigError, shown
from fedsweep.strategies.ranges import bounds, leaves

Value: TypeAlias = "bool | int | float | str"
"""What a search may propose for a setting."""

DIGITS = 4
"""Significant digits of a proposed number: it is read, typed and run again as it was run."""

_FORM = re.compile(r"(loguniform|uniform|logint|int|choice)(?:\((.*)\)|:(.*))", re.DOTALL)
_FORMS = (
    "uniform(a,b), loguniform(a,b), int(a,b), logint(a,b) or choice(a,b,...); without quotes for "
    "a shell: loguniform:a:b, and a,b,... for a choice"
)
_TEXT = re.compile(r"[\w./-]+", re.ASCII)
_WIDE = 30.0
"""How far from its default a setting is searched each way, where its range does not say."""


@dataclass(frozen=True)
class Numbers:
    """Numbers from one to another, both among them.

    Parameters
    ----------
    low, high : int or float
        The ends.
    log : bool
        Whether equal ratios are equally likely, and not equal differences.
    whole : bool
        Whether they are whole.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __str__(self) -> str:
        kind = ("log" if self.log else "") + ("int" if self.whole else "uniform")
        return f"{kind}({self.low:g},{self.high:g})"

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that any trouble with the range shows at."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def has(self, value: object) -> bool:
        """Return whether a value is one of them."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or (self.whole and not float(str(value)).is_integer()):
            return False
        return self.low <= float(str(value)) <= self.high

    def read(self, value: Any) -> Value:
        """Return a number as it is run: with few digits, and none beyond the ends."""
        if self.whole:
            return int(value)
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def grid(self, points: int) -> list[Value]:
        """Return so many of them, evenly apart, ends included; all, if there are no more."""
        if self.whole and self.high - self.low < points:
            return list(range(int(self.low), int(self.high) + 1))
        shares = [i / (points - 1) for i in range(points)]
        if self.log:
            found = [self.low * (self.high / self.low) ** share for share in shares]
        else:
            found = [self.low + (self.high - self.low) * share for share in shares]
        if self.whole:
            return list(dict.fromkeys(round(value) for value in found))
        return [self.read(value) for value in found]


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return f"choice({','.join(map(_told, self.values))})"

    @property
    def ends(self) -> tuple[Value, ...]:
        """All of them: each may be refused."""
        return self.values

    def has(self, value: object) -> bool:
        """Return whether a value is one of them."""
        return any(
            value == v and isinstance(value, bool) == isinstance(v, bool) for v in self.values
        )

    def read(self, value: Any) -> Value:
        """Return the value as it is run."""
        found: Value = value
        return found

    def grid(self, points: int) -> list[Value]:
        """Return all of them, whatever the number of points."""
        del points
        return [*self.values]


Range: TypeAlias = Numbers | Choice
"""The values of one setting."""


def parse(key: str, given: object) -> Range:
    """Return a range that is given as a text or, in a file, as a list of values.

    Parameters
    ----------
    key : str
        The setting, for what is said of it.
    given : str or list
        ``loguniform(1e-3,1)``, ``loguniform:1e-3:1``, ``int(1,8)``, ``choice(sgd,adam)``,
        ``10,20,32``, or a list.

    Raises
    ------
    ConfigError
        In one line: it is none of these, or its ends are the wrong way round.
    """
    if isinstance(given, list | tuple):
        parts = [_told(value) for value in given]
        return _choice(key, ",".join(parts), parts)
    text = str(given).strip()
    found = _FORM.fullmatch(text)
    if found is None:
        if "," in text and "(" not in text:
            return _choice(key, text, text.split(","))
        raise ConfigError(f"{_at(key, text)} is no range to search; give {_FORMS}")
    kind, inside, beside = found.groups()
    parts = inside.split(",") if inside is not None else beside.split(":")
    return _choice(key, text, parts) if kind == "choice" else _numbers(key, text, kind, parts)


def _choice(key: str, text: str, parts: Sequence[str]) -> Choice:
    values = [_value(part.strip()) for part in parts]
    for value, part in zip(values, parts, strict=True):
        if isinstance(value, str) and not _TEXT.fullmatch(value):
            raise ConfigError(
                f"{_at(key, text)}: '{shown(part)}' is neither a number nor a name; {_FORMS}"
            )
    if len(set(map(_told, values))) < max(2, len(values)):
        raise ConfigError(f"{_at(key, text)} needs two values at least, none of them twice")
    return Choice(tuple(values))


def _numbers(key: str, text: str, kind: str, parts: Sequence[str]) -> Numbers:
    whole, log = kind.endswith("int"), kind.startswith("log")
    ends = [_value(part.strip()) for part in parts]
    numbers = [v for v in ends if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(ends) != 2 or len(numbers) != 2 or not all(map(isfinite, numbers)):
        raise ConfigError(f"{_at(key, text)} takes two finite numbers, as {kind}(a,b)")
    low, high = numbers
    if whole and not (float(low).is_integer() and float(high).is_integer()):
        raise ConfigError(f"{_at(key, text)} takes whole numbers")
    if low >= high:
        raise ConfigError(f"{_at(key, text)}: {low:g} is not below {high:g}; turn them round")
    if log and low <= 0:
        raise ConfigError(f"{_at(key, text)}: a logarithm has to be above 0; raise {low:g}")
    return Numbers(
        int(low) if whole else float(low), int(high) if whole else float(high), log, whole
    )


def _at(key: str, text: str) -> str:
    return f"search.space.{shown(key)}={shown(text)}"


def _value(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _told(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def suggested(field: FieldInfo, default: object) -> Range | None:
    """Return what to search of a setting that nobody gave a range for; None where nothing says.

    A share, whose range is within 0 and 1, is searched evenly over nine tenths of it and as far as
    its default; any other number from a 30th of its default to 30 times it, on a logarithmic
    scale. What is no number with a point is left alone, and so is one whose default is 0: what it
    weighs is off.
    """
    kinds = set(leaves(field.annotation))
    if not isinstance(default, int | float) or isinstance(default, bool) or default <= 0:
        return None
    limits = bounds(field.metadata)
    least = limits.get("ge", limits.get("gt", -float("inf")))
    most = limits.get("le", limits.get("lt", float("inf")))
    if float not in kinds:
        return None
    if least >= 0 and most <= 1:
        room = (most - least) / 20
        low, high = min(least + room, default), max(most - room, default)
        return Numbers(round(low, 6), round(high, 6))
    low, high = max(least, default / _WIDE), min(most, default * _WIDE)
    return Numbers(float(f"{low:.{DIGITS}g}"), float(f"{high:.{DIGITS}g}"), log=True)
