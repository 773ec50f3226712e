"""Successive halving over an axis of a sweep: all trials start, the best at each rung go on.

Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020,
arXiv:1810.05934, algorithm 2 (ASHA; ``min_rounds`` is the paper's r, ``factor`` its eta; R is a
trial's ``rounds``).

Deviations. 1. The configurations are the values of the axis: those trials compete that differ in
nothing else.
2. Where fewer trials reached a rung than ``factor``, and none of them is under way, the best one
   goes on all the same:
each bracket ends with a trial that ran all its rounds. 3. A trial that fails leaves its rungs, so
the next goes on.
"""

from collections.abc import Collection, Mapping, Sequence
from math import inf, isfinite, isnan

from fedsweep.config import HalvingConfig
from fedsweep.records import RoundRecord
from fedsweep.sweeps.compose import Trial


def promotable(
    rungs: Sequence[Mapping[str, float]], waiting: Mapping[str, int], factor: int, least: int = 0
) -> str | None:
    """Return the trial of a bracket that goes on now (``get_job`` of the paper), if there is one.

    Parameters
    ----------
    rungs : sequence of mappings
        For each rung, lowest first: trial -> its score there, more is better; of equals, the first.
    waiting : mapping
        Trial -> index of the rung at which it waits.
    factor : int
        One in so many goes on from a rung.
    least : int
        At least so many go on from each rung that a trial has reached.
    """
    for number in reversed(range(len(rungs))):
        scores = rungs[number]
        best = sorted(scores, key=scores.__getitem__, reverse=True)[
            : max(least, len(scores) // factor)
        ]
        for trial in best:
            if waiting.get(trial) == number:
                return trial
    return None


class Halving:
    """The brackets of a sweep; without ``halving.axis`` no trial ever waits.

    ::

        halving = Halving(trials[0].config.halving, trials, todo, history)
        a trial starts: it runs to the first of halving.rungs(key)
        each round:     halving.record(key, record)
        at a rung:      halving.wait(key, round)
        a free place:   halving.promote() goes on to the next of halving.rungs(key);
                        halving.stop() ends

    Parameters
    ----------
    config : HalvingConfig
        Axis, metric and rungs.
    trials : sequence of Trial
        All of the sweep.
    todo : collection of str
        Keys of the trials that are left to run.
    history : mapping
        Trial key -> round -> metric, as logged by earlier sessions.
    """

    def __init__(
        self,
        config: HalvingConfig,
        trials: Sequence[Trial],
        todo: Collection[str],
        history: Mapping[str, Mapping[int, float]],
    ) -> None:
        self._config = config
        brackets: dict[tuple[tuple[str, str], ...], dict[str, tuple[int, ...]]] = {}
        for trial in trials if config.axis else ():
            place = tuple(item for item in trial.axes.items() if item[0] != config.axis)
            brackets.setdefault(place, {})[trial.config.key] = config.rungs(trial.config.rounds)
        self._brackets = [bracket for bracket in brackets.values() if len(bracket) > 1]
        self._rungs = {key: rungs for bracket in self._brackets for key, rungs in bracket.items()}
        self._moving = set(todo)
        self._waiting: dict[str, int] = {}  # trial -> round
        self._scores: dict[str, dict[int, float]] = {}
        for key, values in history.items():
            for number, value in values.items():
                self._score(key, number, value)

    def rungs(self, key: str) -> tuple[int, ...]:
        """Return the rounds at which a trial has yet to wait."""
        return tuple(
            number for number in self._rungs.get(key, ()) if number > self._waiting.get(key, 0)
        )

    def record(self, key: str, record: RoundRecord) -> None:
        """Take in a round."""
        self._score(key, record.round, record.metrics.get(self._config.metric, -inf))

    def wait(self, key: str, number: int) -> None:
        """Have a trial wait after a round."""
        self._moving.discard(key)
        self._waiting[key] = number

    def end(self, key: str, failed: bool = False) -> None:
        """Take in that a trial ended."""
        self._moving.discard(key)
        if failed:
            self._scores.pop(key, None)

    def promote(self) -> tuple[str, tuple[int, ...]] | None:
        """Return a waiting trial that goes on now, and the rungs ahead of it."""
        for bracket in self._brackets:
            if key := self._promotable(bracket):
                ahead = self.rungs(key)
                self._moving.add(key)
                del self._waiting[key]
                return key, ahead
        return None

    def stop(self) -> tuple[str, int, str] | None:
        """Return a waiting trial that will never go on, its round, and the reason."""
        for bracket in self._brackets:
            waits = [key for key in bracket if key in self._waiting]
            if waits and not self._moving & bracket.keys() and not self._promotable(bracket):
                number = self._waiting.pop(waits[0])
                score = self._scores[waits[0]][number] * self._config.sign
                value = f"={score:.4g}" if isfinite(score) else " is missing or not finite"
                there = sum(number in self._scores.get(key, {}) for key in bracket)
                best = max(1, there // self._config.factor)
                return waits[0], number, (
                    f"halving over {self._config.axis}: {self._config.metric}{value} after round "
                    f"{number} is not among the best {best} of {there}"
                )  # fmt: skip
        return None

    def _score(self, key: str, number: int, value: float) -> None:
        if number in self._rungs.get(key, ()):
            score = self._config.sign * value if abs(value) != inf else -inf
            self._scores.setdefault(key, {})[number] = -inf if isnan(value) else score

    def _promotable(self, bracket: Mapping[str, tuple[int, ...]]) -> str | None:
        levels = sorted({number for rungs in bracket.values() for number in rungs})
        scores = {key: self._scores.get(key, {}) for key in bracket}
        reached = [
            {key: at[level] for key, at in scores.items() if level in at} for level in levels
        ]
        waiting = {key: levels.index(self._waiting[key]) for key in bracket if key in self._waiting}
        return promotable(
            reached, waiting, self._config.factor, least=0 if self._moving & bracket.keys() else 1
        )
