"""Words of the command line: ``GROUP=OPTION``, ``key=value``, and ``key=a,b`` for an axis.

Hydra's grammar reads them. What it has beyond that (deletions, packages, draws, continuous
intervals, patterns) means nothing in a grid, and is refused here.
"""

import math
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
    Sweep,
)

from fedsweep.config import TrackingConfig
from fedsweep.errors import ConfigError, shown
from fedsweep.records import Json
from fedsweep.redaction import redact

MOST_CELLS = 10_000
"""Most values of an axis, and most cells of a grid."""

SPACE = "search.space."
"""How words begin that give the range of a search."""

_MOST_CHARACTERS, _DEEPEST = 4000, 20
_REFERENCE = re.compile(r"\$\\\{.*\\\}")
_PLAIN = re.compile(
    r"(?:[A-Za-z_]|\.{0,2}/)[\w./-]*", re.ASCII
)  # text in the grammar, but for these names:
_NAMES = ("null", "true", "false", "nan", "inf")


@dataclass(frozen=True)
class Word:
    """A word that was read.

    Parameters
    ----------
    line : str
        The word as it is written, without a plus before it.
    key : str
        A group, or the full key of a setting.
    value : Json
        What a single value is: text, a number, a list, ...; None for ``null`` and for axes.
    values : tuple[str, ...] or None
        The values of an axis as they are written; None for a single one.
    """

    line: str
    key: str
    value: Json = None
    values: tuple[str, ...] | None = None


def parse(words: Iterable[str]) -> list[Word]:
    """Return words that were read.

    Raises
    ------
    ConfigError
        One is no word, or nothing that a trial or a grid can be made of.
    """
    return [_parse(word) for word in words]


@cache
def _grammar() -> OverridesParser:
    return OverridesParser.create()


def _unquoted(text: str) -> str:
    """Return a text without the quotes that stand around it."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


@lru_cache(maxsize=4096)
def _parse(text: str) -> Word:
    _check_text(text)
    line = text.removeprefix("++").removeprefix("+")
    if line.startswith(SPACE):  # its ranges are none of the grammar's functions
        key, _, value = line.partition("=")
        return Word(line, key, _unquoted(value.strip()))
    try:
        override = _grammar().parse_override(line)
    except Exception as error:  # the grammar's functions raise what they like
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        reason = reason.partition(" expecting ")[0]  # names of the grammar's own
        raise _refused(text, f" can't be read: {shown(reason, 200)}{_hint(line)}") from error
    key = override.key_or_group
    if not key or override.package is not None:
        raise _refused(text, " names no key and no group; write GROUP=OPTION or key=value")
    if _holds_sweep(override._value):
        written_out = shlex.quote(f"{key}=a,b")
        raise _refused(text, f" has several values inside of others; write all, as {written_out}")
    if not override.is_sweep_override():
        return Word(line, key, _plain(override.value()))
    return Word(line, key, values=_values(override, text))


def _refused(text: str, why: str) -> ConfigError:
    return ConfigError(f"'{shown(text)}'{why}")


def _check_text(text: str) -> None:
    """Refuse what is no ``key=value`` before the grammar spends time on it."""
    if len(text) > _MOST_CHARACTERS:
        raise _refused(
            text,
            f" has {len(text):,} characters, and a word has at most {_MOST_CHARACTERS:,}; shorten "
            "it, or put it into a file of configs/",
        )
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise _refused(
            text,
            " is no text in this shell's encoding; set LANG and LC_ALL to one of UTF-8, such as "
            "C.UTF-8, or write it otherwise",
        )
    if not text.isprintable():
        raise _refused(text, " holds a character that can't be printed; leave it out")
    key = text.partition("=")[0]
    if re.fullmatch(r"~[\w.]+", key):
        null = setting(key[1:], None)
        raise _refused(text, f": a setting can't be deleted; set another value, such as {null}")
    if key.startswith(("-", "~")) or "=" not in text:
        example = "dataset=mnist training.lr=0.1 seed=0,1,2"
        raise _refused(text, f" is not key=value; for example: {example}")
    depth = deepest = 0
    for char in text:
        depth += (char in "[{(") - (char in "]})")
        deepest = max(deepest, depth)
    if deepest > _DEEPEST:
        raise _refused(text, f" has brackets in {deepest} levels, and at most {_DEEPEST} are read")


def _hint(line: str) -> str:
    """Say how a word that can't be read is typed as a text, if it can be."""
    key, _, value = line.partition("=")
    word = f"{key}={_in_quotes(value)}"
    try:
        _grammar().parse_override(word)
    except Exception:  # nor can it be read in quotes, whatever the grammar raises: no hint
        return ""
    typed = shlex.quote(word)
    return f"; if it is meant as text, type {typed}" if len(typed) < 200 else ""


def _holds_sweep(value: object) -> bool:
    """Return whether a sweep stands inside of a value, where the grammar does not expand it."""
    if isinstance(value, ChoiceSweep):
        value = value.list
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(part, Sweep | Glob) or _holds_sweep(part) for part in parts)


def _values(override: Override, text: str) -> tuple[str, ...]:
    """Return the values of an axis, in order."""
    given: Any = override._value
    key = override.key_or_group
    listed = f"list its values, as {shlex.quote(f'{key}=a,b')}"
    if isinstance(given, IntervalSweep):
        or_range = shlex.quote(f"{key}=range(0,1,0.1)")
        why = f" is continuous, and a grid has single values; {listed}, or take {or_range}"
        raise _refused(text, why)
    if isinstance(given, Glob):
        raise _refused(text, f" is a pattern, and a grid has single values; {listed}")
    if getattr(given, "shuffle", False) or (isinstance(given, Sweep) and given.tags):
        why = "a grid's order is that of its words, and its values have no tags"
        raise _refused(text, f": {why}; leave out shuffle() and tag()")
    count = _count(given, text) if isinstance(given, RangeSweep) else len(given.list)
    if not count:
        raise ConfigError(f"the grid is empty: '{shown(text)}' has no value; {listed}")
    if count > MOST_CELLS:
        most = f"an axis has at most {MOST_CELLS:,}"
        raise _refused(text, f" has {count:,} values, and {most}; take fewer")
    return tuple(_written(value) for value in override.sweep_string_iterator())


def _written(value: str) -> str:
    """Return a value of an axis as it was written: the grammar escapes what refers to others."""
    return _REFERENCE.sub(lambda found: re.sub(r"\\(.)", r"\1", found[0]), value)


def _count(given: RangeSweep, text: str) -> int:
    numbers = [float("nan") if n is None else n for n in (given.start, given.stop, given.step)]
    if not all(math.isfinite(number) for number in numbers) or not given.step:
        example = shlex.quote(f"{text.partition('=')[0]}=range(0,1,0.25)")
        raise _refused(
            text,
            " has no end: a range is start, stop (which is not one of its values) and a step that "
            f"is not 0, all finite; for example {example}",
        )
    start, stop, step = map(Decimal, numbers)
    return max(0, math.ceil((stop - start) / step))


def setting(key: str, value: Json) -> str:
    """Return the word that gives a setting a value of YAML, as a shell passes it on."""
    return shlex.quote(f"{key}={literal(value)}")


def literal(value: Json) -> str:
    """Write a value of YAML in the grammar of words. Text stays text, whatever it holds."""
    if isinstance(value, dict):
        items = (f"{literal(str(key))}:{literal(item)}" for key, item in value.items())
        return "{" + ",".join(items) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(literal, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _NAMES
        return value if plain else _in_quotes(value)
    return str(value)


def _in_quotes(text: str) -> str:
    return str(QuotedString(text, Quote.double).with_quotes())


def _plain(value: Any) -> Json:
    """Turn the keys of mappings into text."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    plain: Json = value
    return plain


def store_words(tracking: TrackingConfig) -> list[str]:
    """Return the words that name the store in use, where it is not the usual one."""
    usual = TrackingConfig()
    given = {key: getattr(tracking, key) for key in ("uri", "output", "experiment")}
    return [
        f"tracking.{key}={literal(redact(value))}"
        for key, value in given.items()
        if value and value != getattr(usual, key)
    ]
