"""Every strategy, driven by Flower's own ``Strategy.start`` on a Grid, against numbers by hand."""

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from fedsweep.config import PrivacyConfig
from fedsweep.strategies import (
    STRATEGIES,
    Clustered,
    build_strategy,
    is_weighted_mean,
    settings_of,
    wrap_privacy,
)
from fedsweep.strategies.devices import device_of, nominal
from tests.fakes import FakeGrid, halfway_app, record, start_of, values

NAMES = sorted(STRATEGIES)

TARGETS = {1: (8, 0), 2: (4, 0), 3: (0, 8), 4: (0, 4)}
EXAMPLES = {1: 1, 2: 3, 3: 1, 4: 1}
CPU_S = {1: 0.2, 2: 0.6, 3: 0.9, 4: 0.1}


def only_declared(name: str) -> bool:
    """Return whether a method is Flower's own class with nothing but a declaration around it."""
    made = STRATEGIES[name]
    own = {key for key in vars(made) if key == "__init__" or key[:2] != "__"} - {"_abc_impl"}
    flowers = [kind for kind in vars(flower).values() if isinstance(kind, type)]
    return made.__bases__[0] in flowers and not any(hasattr(flower.FedAvg, key) for key in own)


def _build(name: str, **changes: Any) -> Any:
    params = settings_of(name=name, **changes).canonical()
    groups = {node: (node - 1) // 2 for node in range(1, 9)}
    return build_strategy(
        name, params, seed=1, num_clients=8, client_learning_rate=0.05, groups=groups
    )


def _kmeans(**changes: Any) -> Any:
    return _build("kmeans", **{"num_clusters": 2, **changes})


def _grid(**options: Any) -> FakeGrid:
    return FakeGrid(halfway_app(TARGETS, EXAMPLES, CPU_S), 4, **options)


def _round(
    strategy: Any, grid: FakeGrid, number: int, arrays: ArrayRecord
) -> tuple[ArrayRecord, MetricRecord | None]:
    """Train one round as Flower does; return the global model and the training metrics."""
    replies = grid.send_and_receive(strategy.configure_train(number, arrays, ConfigRecord(), grid))
    new, metrics = strategy.aggregate_train(number, replies)
    return (arrays if new is None else new), metrics


def _rounds(
    strategy: Any, grid: FakeGrid, last: int, arrays: ArrayRecord | None = None, first: int = 1
) -> ArrayRecord:
    arrays = arrays or record(0, 0)
    for number in range(first, last + 1):
        arrays, _ = _round(strategy, grid, number, arrays)
    return arrays


def stored(state: Any) -> Any:
    """Return a state as a checkpoint gives it back: arrays as they are, the rest through JSON."""
    if isinstance(state, ArrayRecord):
        return state
    return (
        {key: stored(value) for key, value in state.items()}
        if isinstance(state, dict)
        else json.loads(json.dumps(state))
    )


def _fails(node: int, message_type: str) -> Callable[[Message], bool]:
    return lambda m: m.metadata.dst_node_id == node and m.metadata.message_type == message_type


# Every strategy


@pytest.mark.parametrize("name", NAMES)
def test_two_rounds_under_flowers_own_loop(name: str) -> None:
    """Seven nodes, as Bulyan needs; the model moves, its metrics arrive."""
    targets = {node: (float(node), 1.0) for node in range(1, 8)}
    strategy = _build(name)
    result = strategy.start(FakeGrid(halfway_app(targets), 7), start_of(strategy), num_rounds=2)
    assert (
        sorted(result.train_metrics_clientapp)
        == sorted(result.evaluate_metrics_clientapp)
        == [1, 2]
    )
    if name == "local":
        assert len(result.arrays) == 0
    else:
        assert np.isfinite(values(result.arrays)).all()
        assert values(result.arrays)[0] > 0


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("fedavg", {}, 2.0),  # mean of .5, 1, 1.5, 2, 5
        ("fedavgm", {"server_learning_rate": 0.5}, 1.0),
        ("fedprox", {}, 2.0),
        ("fedmedian", {}, 1.5),
        ("fedtrimmedavg", {"beta": 0.2}, 1.5),  # .5 and 5 are cut
        (
            "krum",
            {"num_malicious_nodes": 1},
            1.0,
        ),  # 1 is the closest to its two nearest, as 1.5 is; the first wins
        ("kmeans", {"num_clusters": 1}, 2.0),
    ],
)
def test_one_round_by_hand(name: str, changes: dict[str, Any], expected: float) -> None:
    targets = dict(enumerate([(1.0,), (2.0,), (3.0,), (4.0,), (10.0,)], start=1))
    arrays = _rounds(_build(name, **changes), FakeGrid(halfway_app(targets), 5), 1, record(0))
    assert values(arrays) == [expected]


def test_clipping_by_hand() -> None:
    """Updates of length 4, 2, 4 and 2, clipped to 1; the examples 1, 3, 1 and 1 do not count."""
    privacy = PrivacyConfig(name="fixed_server", noise_multiplier=0.0).canonical()
    strategy = wrap_privacy(_build("fedavg"), privacy)
    arrays = _rounds(strategy, _grid(), 1)
    assert values(arrays) == pytest.approx([2 / 4, 2 / 4])


# K-means


def test_kmeans_by_hand() -> None:
    """Two directions, two clusters; then each cluster goes on from its own model.

    Round 1: updates (4, 0), (2, 0), (0, 4), (0, 2); clusters (4 + 3 x 2) / 4 = 2.5 and (4 + 2) / 2
    = 3. Round 2: 5.25 and 3.25 give (5.25 + 3 x 3.25) / 4 = 3.75; 5.5 and 3.5 give 4.5. Cluster
    weights: 4 and 2 examples.
    """
    strategy, grid = _kmeans(), _grid()
    assert strategy.diagnostics() == {}
    arrays, metrics = _round(strategy, grid, 1, record(0, 0))
    assert strategy.assignment == {1: 0, 2: 0, 3: 1, 4: 1}
    assert {c: values(a) for c, a in strategy.cluster_arrays.items()} == {0: [2.5, 0], 1: [0, 3]}
    assert values(arrays) == pytest.approx([2.5 * 4 / 6, 3 * 2 / 6])
    assert metrics == {
        "train_loss": pytest.approx((64 + 3 * 16 + 64 + 16) / 6),
        "train_acc": pytest.approx(0.5),
    }
    arrays, _ = _round(strategy, grid, 2, arrays)
    assert {c: values(a) for c, a in strategy.cluster_arrays.items()} == {0: [3.75, 0], 1: [0, 4.5]}
    assert values(arrays) == pytest.approx([2.5, 1.5])
    # Clients 1 and 4 served twice each: Gini of (2, 0, 0, 2) is .5. Client 2 has the examples and
    # the load.
    assert strategy.diagnostics() == pytest.approx(
        {"silhouette": 1, "clusters": 2, "churn": 0, "handovers": 0}
        | {"server_tenure": 2, "server_gini": 0.5, "server_regret": 0, "server_spearman": 1}
    )
    assert isinstance(strategy, Clustered)


def test_servers_are_the_members_with_the_lowest_load() -> None:
    """90th percentiles of CPU: .56 of .2 and .6, .82 of .9 and .1;
    memory and node are equal: .5.
    """
    strategy, grid = _kmeans(), _grid()
    _rounds(strategy, grid, 2)
    assert strategy.servers == {0: 1, 1: 4}
    # CPU seconds over their 90th percentile, .56 of (.2, .6) and .82 of (.9, .1);
    # all else is equal.
    by_hand = {1: 0.1 / 0.56, 2: 0.3 / 0.56, 3: 0.45 / 0.82, 4: 0.05 / 0.82}
    assert strategy.scores == pytest.approx({node: 0.5 + cpu for node, cpu in by_hand.items()})
    assert strategy.tenure == {0: 2, 1: 2}
    queries = grid.sent[1]
    assert [(m.metadata.dst_node_id, m.metadata.message_type) for m in queries] == [
        (1, "query.aggregate"),
        (4, "query.aggregate"),
    ]
    assert queries[0].content["weights"] == {"member-1": 1.0, "member-2": 3.0}


def test_every_client_evaluates_its_clusters_model() -> None:
    strategy, grid = _kmeans(), _grid()
    arrays = _rounds(strategy, grid, 1)
    grid.send_and_receive(strategy.configure_evaluate(1, arrays, ConfigRecord(), grid))
    assert grid.sent_to(-1) == {1: [2.5, 0], 2: [2.5, 0], 3: [0, 3], 4: [0, 3]}


def test_one_content_per_cluster() -> None:
    """The engine sends each distinct content once, and forms partial means inside it."""
    strategy, grid = _kmeans(), _grid()
    arrays = _rounds(strategy, grid, 1)
    messages = {
        m.metadata.dst_node_id: m for m in strategy.configure_train(2, arrays, ConfigRecord(), grid)
    }
    assert messages[1].content is messages[2].content
    assert messages[3].content is messages[4].content
    assert messages[1].content is not messages[3].content
    assert messages[1].content["config"]["server-round"] == 2


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("warmup", [1, 2])
def test_one_cluster_is_fedavg_bit_for_bit(fraction: float, warmup: int) -> None:
    """Odd numbers, so that any other order or grouping of the sums would show."""
    rng = np.random.default_rng(0)
    targets = {node: tuple(rng.normal(size=5)) for node in range(1, 7)}
    examples = {node: int(rng.integers(1, 100)) for node in targets}
    bits = []
    for name, changes in (("fedavg", {}), ("kmeans", {"num_clusters": 1, "warmup_rounds": warmup})):
        random.seed(7)
        grid = FakeGrid(halfway_app(targets, examples), 6)
        start = record(*rng.permuted(np.zeros(5)))
        bits.append(
            _rounds(_build(name, fraction_train=fraction, **changes), grid, 4, start)["w"].data
        )
    assert bits[0] == bits[1]


def test_all_clients_take_part_in_the_clustering_round_from_one_model() -> None:
    """Pitfall: half the clients, or several starting points, would mix drift with signal."""
    random.seed(0)
    strategy, grid = _kmeans(fraction_train=0.5, warmup_rounds=2, recluster_every=2), _grid()
    arrays = _rounds(strategy, grid, 1)
    assert len(grid.sent_to(0)) == 2
    assert strategy.assignment == {}
    arrays = _rounds(strategy, grid, 2, arrays, first=2)
    assert grid.sent_to(1) == dict.fromkeys(range(1, 5), grid.sent_to(1)[1])
    assert sorted(strategy.assignment) == [1, 2, 3, 4]
    arrays = _rounds(strategy, grid, 3, arrays, first=3)
    assert strategy.clustering_round is False
    _rounds(strategy, grid, 4, arrays, first=4)
    trained = [batch for batch in grid.sent if batch[0].metadata.message_type == "train"]
    assert [len(batch) for batch in trained] == [2, 4, 2, 4]
    assert all(values(m.content["arrays"]) == values(arrays) for m in trained[3])


def test_clusters_follow_clients_that_change() -> None:
    """Client 2 moves over to the other direction; the next clustering finds it there."""
    targets: dict[int, tuple[float, ...]] = dict(TARGETS)
    strategy, grid = (
        _kmeans(recluster_every=2, representation="updates", distance="cosine"),
        _grid(),
    )
    arrays = _rounds(strategy, grid, 2)
    targets[2] = (0, 40)
    grid.app = halfway_app(targets, EXAMPLES, CPU_S)
    _rounds(strategy, grid, 3, arrays, first=3)
    assert strategy.assignment == {1: 0, 2: 1, 3: 1, 4: 1}


def test_arrays_stay_references_outside_clustering_rounds() -> None:
    """Sealed arrays can't be read: the strategy passes on the very objects that it received."""
    strategy = _kmeans()
    grid = _grid(seals=lambda: not strategy.clustering_round)
    arrays = _rounds(strategy, grid, 3)
    sent = {
        name: a for message in grid.sent[-1] for name, a in message.content.array_records.items()
    }
    received = {f"member-{r.metadata.src_node_id}": r.content["arrays"] for r in grid.received[-2]}
    assert sent.keys() == received.keys()
    assert all(sent[name] is received[name] for name in sent)
    assert values(arrays) == values(_rounds(_kmeans(), _grid(), 3))


def test_partial_means_give_the_same_models_and_servers() -> None:
    """A reply may stand for several members: its sender's cluster, its columns their loads."""
    strategy = _kmeans(server={"min_tenure": 1})
    grid = _grid(chunk_size=lambda: 2 if is_weighted_mean(strategy) else 1)
    arrays = _rounds(strategy, grid, 1)
    assert len(grid.received[0]) == 4  # the clustering round sees each reply
    grid.app = halfway_app(TARGETS, EXAMPLES, {1: 9.0, 2: 0.1, 3: 0.9, 4: 0.1})
    arrays = _rounds(strategy, grid, 2, arrays, first=2)
    assert len(grid.received[2]) == 2
    assert {c: values(a) for c, a in strategy.cluster_arrays.items()} == {0: [3.75, 0], 1: [0, 4.5]}
    assert values(arrays) == pytest.approx([2.5, 1.5])
    assert strategy.election.examples == {1: 1, 2: 3, 3: 1, 4: 1}
    assert strategy.servers == {0: 2, 1: 4}
    assert strategy.diagnostics()["handovers"] == 1


def test_partial_means_without_columns_tell_nothing_about_clients() -> None:
    """The summed examples of several clients are no client's."""
    strategy, grid = _kmeans(), _grid(chunk_size=lambda: 2 if is_weighted_mean(strategy) else 1)
    arrays = _rounds(strategy, grid, 1)
    before = dict(strategy.election.examples), dict(strategy.election.loads)
    replies = grid.send_and_receive(strategy.configure_train(2, arrays, ConfigRecord(), grid))
    for reply in replies:
        del reply.content["load"]
    strategy.aggregate_train(2, replies)
    assert (strategy.election.examples, strategy.election.loads) == before


def test_a_lost_server_is_replaced_by_the_next_best() -> None:
    grid = _grid(fails=_fails(1, "query.aggregate"))
    strategy = _kmeans()
    arrays = _rounds(strategy, grid, 2)
    assert strategy.servers == {0: 2, 1: 4}
    assert values(arrays) == pytest.approx([2.5, 1.5])


def test_a_server_that_never_answers_is_replaced_and_the_regret_says_what_it_cost() -> None:
    """Its host died while it aggregated: no reply, no error.

    Client 2 costs .2 / .56 more, twice.
    """
    whole = _rounds(_kmeans(), _grid(), 2)
    strategy = _kmeans()
    arrays = _rounds(strategy, _grid(loses=_fails(1, "query.aggregate")), 2)
    assert arrays["w"].data == whole["w"].data
    assert strategy.servers == {0: 2, 1: 4}
    apart = (0.3 - 0.1) / 0.56  # the scores of clients 2 and 1
    assert strategy.diagnostics()["server_regret"] == pytest.approx((apart + 0 + apart + 0) / 4)


def test_a_server_lost_in_a_later_round_hands_over() -> None:
    strategy, grid = _kmeans(), _grid()
    arrays = _rounds(strategy, grid, 2)
    grid.loses = _fails(1, "query.aggregate")
    arrays = _rounds(strategy, grid, 3, arrays, first=3)
    assert arrays["w"].data == _rounds(_kmeans(), _grid(), 3)["w"].data
    assert strategy.servers == {0: 2, 1: 4}
    found = strategy.diagnostics()
    assert found["handovers"] == 1
    assert (
        found["server_tenure"] == 6 / 3
    )  # six aggregations in three terms: client 1's, 2's and 4's
    assert found["server_regret"] == pytest.approx((0.3 - 0.1) / 0.56 / 6)
    assert found["server_gini"] == pytest.approx(
        5 / 12
    )  # (0, 1, 2, 3): 2 (2 + 6 + 12) / (4 x 6) - 5 / 4


def test_simulated_servers_depend_on_the_seed_alone() -> None:
    """The measured load changes, the servers do not;
    a client that never reports a load may serve too.
    """
    strategy = _kmeans(server={"mode": "simulated"})
    _rounds(strategy, _grid(), 3)
    other = _kmeans(server={"mode": "simulated"})
    _rounds(other, FakeGrid(halfway_app(TARGETS, EXAMPLES, {1: 9.0, 2: 0.1, 3: 0.1, 4: 9.0}), 4), 3)
    assert strategy.election.state_dict() == other.election.state_dict()
    for node, load in strategy.election.loads.items():
        assert load == pytest.approx(device_of(1, node).scaled(nominal(EXAMPLES[node])))


def test_without_any_server_the_aggregation_is_done_here() -> None:
    grid = _grid(fails=lambda m: m.metadata.message_type == "query.aggregate")
    strategy = _kmeans()
    arrays = _rounds(strategy, grid, 2)
    assert strategy.servers == strategy.tenure == {}
    assert values(arrays) == pytest.approx([2.5, 1.5])


def test_a_client_that_failed_in_the_round_is_not_elected() -> None:
    strategy, grid = _kmeans(), _grid()
    arrays = _rounds(strategy, grid, 1)
    grid.fails = _fails(1, "train")
    _rounds(strategy, grid, 2, arrays, first=2)
    assert strategy.servers == {0: 2, 1: 4}
    assert values(strategy.cluster_arrays[0]) == [3.25, 0]


def test_a_cluster_without_replies_keeps_its_model() -> None:
    strategy, grid = _kmeans(), _grid()
    arrays = _rounds(strategy, grid, 1)
    grid.fails = lambda m: m.metadata.dst_node_id in (1, 2)
    arrays = _rounds(strategy, grid, 2, arrays, first=2)
    assert {c: values(a) for c, a in strategy.cluster_arrays.items()} == {0: [2.5, 0], 1: [0, 4.5]}
    assert values(arrays) == pytest.approx([2.5 * 4 / 6, 4.5 * 2 / 6])


def test_a_round_without_replies_changes_nothing() -> None:
    strategy, grid = _kmeans(), _grid()
    _rounds(strategy, grid, 1)
    grid.fails = lambda _: True
    replies = grid.send_and_receive(strategy.configure_train(2, record(0, 0), ConfigRecord(), grid))
    assert strategy.aggregate_train(2, replies) == (None, None)
    assert values(strategy.cluster_arrays[0]) == [2.5, 0]


def test_a_client_missed_by_the_clustering_trains_once_from_the_anchor_and_joins_the_nearest() -> (
    None
):
    """Client 1 failed in the clustering round, client 5 came later;
    both start from the anchor (0, 0), uncounted.
    """
    targets = {**TARGETS, 5: (0, 2)}
    strategy, grid = _kmeans(), FakeGrid(halfway_app(targets), 4, fails=_fails(1, "train"))
    arrays = _rounds(strategy, grid, 1)
    assert strategy.assignment == {2: 0, 3: 1, 4: 1}
    grid.num_nodes, grid.fails = 5, lambda _: False
    grid.send_and_receive(strategy.configure_evaluate(1, arrays, ConfigRecord(), grid))
    assert grid.sent_to(-1)[5] == values(arrays)
    before = len(grid.sent)
    _rounds(strategy, grid, 2, arrays, first=2)
    assert grid.sent_to(before) == {1: [0, 0], 2: [2, 0], 3: [0, 3], 4: [0, 3], 5: [0, 0]}
    assert strategy.assignment == {1: 0, 2: 0, 3: 1, 4: 1, 5: 1}
    assert {c: values(a) for c, a in strategy.cluster_arrays.items()} == {0: [3, 0], 1: [0, 4.5]}
    _rounds(strategy, grid, 3, first=3)
    assert strategy.clustering_round is False
    assert values(strategy.cluster_arrays[0]) == [
        4.5,
        0,
    ]  # (8 + 3) / 2 and (4 + 3) / 2, equal weights: 4.5


def test_clients_that_left_are_neither_asked_nor_elected() -> None:
    strategy, grid = _kmeans(), _grid()
    arrays = _rounds(strategy, grid, 1)
    grid.num_nodes = 3
    _rounds(strategy, grid, 2, arrays, first=2)
    assert strategy.assignment == {1: 0, 2: 0, 3: 1}
    assert strategy.servers == {0: 1, 1: 3}


def test_too_few_replies_put_the_clustering_off() -> None:
    grid = _grid(fails=lambda m: m.metadata.dst_node_id != 1)
    strategy = _kmeans()
    arrays = _rounds(strategy, grid, 1)
    assert strategy.assignment == {}
    assert values(arrays) == [4, 0]
    grid.fails = lambda _: False
    _rounds(strategy, grid, 2, arrays, first=2)
    assert sorted(strategy.assignment) == [1, 2, 3, 4]


def test_resumed_between_two_rounds_it_goes_on_as_if_nothing_had_happened() -> None:
    """Through JSON, as a checkpoint stores it; the arrays go beside it."""
    whole, grid = _kmeans(recluster_every=3), _grid()
    expected = _rounds(whole, grid, 5)
    before, grid = _kmeans(recluster_every=3), _grid()
    arrays = _rounds(before, grid, 2)
    state = before.state_dict()
    after = _kmeans(recluster_every=3)
    after.load_state_dict(stored(state))
    assert values(_rounds(after, grid, 5, arrays, first=3)) == values(expected)
    assert after.state_dict()["election"] == whole.state_dict()["election"]


@pytest.mark.parametrize("mode", ["measured", "simulated", "hybrid"])
@pytest.mark.parametrize("rule", ["load", "load_once", "random", "round_robin", "largest_data"])
def test_the_choice_of_the_server_never_changes_the_weights(rule: str, mode: str) -> None:
    strategy, grid = _kmeans(server={"rule": rule, "mode": mode}), _grid()
    arrays = _rounds(strategy, grid, 3)
    assert arrays["w"].data == _rounds(_kmeans(), _grid(), 3)["w"].data
    if rule == "largest_data":
        assert strategy.servers == {0: 2, 1: 3}


# Local


def test_local_clients_keep_their_models() -> None:
    """Each goes half the way to its own target, again and again; arrays travel once."""
    strategy, grid = _build("local"), _grid()
    config = ConfigRecord()
    for number in (1, 2):
        replies = grid.send_and_receive(
            strategy.configure_train(number, record(0, 0), config, grid)
        )
        arrays, metrics = strategy.aggregate_train(number, replies)
        assert arrays is None
    assert [len(m.content["arrays"]) for m in grid.sent[0]] == [1, 1, 1, 1]
    assert [len(m.content["arrays"]) for m in grid.sent[1]] == [0, 0, 0, 0]
    assert metrics is not None
    assert metrics["train_loss"] == pytest.approx((16 + 3 * 4 + 16 + 4) / 6)
    replies = grid.send_and_receive(
        strategy.configure_evaluate(2, record(0, 0), ConfigRecord(), grid)
    )
    losses = {
        reply.metadata.src_node_id: reply.content["metrics"]["eval_loss"] for reply in replies
    }
    assert losses == {1: 4.0, 2: 1.0, 3: 4.0, 4: 1.0}


def test_local_sends_the_initial_model_until_a_client_has_trained() -> None:
    strategy, grid = _build("local"), _grid(fails=_fails(2, "train"))
    replies = grid.send_and_receive(strategy.configure_train(1, record(0, 0), ConfigRecord(), grid))
    strategy.aggregate_train(1, replies)
    resumed = _build("local")
    resumed.load_state_dict(json.loads(json.dumps(strategy.state_dict())))
    messages = resumed.configure_evaluate(1, record(0, 0), ConfigRecord(), grid)
    assert {m.metadata.dst_node_id: len(m.content["arrays"]) for m in messages} == {
        1: 0,
        2: 1,
        3: 0,
        4: 0,
    }


def test_a_reply_with_two_models_is_refused_as_flower_does() -> None:
    strategy, grid = _kmeans(), _grid()
    replies = grid.send_and_receive(strategy.configure_train(1, record(0, 0), ConfigRecord(), grid))
    replies[0].content = RecordDict({**replies[0].content, "more": record(1)})
    with pytest.raises(Exception, match="exactly one ArrayRecord"):
        strategy.aggregate_train(1, replies)


def test_flowers_strategies_are_flowers() -> None:
    flowers = {"fedavg", "fedavgm", "fedadagrad", "fedyogi", "fedprox", "fedmedian"}
    assert {name for name in NAMES if only_declared(name)} == flowers
