"""What a report shows, and how: the words of a command line, or a file beside the sweep."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from fedsweep.catalog import CATALOG, Metric, Need
from fedsweep.config.section import short_names
from fedsweep.errors import ConfigError, RunnerError, one_line, shown, unknown
from fedsweep.records import TrialRow
from fedsweep.report.results import SEED
from fedsweep.report.stats import Test

Spread = Literal["std", "interval", "full", "none"]
PICTURES = ("png", "pdf", "svg")
COUNTS = ("trials", "failed", "recovered", "reached")
"""Columns that are no metric: how many trials a cell has, and what became of them."""

_UNITS = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27}
_MOST_SEEDS = 100_000


def _listed(value: Any) -> Any:
    """Read ``a,b`` as a list, and a number as a text: a YAML file has both."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, bool | int | float):
        return [_text(value)]
    return [_text(part) for part in value] if isinstance(value, list | tuple) else value


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value)
    return f"{value}" if isinstance(value, int | float) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class Choice(BaseModel):
    """A table and its figures. Without any word: the whole sweep, as the catalog says.

    Axes may be given by their short names, values by their numbers: ``alpha=0.10`` is ``0.1``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sweep: str = Field("", description="the sweep, by name or by its run's id")
    columns: Names = Field(
        (), description=f"metrics of a trial's end, in order; and {', '.join(COUNTS)}"
    )
    rows: Names = Field((), description="axes that go down, in order")
    by: Names = Field((), description="axes that go across: a block of columns per value")
    where: dict[str, Names] = Field(
        default_factory=dict, description="setting -> its values: the trials that are shown"
    )
    seeds: Names = Field((), description="seeds that are shown: 0-4 or 0,1,2")
    best: str = Field("", description="axis of which each row shows its best value alone")
    best_by: str = Field("client_acc", description="held-out metric by which that is chosen")
    best_seeds: Names = Field(
        (), description="seeds to choose on; the table then shows the other ones"
    )
    sort: str = Field("grid", description="grid, or a metric: the best row first")
    labels: dict[str, str] = Field(
        default_factory=dict, description="axis, value, axis=value or metric -> how it is called"
    )
    decimals: dict[str, Annotated[int, Field(ge=0, le=12)]] = Field(
        default_factory=dict, description="metric, or all -> digits behind the point"
    )
    spread: Spread | None = Field(
        None, description="behind a mean: its deviation, half its interval, both, or nothing"
    )
    test: Test = Field("t", description="paired test that marks the best row")
    target: str = Field("", description="0.9, or METRIC=VALUE: what a trial should reach")
    epsilon: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="spent of privacy: the accuracy by then"
    )
    caption: str = Field("", description="what a caption begins with")
    pictures: Names = Field((), description=f"formats of the figures: {', '.join(PICTURES)}")
    width: str = Field("", description="width of a figure on paper: 3.25in, 8.2cm, 240pt")

    @field_validator("seeds", "best_seeds")
    @classmethod
    def _each(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(seed for part in given for seed in _seeds(part))

    @field_validator("best_by")
    @classmethod
    def _is_held_out(cls, name: str) -> str:
        metric = CATALOG.finals.get(name)
        held_out = [
            final for final, found in CATALOG.finals.items() if Need.HELD_OUT in found.needs
        ]
        if metric is None or name not in held_out:
            raise ValueError(
                "a setting is chosen on what clients hold out, and nothing else; take one of "
                + ", ".join(held_out)
            )
        return name

    @field_validator("pictures")
    @classmethod
    def _are_formats(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            if name not in PICTURES:
                raise ValueError(f"{shown(name)} is no format of a figure; take png, pdf or svg")
        return given

    @field_validator("width")
    @classmethod
    def _is_width(cls, given: str) -> str:
        if given and not 1 <= inches(given) <= 20:
            raise ValueError("a figure is 1 to 20 inches wide")
        return given

    @property
    def is_chosen(self) -> bool:
        """Whether somebody chose what a table shows: else it is the whole sweep."""
        kept = {"sweep", "test", "target", "epsilon", "pictures", "width"}
        kept |= {"caption", "labels", "decimals"}
        return any(
            getattr(self, key) != field.get_default(call_default_factory=True)
            for key, field in type(self).model_fields.items()
            if key not in kept
        )


EVERYTHING = Choice()
"""The whole sweep, as the catalog says."""


def read_choice(path: str) -> dict[str, Any]:
    """Return what a file such as ``report.yaml`` says: the keys of a :class:`Choice`.

    Raises
    ------
    ConfigError
        It can't be read, or is no mapping.
    """
    try:
        loaded = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{shown(path, 200)} can't be read: {one_line(error)}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{shown(path, 200)} holds no keys and values, such as rows: strategy")
    return {str(key): value for key, value in loaded.items()}


def inches(width: str) -> float:
    """Return a width on paper in inches.

    Raises
    ------
    ValueError
        It is no number with a unit.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(in|cm|mm|pt)\s*", width)
    if not found:
        raise ValueError(f"give a number and its unit ({', '.join(_UNITS)}), such as 3.25in")
    return float(found[1]) * _UNITS[found[2]]


def _seeds(part: str) -> list[str]:
    """Return the seeds of ``3`` or ``0-4``."""
    found = re.fullmatch(r"(\d+)-(\d+)", part)
    if not found:
        return [part]
    first, last = int(found[1]), int(found[2])
    if not first <= last <= first + _MOST_SEEDS:
        raise ValueError(f"{part} is no range of seeds; give the lower one first, such as 0-4")
    return [str(seed) for seed in range(first, last + 1)]


def axis_of(word: str, axes: Iterable[str], what: str) -> str:
    """Return an axis by its full key, given by it or by its short name.

    Raises
    ------
    ConfigError
        The sweep has no such axis; its axes are named.
    """
    keys = list(axes)
    if word in keys:
        return word
    ends = [key for key in keys if key.endswith(f".{word}")]
    short = [key for key, name in short_names([*keys, SEED]).items() if name == word]
    found = [key for key in short or ends if key in keys]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{what} {shown(word)} is several axes: {', '.join(found)}")
    raise ConfigError(f"{what}: {unknown('axis', word, keys)}")


def metric_of(word: str, there: Iterable[str], what: str) -> str:
    """Return a column by its name at a trial's end, given by it or by its key in rounds.

    Raises
    ------
    ConfigError
        The trials have no such metric; those that they have are named.
    """
    known = list(there)
    if word in COUNTS or word in known:
        return word
    metric = CATALOG.get(word)
    if metric is not None and metric.final in known:
        return metric.final
    raise ConfigError(f"{what}: {unknown('metric', word, sorted({*known, *COUNTS}))}")


def picked(
    choice: Choice,
    rows: Sequence[TrialRow],
    axes: Sequence[str],
    settings: Sequence[Mapping[str, str]] = (),
) -> list[int]:
    """Return the places of the trials that ``where`` and ``seeds`` let through.

    Parameters
    ----------
    choice : Choice
        What is to be shown.
    rows : sequence of TrialRow
        All trials of a sweep.
    axes : sequence of str
        Its axes by full key.
    settings : sequence of mapping, optional
        Of each trial, all its settings by full key: ``where`` may name those too.

    Raises
    ------
    RunnerError
        A setting is none of theirs, or no trial is left: the values that there are are named.
    """
    asked = dict(choice.where)
    if choice.seeds:
        asked[SEED] = choice.seeds
    kept = list(range(len(rows)))
    for word, values in asked.items():
        have = _values(word, rows, axes, settings)
        left = [i for i in kept if any(same_value(have[i], value) for value in values)]
        if not left:
            there = dict.fromkeys(have[i] for i in kept if have[i] is not None)
            told = f"--seeds {','.join(values)}" if word == SEED else f"{word}={','.join(values)}"
            raise RunnerError(
                f"no trial is left of {shown(told)}; there is {word}="
                f"{shown(','.join(map(str, there)), 200)}"
            )
        kept = left
    return kept


def unmatched(
    choice: Choice,
    rows: Sequence[TrialRow],
    axes: Sequence[str],
    settings: Sequence[Mapping[str, str]] = (),
) -> list[str]:
    """Say which values of ``where`` and ``seeds`` no trial has, where others beside them fit."""
    told = []
    asked = dict(choice.where) | ({SEED: choice.seeds} if choice.seeds else {})
    for word, values in asked.items():
        have = dict.fromkeys(_values(word, rows, axes, settings))
        none = [value for value in values if not any(same_value(there, value) for there in have)]
        if none:
            told.append(f"no trial has {word}={shown(','.join(none), 100)}")
    return told


def _values(
    word: str,
    rows: Sequence[TrialRow],
    axes: Sequence[str],
    settings: Sequence[Mapping[str, str]],
) -> list[str | None]:
    """Return each trial's value of an axis, or of another setting."""
    try:
        key = axis_of(word, axes, "--where")
        return [row.axes.get(key) for row in rows]
    except ConfigError:
        known = {name for params in settings for name in params}
        for key in (word, f"{word}.name"):
            if key in known:
                return [params.get(key) for params in settings]
        near = get_close_matches(word, [*axes, *known], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"--where: {shown(word)} is no setting of these trials{hint}; axes: {', '.join(axes)}"
        ) from None


def same_value(ours: str | None, given: str) -> bool:
    """Return whether two texts are the same value of a setting: ``0.10`` is ``0.1``."""
    if ours is None or ours == given:
        return ours == given
    try:
        return float(ours) == float(given)
    except ValueError:
        return ours.lower() == given.lower() and given.lower() in ("true", "false")


def decimals_of(choice: Choice, metric: Metric) -> int:
    """Return the digits behind the point of a metric: as given, else as the catalog says."""
    for name in (metric.final, metric.key, "all"):
        if name in choice.decimals:
            return choice.decimals[name]
    return metric.decimals
