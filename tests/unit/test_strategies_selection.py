"""Server selection, against scores worked out by hand."""

from typing import Any

import numpy as np
import pytest

from fedsweep.strategies.selection import Load, ServerRule, load_scores, rank, robust_scale, smooth

RULE = ServerRule()


def replace(old: ServerRule, **changes: Any) -> ServerRule:
    return old.model_copy(update=changes)


def _rank(
    rule: ServerRule = RULE, scores: dict[int, float] | None = None, **kwargs: Any
) -> list[int]:
    scores = scores or {1: 0.5, 2: 0.4, 3: 0.2}
    defaults: dict[str, Any] = {"incumbent": None, "tenure": 0, "turn": 0, "seed": (0, 1, 0)}
    examples = kwargs.pop("examples", {})
    return rank([3, 1, 2], scores, examples, rule, **{**defaults, **kwargs})


def test_moving_average_weighs_the_newest_measurement() -> None:
    assert smooth(None, Load(4, 8, 100), 0.5) == Load(4, 8, 100)
    assert smooth(Load(4, 8, 100), Load(2, 0, 50), 0.25) == Load(3.5, 6.0, 87.5)


def test_robust_scaling_by_hand() -> None:
    """90th percentiles: 9 of 0..10, 3.2 of (0, 0, 4), 0 of 20 zeros and a 2, whose mean is 2/21."""
    assert robust_scale(np.arange(11.0)).tolist() == [n / 9 for n in range(11)]
    assert robust_scale(np.array([0.0, 0.0, 4.0])).tolist() == [0, 0, 1.25]
    assert robust_scale(np.array([0.0] * 20 + [2.0]))[-2:].tolist() == [0, 21]
    assert robust_scale(np.array([7.0])).tolist() == [1]
    assert robust_scale(np.array([0.0, 0.0])).tolist() == [0, 0]


def test_score_is_the_weighted_sum_of_scaled_loads() -> None:
    """90th percentiles of two: CPU 9.1 of 1 and 10, memory 82 of 90 and 10, node 50."""
    loads = {1: Load(1, 90, 50), 2: Load(10, 10, 50)}
    cpu, mem = 9.1, 82.0
    expected = {1: 0.5 / cpu + 27 / mem + 0.2, 2: 5 / cpu + 3 / mem + 0.2}
    assert load_scores([1, 2], loads, RULE) == pytest.approx(expected)
    assert load_scores([1, 2], loads, replace(RULE, cpu_weight=0.1)) == pytest.approx(
        {1: 0.1 / cpu + 27 / mem + 0.2, 2: 1 / cpu + 3 / mem + 0.2}
    )


def test_node_load_counts() -> None:
    """The 90th percentile of 80 and 20 is 74."""
    rule = replace(RULE, cpu_weight=0, mem_weight=0)
    loads = {1: Load(1, 1, 80), 2: Load(1, 1, 20)}
    assert load_scores([1, 2], loads, rule) == pytest.approx({1: 16 / 74, 2: 4 / 74})


def test_a_member_never_measured_scores_a_full_load_above_the_others() -> None:
    """Of CPU 1 and 2 the 90th percentile is 1.9; memory and node are equal: .5 of the score."""
    scores = load_scores([1, 2, 3], {1: Load(1, 1, 1), 2: Load(2, 1, 1)}, RULE)
    assert scores == pytest.approx({1: 0.5 / 1.9 + 0.5, 2: 1 / 1.9 + 0.5, 3: 1 / 1.9 + 1.5})
    assert load_scores([1, 2], {}, RULE) == {1: 1.0, 2: 1.0}
    assert _rank(scores=load_scores([1, 2, 3], {3: Load(9, 9, 9)}, RULE)) == [3, 1, 2]


@pytest.mark.parametrize("members", [2, 3, 5, 10, 11, 12, 20, 40, 60])
@pytest.mark.parametrize("outliers", [0, 1, 5])
def test_the_lowest_weighted_load_serves_at_any_size_and_unit(members: int, outliers: int) -> None:
    """Weighted: each load over its 90th percentile, computed here from the sorted values."""
    rule = replace(RULE, hysteresis=1.0, min_tenure=1)
    rng = np.random.default_rng([members, outliers])
    for _ in range(100):
        table_M3 = rng.lognormal(0, rng.uniform(0.001, 3), (members, 3))
        table_M3 *= 10 ** rng.uniform(-6, 6, 3)
        table_M3[rng.permutation(members)[:outliers]] *= 10 ** rng.uniform(0, 6)
        nodes = (1 + rng.permutation(members)).tolist()
        loads = {node: Load(*row) for node, row in zip(nodes, table_M3.tolist(), strict=True)}
        place = 0.9 * (members - 1)
        low = np.sort(table_M3, axis=0)[int(place)]
        high = np.sort(table_M3, axis=0)[min(int(place) + 1, members - 1)]
        weighted_M = table_M3 / (low + (place - int(place)) * (high - low)) @ [0.5, 0.3, 0.2]
        turn = {"incumbent": nodes[rng.integers(members)], "tenure": 1, "turn": 1, "seed": (0,)}
        scores = load_scores(nodes, loads, rule)
        assert rank(nodes, scores, {}, rule, **turn)[0] == nodes[weighted_M.argmin()]


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (1, 0, 0), (0, 1, 0)])
@pytest.mark.parametrize("members", [2, 11, 40])
def test_the_lowest_in_every_load_serves(members: int, weights: tuple[float, ...]) -> None:
    """A scale that is cut at a percentile gives a tenth of many members the lowest score."""
    cpu, mem, node = weights
    rule = replace(RULE, cpu_weight=cpu, mem_weight=mem, node_weight=node)
    rule = replace(rule, hysteresis=1.0, min_tenure=1)
    for draw in range(200):
        rng = np.random.default_rng([members, draw])
        order = (1 + rng.permutation(members)).tolist()  # by rising load
        spread = 1 + rng.random(members) ** rng.integers(1, 4)
        values = np.sort(rng.choice([1e-9, 1.0, 1e9]) * spread)
        loads = {n: Load(v, 3 * v, 7 * v) for n, v in zip(order, values, strict=True)}
        scores = load_scores(sorted(order), loads, rule)
        last = {"incumbent": order[-1], "tenure": 1, "turn": 1, "seed": (0,)}
        assert rank(order, scores, {}, rule, **last)[0] == order[0]


def test_hysteresis_is_a_share_of_the_load() -> None:
    """All loads 10 % lower: not enough for .85, enough for .95, in any unit."""
    for unit in (1e-6, 1.0, 1e6):
        values = {1: 10.0, 2: 9.0, 3: 11.0}
        loads = {n: Load(unit * v, 3 * unit * v, 5 * v) for n, v in values.items()}
        scores = load_scores([1, 2, 3], loads, RULE)
        assert _rank(RULE, scores, incumbent=1, tenure=3)[0] == 1
        assert _rank(replace(RULE, hysteresis=0.95), scores, incumbent=1, tenure=3)[0] == 2


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
def test_hysteresis_and_tenure_keep_the_incumbent(
    tenure: int, score: float, expected: list[int]
) -> None:
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
