"""What tables and figures are made of: the trials of a sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fedsweep.config.section import short_names


@dataclass(frozen=True)
class Trials:
    """The trials of a sweep, in its order. Settings and numbers are two tables: none hides another.

    Parameters
    ----------
    axes : pd.DataFrame
        Full key -> value, a row per trial; missing where an axis does not apply. Numbers are
        numbers, so that 10 comes after 2.
    metrics : pd.DataFrame
        Final metrics, a row per trial, nan where it has none.
    finished : pd.Series
        Whether the trial finished.
    known : pd.DataFrame
        Whether it has that metric at all, as ``metrics``: one that diverged has it.
    """

    axes: pd.DataFrame
    metrics: pd.DataFrame
    finished: pd.Series
    known: pd.DataFrame

    @property
    def names(self) -> dict[str, str]:
        """What the axes are called where people read them."""
        return short_names(map(str, self.axes))

    def frame(self) -> pd.DataFrame:
        """Return both tables side by side."""
        return pd.concat([self.axes, self.metrics], axis=1)


def said_by_others(axes: pd.DataFrame, named: Sequence[str], rest: Sequence[str]) -> list[str]:
    """Return those of the rest of the axes that say nothing beside the other ones.

    They have one value, where they apply at all: ``num_clusters`` where one method alone clusters.
    Where axes are named, so is each that has one value beside them, such as a setting that each
    method has of its own.
    """
    found: list[str] = []
    values = {key: [plain(value) for value in axes[key]] for key in (*named, *rest)}
    for key in reversed(rest):
        others = [other for other in values if other != key and other not in found]
        columns = [values[other] for other in others]
        places = list(zip(*columns, strict=True)) if columns else [()] * len(axes)
        one_each = len(set(zip(places, values[key], strict=True))) == len(set(places))
        if one_each and (named or axes[key].nunique() <= 1):
            found.append(key)
    return found[::-1]


def grouped(
    axes: pd.DataFrame, keys: Sequence[str], reorder: bool
) -> tuple[list[int], list[tuple[Any, ...]]]:
    """Return which group each row is of, and the groups: in the grid's order, or by key.

    Parameters
    ----------
    axes : pd.DataFrame
        A row per cell.
    keys : sequence of str
        The axes that rows of a group agree in.
    reorder : bool
        Groups in the order of each key's values, the first key first.
    """
    values = [[plain(value) for value in axes[key]] for key in keys]
    places = list(zip(*values, strict=True)) if keys else [()] * len(axes)
    groups = list(dict.fromkeys(places))
    if reorder:
        first = [{value: i for i, value in reversed(list(enumerate(column)))} for column in values]
        groups.sort(key=lambda place: [first[n][value] for n, value in enumerate(place)])
    where = {place: i for i, place in enumerate(groups)}
    return [where[place] for place in places], groups


def plain(value: Any) -> Any:
    """Return a value that is equal to itself: a missing one is None."""
    return None if pd.isna(value) else value
