"""Which numbers a setting takes: finite ones, in a range that means something."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from math import isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

CLIENTS = ROUNDS = 10**6
"""Most clients, and most rounds, of a trial."""
EXAMPLES = 10**9
"""Most examples of a data set."""
SHARE = 1e-6
"""Least share of something: below it not even one of the most clients is meant."""
WEIGHT = 1e6
"""Largest weight of a term beside others."""
METRIC = 1e12
"""Largest size of a metric, a norm or a distance."""
YEAR_S = 365 * 24 * 3600
"""Longest time to wait for something."""
LONGEST = 2**63 - 1
"""Largest whole number anywhere: what 64 bits hold."""

_EXACT = 2**53  # up to here a float is the whole number that was written
_LARGE, _SMALL = 1e30, 1e-30  # what float32, in which models compute, holds with room to spare


def checked(value: object, annotation: object) -> object:
    """Return a setting's value with a whole number for ``2.0`` or ``1e2``, where one is meant.

    Raises
    ------
    PydanticCustomError
        A number in it, inside lists and mappings too, is NaN or infinite, or out of every range.
    """
    kinds = set(leaves(annotation))
    if any(hasattr(kind, "model_fields") for kind in kinds):
        return value  # a section looks at its own
    whole = int in kinds and float not in kinds
    if whole:
        value = [*map(_whole, value)] if isinstance(value, list | tuple) else _whole(value)
    if not kinds & {int, float, Any}:
        return value
    for number in _numbers(value):
        if not _holds(number):
            raise PydanticCustomError(
                "number",
                "a number has to be finite: 0 or from 1e-30 to 1e30 in size, whole ones of 64 bits",
            )
    return value


def _whole(value: object) -> object:
    """Return the whole number that a float is, or what is no such float as it is."""
    exact = isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT
    return int(value) if exact else value  # type: ignore[call-overload]


def _holds(number: float) -> bool:
    if isinstance(number, int):
        return -LONGEST <= number <= LONGEST
    return isfinite(number) and (number == 0 or _SMALL <= abs(number) <= _LARGE)


def _numbers(value: object) -> Iterable[int | float]:
    """Yield the numbers in a value of YAML; its containers are no deeper than words may be."""
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def leaves(annotation: object) -> Iterable[object]:
    """Yield the types that an annotation is made of, without their limits."""
    args = get_args(annotation)
    if not args or get_origin(annotation) is Literal:
        yield annotation
        return
    for part in args[:1] if get_origin(annotation) is Annotated else args:
        yield from leaves(part)


def allowed(annotation: object, limits: Iterable[object] = ()) -> str | None:
    """Say what a field takes, such as ``a whole number from 1 to 9, or null``; None if no numbers.

    Parameters
    ----------
    annotation : type
        Of the field.
    limits : iterable
        Its metadata: the bounds of a number.
    """
    limits = list(limits)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [m for extra in args[1:] for m in _metadata(extra)]
        return allowed(args[0], [*limits, *inner])
    if origin in (Union, UnionType):
        parts = [allowed(part, limits) for part in args if part is not NoneType]
        told = [part for part in parts if part is not None]
        literals = (get_args(part) for part in args if get_origin(part) is Literal)
        words = [str(word) for values in literals for word in values]
        null = ["null"] if NoneType in args else []
        return ", or ".join([*told, *words, *null]) if told else None
    if origin is tuple and (each := allowed(args[0])):
        return f"a list, each {each}"
    if origin is dict and (each := allowed(args[1])):
        return f"for each name {each}"
    if annotation is bool:
        return "true or false"
    if annotation not in (int, float):
        return None
    kind = "a whole number" if annotation is int else "a number"
    return f"{kind} {_range(limits)}".rstrip()


def _metadata(extra: object) -> list[object]:
    return list(extra.metadata) if isinstance(extra, FieldInfo) else [extra]


def bounds(limits: Iterable[object]) -> dict[str, float]:
    """Return the bounds among the metadata of a field: ``ge``, ``gt``, ``le``, ``lt``."""
    names = ("ge", "gt", "le", "lt")
    return {n: getattr(m, n) for m in limits for n in names if getattr(m, n, None) is not None}


def _range(limits: Iterable[object]) -> str:
    found = {name: f"{Decimal(str(bound)):f}" for name, bound in bounds(limits).items()}
    found = {name: text.removesuffix(".0") for name, text in found.items()}
    if "ge" in found and "le" in found:
        return f"from {found['ge']} to {found['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[name]} {found[name]}" for name in words if name in found)
