"""Metrics of a round against numbers worked out by hand."""

import numpy as np
import pytest

from runner.metrics import Ledger, agreement, jain


def test_jain_by_hand() -> None:
    """(1 + 0 + 0)^2 / (3 x 1) = 1/3; (.5 + 1)^2 / (2 x 1.25) = .9; nobody has anything: not defined."""
    assert jain(np.array([1.0, 0.0, 0.0])) == pytest.approx(1 / 3)
    assert jain(np.array([0.5, 1.0])) == pytest.approx(0.9)
    assert jain(np.full(7, 0.3)) == pytest.approx(1.0)
    assert np.isnan(jain(np.zeros(3)))


def test_the_round_of_stability_is_the_last_in_which_a_client_changed() -> None:
    ledger = Ledger()
    since = [
        ledger.settle(number, churn, seconds=0.5)["2_clusters/stable_since"]
        for number, churn in ((3, 0), (4, 2), (5, 0), (6, 0))
    ]
    assert since == [3, 4, 4, 4]
    again = Ledger(**vars(ledger))  # as from a checkpoint
    told = again.settle(7, 0, seconds=0.25)
    assert told["2_clusters/stable_since"] == 4
    assert told["5_time/clustering_total_s"] == 2.25


def test_agreement_by_hand() -> None:
    """Groups 0 0 1 1: exact under other names; one of four astray is .75 matched; one cluster has ARI 0 and AMI 0."""
    groups = np.array([0, 0, 1, 1])
    assert agreement({1: 7, 2: 7, 3: 2, 4: 2}, groups) == pytest.approx({"ari": 1.0, "ami": 1.0, "matched": 1.0})
    astray = agreement({1: 0, 2: 0, 3: 1, 4: 0}, groups)
    assert astray["matched"] == 0.75
    assert astray["ari"] == pytest.approx(0.0)  # pairs together: 1 in both, (2 x 3) / 6 = 1 by chance
    together = agreement(dict.fromkeys(range(1, 5), 0), groups)
    assert together == pytest.approx({"ari": 0.0, "ami": 0.0, "matched": 0.5}, abs=1e-12)
