"""Server selection, against scores worked out by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from strategies.selection import Load, ServerRule, load_scores, rank, robust_scale, smooth

RULE = ServerRule()


def _rank(rule: ServerRule = RULE, scores: dict[int, float] | None = None, **kwargs: Any) -> list[int]:
    scores = scores or {1: 0.5, 2: 0.4, 3: 0.2}
    defaults: dict[str, Any] = {"incumbent": None, "tenure": 0, "turn": 0, "seed": (0, 1, 0)}
    examples = kwargs.pop("examples", {})
    return rank([3, 1, 2], scores, examples, rule, **{**defaults, **kwargs})


def test_moving_average_weighs_the_newest_measurement() -> None:
    assert smooth(None, Load(4, 8, 100), 0.5) == Load(4, 8, 100)
    assert smooth(Load(4, 8, 100), Load(2, 0, 50), 0.25) == Load(3.5, 6.0, 87.5)


def test_robust_scaling_by_hand() -> None:
    """Percentiles 10 and 90 of 0..10 are 1 and 9: 5 is in the middle, the ends are clipped."""
    assert robust_scale(np.arange(11.0)).tolist() == [0, 0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1, 1]
    assert robust_scale(np.array([7.0, 7.0])).tolist() == [0, 0]
    assert robust_scale(np.array([7.0])).tolist() == [0]


def test_score_is_the_weighted_sum_of_scaled_loads() -> None:
    """CPU separates node 1 from node 2, memory the other way round, the nodes' own load is equal."""
    loads = {1: Load(1, 90, 50), 2: Load(9, 10, 50)}
    assert load_scores([1, 2], loads, RULE) == {1: 0.3, 2: 0.5}
    assert load_scores([1, 2], loads, replace(RULE, cpu_weight=0.1)) == {1: 0.3, 2: 0.1}


def test_node_load_counts() -> None:
    loads = {1: Load(1, 1, 80), 2: Load(1, 1, 20)}
    assert load_scores([1, 2], loads, RULE) == {1: 0.2, 2: 0.0}


def test_a_member_never_measured_has_the_highest_score() -> None:
    assert load_scores([1, 2, 3], {1: Load(1, 1, 1), 2: Load(2, 1, 1)}, RULE) == {1: 0.0, 2: 0.5, 3: 1.0}
    assert load_scores([1, 2], {}, RULE) == {1: 1.0, 2: 1.0}


def test_lowest_score_serves_and_ties_go_to_the_lower_id() -> None:
    assert _rank() == [3, 2, 1]
    assert _rank(scores={1: 0.5, 2: 0.2, 3: 0.2}) == [2, 3, 1]


@pytest.mark.parametrize(
    ("tenure", "score", "expected"),
    [
        (3, 0.33, [3, 2, 1]),  # .33 < .85 x .4: the incumbent gives way
        (3, 0.34, [2, 3, 1]),  # .34 is not below .34: it stays
        (2, 0.10, [2, 3, 1]),  # far better, but the incumbent has served two rounds only
    ],
)
def test_hysteresis_and_tenure_keep_the_incumbent(tenure: int, score: float, expected: list[int]) -> None:
    assert _rank(scores={1: 0.5, 2: 0.4, 3: score}, incumbent=2, tenure=tenure) == expected


def test_hysteresis_and_min_tenure_are_settings() -> None:
    scores = {1: 0.5, 2: 0.4, 3: 0.34}
    assert _rank(replace(RULE, hysteresis=0.9), scores, incumbent=2, tenure=3)[0] == 3
    assert _rank(replace(RULE, hysteresis=0.9, min_tenure=4), scores, incumbent=2, tenure=3)[0] == 2


def test_an_incumbent_that_left_the_cluster_is_no_candidate() -> None:
    assert _rank(incumbent=9, tenure=1) == [3, 2, 1]


def test_load_once_keeps_its_choice() -> None:
    """The seed's rule."""
    rule = replace(RULE, rule="load_once")
    assert _rank(rule) == [3, 2, 1]
    assert _rank(rule, incumbent=1, tenure=99) == [1, 3, 2]


def test_round_robin_takes_turns() -> None:
    rule = replace(RULE, rule="round_robin")
    assert [_rank(rule, turn=turn)[0] for turn in range(4)] == [1, 2, 3, 1]
    assert _rank(rule, turn=1) == [2, 3, 1]


def test_largest_data_wins() -> None:
    assert _rank(replace(RULE, rule="largest_data"), examples={1: 10, 2: 30}) == [2, 1, 3]


def test_random_depends_on_the_seed_alone() -> None:
    rule = replace(RULE, rule="random")
    orders = {tuple(_rank(rule, seed=(0, turn, 0))) for turn in range(20)}
    assert len(orders) > 3
    assert _rank(rule, seed=(5, 2, 1)) == _rank(rule, seed=(5, 2, 1), incumbent=1, tenure=9)
