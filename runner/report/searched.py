"""What a search tried and what came of it, as data: written once at its end, read by reports."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from fedsweep.catalog import CATALOG
from fedsweep.config import TrialConfig
from fedsweep.config.section import short_names
from fedsweep.errors import TrackingError, one_line
from fedsweep.report.stats import LEAST, LEVEL, p_different

LR = "training.lr"
"""The setting whose sensitivity reviewers ask for."""


@dataclass(frozen=True)
class TriedHere:
    """A proposal, as it ended.

    Parameters
    ----------
    number, generation : int
        Which, and when it was made.
    values : mapping
        Full key -> value.
    complete : bool
        Whether it ran all of a trial's rounds: else it stopped at a rung.
    scores : mapping
        Rounds -> seed -> the metric then; None where it failed or diverged.
    """

    number: int
    generation: int
    values: Mapping[str, Any]
    complete: bool
    scores: Mapping[str, Mapping[str, float | None]]

    @property
    def rounds(self) -> int:
        """How far it came."""
        return max(map(int, self.scores), default=0)

    def mean(self, rounds: int | None = None) -> float | None:
        """Return the mean over its seeds after so many rounds, else after its last.

        None where one of them failed or diverged, or it never came so far.
        """
        return mean(self.scores.get(str(rounds or self.rounds), {}))


@dataclass(frozen=True)
class Tuning:
    """One search: of a method, in a problem.

    Parameters
    ----------
    place : mapping
        Its values of the axes, by full key, without the seed.
    repeat : int
        Which of several of the same.
    space : mapping
        Full key -> range, as a word gives it.
    default : mapping
        The values that there are without a search.
    tried : sequence of TriedHere
        All proposals, by number.
    winner : int or None
        The one that is reported; None: its default is.
    spent : float
        In the budget's unit.
    told : str
        Why it ended.
    importance : mapping
        Full key -> share of the scores' variance that it explains.
    fresh : mapping
        Fresh seed -> the metric of the winner there, None where it failed or diverged.
    at_default : mapping
        The same of the default.
    """

    place: Mapping[str, str]
    repeat: int
    space: Mapping[str, str]
    default: Mapping[str, Any]
    tried: Sequence[TriedHere]
    winner: int | None
    spent: float
    told: str
    importance: Mapping[str, float] = field(default_factory=dict)
    fresh: Mapping[str, float | None] = field(default_factory=dict)
    at_default: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def chosen(self) -> Mapping[str, Any]:
        """The values that are reported."""
        return self.default if self.winner is None else self.tried[self.winner].values

    @property
    def first_rung(self) -> int:
        """The rounds after which all proposals are compared."""
        return min((int(rounds) for one in self.tried for rounds in one.scores), default=0)

    @property
    def problem(self) -> tuple[tuple[str, str], ...]:
        """What it has to solve, by its place."""
        return tuple(item for item in self.place.items() if TrialConfig.is_problem(item[0]))

    @property
    def way(self) -> str:
        """How it solves that, as people read it."""
        names = short_names(self.place)
        told = [
            value if key == "strategy" else f"{names[key]}={value}"
            for key, value in self.place.items()
            if not TrialConfig.is_problem(key)
        ]
        return " ".join(told) or "all trials"

    @property
    def label(self) -> str:
        """Its whole place, as people read it."""
        parts = [self.way, *(value for _, value in self.problem)]
        return ", ".join(parts) + (f", repeat {self.repeat}" if self.repeat else "")


@dataclass(frozen=True)
class Searched:
    """All searches of a sweep.

    Parameters
    ----------
    metric : str
        By which they were decided, by its name at a trial's end.
    unit : str
        Of the budget.
    budget : float
        Of each of them.
    sampler : str
        Who proposed.
    seeds : sequence of int
        Of the replicates: of the first search; a repeat has the next ones.
    tunings : sequence of Tuning
        In the grid's order.
    notes : sequence of str
        What is to be said of all of them.
    """

    metric: str
    unit: str
    budget: float
    sampler: str
    seeds: Sequence[int]
    tunings: Sequence[Tuning]
    notes: Sequence[str] = ()

    def to_json(self) -> str:
        """Return it as JSON: the same bytes for the same search."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Searched":
        """Read it.

        Raises
        ------
        TrackingError
            It is none.
        """
        try:
            told = json.loads(text)
            tunings = [
                Tuning(**{**of, "tried": tuple(TriedHere(**one) for one in of["tried"])})
                for of in told["tunings"]
            ]
            return cls(**{**told, "tunings": tuple(tunings)})
        except (ValueError, KeyError, TypeError) as error:
            raise TrackingError(
                f"what the sweep's run tells of its search can't be read: {one_line(error)}"
            ) from error

    @property
    def first(self) -> list[Tuning]:
        """The searches that are reported: the first of each."""
        return [tuning for tuning in self.tunings if tuning.repeat == 0]

    def repeats(self, of: Tuning) -> list[Tuning]:
        """Return all searches of the same."""
        return [tuning for tuning in self.tunings if tuning.place == of.place]

    def lines(self) -> list[list[str]]:
        """Return the searches as a table of texts, headings first."""
        unit = self.unit.replace("_", "-")
        headings = ["search", "proposals", "stopped early", f"cost ({unit})", "chosen"]
        headings += ["searched", "fresh seeds", "at defaults", "gain (points)"]
        repeated = any(tuning.repeat for tuning in self.tunings)
        headings += ["spread over repeats (points)"] * repeated
        return [headings, *(self._line(tuning, repeated) for tuning in self.first)]

    def _line(self, of: Tuning, repeated: bool) -> list[str]:
        stopped = sum(not one.complete for one in of.tried)
        names = short_names([*of.place, *of.space])
        chosen = " ".join(f"{names[key]}={value}" for key, value in of.chosen.items())
        line = [
            of.label,
            str(len(of.tried)),
            str(stopped),
            f"{of.spent:,.6g}",
            chosen if of.winner is not None else f"{chosen} (default)",
            self._told(None if of.winner is None else of.tried[of.winner].mean()),
            self._told(mean(of.fresh)),
            self._told(mean(of.at_default)),
        ]
        gain = gain_of(of)
        line.append("-" if gain is None else f"{100 * gain:+.1f}")
        if repeated:
            found = [mean(each.fresh) for each in self.repeats(of)]
            known = [value for value in found if value is not None]
            spread = max(known) - min(known) if len(known) > 1 else None
            line.append("-" if spread is None else f"{100 * spread:.1f} of {len(known)}")
        return line

    def _told(self, value: float | None) -> str:
        return "-" if value is None else CATALOG.final(self.metric).told(value)

    def remarks(self) -> list[str]:
        """Say how winners were chosen, and where tuning changes who is better."""
        name = CATALOG.final(self.metric).name
        told = [
            f"Tuned by {self.sampler} on {name} that clients hold out, with {self.budget:,.6g} "
            f"{self.unit.replace('_', '-')} for each search, on other seeds than those shown; the "
            "test set was not looked at. The gain is that over the same seeds at default settings."
        ]
        lost = [tuning.label for tuning in self.first if tuning.winner is None]
        if lost:
            told.append(f"No proposal had a finite score, the default stands: {'; '.join(lost)}.")
        told += [f"{note[:1].upper()}{note[1:]}." for note in self.notes]
        return [*told, *self.reversals()]

    def reversals(self) -> list[str]:
        """Say, for each problem, which methods change places by tuning."""
        problems: dict[tuple[tuple[str, str], ...], list[Tuning]] = {}
        for tuning in self.first:
            problems.setdefault(tuning.problem, []).append(tuning)
        told = []
        for problem, tunings in problems.items():
            where = ", ".join(value for _, value in problem)
            whole = [tuning for tuning in tunings if gain_of(tuning) is not None]
            tuned = sorted(whole, key=lambda of: -(mean(of.fresh) or 0.0))
            default = sorted(whole, key=lambda of: -(mean(of.at_default) or 0.0))
            if len(tuned) < 2:
                continue
            at = f" ({where})" if where else ""
            if lost := [of.way for of in tunings if of not in whole]:
                told.append(f"Not ranked, as a run failed or diverged{at}: {'; '.join(lost)}.")
            if [of.way for of in tuned] == [of.way for of in default]:
                told.append(f"The ranking of the methods is the same tuned and at defaults{at}.")
                continue
            told.append(
                f"The ranking under tuning differs from that at defaults{at}. Tuned: "
                f"{' > '.join(of.way for of in tuned)}. At defaults: "
                f"{' > '.join(of.way for of in default)}. {self._pairs(tuned, default)}"
            )
        return told

    def _pairs(self, tuned: Sequence[Tuning], default: Sequence[Tuning]) -> str:
        """Say which pairs change places; those that a test tells apart by name."""
        pairs, alike = [], 0
        for i, better in enumerate(tuned):
            for worse in tuned[i + 1 :]:
                if default.index(better) < default.index(worse):
                    continue
                clear = [_clear(better.fresh, worse.fresh)]
                clear.append(_clear(worse.at_default, better.at_default))
                words = " and ".join(
                    f"{'clear' if sure else 'not clear'} {when}"
                    for sure, when in zip(clear, ("tuned", "at defaults"), strict=True)
                )
                if any(clear):
                    pairs.append(f"{better.way} over {worse.way} ({words})")
                else:
                    alike += 1
        if alike:
            pairs.append(
                f"{alike} pairs that are clear neither way" if pairs else "no pair clearly"
            )
        return (
            f"Changed places: {', '.join(pairs)}; clear: paired t-test over the fresh seeds, "
            f"p < {LEVEL}, each pair for itself."
        )


def mean(of: Mapping[str, float | None]) -> float | None:
    """Return the mean over seeds; None where one failed or diverged, or there is none."""
    found = [value for value in of.values() if value is not None and isfinite(value)]
    return sum(found) / len(found) if found and len(found) == len(of) else None


def gain_of(of: Tuning) -> float | None:
    """Return what tuning gave on the fresh seeds, over the default there."""
    tuned, default = mean(of.fresh), mean(of.at_default)
    return None if tuned is None or default is None else tuned - default


def _clear(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> bool:
    seeds = [seed for seed in first if seed in second]
    ours = [first[seed] for seed in seeds]
    theirs = [second[seed] for seed in seeds]
    if len(seeds) < LEAST or None in ours or None in theirs:
        return False
    return p_different(ours, theirs, "t") < LEVEL  # type: ignore[arg-type]
