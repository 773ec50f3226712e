"""Who proposes: Optuna's samplers, by ask and tell."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from random import Random
from typing import TYPE_CHECKING, Any

from fedsweep.imports import lasting
from fedsweep.search.space import Choice, Numbers, Range, Value

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

_STARTUP = 2
"""Generations that are drawn by chance before TPE models anything."""


_PARTS = ("optuna", "optuna.importance", "sklearn.ensemble")
"""What Optuna is used for here, and imports late."""


def import_parts(sampler: str) -> None:
    """Import all that a search uses: later other threads work beside it."""
    with lasting():
        for module in (*_PARTS, *(["cmaes"] if sampler == "cmaes" else [])):
            import_module(module)


@dataclass(frozen=True)
class Proposal:
    """Values for the settings of a space.

    Parameters
    ----------
    number : int
        Its place among all of a search.
    values : mapping
        Full key -> value, as it is run.
    """

    number: int
    values: Mapping[str, Value]


class Proposer:
    """Proposes values of a space; scores are better the higher.

    What it proposes depends on its arguments and on what it was told, in the order of asking: the
    same calls give the same proposals.

    ::

        proposer = Proposer(space, "tpe", seed=0, generation=4)
        asked = proposer.ask(4)
        for proposal in asked:
            proposer.tell(proposal, [(rounds, score)], complete=True)

    Parameters
    ----------
    space : mapping
        Full key -> range.
    sampler : str
        ``tpe``, ``random``, ``grid`` or ``cmaes``.
    seed : int
        Of the sampler.
    generation : int
        Proposals that are asked for at once.
    first : mapping, optional
        What is proposed first, such as the default: a value of the range for each key.
    points : int
        Values of a range under ``grid``.
    """

    def __init__(
        self,
        space: Mapping[str, Range],
        sampler: str,
        seed: int,
        generation: int,
        first: Mapping[str, Value] | None = None,
        points: int = 5,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = dict(space)
        self._distributions = {key: _distribution(of) for key, of in self._space.items()}
        self._study: Study = optuna.create_study(
            direction="maximize", sampler=_sampler(sampler, seed % 2**32, generation)
        )
        self._asked: dict[int, Trial] = {}
        self._left: int | None = None  # proposals there still are; None: as many as are asked for
        if sampler == "grid":
            grid = grid_of(space, points)
            Random(seed).shuffle(grid)  # a part of it, where the budget ends, is from everywhere
            self._left = len(grid)
            for values in grid:
                self._study.enqueue_trial(values)
        elif first is not None:
            self._study.enqueue_trial(dict(first))
        self._first = None if sampler == "grid" else first

    def ask(self, count: int) -> list[Proposal]:
        """Return so many proposals, or as many as are left of a grid."""
        if self._left is not None:
            count = min(count, self._left)
            self._left -= count
        return [self._ask() for _ in range(count)]

    def _ask(self) -> Proposal:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is experimental in Optuna is pinned by the lock
            trial = self._study.ask(self._distributions)
        self._asked[trial.number] = trial
        values = {key: of.read(trial.params[key]) for key, of in self._space.items()}
        if self._first is not None and trial.number == 0:  # as it is, whatever its digits
            values = dict(self._first)
        return Proposal(trial.number, values)

    def tell(self, proposal: Proposal, scores: Sequence[tuple[int, float]], complete: bool) -> None:
        """Tell what became of a proposal.

        Parameters
        ----------
        proposal : Proposal
            One that was asked for.
        scores : sequence of (int, float)
            Its score after so many rounds; -inf where it failed or diverged.
        complete : bool
            Whether the last one is that of all rounds: else it stopped there.
        """
        from optuna.trial import TrialState

        trial = self._asked.pop(proposal.number)
        for step, score in scores:
            trial.report(score, step)
        if complete:
            self._study.tell(trial, scores[-1][1])
        else:
            self._study.tell(trial, state=TrialState.PRUNED)


def grid_of(space: Mapping[str, Range], points: int) -> list[dict[str, Value]]:
    """Return all points of a grid, so many of each range."""
    each = [of.grid(points) for of in space.values()]
    return [dict(zip(space, values, strict=True)) for values in product(*each)]


def importances(
    space: Mapping[str, Range], scored: Sequence[tuple[Mapping[str, Value], float]]
) -> dict[str, float]:
    """Return the share of the scores' variance that each setting explains (Optuna's fANOVA).

    Nothing for fewer than four scores, or where all are the same: there is nothing to explain.

    Parameters
    ----------
    space : mapping
        Full key -> range.
    scored : sequence of (mapping, float)
        Values and their scores, finite ones.
    """
    import optuna

    if len(scored) < 4 or len({score for _, score in scored}) < 2:
        return {}
    distributions = {key: _distribution(of) for key, of in space.items()}
    study = optuna.create_study(direction="maximize")
    for values, score in scored:
        study.add_trial(
            optuna.trial.create_trial(params=dict(values), distributions=distributions, value=score)
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(found[key]) for key in space if key in found}


def _distribution(of: Range) -> "BaseDistribution":
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(of, Choice):
        return CategoricalDistribution(of.values)
    assert isinstance(of, Numbers)
    if of.whole:
        return IntDistribution(int(of.low), int(of.high), log=of.log)
    return FloatDistribution(of.low, of.high, log=of.log)


def _sampler(name: str, seed: int, generation: int) -> "BaseSampler":
    from optuna import samplers

    known: dict[str, Any] = {
        "tpe": lambda: samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP * generation),
        "cmaes": lambda: samplers.CmaEsSampler(
            seed=seed, warn_independent_sampling=False, consider_pruned_trials=True
        ),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: BaseSampler = known.get(name, lambda: samplers.RandomSampler(seed=seed))()
    return made
