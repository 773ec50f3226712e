"""Krum, Multi-Krum, Bulyan and the trimmed mean: by hand, by brute force, and by SciPy."""

from math import fsum
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import multikrum
from scipy.stats import trim_mean

from fedsweep.config import RunConfig
from fedsweep.engine.flower import sampling
from fedsweep.errors import ConfigError
from fedsweep.strategies import STRATEGIES, build_strategy, settings_of
from fedsweep.strategies.insides import AggregationError
from fedsweep.strategies.robust import (
    around_the_median,
    krum_scores,
    nearest,
    num_cut,
    one_by_one,
    squared_distances,
    trimmed_mean,
)
from tests.fakes import FakeGrid, halfway_app, record, values


def replies_of(models: list[dict[str, Any]], examples: list[int] | None = None) -> list[Message]:
    FakeGrid(halfway_app({}), 1)  # gives this process the identity that a message needs
    replies, weights = [], examples or [1] * len(models)
    for i, model in enumerate(models):
        arrays = ArrayRecord({key: Array(np.asarray(value)) for key, value in model.items()})
        metrics = MetricRecord({"num-examples": weights[i], "train_loss": float(i)})
        asked = Message(RecordDict(), i + 1, "train")
        asked.metadata.__dict__["_message_id"] = str(i)
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        replies.append(Message(content, reply_to=asked))
    return replies


def build(name: str, **changes: Any) -> Any:
    params = settings_of(name=name, **changes).canonical()
    return build_strategy(name, params, seed=0, num_clients=20)


def by_brute_force(points: np.ndarray, f: int, among: list[int]) -> int:
    """Return Krum's choice among some rows, by its definition and exactly rounded sums."""
    scores = {}
    for i in among:
        others = sorted(fsum((points[i] - points[j]) ** 2) for j in among if j != i)
        scores[i] = fsum(others[: max(1, len(among) - f - 2)])
    return min(scores, key=lambda i: (scores[i], i))


def squares(points: np.ndarray) -> np.ndarray:
    return squared_distances([ArrayRecord({"w": Array(row)}) for row in points])


# Distances and choices


def test_distances_of_close_updates_are_exact_where_the_expanded_formula_is_not() -> None:
    """Models of length 100, 1e-3 apart, in float32: the differences are below a float32's ulp of
    the squared lengths."""
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, 10_000).astype(np.float32)
    points = np.stack([base + rng.normal(0, 1e-5, 10_000).astype(np.float32) for _ in range(7)])
    wide = points.astype(np.float64)
    exact = np.array([[fsum((a - b) ** 2) for b in wide] for a in wide])
    assert squares(points) == pytest.approx(exact, rel=1e-12)
    apart = np.array([[1.0], [1 + 1e-12], [3.0]])  # doubles that are one single
    assert squares(apart)[0, 1] == (apart[0, 0] - apart[1, 0]) ** 2 > 0
    flowers = multikrum.compute_distances([ArrayRecord({"w": Array(row)}) for row in points])
    assert np.abs(flowers - exact).max() > exact.max()


def test_the_closest_client_is_chosen_among_close_updates() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        base = rng.normal(0, 1, 2000)
        scale = rng.uniform(1e-5, 1e-4, 9)[:, None]
        points = (base + scale * rng.normal(size=(9, 2000))).astype(np.float32)
        replies = replies_of([{"w": row} for row in points])
        model, _ = build("krum", num_malicious_nodes=2).aggregate_train(1, replies)
        chosen = by_brute_force(points.astype(float), 2, list(range(9)))
        assert (model["w"].numpy() == points[chosen]).all()


def test_on_plain_flower_both_choose_one_and_withstand_nobody_unless_told() -> None:
    points = np.random.default_rng(2).normal(size=(6, 20)).astype(np.float32)
    chosen = points[by_brute_force(points.astype(float), 0, list(range(6)))]
    for kind in (STRATEGIES["krum"], STRATEGIES["multikrum"]):
        model, _ = kind().aggregate_train(1, replies_of([{"w": row} for row in points]))
        assert (model["w"].numpy() == chosen).all()


def test_distances_over_several_arrays_scalars_too_and_counters_left_out() -> None:
    w = np.array([[3.0], [4.0]], np.float32)
    models = [{"w": w * i, "s": np.float64(12 * i), "n": np.int64(9 * i)} for i in (0, 1)]
    arrays = [ArrayRecord({k: Array(np.asarray(v)) for k, v in m.items()}) for m in models]
    assert squared_distances(arrays).tolist() == [[0, 169], [169, 0]]


def test_blocks_do_not_change_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).normal(size=(5, 100))
    whole = squares(points)
    monkeypatch.setattr("fedsweep.strategies.robust.BLOCK_FLOATS", 35)
    assert squares(points) == pytest.approx(whole, rel=1e-14)


def test_scores_by_hand() -> None:
    """Two neighbours each (f = 1): 1 + 9, 1 + 4, 4 + 9, 16 + 36, 169 + 289."""
    distances = squares(np.array([[0.0], [1], [3], [7], [20]]))
    assert krum_scores(distances, 1).tolist() == [10, 5, 13, 52, 458]
    assert nearest(distances, 1, 3) == [1, 0, 2]


def test_equals_go_by_their_order() -> None:
    assert nearest(squares(np.zeros((5, 2))), 1, 2) == [0, 1]


def test_what_is_not_finite_is_never_near() -> None:
    """Two attackers send what is no number; the rest are chosen as if they were far away."""
    points = np.array([[np.nan], [0.0], [1], [3], [7], [np.inf], [8]])
    assert nearest(squares(points), 2, 1) == [3]  # three neighbours: 4 + 9 + 16
    assert set(one_by_one(squares(np.vstack([points, np.ones((4, 1))])), 2)).isdisjoint({0, 5})


# Bulyan


def test_bulyan_by_hand_chooses_again_among_those_that_are_left() -> None:
    """Points 0, 1, 2, 9, 10, 10.5, 30; f = 1: theta = 5, beta = 3.

    Of seven, 9 has the least sum over 4 neighbours: 1 + 2.25 + 49 + 64. Of the six that are left
    (3 neighbours) 2 has: 4 + 1 + 64. Of five (2) 10 has: .25 + 81, as 1 + 81 for 1, 1 + 100 for 0.
    Of 0, 1, 10.5, 30 (1) it is 0, then 1. The five lowest sums of the first time are of 9, 2, 10,
    1, 10.5. The median of 9, 2, 10, 0, 1 is 2, and 2, 1, 0 are nearest.
    """
    points = np.array([[0.0], [1], [2], [9], [10], [10.5], [30]])
    distances = squares(points)
    assert one_by_one(distances, 1) == [3, 2, 4, 0, 1]
    assert nearest(distances, 1, 5) == [3, 2, 4, 1, 5]
    model, _ = build("bulyan").aggregate_train(1, replies_of([{"w": point} for point in points]))
    assert values(model) == [1.0]


@pytest.mark.parametrize("f", [0, 1, 2, 3])
def test_bulyan_against_its_definition(f: int) -> None:
    rng = np.random.default_rng(f)
    for extra in (3, 4, 7):
        n = 4 * f + extra
        points = rng.normal(size=(n, 6))
        points[:f] += 5
        left, chosen = list(range(n)), []
        while len(chosen) < n - 2 * f:
            chosen.append(by_brute_force(points, f, left) if len(left) > 1 else left[0])
            left.remove(chosen[-1])
        expected = []
        for column in points[chosen].T:
            middle = np.median(column)
            kept = sorted(column, key=lambda value: abs(value - middle))[: n - 4 * f]
            expected.append(fsum(kept) / len(kept))
        strategy = build("bulyan", num_malicious_nodes=f)
        model, metrics = strategy.aggregate_train(1, replies_of([{"w": p} for p in points]))
        assert values(model) == pytest.approx(expected, rel=1e-12)
        assert metrics["train_loss"] == pytest.approx(np.mean(chosen))


def test_around_the_median_by_hand() -> None:
    """The medians are 3 and -1: 2, 3, 4 and -2, -1, 0 are nearest."""
    column = np.array([[0.0, -2], [2, -1], [3, 0], [4, 50], [90, -60]])
    assert around_the_median(column, 3).tolist() == [3, -1]


# Means


def test_multi_krum_is_the_plain_mean_of_the_chosen() -> None:
    """0, 1 and 3 are chosen of 0, 1, 3, 7, 20, 21; the examples that they claim do not count."""
    models = [{"w": np.array([p], np.float32)} for p in (0, 1, 3, 7, 20, 21)]
    strategy = build("multikrum", num_malicious_nodes=1, num_nodes_to_select=3)
    model, metrics = strategy.aggregate_train(1, replies_of(models, [10**6, 1, 1, 1, 1, 1]))
    assert values(model) == [np.float32(4 / 3)]
    assert model["w"].dtype == "float32"
    assert metrics["train_loss"] == pytest.approx((0 * 10**6 + 1 + 2) / (10**6 + 2))


@pytest.mark.parametrize("name", ["krum", "multikrum", "bulyan", "fedtrimmedavg"])
def test_shapes_and_dtypes_stay(name: str) -> None:
    models = [{"s": np.float32(i), "w": np.full((2, 3), i, np.float64)} for i in range(9)]
    model, _ = build(name).aggregate_train(1, replies_of(models))
    assert {key: (a.dtype, tuple(a.shape)) for key, a in model.items()} == {
        "s": ("float32", ()),
        "w": ("float64", (2, 3)),
    }
    assert (model["w"].numpy().astype(np.float32) == model["s"].numpy()).all()


@pytest.mark.parametrize("n", [5, 9, 10, 100])
@pytest.mark.parametrize("beta", [0.2, 0.25, 0.3, 0.45])
def test_trimmed_mean_is_scipys(n: int, beta: float) -> None:
    points = np.random.default_rng(n).standard_cauchy((n, 4, 2))
    replies = replies_of([{"w": point} for point in points])
    model, _ = build("fedtrimmedavg", beta=beta).aggregate_train(1, replies)
    assert model["w"].numpy() == pytest.approx(trim_mean(points, beta), rel=1e-12)


def test_a_share_is_counted_as_people_count() -> None:
    """.29 of 100 is 28.999999999999996 in floating point, and SciPy cuts 28."""
    assert [num_cut(0.29, 100), num_cut(0.2, 4), num_cut(0.2, 5)] == [29, 0, 1]


def test_no_number_is_cut_like_the_highest() -> None:
    column = np.array([np.nan, 1.0, 2, 3, -np.inf])
    assert trimmed_mean(column, 1) == 2


# Refusals

TOO_FEW = [
    ("krum", {"num_malicious_nodes": 1}, 4, 5),
    ("krum", {"num_malicious_nodes": 0}, 2, 3),
    ("multikrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 3}, 5, 6),
    ("multikrum", {"num_malicious_nodes": 2, "num_nodes_to_select": 1}, 6, 7),
    ("bulyan", {"num_malicious_nodes": 1}, 6, 7),
    ("bulyan", {"num_malicious_nodes": 2}, 10, 11),
    ("fedtrimmedavg", {"beta": 0.2}, 4, 5),
    ("fedtrimmedavg", {"beta": 0.1}, 9, 10),
]


@pytest.mark.parametrize(("name", "changes", "few", "enough"), TOO_FEW)
def test_too_few_replies_are_refused_with_the_numbers(
    name: str, changes: dict[str, Any], few: int, enough: int
) -> None:
    """One of ``enough`` fails: the round is refused, though enough were asked."""
    replies = replies_of([{"w": np.array([float(i)])} for i in range(enough)])
    strategy = build(name, **changes)
    assert strategy.aggregate_train(1, list(replies))[0] is not None
    lost = [*replies[:few], Message(Error(0, "failed"), reply_to=replies[0])]
    with pytest.raises(AggregationError, match=rf"round 7: strategy={name} .*\b{few}\b.*; train"):
        strategy.aggregate_train(7, lost)


def test_where_nobody_is_there_nobody_is_asked_and_nothing_refused() -> None:
    """Devices may all be away: the loop waits and asks again. One that is there is too few."""
    strategy, grid = build("krum"), FakeGrid(halfway_app({}), 5)
    with sampling(lambda nodes, size: []):
        assert not strategy.configure_train(1, record(0.0), ConfigRecord(), grid)
    with sampling(lambda nodes, size: [2]), pytest.raises(ValueError, match="there are 1"):
        strategy.configure_train(1, record(0.0), ConfigRecord(), grid)


@pytest.mark.parametrize(("name", "changes", "few", "enough"), TOO_FEW)
@pytest.mark.parametrize("how", ["clients", "fraction", "newcomers"])
def test_the_configuration_refuses_too_small_a_cohort(
    name: str, changes: dict[str, Any], few: int, enough: int, how: str
) -> None:
    def trial(n: int) -> RunConfig:
        strategy, shift, clients = {"name": name, **changes}, {}, n
        if how == "fraction":
            strategy["fraction_train"], clients = 0.5, 2 * n
        if how == "newcomers":
            shift, clients = {"newcomers": 0.5, "join_round": 3}, 2 * n
        settings = {"strategy": strategy, "num_clients": clients, "shift": shift}
        return RunConfig.model_validate(settings)

    trial(enough)
    with pytest.raises(ConfigError, match=rf"strategy={name} .*\b{few}\b"):
        trial(few)


def test_a_share_of_zero_trims_nobody_and_is_refused() -> None:
    with pytest.raises(ConfigError, match="beta=0 cuts nobody of 10 clients"):
        RunConfig.model_validate({"strategy": {"name": "fedtrimmedavg", "beta": 0}})


def test_a_round_with_too_few_ends_flowers_own_loop() -> None:
    grid = FakeGrid(halfway_app({i: (float(i),) for i in range(1, 6)}), 5)
    grid.fails = lambda m: m.metadata.dst_node_id == 1
    with pytest.raises(AggregationError, match="needs 5 replies or more, but 4 came"):
        build("krum").start(grid, record(0), num_rounds=1)
