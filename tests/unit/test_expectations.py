"""Rows of a reproduction, on trials whose rounds are known."""

from math import isnan
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from fedsweep.report.stats import share_interval
from fedsweep.reproduce.expectations import (
    Measured,
    Row,
    Value,
    Verdict,
    expand_rows,
    judge,
    rounds_to,
)

ACC = "3_clients/test_acc"
ARI = "2_clusters/ari"
SECONDS = "5_time/virtual_s"


def trial(strategy: str, seed: int, acc: list[float], ari: float = 1.0) -> Measured:
    """A trial with an accuracy for each of the rounds 1, 2, ... and one ARI."""
    table = pd.DataFrame({"round": range(1, len(acc) + 1), ACC: acc, ARI: ari})
    return Measured({"strategy": strategy, "seed": str(seed)}, lambda metric: table)


IFCA = [
    trial("ifca", 0, [0.5, 0.8]),
    trial("ifca", 1, [0.6, 0.9]),
    trial("ifca", 2, [0.4, 0.5], ari=0.7),
]
FEDAVG = [trial("fedavg", 0, [0.4, 0.6]), trial("fedavg", 1, [0.4, 0.8])]


def verdict(**fields: Any) -> Verdict:
    return judge(
        Row(**{"what": "a row", "metric": ACC, "at": {"strategy": "ifca"}, **fields}),
        [*IFCA, *FEDAVG],
    )


def test_a_mean_over_the_seeds_and_its_interval() -> None:
    """Last round: 80, 90 and 50: mean 73.33, deviation 20.82, t(2) = 4.3027."""
    got = verdict(paper=75, within=2)
    assert got.mean == pytest.approx(220 / 3)
    assert got.high - got.mean == pytest.approx(4.302653 * 20.816660 / 3**0.5)
    assert (got.word, got.seeds, got.tolerance) == ("holds", 3, "± 2")
    assert verdict(paper=75, within=1.5).word == "missed"
    assert got.ours == "73.3 [21.6, 125.0]"


def test_a_round_and_some_seeds_alone() -> None:
    assert verdict(round=1, at_least=50).mean == pytest.approx(50)
    assert verdict(round=1, seeds="recovered", at_least=55).mean == pytest.approx(55)
    assert verdict(round=1, seeds="missed", at_most=40).word == "holds"
    assert verdict(round=3, at_least=0).word == "missed"  # there is no such round


def test_a_share_of_seeds_has_wilsons_interval() -> None:
    """Two of three: (2 + z^2/2) / (3 + z^2) -+ z / (3 + z^2) sqrt(2/3 + z^2/4) = .208 to .939."""
    got = verdict(metric=ARI, reaches=0.999, paper=60, within=10)
    assert got.mean == pytest.approx(200 / 3)
    assert (got.low, got.high) == (pytest.approx(20.8, abs=0.1), pytest.approx(93.9, abs=0.1))
    assert share_interval(0, 20) == (0, pytest.approx(0.161, abs=1e-3))


def test_differences_and_ratios_are_taken_seed_by_seed() -> None:
    """80 - 60 and 90 - 80; seed 2 has no partner."""
    got = verdict(minus={"strategy": "fedavg"}, unit="points", at_least=15)
    assert (got.mean, got.seeds, got.word) == (pytest.approx(15), 2, "holds")
    assert verdict(over={"strategy": "fedavg"}, unit="x", at_most=1).mean == pytest.approx(
        (0.8 / 0.6 + 0.9 / 0.8) / 2
    )


def test_rounds_to_a_target() -> None:
    """The best so far is .2, .6, .6, .9: .7 lies a third of the way from round 3 to round 4."""
    assert rounds_to([1, 2, 3, 4], [0.2, 0.6, 0.5, 0.9], 0.7).number == pytest.approx(3 + 1 / 3)
    assert rounds_to([1, 2], [0.2, 0.6], 0.1) == Value(1)
    assert rounds_to([1, 2], [0.2, 0.6], 0.7) == Value(2, censored=True)


def test_seconds_to_a_target() -> None:
    """Halfway from round 1, at 10 s, to round 2, at 30 s; a round without a time says nothing."""
    times = pd.DataFrame({"round": [0, 1, 2], SECONDS: [None, 10.0, 30.0]})
    accs = pd.DataFrame({"round": [0, 1, 2], ACC: [0.1, 0.4, 0.8]})
    slow = Measured({"seed": "0"}, lambda metric: times if metric == SECONDS else accs)
    untimed = Measured({"seed": "1"}, lambda metric: accs)
    row = Row(what="time", metric=ACC, rounds_to=0.6, along=SECONDS, at_most=20, unit="")
    assert judge(row, [slow]).mean == pytest.approx(20)
    assert judge(row, [slow, untimed]).word == "missed"


def test_a_target_that_was_not_reached_is_a_lower_bound() -> None:
    """Seed 2 never has .75 within its two rounds;
    the others after 1 + 25/30 and 1 + 15/30 rounds.
    """
    got = verdict(rounds_to=0.75, unit="rounds", at_least=1.5)
    assert got.mean == pytest.approx((11 / 6 + 1.5 + 2) / 3)
    assert (got.ours, got.censored, got.word) == (">= 1.8", 1, "holds")
    assert (
        verdict(rounds_to=0.75, unit="rounds", at_most=5).word == "missed"
    )  # it may be any number
    none = verdict(rounds_to=0.75, over={"strategy": "fedavg"}, unit="x", at_least=0)
    assert none.word == "missed"
    assert isnan(none.mean)


def test_what_was_not_run_is_said() -> None:
    got = verdict(at={"strategy": "clove"}, at_least=1)
    assert (got.word, got.ours, got.holds) == ("not run", "-", None)
    assert verdict(minus={"strategy": "oracle"}, at_least=1).word == "not run"
    assert verdict(at={"strategy": "fedavg"}, seeds="missed", at_least=1).word == "no such seed"


def test_a_row_for_each_value() -> None:
    [first, second] = expand_rows([{"what": "{} wins", "each": {"k": [2, 4]}, "at": {"seed": 0}}])
    assert first == {"what": "2 wins", "at": {"seed": 0, "k": 2}}
    assert second["what"] == "4 wins"
    assert Row(metric=ACC, at_least=1, **first).at == {"seed": "0", "k": "2"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "needs one of within, at_least and at_most"),
        ({"within": 1}, "has within, and no paper's value"),
        ({"at_least": 1, "minus": {}, "over": {}}, "has both minus and over"),
        ({"at_least": 1, "reaches": 1, "rounds_to": 1}, "has both reaches and rounds_to"),
        ({"at_least": 1, "along": SECONDS}, "has along, and no rounds_to"),
    ],
)
def test_a_row_that_decides_nothing_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Row(what="a row", metric=ACC, **fields)
