"""LEAF's files (Caldas et al. 2018, arXiv:1812.01097): JSON that holds examples user by user.

LEAF's ``preprocess.sh`` writes ``train/*.json`` and ``test/*.json``, each of them
``{"users": [...], "num_samples": [...], "user_data": {user: {"x": [...], "y": [...]}}}``. What an x
has to be is said by the task that reads it: pixels, features or characters. ``num_samples`` counts
for nothing: for Shakespeare's test set LEAF itself writes 79 too many a user, those that
``split_data.py`` leaves out as overlapping. ``hierarchies`` and ``raw`` are not read.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np

from fedsweep.errors import DataError, shown

USER = "user"
"""The column that says whose an example is."""
_SUFFIX = ".json"
_EXACT = 2.0**53  # whole numbers up to it are floats

Arrays = tuple[np.ndarray, np.ndarray]
"""Some examples (n, ...) and their targets (n,)."""


@dataclass(frozen=True)
class LeafSplit:
    """What the files of a split hold, in the order of the files and of their users."""

    x: np.ndarray  # (N, ...), as the task takes it
    y: np.ndarray  # (N,): int64, float64, or texts as objects
    users: np.ndarray  # str (N,), whose each example is
    files: int
    empty: int  # users without an example
    misstated: int  # users of whom num_samples gives another number


def leaf_splits(place: Path) -> list[list[Path]]:
    """Return the files of ``train/`` and, if there are any, those of ``test/``, each by name.

    It is empty where the place is no folder of such files.

    Raises
    ------
    DataError
        There is something to test on alone.
    """
    train, test = (
        sorted(path for path in (place / split).glob(f"[!.]*{_SUFFIX}") if path.is_file())
        for split in ("train", "test")
    )
    if test and not train:
        raise DataError(f"{shown(str(place), 200)} holds test/*.json and no train/*.json")
    return [own for own in (train, test) if own]


def read_leaf(files: Sequence[Path], taken: Callable[[list[Any], list[Any]], Arrays]) -> LeafSplit:
    """Return the examples of a split, one file in memory at a time.

    Parameters
    ----------
    taken : callable
        Takes a user's x and y, of one length and not empty: :func:`as_features`,
        :func:`as_images` or :func:`as_characters`.

    Raises
    ------
    DataError
        A file is not LEAF's, users are in it twice, or what they have is not alike; the message
        names the file, and the user.
    """
    found: list[Arrays] = []
    names: list[str] = []
    length = 0  # of an x: so many numbers, or characters
    read_in: dict[str, str] = {}  # user -> file
    empty = misstated = 0
    for path in files:
        for user, x, y, stated in _users(path):
            where = f"{shown(str(path), 200)}, user '{shown(user)}'"
            if user in read_in:
                raise DataError(f"{where}: is in {read_in[user]}, too; remove one of them")
            read_in[user] = shown(path.name)
            misstated += stated != len(y)
            if not y:
                empty += 1
                continue
            try:
                own = taken(x, y)
            except ValueError as error:
                raise DataError(f"{where}: {error}") from error
            length = length or len(x[0])
            if len(x[0]) != length:
                raise DataError(f"{where}: x are {len(x[0]):,} long, and those before {length:,}")
            if found and (own[1].dtype.kind == "O") != (found[0][1].dtype.kind == "O"):
                raise DataError(f"{where}: y are texts for some users, and numbers for others")
            names.append(user)
            found.append(own)
    if not found:
        raise DataError(f"{shown(str(files[0]), 200)}: there is no user with an example")
    examples, targets = (np.concatenate(own) for own in zip(*found, strict=True))
    whose = np.repeat(np.array(names), [len(own) for _, own in found])
    return LeafSplit(examples, _whole(targets), whose, len(files), empty, misstated)


def told_users(splits: Sequence[LeafSplit]) -> str:
    """Say of how many users and files the splits are, and what of them is odd."""
    users = [{*split.users.tolist()} for split in splits]
    parts = [
        f"{len(own):,} user{'s' * (len(own) != 1)} {what} "
        f"({split.files:,} JSON file{'s' * (split.files != 1)})"
        for own, split, what in zip(users, splits, ("to train on", "to test on"), strict=False)
    ]
    if len(users) > 1:
        parts.append(f"{len(users[0] & users[1]):,} of them in both")
    if empty := sum(split.empty for split in splits):
        parts.append(f"{empty:,} without an example left out")
    if misstated := sum(split.misstated for split in splits):
        parts.append(f"num_samples gives another number for {misstated:,}, and does not count")
    return ", ".join(parts)


# What an x may be: what is wrong with it is a ValueError, to which the caller adds where it stands


def as_features(x: list[Any], y: list[Any]) -> Arrays:
    """Return rows of numbers float32 (n, F), and targets (n,) that are numbers or texts."""
    with np.errstate(over="ignore"):  # what is too large for it is refused as infinite
        return _finite(_rows(x, "rows of numbers").astype(np.float32), "x"), _targets(y)


def as_images(x: list[Any], y: list[Any]) -> Arrays:
    """Return square images uint8 (n, 1, H, H) of rows of numbers from 0 to 1, and their classes."""
    values, labels = _rows(x, "pixels"), _targets(y)
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"pixels are numbers from 0 to 1, and x goes from {values.min():.4g} to "
            f"{values.max():.4g}; take dataset=tabular if these are features"
        )
    side = isqrt(values.shape[1])
    if side * side != values.shape[1]:
        raise ValueError(
            f"{values.shape[1]:,} pixels make no square image; take dataset=tabular if these are "
            "features"
        )
    return np.rint(values * 255).astype(np.uint8).reshape(-1, 1, side, side), labels


def as_characters(x: list[Any], y: list[Any]) -> Arrays:
    """Return the code points of texts with what follows, uint32 (n, T + 1), and of that (n,)."""
    if {*map(type, x)} != {str}:
        raise ValueError(f"x holds {_kind(x)}")
    if {*map(type, y)} != {str} or {*map(len, y)} != {1}:
        raise ValueError("y is not one character each")
    if len(lengths := {*map(len, x)}) > 1:
        raise ValueError(f"x has texts of {min(lengths):,} and of {max(lengths):,} characters")
    joined = "".join(map("".join, zip(x, y, strict=True)))
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4").reshape(len(x), -1)
    return points, points[:, -1]


def _rows(x: list[Any], wanted: str) -> np.ndarray:
    """Return rows of finite numbers, float64 (n, F)."""
    if {*map(type, x)} != {list}:
        raise ValueError(f"x holds {_kind(x)}, and {wanted} are wanted")
    if len(lengths := {*map(len, x)}) > 1:
        raise ValueError(f"x has rows of {min(lengths):,} and of {max(lengths):,} numbers")
    try:
        values = np.array(x)
    except ValueError:  # lists of several lengths within the rows
        values = np.empty(0, object)
    if values.ndim != 2 or values.dtype.kind not in "iuf" or not values.shape[1]:
        raise ValueError(f"x holds rows of something else than numbers, and {wanted} are wanted")
    return _finite(values.astype(np.float64), "x")


def _kind(x: list[Any]) -> str:
    """Say what examples are, and which data set reads them."""
    if {*map(type, x)} == {str}:
        return "texts (of which dataset=text learns the next character)"
    if {*map(type, x)} == {list}:
        return "rows (dataset=folder reads pixels, dataset=tabular features)"
    return "neither texts nor rows of numbers"


def _targets(y: list[Any]) -> np.ndarray:
    kinds = {*map(type, y)}
    if kinds == {str}:
        return np.array(y, object)
    if not kinds <= {int, float}:
        raise ValueError("y holds neither numbers alone nor texts alone")
    try:
        return _finite(np.array(y, np.int64 if kinds == {int} else np.float64), "y")
    except OverflowError as error:
        raise ValueError("y holds a number of more than 64 bits") from error


def _finite(values: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError(f"{what} holds a number that is not finite")
    return values


def _whole(y: np.ndarray) -> np.ndarray:
    """Return targets as whole numbers where all are: some write classes as 3.0."""
    if y.dtype.kind == "f" and (np.abs(y) < _EXACT).all() and (y == np.rint(y)).all():
        return y.astype(np.int64)
    return y


# A file


def _users(path: Path) -> Iterator[tuple[str, list[Any], list[Any], object]]:
    """Yield the users of a file, with x, y, and how many examples num_samples gives them."""
    where = shown(str(path), 200)
    content = _parsed(path, where)
    users = content.get("users") if isinstance(content, dict) else None
    given = content.get("user_data") if isinstance(content, dict) else None
    if not isinstance(users, list) or not isinstance(given, dict):
        raise DataError(f"{where} has no users and user_data, as LEAF's files have")
    stated = content.get("num_samples", [])
    if not isinstance(stated, list):
        raise DataError(f"{where}: num_samples is no list")
    if not all(isinstance(user, str) and user and "\0" not in user for user in users):
        raise DataError(f"{where}: users are no list of names")
    if len({*users}) < len(users):
        raise DataError(f"{where}: user '{shown(_first_twice(users))}' is in users twice")
    if {*users} != {*given}:
        other = min({*users} ^ {*given})
        raise DataError(f"{where}: user '{shown(other)}' is in one of users and user_data alone")
    for number, user in enumerate(users):
        own = given.pop(user)  # so that its numbers are freed once they are an array
        x, y = (own.get(key) if isinstance(own, dict) else None for key in "xy")
        if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
            sizes = " and ".join(f"{len(v):,}" if isinstance(v, list) else "no" for v in (x, y))
            raise DataError(f"{where}, user '{shown(user)}': x and y have {sizes} examples")
        yield user, x, y, stated[number] if number < len(stated) else len(y)


def _first_twice(names: Iterable[str]) -> str:
    return next(name for name, count in Counter(names).items() if count > 1)


def _parsed(path: Path, where: str) -> Any:
    """Return what a JSON file holds."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = _first_twice(key for key, _ in pairs)
            raise ValueError(f"'{shown(twice)}' is in it twice")
        return found

    def no_number(name: str) -> float:
        raise ValueError(f"it holds {name}, which is no number")

    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{where} can't be read: {error.strerror}") from error
    try:
        return json.loads(content, object_pairs_hook=once, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} can't be read as JSON: {error}") from error
