"""Curves over rounds from the store: what is drawn, and when a target was reached."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

import pandas as pd

from fedsweep.catalog import CATALOG, EPSILON
from fedsweep.config import TrialConfig
from fedsweep.errors import RunnerError
from fedsweep.report.results import SEED
from fedsweep.report.rows import Trials, said_by_others

if TYPE_CHECKING:
    from fedsweep.tracking.read import StoredTrial

_METHOD = "strategy"  # stands first in the name of a way
_ACC = "1_global/acc"


@dataclass(frozen=True)
class Along:
    """What curves run along."""

    key: str  # a metric that only grows, as it is logged; of the rounds none
    figure: str  # in the names of figures
    label: str  # of the axis
    title: str
    to_target: str  # what a trial took of it until it reached a target


ALONG = {
    "round": Along("", "rounds", "round", "rounds", "rounds_to_target"),
    "mb": Along(
        "4_comm/mb_total", "megabytes", "client traffic (MB)", "client traffic", "mb_to_target"
    ),
    "virtual_s": Along(
        "5_time/virtual_s", "virtual_time", "virtual time (s)", "virtual time",
        "virtual_s_to_target",
    ),
}  # fmt: skip
"""By the name of their column in the curves; a trial may lack one."""


@dataclass(frozen=True)
class Target:
    """What a trial should reach: a metric as it is logged, and a value."""

    key: str
    value: float

    @classmethod
    def parse(cls, word: str) -> "Target":
        """Read ``0.9`` (of the mean client accuracy) or ``1_global/acc=0.9``."""
        key, _, value = word.rpartition("=")
        try:
            target = cls(key or "3_clients/acc", float(value))
        except ValueError:
            raise RunnerError(
                f"--target {word} is no target; give a share of the client accuracy (0.9) "
                "or METRIC=VALUE"
            ) from None
        CATALOG[target.key]  # refuses one that nobody declared
        return target

    @property
    def sign(self) -> float:
        """Times the metric, more is better."""
        return CATALOG[self.key].sign

    def __str__(self) -> str:
        return f"{self.key} {'<=' if self.sign < 0 else '>='} {self.value:g}"


def trial_curves(trials: "Mapping[int, StoredTrial]", target: Target | None = None) -> pd.DataFrame:
    """Return a row per trial and round: ``trial`` (its number), what curves run along
    (``ALONG``), the catalog's curves by their names (``acc``, ``loss``), and the
    target's metric as ``target``.

    A curve is the first of its metrics that the trial has: the clients' mean, else the global
    model's. It is missing where nothing was evaluated, and ``acc_nan``, ``loss_nan`` say where it
    was logged as NaN.
    """
    parts = []
    curves = {name: [metric.key for metric in found] for name, found in CATALOG.curves.items()}
    took = {name: along.key for name, along in ALONG.items() if along.key}
    curves |= {name: [key] for name, key in took.items()}
    for i, trial in trials.items():
        keys = [key for found in curves.values() for key in found]
        wanted = {*keys, *([target.key] if target else [])}
        histories = {key: trial.history([key]) for key in wanted}
        logged = {
            key: table.set_index("round")[key] for key, table in histories.items() if key in table
        }
        rounds = sorted({number for values in logged.values() for number in values.index})
        part = pd.DataFrame({"trial": i, "round": rounds}, index=rounds)
        for name, options in curves.items():
            values = next((logged[key] for key in options if key in logged), pd.Series(dtype=float))
            part[name] = values
            part[f"{name}_nan"] = part["round"].isin(values.index[values.isna()])
        for name in took:
            part[name] = part[name].ffill()
        if target is not None:
            part["target"] = logged.get(target.key, nan)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def to_target(curve: pd.DataFrame, target: Target) -> dict[str, float]:
    """Return the rounds, the client traffic (MB) and, under a virtual clock, the virtual seconds
    until a trial first reached the target; nan if it did not.
    """
    there = curve[target.sign * curve["target"] >= target.sign * target.value]
    return {
        along.to_target: nan if there.empty else float(there[name].iloc[0])
        for name, along in ALONG.items()
        if name in curve and curve[name].notna().any()
    }


def within_epsilon(trial: "StoredTrial", epsilon: float) -> float:
    """Return a trial's global accuracy in the last evaluated round that spent no more of privacy.

    It is nan where already the first one spent more, or where nothing was accounted.
    """
    rounds = trial.history([EPSILON, _ACC])
    if not {EPSILON, _ACC} <= set(rounds):
        return nan
    there = rounds[(rounds[EPSILON] <= epsilon) & rounds[_ACC].notna()]
    return nan if there.empty else float(there[_ACC].iloc[-1])


def with_labels(
    rows: pd.DataFrame, trials: Trials, said: Callable[[str, object], str] | None = None
) -> pd.DataFrame:
    """Add ``panel`` (the problem) and ``line`` (the way to solve it) to rows with a ``trial``.

    Places that read alike are told apart by the names of their axes: one line is never of several.

    ``said`` reads a setting, by the axis's full key and its value.
    """
    every = [key for key in map(str, trials.axes) if key != SEED]
    fixed = said_by_others(trials.axes, [], every)
    axes = sorted((key for key in every if key not in fixed), key=lambda key: key != _METHOD)

    def label(kind: bool) -> list[str]:
        chosen = [key for key in axes if TrialConfig.is_problem(key) == kind]
        places = trials.axes[chosen].to_dict("records")
        told = [
            [_label(str(key), trials.names[str(key)], value, said) for key, value in place.items()]
            for place in places
        ]
        short = [", ".join(filter(None, words)) or "all trials" for words in told]
        whole = [
            ", ".join(
                f"{trials.names[str(key)]}={value}"
                for key, value in place.items()
                if not pd.isna(value)
            )
            for place in places
        ]
        alike = Counter(text for text, _ in set(zip(short, whole, strict=True)))
        return [
            name if alike[text] > 1 and name else text
            for text, name in zip(short, whole, strict=True)
        ]

    return rows.join(
        pd.DataFrame({"panel": label(True), "line": label(False)}, index=trials.axes.index),
        on="trial",
    )


def _label(
    key: str,
    name: str,
    value: str | float | None,
    said: Callable[[str, object], str] | None,
) -> str:
    """Return a setting as figures show it; nothing where it does not apply."""
    if pd.isna(value):
        return ""
    told = said(key, value) if said else f"{value}"
    if told != f"{value}":
        return told
    if name == "num_clusters":
        return f"{value} cluster{'' if value == 1 else 's'}"
    if value == "none":
        return f"no {name}"
    return str(value) if isinstance(value, str) else f"{name}={value}"
