"""Two sweeps side by side, trial by trial: of two versions of the tool, or of two settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan, nan
from typing import TYPE_CHECKING

import numpy as np

from fedsweep.catalog import CATALOG
from fedsweep.config.section import short_names
from fedsweep.errors import RunnerError, first_of
from fedsweep.output import amount
from fedsweep.report.results import SEED
from fedsweep.report.stats import LEAST, LEVEL, TESTS, Test, corrected, p_different
from fedsweep.report.table import Lines, Marked

if TYPE_CHECKING:
    from fedsweep.tracking.read import StoredSweep, StoredTrial

_Place = tuple[tuple[str, str], ...]
_HASH = "weights_sha256"
_LISTED = 6
"""Settings, or cells, that a line names."""


@dataclass(frozen=True)
class Paired:
    """What became of two sweeps' pairs of trials.

    Parameters
    ----------
    lines : Lines
        A row per cell and metric, headings first; a difference that is clear is marked.
    place : int
        How many columns say where a row lies: the others are its numbers.
    told : tuple of str
        What it says, line by line: how many pairs, how many with the same bits, in which settings
        they differ, which trials have no partner, by which test.
    """

    lines: Lines
    place: int
    told: tuple[str, ...]


def paired(first: "StoredSweep", second: "StoredSweep", test: Test = "t") -> Paired:
    """Compare the trials that two sweeps have at the same place of the axes that both have.

    Raises
    ------
    RunnerError
        They share no axis but the seed, have several trials at a place, or no pair.
    """
    shared = [key for key in first.axes if key in second.axes]
    ours, theirs = _by_place(first, shared), _by_place(second, shared)
    places = [place for place in ours if place in theirs]
    if not places:
        raise RunnerError(
            f"'{first.name}' and '{second.name}' have no trial at the same place of "
            f"{', '.join(shared) or 'any axis'}"
        )
    pairs = {place: (ours[place], theirs[place]) for place in places}
    cells: dict[_Place, list[_Place]] = {}
    for place in places:
        cells.setdefault(tuple(part for part in place if part[0] != SEED), []).append(place)
    rows = [
        (cell, metric, *_differences([pairs[place] for place in of], metric, test))
        for metric in CATALOG.ranked
        for cell, of in cells.items()
        if any(metric in trial.final for place in of for trial in pairs[place])
    ]
    p_values = corrected([p for *_, p in rows])
    names = short_names([*shared, SEED])
    axes = [key for key in shared if key != SEED]
    same = sum(_same_bits(*pair) for pair in pairs.values())
    return Paired(
        [
            [
                *(names[key] for key in axes),
                "metric",
                "pairs",
                "first",
                "second",
                "difference",
                "p",
            ],
            *(
                _line(cell, axes, metric, numbers, p)
                for (cell, metric, *numbers, _), p in zip(rows, p_values, strict=True)
            ),
        ],
        len(axes) + 1,
        (
            f"{amount(len(pairs), 'pair')} of trials; {same} with the same final weights, to the "
            "bit",
            *_settings(list(pairs.values())),
            *_without_partner(first, ours, pairs),
            *_without_partner(second, theirs, pairs),
            *_unfinished(first),
            *_unfinished(second),
            f"*: {TESTS[test]} over at least {LEAST} seeds, p <= {LEVEL}; p is corrected for the "
            "number of rows by Holm",
        ),
    )


def _settings(pairs: "list[tuple[StoredTrial, StoredTrial]]") -> list[str]:
    """Say in which settings pairs differ, in all of them or in some."""
    found: dict[tuple[str, str, str], int] = {}
    for one, two in pairs:
        for key in sorted(one.params.keys() | two.params.keys()):
            values = one.params.get(key, "-"), two.params.get(key, "-")
            if values[0] != values[1]:
                found[key, *values] = found.get((key, *values), 0) + 1
    listed = [
        f"{key} ({mine}, {other})" + (f" in {amount(count, 'pair')}" if count < len(pairs) else "")
        for (key, mine, other), count in found.items()
    ]
    return [f"they differ in {first_of(listed, _LISTED)}"] if listed else []


def _without_partner(
    sweep: "StoredSweep", trials: Mapping[_Place, object], pairs: Mapping[_Place, object]
) -> list[str]:
    """Say which trials of a sweep the other one lacks, by their cells."""
    lone = [place for place in trials if place not in pairs]
    cells = dict.fromkeys(
        " ".join(f"{key}={value}" for key, value in place if key != SEED) or "all" for place in lone
    )
    where = first_of([*cells], _LISTED)
    told = f"{amount(len(lone), 'trial')} of '{sweep.name}' without a partner: {where}"
    return [told] if lone else []


def _unfinished(sweep: "StoredSweep") -> list[str]:
    """Say how many trials of a sweep are in no pair, whatever the other one has."""
    count = sum(trial.status != "FINISHED" for trial in sweep.trials)
    return [f"{amount(count, 'trial')} of '{sweep.name}' did not finish"] if count else []


def _by_place(sweep: "StoredSweep", shared: list[str]) -> "dict[_Place, StoredTrial]":
    """Return a sweep's finished trials by their place on some of its axes."""
    found: dict[_Place, StoredTrial] = {}
    for place, trial in zip(sweep.places, sweep.trials, strict=True):
        if trial.status != "FINISHED":
            continue
        there = tuple((key, place[key]) for key in shared if key in place)
        if there in found:
            lacking = [key for key in sweep.axes if key not in shared]
            raise RunnerError(
                f"'{sweep.name}' has several trials where the other sweep has one: only it has "
                f"the axes {', '.join(lacking)}"
            )
        found[there] = trial
    return found


def _differences(
    pairs: "list[tuple[StoredTrial, StoredTrial]]", metric: str, test: Test
) -> tuple[int, float, float, float]:
    """Return how many pairs have a metric, its means, and the p-value of their difference."""
    both = [
        (one.final[metric], two.final[metric])
        for one, two in pairs
        if metric in one.final and metric in two.final
    ]
    if not both:
        return 0, nan, nan, 1.0
    ours, theirs = np.array(both).T
    sign = CATALOG.final(metric).sign  # what diverged is the worst, whichever way is better
    p = p_different(sign * ours, sign * theirs, test)
    return len(both), float(ours.mean()), float(theirs.mean()), p


def _same_bits(one: "StoredTrial", two: "StoredTrial") -> bool:
    tags: tuple[Mapping[str, str], ...] = (one.run.data.tags, two.run.data.tags)
    return bool(tags[0].get(_HASH)) and tags[0].get(_HASH) == tags[1].get(_HASH)


def _line(
    cell: _Place, axes: list[str], metric: str, numbers: list[float], p: float
) -> list[str | Marked]:
    """Return a row as it is read."""
    told, place = CATALOG.final(metric), dict(cell)
    count, first, second = numbers
    gain = second - first
    difference = "nan" if isnan(gain) else f"{gain * told.factor:+.{told.decimals + 1}f}"
    return [
        *(place.get(key, "-") for key in axes),
        told.heading,
        f"{count:.0f}",
        told.told(first),
        told.told(second),
        Marked(difference, " *") if p <= LEVEL else difference,
        f"{p:.2g}" if count >= LEAST else "-",
    ]
