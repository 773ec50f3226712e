"""Epsilon against dp-accounting's own examples, Flower's accountant, and Gaussians by formula."""

import logging
from math import exp, inf, log

import numpy as np
import pytest
from flwr.supercore.privacy_accounting import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    SamplingMethod,
)
from flwr.supercore.privacy_accounting.rdp_accountant import RdpAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from fedsweep.accounting import Account, Relation, Release, _rdp_of
from fedsweep.accounting import Accountant as Kind

ORDERS = [*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 128, 256, 512, 1024]
"""dp-accounting's."""


def exactly(sigma: float, delta: float) -> float:
    """Return epsilon of one Gaussian of a sensitivity of 1.

    Source: Balle and Wang 2018 (arXiv:1805.06530), theorem 8.
    """

    def over(epsilon: float) -> float:
        a, b = 1 / (2 * sigma), epsilon * sigma
        return float(norm.cdf(a - b) - exp(epsilon) * norm.cdf(-a - b)) - delta

    return float(brentq(over, 0, 200))


@pytest.mark.parametrize(("z", "rounds", "delta"), [(1.0, 1, 1e-5), (4.0, 25, 1e-3), (9, 4, 1e-2)])
@pytest.mark.parametrize("relation", Relation)
def test_gaussians_by_formula(z: float, rounds: int, delta: float, relation: Relation) -> None:
    """So many of z are one of z / sqrt(rounds), and a replaced client may move the sum by 2 S."""
    sigma = z / (2 if relation is Relation.REPLACE else 1) / rounds**0.5
    exact = exactly(sigma, delta)
    rdp = Account(relation, delta).epsilon({Release(z): rounds})
    classic = min(a / (2 * sigma**2) + log(1 / delta) / (a - 1) for a in np.arange(1.01, 99, 0.01))
    assert exact <= rdp <= classic
    assert rdp == pytest.approx(exact, rel=0.35)


def test_the_privacy_loss_distribution_is_exact_for_a_gaussian() -> None:
    account = Account(Relation.ZERO_OUT, 1e-5, "pld")
    assert account.epsilon({Release(2.0): 4}) == pytest.approx(exactly(1.0, 1e-5), rel=1e-3)


def test_dp_accountings_own_examples() -> None:
    """rdp_privacy_accountant_test.py: compute_epsilon_delta_gaussian, poisson_sampled_gaussian."""
    one = Account(Relation.ADD_OR_REMOVE, 1e-6).epsilon({Release(4.530877117): 1})
    assert one == pytest.approx(1, abs=2e-3)
    fifty = 50 * _rdp_of(Release(2.5, rate=0.01), Relation.ADD_OR_REMOVE)
    told = {1.5: 6.70579741e-04, 2.5: 1.08548710e-03, 5.0: 2.18075656e-03}
    for order, expected in told.items():
        assert fifty[ORDERS.index(order)] == pytest.approx(expected, rel=1e-4)


def test_flowers_accountant_agrees() -> None:
    """Without amplification, and with Poisson samples; of a fixed size it is told z / 2."""
    z = 0.7
    relations = {
        SamplingMethod.NO_AMPLIFICATION: (NeighboringRelation.ADD_OR_REMOVE_ONE, z, Release(z)),
        SamplingMethod.POISSON: (
            NeighboringRelation.ADD_OR_REMOVE_ONE,
            z,
            Release(z, rate=0.05),
        ),
        SamplingMethod.WITHOUT_REPLACEMENT: (
            NeighboringRelation.REPLACE_ONE,
            z / 2,
            Release(z, 10, 200),
        ),
    }
    for sampling, (relation, noise, release) in relations.items():
        theirs = RdpAccountant(PrivacyConfig(1e-4, 200, relation, sampling))
        theirs.compose(GaussianPrivacyEvent(noise, 10, 200), 30)
        ours = Relation.REPLACE if release.of else Relation.ADD_OR_REMOVE
        found = Account(ours, 1e-4).epsilon({release: 30})
        assert found == pytest.approx(theirs.get_epsilon(1e-4), rel=1e-9)


def test_a_sample_is_never_worse_than_no_sample() -> None:
    """dp-accounting's bound for samples of a fixed size is, where most clients are drawn."""
    account = Account(Relation.REPLACE, 0.05)
    plain = account.epsilon({Release(1.0): 10})
    found = [account.epsilon({Release(1.0, m, 1000): 10}) for m in (1, 900, 1000)]
    assert found == sorted(found)
    assert found[-2] == found[-1] == plain
    assert found[0] < plain / 10


def test_what_is_counted_is_how_many_there_were() -> None:
    account, one, other = Account(Relation.REPLACE, 1e-2), Release(1.0), Release(2.0, 5, 50)
    assert account.epsilon({}) == account.epsilon({one: 0}) == 0
    assert account.epsilon({one: 2, other: 1}) == account.epsilon({other: 1, one: 2})
    assert account.epsilon({one: 1, Release(0.0): 1}) == inf


@pytest.mark.parametrize(
    ("relation", "release"),
    [
        (Relation.ADD_OR_REMOVE, lambda z: Release(z, rate=0.02)),
        (Relation.ZERO_OUT, Release),
        (Relation.REPLACE, Release),
    ],
)
@pytest.mark.parametrize("epsilon", [0.5, 30.0])
def test_the_least_noise_of_a_budget(relation: Relation, release: type, epsilon: float) -> None:
    """Four digits, within the budget; one unit of the last digit less is over it."""
    account = Account(relation, 1e-3)
    z = account.multiplier(lambda z: {release(z): 20}, epsilon)
    assert float(f"{z:.4g}") == z
    assert account.epsilon({release(z): 20}) <= epsilon
    less = z - 2 * 10.0 ** (np.floor(np.log10(z)) - 3)
    assert account.epsilon({release(less): 20}) > epsilon


def test_the_accountants_agree_within_what_the_looser_one_gives_away() -> None:
    releases = {Release(1.0, rate=0.1): 20}
    kinds: tuple[Kind, Kind] = ("pld", "rdp")
    pld, rdp = (Account(Relation.ADD_OR_REMOVE, 1e-3, kind).epsilon(releases) for kind in kinds)
    assert 0.7 * rdp < pld < rdp


def test_the_process_logs_as_before(caplog: pytest.LogCaptureFixture) -> None:
    """absl warns of orders that don't converge, and would set up the root logger for it."""
    before = list(logging.getLogger().handlers)
    _rdp_of.cache_clear()
    Account(Relation.ADD_OR_REMOVE, 1e-3).epsilon({Release(1.0, rate=0.5): 1})
    assert list(logging.getLogger().handlers) == before
    assert caplog.records == []
