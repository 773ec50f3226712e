"""What an experiment should give, row by row: a paper's value, ours over the seeds, a verdict.

Pure: a row reads the rounds of the trials that it is about, and nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fedsweep.catalog import CATALOG, FACTORS
from fedsweep.report.stats import EXACT, interval, share_interval

Tier = Literal["cpu", "full"]
ARI = "2_clusters/ari"


class Row(BaseModel):
    """One expected number.

    Values are in ``unit``: a share as it is logged is 100 times as many ``%`` or ``points``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str = Field(description="the row's heading")
    at: dict[str, str] = Field(
        default_factory=dict,
        description="axis or setting, by full key -> value: the trials it is about",
    )
    metric: str = Field(description="logged metric")
    round: int | None = Field(None, ge=0, description="its round; null: the last")
    reaches: float | None = Field(
        None, description="the share of seeds in which the metric is at least this"
    )
    rounds_to: float | None = Field(
        None, description="the rounds until the metric is at least this"
    )
    along: str | None = Field(
        None, description="a logged metric that rounds_to counts, such as 5_time/virtual_s; rounds"
    )
    minus: dict[str, str] | None = Field(
        None, description="trials whose value is subtracted, seed by seed"
    )
    over: dict[str, str] | None = Field(
        None, description="trials by whose value it is divided, seed by seed"
    )
    seeds: Literal["all", "recovered", "missed"] = Field(
        "all",
        description=(
            "only the seeds that recovered the known groups (ARI 1 in the last round), "
            "or missed them"
        ),
    )
    unit: Literal["%", "points", "rounds", "x", ""] = Field(
        "%", description="unit of the values of this row"
    )
    paper: float | None = Field(None, description="the paper's value; null where it says none")
    within: float | None = Field(
        None, gt=0, description="holds where ours is this near to the paper's value"
    )
    at_least: float | None = Field(None, description="holds where ours is not less")
    at_most: float | None = Field(None, description="holds where ours is not more")
    source: str = Field(
        "", description="where the paper's value stands; empty: the experiment's source"
    )
    tier: Tier | None = Field(None, description="the only protocol that has this row; null: both")

    @field_validator("at", "minus", "over", mode="before")
    @classmethod
    def _as_text(cls, values: object) -> object:
        """Take 1 and 0.5 as MLflow has them, as text."""
        return (
            {key: str(value) for key, value in values.items()}
            if isinstance(values, Mapping)
            else values
        )

    @field_validator("metric", "along")
    @classmethod
    def _is_logged(cls, metric: str | None) -> str | None:
        if metric is not None:
            CATALOG[metric]  # refuses one that nobody declared
        return metric

    @model_validator(mode="after")
    def _is_decidable(self) -> Self:
        if sum(bound is not None for bound in (self.within, self.at_least, self.at_most)) != 1:
            raise ValueError(f"row '{self.what}' needs one of within, at_least and at_most")
        if self.within is not None and self.paper is None:
            raise ValueError(f"row '{self.what}' has within, and no paper's value to be near to")
        if self.minus is not None and self.over is not None:
            raise ValueError(f"row '{self.what}' has both minus and over; give one of them")
        if self.reaches is not None and self.rounds_to is not None:
            raise ValueError(f"row '{self.what}' has both reaches and rounds_to; give one of them")
        if self.along is not None and self.rounds_to is None:
            raise ValueError(f"row '{self.what}' has along, and no rounds_to that would go by it")
        return self


@dataclass(frozen=True)
class Measured:
    """A trial that ended: where it stands in the grid, and its rounds."""

    params: Mapping[str, str]
    history: Callable[
        [str], pd.DataFrame
    ]  # a logged metric -> columns "round" and, where it has values, the metric

    @property
    def seed(self) -> str:
        """The seed, by which trials are paired."""
        return self.params["seed"]


@dataclass(frozen=True)
class Value:
    """A trial's number; censored where the target was not reached: then it is more than this."""

    number: float
    censored: bool = False


@dataclass(frozen=True)
class Verdict:
    """A row's outcome."""

    row: Row
    mean: float
    low: float
    high: float
    seeds: int
    trials: int  # that the row is about, seeds that it leaves out included
    censored: int  # seeds whose number is only a lower bound
    holds: bool | None  # None: no seed tells

    @property
    def ours(self) -> str:
        """Our value as it is read, with its 95% interval."""
        if self.holds is None:
            return "-"
        digits = 2 if self.row.unit in ("", "x") else 1
        mark = ">= " if self.censored else ""
        range_ = "" if isnan(self.low) else f" [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return f"{mark}{self.mean:.{digits}f}{range_}"

    @property
    def tolerance(self) -> str:
        """The condition as it is read."""
        row = self.row
        if row.within is not None:
            return f"± {row.within:g}"
        return f">= {row.at_least:g}" if row.at_least is not None else f"<= {row.at_most:g}"

    @property
    def word(self) -> str:
        """The verdict as it is read."""
        if self.holds is None:
            return "no such seed" if self.trials else "not run"
        return "holds" if self.holds else "missed"


def expand_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per value of ``each: {key: [values]}``: it joins ``at``, is {} in ``what``."""
    expanded = []
    for row in rows:
        plain = {key: value for key, value in row.items() if key != "each"}
        cells = [(key, value) for key, values in row.get("each", {}).items() for value in values]
        for key, value in cells:
            at = {**row.get("at", {}), key: value}
            expanded.append({**plain, "what": str(row["what"]).replace("{}", str(value)), "at": at})
        if not cells:
            expanded.append(plain)
    return expanded


def judge(row: Row, trials: Sequence[Measured]) -> Verdict:
    """Return whether a row holds over the trials of a sweep.

    The interval of a mean is Student's t over the seeds, that of a share of seeds Wilson's.
    """
    factor = (
        1.0 if row.rounds_to is not None or row.over is not None else FACTORS.get(row.unit, 1.0)
    )
    about = min(
        len(_matching(at, trials)) for at in (row.at, row.minus, row.over) if at is not None
    )
    values = _paired(row, trials)
    numbers = np.array([value.number for value in values]) * factor
    censored = sum(value.censored for value in values)
    if not len(numbers) or np.isnan(numbers).any():
        return Verdict(
            row, nan, nan, nan, len(numbers), about, censored, False if len(numbers) else None
        )
    mean = float(numbers.mean())
    if row.reaches is not None:
        low, high = (
            bound * factor for bound in share_interval(int((numbers > 0).sum()), len(numbers))
        )
    else:
        half = nan if censored else interval(numbers)
        low, high = mean - half, mean + half
    return Verdict(row, mean, low, high, len(numbers), about, censored, _holds(row, mean, censored))


def _holds(row: Row, mean: float, censored: int) -> bool:
    """Return whether a mean is what the row expects;
    a lower bound can only show that it is at least something.
    """
    if row.at_least is not None:
        return mean >= row.at_least - 1e-9
    if censored:
        return False
    if row.at_most is not None:
        return mean <= row.at_most + 1e-9
    assert row.within is not None
    assert row.paper is not None
    return abs(mean - row.paper) <= row.within + 1e-9


def _paired(row: Row, trials: Sequence[Measured]) -> list[Value]:
    """Return the row's number of each seed that has one."""
    ours = _by_seed(row, row.at, trials, row.seeds)
    other = row.minus if row.minus is not None else row.over
    if other is None:
        return list(ours.values())
    theirs = _by_seed(row, other, trials, "all")
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    if row.minus is not None:
        return [Value(a.number - b.number, a.censored or b.censored) for a, b in pairs]
    # A denominator that is only a lower bound leaves the ratio without any bound from below.
    return [Value(nan if b.censored else a.number / b.number, a.censored) for a, b in pairs]


def _by_seed(
    row: Row, at: Mapping[str, str], trials: Sequence[Measured], seeds: str
) -> dict[str, Value]:
    chosen = _matching(at, trials)
    if seeds != "all":
        chosen = [trial for trial in chosen if _recovered(trial) == (seeds == "recovered")]
    return {trial.seed: _value(row, trial) for trial in chosen}


def _matching(at: Mapping[str, str], trials: Sequence[Measured]) -> list[Measured]:
    return [
        trial
        for trial in trials
        if all(trial.params.get(key) == value for key, value in at.items())
    ]


def _recovered(trial: Measured) -> bool:
    table = trial.history(ARI)
    known = table[ARI].dropna().tolist() if ARI in table else []
    return bool(known) and known[-1] >= EXACT


def _value(row: Row, trial: Measured) -> Value:
    """Return a trial's number, as it is logged."""
    table = trial.history(row.metric)
    if row.metric not in table:
        return Value(nan)
    points = table.dropna(subset=[row.metric])
    if row.rounds_to is not None:
        passed = "round"
        if row.along is not None:
            passed, along = row.along, trial.history(row.along)
            if passed not in along:
                return Value(nan)
            there = along.dropna(subset=[passed])[["round", passed]]
            points = points[["round", row.metric]].merge(there, on="round")
        return rounds_to(points[passed].tolist(), points[row.metric].tolist(), row.rounds_to)
    if row.round is not None:
        points = points[points["round"] == row.round]
    if points.empty:
        return Value(nan)
    value = float(points[row.metric].iloc[-1])
    return Value(value if row.reaches is None else float(value >= row.reaches))


def rounds_to(rounds: Sequence[float], values: Sequence[float], target: float) -> Value:
    """Return when the best value so far reached a target, between rounds by linear interpolation.

    Rounds may be anything that grows with them, such as virtual seconds.

    Source: McMahan et al. 2017 (arXiv:1602.05629), section 3. Censored at the last round where it
    never did.
    """
    best = np.maximum.accumulate(np.asarray(values, float))
    there = np.flatnonzero(best >= target)
    if not len(there):
        return Value(float(rounds[-1]) if len(rounds) else nan, censored=True)
    last = int(there[0])
    if last == 0:
        return Value(float(rounds[0]))
    share = (target - best[last - 1]) / (best[last] - best[last - 1])
    return Value(float(rounds[last - 1] + share * (rounds[last] - rounds[last - 1])))
