"""Epsilon: what noised sums of clipped updates guarantee, by dp-accounting's accountants.

A round *releases* the sum of its clients' updates, each of length S at most, with Gaussian noise
of deviation z S. What that says of one client depends on what is compared (:class:`Relation`), on
how the round's clients were drawn, and on how many rounds there were (:class:`Account`).

Sources: Mironov, Talwar and Zhang 2019 (arXiv:1908.10530) for Poisson samples; Wang, Balle and
Kasiviswanathan 2019 (arXiv:1808.00087), theorem 27, for samples of a fixed size without
replacement; both as `dp-accounting <https://pypi.org/project/dp-accounting/>`_ computes them.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from importlib.metadata import version
from math import ceil, floor, inf, log10
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsweep.batching import steps_of

Accountant = Literal["rdp", "pld"]


class Relation(Enum):
    """Which two federations a guarantee compares: how their clients, or one's examples, differ."""

    ADD_OR_REMOVE = "one client more or less"
    REPLACE = "one client's data replaced by any other"
    ZERO_OUT = "one client's update replaced by none"
    EXAMPLE = "one of a client's examples more or less"

    @property
    def sensitivity(self) -> float:
        """By how many S the sum of updates may differ between the two.

        A replaced update may point the other way: then the sum moves by 2 S.
        """
        return 2.0 if self is Relation.REPLACE else 1.0


@dataclass(frozen=True)
class Release:
    """A round's noised sum, and how those were drawn whose updates are in it.

    Parameters
    ----------
    noise_multiplier : float
        z: the noise's deviation over S.
    drawn, of : int
        So many were drawn evenly, without replacement, of so many; 0 of 0: whoever it was, it is
        taken to be known.
    rate : float
        Each took part with this probability, whatever the others did; 0: they were drawn otherwise.
    """

    noise_multiplier: float
    drawn: int = 0
    of: int = 0
    rate: float = 0.0

    @property
    def is_amplified(self) -> bool:
        """Whether it counts that nobody knows who took part."""
        return 0 < self.rate < 1 or self.drawn < self.of


@dataclass(frozen=True)
class Account:
    """What is computed of releases.

    Parameters
    ----------
    relation : Relation
        What is compared. Samples of a fixed size need ``REPLACE``, Poisson samples the others.
    delta : float or None
        With which probability the bound may fail; None: it is not known yet, and nothing can be
        computed.
    accountant : "rdp" | "pld"
        Renyi differential privacy, or the privacy loss distribution: tighter, and slower.
    """

    relation: Relation
    delta: float | None
    accountant: Accountant = "rdp"

    def epsilon(self, releases: Mapping[Release, int]) -> float:
        """Return epsilon of so many of each release; inf where one has no noise.

        It depends on how many there were of each, never on their order or on when it was asked.
        """
        counts = {release: count for release, count in releases.items() if count}
        if not counts:
            return 0.0
        if any(not release.noise_multiplier for release in counts):
            return inf
        with _quietly():
            return self._by_rdp(counts) if self.accountant == "rdp" else self._by_pld(counts)

    def _by_rdp(self, counts: Mapping[Release, int]) -> float:
        from dp_accounting import rdp

        orders = rdp.RdpAccountant().orders
        total = sum(count * _rdp_of(release, self.relation) for release, count in counts.items())
        return float(rdp.compute_epsilon(orders, total, self.delta)[0])

    def _by_pld(self, counts: Mapping[Release, int]) -> float:
        from dp_accounting import pld

        spent = pld.PLDAccountant(neighboring_relation=_relation_there(self.relation))
        for release, count in counts.items():
            spent.compose(_event(release, self.relation), count)
        return float(spent.get_epsilon(self.delta))

    def multiplier(
        self, releases: Callable[[float], Mapping[Release, int]], epsilon: float
    ) -> float:
        """Return the least z of four digits under which releases cost an epsilon at most.

        Parameters
        ----------
        releases : callable
            z -> what is released under it.
        epsilon : float
            The budget.
        """
        from scipy.optimize import brentq

        def over(log_z: float) -> float:
            return self.epsilon(releases(10**log_z)) - epsilon

        low, high = -1.0, 1.0
        if self.accountant == "pld":  # which is slow, and never far below the other one
            above = log10(replace(self, accountant="rdp").multiplier(releases, epsilon))
            low, high = above - 0.2, above
        while over(high) > 0:
            low, high = high, high + 1
        while over(low) < 0:
            low, high = low - 1, low
        z = _rounded_up(10 ** brentq(over, low, high, xtol=1e-5))
        while self.epsilon(releases(z)) > epsilon:  # the root is one up to its tolerance
            z = _rounded_up(z * (1 + 1e-4))
        return z

    @property
    def said(self) -> str:
        """The account in words: delta, what is compared, and who computed it."""
        name = {"rdp": "RDP", "pld": "PLD"}[self.accountant]
        delta = "1 / (all training examples)^1.1" if self.delta is None else f"{self.delta:.3g}"
        return (
            f"delta {delta}, neighbours differ by {self.relation.value}, "
            f"{name} accountant of dp-accounting {version('dp-accounting')}"
        )


def batches_of(examples: int, batch_size: int, epochs: int, steps: int) -> tuple[float, int]:
    """Return with which probability an example is in a batch of DP-SGD, and how many batches.

    There are as many as without noise, of ``batch_size`` on average; 0 is all examples.
    """
    rate = min(batch_size or examples, examples) / examples
    return rate, steps_of(examples, batch_size, epochs, steps)


def _rounded_up(z: float) -> float:
    """Return a number rounded up to four digits, so that no solver's last ones are in it."""
    unit = 10.0 ** (floor(log10(z)) - 3)
    return float(f"{ceil(z / unit - 1e-9) * unit:.4g}")


def _relation_there(relation: Relation) -> Any:
    """Return what dp-accounting calls a relation."""
    from dp_accounting import NeighboringRelation

    return {
        Relation.ADD_OR_REMOVE: NeighboringRelation.ADD_OR_REMOVE_ONE,
        Relation.REPLACE: NeighboringRelation.REPLACE_ONE,
        Relation.ZERO_OUT: NeighboringRelation.REPLACE_SPECIAL,
        Relation.EXAMPLE: NeighboringRelation.ADD_OR_REMOVE_ONE,
    }[relation]


def _event(release: Release, relation: Relation) -> Any:
    """Return a release as dp-accounting describes it: noise is given over the sensitivity."""
    import dp_accounting as dp

    noise = dp.GaussianDpEvent(release.noise_multiplier / relation.sensitivity)
    if 0 < release.rate < 1:
        return dp.PoissonSampledDpEvent(release.rate, noise)
    if release.drawn < release.of:
        return dp.SampledWithoutReplacementDpEvent(release.of, release.drawn, noise)
    return noise


@lru_cache(maxsize=4096)
def _rdp_of(release: Release, relation: Relation) -> NDArray[np.float64]:
    """Return a release's Renyi divergence at each of dp-accounting's orders.

    It is never more than without the sampling, which a mixture of such releases can't exceed; the
    bound for samples of a fixed size is, where most clients are drawn.
    """
    from dp_accounting import rdp

    def of(each: Release) -> NDArray[np.float64]:
        spent = rdp.RdpAccountant(neighboring_relation=_relation_there(relation))
        found: NDArray[np.float64] = spent.compose(_event(each, relation)).rdp
        return found

    plain = of(Release(release.noise_multiplier))
    return np.fmin(of(release), plain) if release.is_amplified else plain


@contextmanager
def _quietly() -> Iterator[None]:
    """Leave out that the accountant does without an order that it can't compute.

    Where nobody handles what is logged, absl would set the whole process up for it.
    """
    root, log = logging.getLogger(), logging.getLogger("absl")
    before, nobody = log.level, logging.NullHandler()
    log.setLevel(logging.ERROR)
    root.addHandler(nobody)
    try:
        yield
    finally:
        root.removeHandler(nobody)
        log.setLevel(before)
