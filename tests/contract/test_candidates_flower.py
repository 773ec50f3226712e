"""IFCA, CLoVE, FedSoft and the stateful strategies on a Flower Grid, against numbers by hand."""

import json
import random
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import silhouette_score

from fedsweep.engine.flower import sampling
from fedsweep.strategies import Clustered, Resumable, build_strategy, settings_of
from fedsweep.strategies.candidates import (
    better_by_a_tenth,
    group_losses,
    initial_models,
    match_models,
)
from fedsweep.strategies.layout import Layout
from fedsweep.strategies.own_part import head_keys
from tests.fakes import FakeGrid, halfway_app, record, values

TARGETS = {1: (8, 0), 2: (4, 0), 3: (0, 8), 4: (0, 4)}
EXAMPLES = {1: 1, 2: 3, 3: 1, 4: 1}
CHOOSING = ["ifca", "clove", "fedsoft"]


def _build(name: str, **changes: Any) -> Any:
    return build_strategy(
        name, settings_of(name=name, **changes).canonical(), seed=1, num_clients=8
    )


def _from(models: dict[int, tuple[float, ...]], name: str, **changes: Any) -> Any:
    """Return a strategy that begins with these models: shuffled zeros would all be one."""
    strategy = _build(name, num_clusters=len(models), **changes)
    strategy.cluster_arrays = {k: record(*weights) for k, weights in models.items()}
    return strategy


def _grid(targets: Any = None, **options: Any) -> FakeGrid:
    targets = targets or TARGETS
    return FakeGrid(halfway_app(targets, EXAMPLES), len(targets), **options)


def _rounds(
    strategy: Any, grid: FakeGrid, last: int, arrays: ArrayRecord | None = None, first: int = 1
) -> ArrayRecord:
    arrays = arrays or record(0, 0)
    for number in range(first, last + 1):
        replies = grid.send_and_receive(
            strategy.configure_train(number, arrays, ConfigRecord(), grid)
        )
        new, _ = strategy.aggregate_train(number, replies)
        arrays = arrays if new is None else new
    return arrays


def _evaluated(strategy: Any, grid: FakeGrid) -> list[Any]:
    return list(strategy.configure_evaluate(1, record(0, 0), ConfigRecord(), grid))


def _models(strategy: Any) -> dict[int, list[float]]:
    return {c: values(arrays) for c, arrays in strategy.cluster_arrays.items()}


@pytest.mark.parametrize("name", CHOOSING)
def test_before_anybody_was_grouped_nobody_has_changed_its_group(name: str) -> None:
    assert _build(name, num_clusters=2).churn == 0


# The K models


def test_initial_models_are_the_first_one_shuffled() -> None:
    arrays = ArrayRecord(
        {"w": Array(np.arange(24.0).reshape(4, 6)), "count": Array(np.array([3, 1, 2]))}
    )
    models = initial_models(arrays, 3, 5, Layout.by_dtype(arrays))
    assert models[0] is arrays
    for k in (1, 2):
        assert sorted(models[k]["w"].numpy().ravel()) == list(range(24))
        assert models[k]["w"].numpy().shape == (4, 6)
        assert models[k]["count"].numpy().tolist() == [3, 1, 2]
    drawn = {k: models[k]["w"].data for k in models}
    assert len(set(drawn.values())) == 3
    again = initial_models(arrays, 3, 5, Layout.by_dtype(arrays))
    assert all(again[k]["w"].data == drawn[k] for k in drawn)
    assert initial_models(arrays, 3, 6, Layout.by_dtype(arrays))[1]["w"].data != drawn[1]


@pytest.mark.parametrize("name", ["ifca", "fedsoft"])
def test_every_client_gets_all_models_in_one_content(name: str) -> None:
    strategy, grid = _from({0: (2, 0), 1: (0, 2)}, name), _grid()
    messages = list(strategy.configure_train(1, record(0, 0), ConfigRecord(), grid))
    assert len({id(message.content) for message in messages}) == 1
    assert {key: values(a) for key, a in messages[0].content.array_records.items()} == {
        "model-0": [2, 0],
        "model-1": [0, 2],
    }
    assert messages[0].content["config"]["server-round"] == 1


@pytest.mark.parametrize("name", CHOOSING)
def test_protocols(name: str) -> None:
    assert isinstance(_build(name), Clustered)
    assert isinstance(_build(name), Resumable)


# IFCA


def test_ifca_by_hand() -> None:
    """Clients 1 and 2 choose (2, 0), 3 and 4 choose (0, 2); nobody chooses (-9, -9).

    They reach (5, 0), (3, 0), (0, 5), (0, 3): (5 + 3 x 3) / 4 = 3.5 and 4.
    Weights: 4 and 2 examples.
    """
    strategy, grid = _from({0: (2, 0), 1: (0, 2), 2: (-9, -9)}, "ifca"), _grid()
    assert strategy.diagnostics() == {}
    arrays = _rounds(strategy, grid, 1)
    assert strategy.assignment == {1: 0, 2: 0, 3: 1, 4: 1}
    assert _models(strategy) == {0: [3.5, 0], 1: [0, 4], 2: [-9, -9]}
    assert values(arrays) == pytest.approx([3.5 * 4 / 6, 4 * 2 / 6])
    found = strategy.diagnostics()
    told = ("clusters", "churn", "handovers", "server_tenure", "server_regret")
    assert {name: found[name] for name in told} == {
        "clusters": 2, "churn": 0, "handovers": 0, "server_tenure": 1, "server_regret": 0
    }  # fmt: skip
    assert strategy.servers == {0: 1, 1: 3}  # the fake's CPU seconds are the ids


def test_an_empty_cluster_keeps_its_model_and_nothing_is_drawn_anew() -> None:
    """The reference code draws initial models again until every cluster has members.

    Here a bad start stays visible.
    """
    strategy, grid = _from({0: (1, 1), 1: (-50, -50)}, "ifca"), _grid()
    before = strategy.cluster_arrays[1]
    _rounds(strategy, grid, 3)
    assert set(strategy.assignment.values()) == {0}
    assert strategy.cluster_arrays[1] is before
    assert strategy.diagnostics()["clusters"] == 1


def test_a_client_that_changes_its_cluster_is_counted() -> None:
    strategy, grid = _from({0: (2, 0), 1: (0, 2)}, "ifca"), _grid()
    arrays = _rounds(strategy, grid, 1)
    grid.app = halfway_app({**TARGETS, 2: (0, 6)}, EXAMPLES)
    _rounds(strategy, grid, 2, arrays, first=2)
    assert strategy.assignment == {1: 0, 2: 1, 3: 1, 4: 1}
    assert strategy.diagnostics()["churn"] == 1


@pytest.mark.parametrize("name", ["ifca", "clove"])
def test_a_client_that_left_is_not_elected(name: str) -> None:
    """Client 4 has the lowest load of its cluster, and leaves; the cluster remembers it."""
    strategy = _from({0: (6, 0), 1: (0, 6)}, name)
    grid = FakeGrid(halfway_app(TARGETS, EXAMPLES, {1: 0.2, 2: 0.6, 3: 0.9, 4: 0.1}), 4)
    arrays = _rounds(strategy, grid, 2)
    assert strategy.servers == {0: 1, 1: 4}
    grid.num_nodes = 3
    _rounds(strategy, grid, 3, arrays, first=3)
    assert strategy.servers == {0: 1, 1: 3}


def test_ifca_leaves_arrays_where_they_are() -> None:
    """The servers average: the driver reads no client's model, only the clusters'."""
    strategy, grid = _from({0: (2, 0), 1: (0, 2)}, "ifca"), _grid(seals=lambda: True)
    _rounds(strategy, grid, 2)
    assert _models(strategy)[0] == [(3.5 + 8) / 2 * 0.25 + (3.5 + 4) / 2 * 0.75, 0]


@pytest.mark.parametrize("name", CHOOSING)
def test_who_has_no_cluster_yet_is_evaluated_under_its_own_choice(name: str) -> None:
    """Clients 1 to 3 trained, 4 did not: it gets all models and chooses by its training loss."""
    models = {0: (2.0, 0.0), 1: (0.0, 2.0)}
    targets = {1: (8, 0), 2: (7, 0), 3: (0, 8), 4: (0, 7)}
    strategy = _from(models, name)
    grid = _grid(targets, fails=lambda m: m.metadata.dst_node_id == 4)
    if name == "clove":
        grid.num_nodes = 3  # it joins a client that did not answer to the largest cluster
    arrays = _rounds(strategy, grid, 1)
    grid.num_nodes = 4
    grid.fails = lambda _: False
    messages = _evaluated(strategy, grid)
    asked = {m.metadata.dst_node_id: m.content for m in messages}
    assert list(asked[4].array_records) == ["model-0", "model-1"]
    assert asked[4]["config"]["method"] == {"fedsoft": "soft"}.get(name, "choose")
    if name == "clove":  # its server assigns
        assert values(asked[1]["arrays"]) == _models(strategy)[strategy.assignment[1]]
        assert "method" not in asked[1]["config"]
    else:
        assert asked[1] is asked[4]
    strategy.aggregate_evaluate(1, grid.send_and_receive(messages))
    known = {**getattr(strategy, "guests", {}), **strategy.assignment}
    assert known == {1: 0, 2: 0, 3: 1, 4: 1}
    _rounds(strategy, grid, 2, arrays, first=2)
    assert strategy.assignment == {1: 0, 2: 0, 3: 1, 4: 1}


@pytest.mark.parametrize("name", ["ifca", "fedsoft"])
def test_the_clusters_of_a_round_are_those_chosen_under_its_models(name: str) -> None:
    """Clients 1 and 2 train model 0 from 0 to -7 and 2;
    its mean, -2.5, is further from 4 than 10 is.

    So client 2 trained model 0, but the round's models are those under which it chooses 1: (4 -
    10)^2.
    """
    targets = {1: (-14,), 2: (4,), 3: (10,)}
    strategy = _from({0: (0,), 1: (10,)}, name, **({"smoother": 0.0} if name == "fedsoft" else {}))
    grid = FakeGrid(halfway_app(targets), 3)
    arrays = _rounds(strategy, grid, 1, record(0))
    assert strategy.assignment == {1: 0, 2: 0, 3: 1}
    assert _models(strategy) == {0: [-2.5], 1: [10]}
    messages = list(strategy.configure_evaluate(1, arrays, ConfigRecord(), grid))
    metrics = strategy.aggregate_evaluate(1, grid.send_and_receive(messages))
    assert strategy.assignment == {1: 0, 2: 1, 3: 1}
    losses = [reply.content["metrics"]["eval_loss"] for reply in grid.received[-1]]
    assert losses == [11.5**2, 36, 0]
    assert metrics is not None
    assert strategy.diagnostics()["churn"] == 0  # nobody had a cluster before
    strategy.cluster_arrays = {0: record(10), 1: record(-2.5)}
    arrays = _rounds(strategy, grid, 2, arrays, first=2)
    assert strategy.diagnostics()["churn"] == 3


def test_who_is_not_evaluated_keeps_its_last_choice() -> None:
    strategy, grid = _from({0: (2, 0), 1: (0, 2)}, "ifca"), _grid()
    _rounds(strategy, grid, 1)
    strategy.cluster_arrays = {0: record(0, 2), 1: record(2, 0)}
    messages = [m for m in _evaluated(strategy, grid) if m.metadata.dst_node_id != 3]
    strategy.aggregate_evaluate(1, grid.send_and_receive(messages))
    assert strategy.assignment == {1: 1, 2: 1, 3: 1, 4: 0}


def test_a_choice_in_the_evaluation_makes_nobody_a_server() -> None:
    """Client 1 trains model 0, then chooses 1, which client 3 alone trained and goes on serving."""
    strategy, grid = _from({0: (2, 0), 1: (0, 2)}, "ifca"), _grid()
    arrays = _rounds(strategy, grid, 1)
    strategy.chosen({1: 1})
    strategy.fraction_train, strategy.min_train_nodes = 0.25, 1
    random.seed(3)
    _rounds(strategy, grid, 2, arrays, first=2)
    assert strategy.members[1] == 0
    assert strategy.servers[1] != 1


def test_partial_participation_keeps_the_others_clusters() -> None:
    random.seed(3)
    strategy, grid = _from({0: (2, 0), 1: (0, 2)}, "ifca", fraction_train=0.5), _grid()
    _rounds(strategy, grid, 6)
    assert all(len(batch) <= 2 for batch in grid.sent)
    assert strategy.assignment == {1: 0, 2: 0, 3: 1, 4: 1}


def test_ifca_draws_no_start_again() -> None:
    """Known bug: the reference redraws its initial models, silently, until each has its clients."""
    strategy, grid = _from({0: (1, 1), 1: (-50, -50)}, "ifca"), _grid()
    _rounds(strategy, grid, 3)
    assert _models(strategy)[1] == [-50, -50]
    assert strategy.diagnostics()["clusters"] == 1


# CLoVE

NEAR = {1: (8, 0), 2: (7, 0), 3: (0, 8), 4: (0, 7)}


def test_clove_by_hand() -> None:
    """Loss vectors (36, 68), (25, 53), (68, 36), (53, 25): two groups;
    matched, they cost 61 each, else 121.
    """
    strategy, grid = _from({0: (0, 2), 1: (2, 0)}, "clove"), _grid(NEAR)
    _rounds(strategy, grid, 1)
    assert strategy.assignment == {1: 1, 2: 1, 3: 0, 4: 0}
    # (2 + 8) / 2 = 5 and 4.5 with weights 1 and 3; 5 and 4.5 with weights 1 and 1
    assert _models(strategy) == {0: [0, 4.75], 1: [4.625, 0]}
    assert strategy.diagnostics()["silhouette"] > 0.5


def test_clove_freezes_when_the_sampled_were_grouped_alike_three_times() -> None:
    """As in the authors' code: each client's last three groupings, so round 4 asks nobody."""
    strategy, grid = _from({0: (2, 0), 1: (0, 2)}, "clove"), _grid(NEAR)
    kinds = []
    arrays = record(0, 0)
    for number in range(1, 7):
        before = len(grid.sent)
        arrays = _rounds(strategy, grid, number, arrays, first=number)
        kinds.append([batch[0].metadata.message_type for batch in grid.sent[before:]])
    asked = ["query.losses", "train", "query.aggregate"]
    assert kinds == [asked] * 3 + [asked[1:]] * 3
    assert strategy.diagnostics()["frozen"] == 1
    grid.app = halfway_app({**NEAR, 5: (0, 9)}, EXAMPLES)
    grid.num_nodes = 5  # a newcomer: it alone is asked, and takes the model with the lowest loss
    _rounds(strategy, grid, 7, arrays, first=7)
    assert [m.metadata.dst_node_id for m in grid.sent[-3]] == [5]
    assert strategy.assignment[5] == 1


def test_a_moment_in_which_nobody_is_there_freezes_no_cluster() -> None:
    """Devices may all be away when a round begins: then it waits, and asks again."""
    strategy, grid = _from({0: (2, 0), 1: (0, 2)}, "clove"), _grid(NEAR)
    with sampling(lambda nodes, size: []):
        assert not strategy.configure_train(1, record(0, 0), ConfigRecord(), grid)
    _rounds(strategy, grid, 1)
    assert strategy.diagnostics()["frozen"] == 0
    assert strategy.same == dict.fromkeys(range(1, 5), 1)


def test_clove_without_an_answer_keeps_the_clusters() -> None:
    strategy, grid = _from({0: (2, 0), 1: (0, 2)}, "clove"), _grid(NEAR)
    arrays = _rounds(strategy, grid, 1)
    grid.fails = lambda m: m.metadata.message_type == "query.losses"
    _rounds(strategy, grid, 2, arrays, first=2)
    assert strategy.assignment == {1: 0, 2: 0, 3: 1, 4: 1}
    assert strategy.same == dict.fromkeys(range(1, 5), 1)


@pytest.mark.parametrize("seed", range(10))
def test_clove_does_not_freeze_on_clients_that_were_hardly_asked(seed: int) -> None:
    """Half the clients a round: three quiet rounds say nothing about who was not sampled."""
    random.seed(seed)
    strategy, grid = _from({0: (2, 0), 1: (0, 2)}, "clove", fraction_train=0.5), _grid(NEAR)
    _rounds(strategy, grid, 20)
    asked, told, frozen = dict.fromkeys(NEAR, 0), set[int](), False
    for batch in grid.sent:
        nodes = {message.metadata.dst_node_id for message in batch}
        kind = batch[0].metadata.message_type
        if kind == "query.losses":
            asked |= {node: asked[node] + 1 for node in nodes}
            told = nodes
            assert not frozen
        elif kind == "train":
            if told != nodes and not frozen:
                frozen = True
                assert all(asked[node] >= 3 for node in nodes)
            told = set()
    assert frozen
    assert strategy.diagnostics()["frozen"] == 1


def test_groups_are_matched_to_models_one_to_one() -> None:
    """Both groups like model 0 best; together 1 + 3 = 4 is less than 5 + 2 = 7."""
    losses = np.array([[1.0, 5.0], [2.0, 3.0]])
    assert match_models(losses, np.array([0, 1])).tolist() == [0, 1]
    assert match_models(
        np.array([[9.0, 5.0, 1.0], [2.0, 3.0, 4.0]]), np.array([1, 0])
    ).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("silhouettes", "k"),
    [
        ({2: 0.5, 3: 0.549, 4: 0.54, 5: 0.6}, 5),  # .549 is not above .55, .6 is
        ({2: 0.5, 3: 0.56, 4: 0.61}, 3),  # .61 is not above .616
        ({2: 0.5, 3: 0.56, 4: 0.62}, 4),
        ({2: 0.9, 3: 0.98, 4: 0.95}, 2),
        ({2: float("nan"), 3: 0.1, 4: float("nan")}, 3),
        ({2: -0.2, 3: 0.1}, 3),
        ({}, 2),
    ],
)
def test_more_groups_have_to_be_better_by_a_tenth(silhouettes: dict[int, float], k: int) -> None:
    assert better_by_a_tenth(silhouettes) == k


def test_the_number_of_groups_is_that_of_the_authors_code() -> None:
    """``find_best_K_by_silhouette``, rewritten with scikit-learn's own tree: always the same k."""
    rng = np.random.default_rng(4)
    chosen = []
    for draw in range(60):
        groups = rng.integers(1, 5)
        centres = rng.uniform(0, 3, (groups, 6))
        losses = centres[rng.integers(groups, size=14)]
        losses = losses + rng.normal(0, rng.uniform(0.05, 1), losses.shape)
        best, expected = -1.0, 0
        for k in range(2, 7):
            labels = AgglomerativeClustering(n_clusters=k, linkage="ward").fit_predict(losses)
            if silhouette_score(losses, labels) > 1.1 * best:
                best, expected = silhouette_score(losses, labels), k
        labels, _ = group_losses(losses, 6, seed=draw, auto=True)
        assert len(set(labels.tolist())) == expected
        chosen.append(expected)
    assert set(chosen) >= {2, 3, 4}


def test_the_number_of_groups_by_silhouette() -> None:
    losses = np.array(
        [[0, 9, 9, 9], [0.1, 9, 9, 9], [9, 0, 9, 9], [9, 0.1, 9, 9], [9, 9, 0, 9], [9, 9, 0.1, 9]],
        float,
    )
    labels, silhouette = group_losses(losses, 4, seed=0, auto=True)
    assert len(set(labels.tolist())) == 3
    assert silhouette > 0.9
    assert len(set(group_losses(losses, 4, seed=0, auto=False)[0].tolist())) == 4


# FedSoft


def test_fedsoft_by_hand() -> None:
    """Shares (1, .5) and (.5, 1).

    Client 1 starts at (2 + 0, 0 + 1) / 1.5, and goes half the way to (8, 0).
    """
    strategy = _from({0: (2, 0), 1: (0, 2)}, "fedsoft", smoother=0.5)
    grid = FakeGrid(halfway_app({1: (8, 0), 2: (0, 8)}), 2)
    _rounds(strategy, grid, 1)
    w_1, w_2 = np.array([14 / 3, 1 / 3]), np.array([1 / 3, 14 / 3])
    assert _models(strategy)[0] == pytest.approx((w_1 + 0.5 * w_2) / 1.5)
    assert _models(strategy)[1] == pytest.approx((0.5 * w_1 + w_2) / 1.5)
    assert strategy.assignment == {1: 0, 2: 1}
    assert strategy.diagnostics() == {
        "clusters": 2.0,
        "churn": 0.0,
        "largest_share": pytest.approx(2 / 3),
    }


def test_fedsoft_shares_are_estimated_every_so_many_rounds() -> None:
    strategy, grid = _from({0: (2, 0), 1: (0, 2)}, "fedsoft", estimate_every=2), _grid()
    _rounds(strategy, grid, 3)
    assert [batch[0].content["config"]["estimate"] for batch in grid.sent] == [True, False, True]


def test_a_centre_without_a_share_keeps_its_weights() -> None:
    strategy, grid = _from({0: (1, 1), 1: (-50, -50)}, "fedsoft", smoother=0.0), _grid()
    _rounds(strategy, grid, 2)
    assert _models(strategy)[1] == [-50, -50]


# FedEM and FedRC


def test_fedem_by_hand() -> None:
    """Squared distances of 0 and 1 to the models, of both clients crosswise.

    So of e = 1 / (1 + 1/e) and its rest client 1 has the first model more. It moves model 0 by half
    of e times 0, and model 1 by half of (1 - e) times -1; client 2, of three examples, the reverse.
    """
    e = 1 / (1 + np.exp(-1))
    strategy = _from({0: (0,), 1: (1,)}, "fedem")
    grid = FakeGrid(halfway_app({1: (0,), 2: (1,)}, {1: 1, 2: 3}), 2)
    _rounds(strategy, grid, 1, record(0))
    assert strategy.shares[1] == pytest.approx([e, 1 - e])
    assert strategy.shares[2] == pytest.approx([1 - e, e])
    assert _models(strategy)[0] == pytest.approx([(0 + 3 * 0.5 * (1 - e)) / 4])
    assert _models(strategy)[1] == pytest.approx([((1 - 0.5 * (1 - e)) + 3) / 4])
    assert strategy.assignment == {1: 0, 2: 1}
    told = {"clusters": 2.0, "churn": 0.0, "largest_share": pytest.approx(e)}
    assert strategy.diagnostics() == told


@pytest.mark.parametrize("name", ["fedem", "fedrc"])
def test_who_is_not_sampled_keeps_its_shares_and_moves_no_model(name: str) -> None:
    strategy = _from({0: (0,), 1: (1,)}, name)
    grid = FakeGrid(halfway_app({1: (0,), 2: (1,)}), 2)
    arrays = _rounds(strategy, grid, 1, record(0))
    kept, before = list(strategy.shares[2]), _models(strategy)
    grid.fails = lambda m: m.metadata.dst_node_id == 2
    _rounds(strategy, grid, 2, arrays, first=2)
    assert strategy.shares[2] == kept
    [alone] = [r for r in grid.received[-1] if r.has_content()]
    for k in (0, 1):
        assert _models(strategy)[k] == values(alone.content[f"model-{k}"]) != before[k]


def test_fedrc_tells_how_common_the_classes_are_once_it_knows() -> None:
    """Of two models and two classes: (3, 1) and (0, 4), told by clients 1 and 2 together."""
    strategy = _from({0: (0,), 1: (1,)}, "fedrc")
    grid = FakeGrid(halfway_app({1: (0,), 2: (1,)}), 2)
    _rounds(strategy, grid, 1, record(0))
    assert "marginals" not in grid.sent[0][0].content["config"]
    strategy.classes = {2: [1.0, 1.0, 0.0, 0.0], 1: [2.0, 0.0, 0.0, 4.0]}
    for messages in (
        strategy.configure_train(2, record(0), ConfigRecord(), grid),
        strategy.configure_evaluate(2, record(0), ConfigRecord(), grid),
    ):
        [content] = {id(message.content): message.content for message in messages}.values()
        assert content["config"]["marginals"] == pytest.approx([0.75, 0.25, 0, 1], abs=1e-8)


# SCAFFOLD


def test_scaffold_by_hand() -> None:
    """Targets 8 and 0; a step goes half the way, minus c - c_i.

    Round 1: 4 and 0; c_1 = 0 - 4 = -4, c_2 = 0, c = -2; the model is 2. Round 2: 2 + 3 - (-2 + 4) =
    3 and 2 - 1 - (-2) = 3: corrected, both clients move alike. c_1 = -4 + 2 + 2 - 3 = -3, c_2 = 0 +
    2 + 2 - 3 = 1, c = -1.
    """
    strategy, grid = _build("scaffold"), FakeGrid(halfway_app({1: (8,), 2: (0,)}), 2)
    assert values(_rounds(strategy, grid, 1, record(0))) == [2]
    assert values(strategy.control) == [-2]
    assert values(_rounds(strategy, grid, 2, record(2), first=2)) == [3]
    assert [values(reply.content["arrays"]) for reply in grid.received[-1]] == [[3], [3]]
    assert values(strategy.control) == [-1]


def test_scaffold_counts_the_clients_that_did_not_take_part() -> None:
    """The client with 3 of 12 examples replies alone: c moves by a quarter of its change."""

    def fails(message: Message) -> bool:
        return message.metadata.dst_node_id == 2 and message.metadata.message_type == "train"

    grid = FakeGrid(halfway_app({1: (8,), 2: (0,)}, {1: 3, 2: 9}), 2, fails=fails)
    strategy = _build("scaffold", server_learning_rate=0.5)
    assert values(_rounds(strategy, grid, 1, record(0))) == [2]  # half of 4
    assert values(strategy.control) == [-1]  # a quarter of -4


# Personal models


@pytest.mark.parametrize(
    ("name", "changes", "train", "evaluate"),
    [
        (
            "ditto",
            {"ditto_lambda": 0.3, "personal_epochs": 2},
            {"lambda": 0.3, "personal-epochs": 2},
            {},
        ),
        (
            "apfl",
            {"alpha": 0.2, "adaptive": False},
            {"alpha": 0.2, "adaptive": False},
            {"alpha": 0.2},
        ),
        ("fedavg_ft", {"finetune_epochs": 3}, None, {"finetune-epochs": 3, "lr": 0.7}),
    ],
)
def test_what_clients_are_told(name: str, changes: Any, train: Any, evaluate: Any) -> None:
    strategy, grid = _build(name, **changes), _grid()
    told = next(
        iter(strategy.configure_train(1, record(0, 0), ConfigRecord({"lr": 0.7}), grid))
    ).content["config"]
    asked = next(iter(strategy.configure_evaluate(1, record(0, 0), ConfigRecord(), grid))).content[
        "config"
    ]
    assert told["lr"] == 0.7
    assert told["method"] == {"fedavg_ft": "finetune"}.get(name, name)
    assert {key: told[key] for key in train or {}} == (train or {})
    assert asked["method"] == {"fedavg_ft": "finetune"}.get(name, name)
    assert {key: asked[key] for key in evaluate} == evaluate


def test_fedper_sends_the_base_and_keeps_the_initial_head() -> None:
    strategy, grid = _build("fedper"), _grid()
    start = ArrayRecord(
        {**record(0, 0), "head.weight": record(5)["w"], "head.bias": record(6)["w"]}
    )
    arrays = _rounds(strategy, grid, 1, start)
    assert all(list(m.content["arrays"]) == ["w"] for m in grid.sent[0])
    assert grid.sent[0][0].content["config"]["own"] == ["head.weight", "head.bias"]
    assert list(arrays) == ["w", "head.weight", "head.bias"]
    assert values(arrays) == pytest.approx([(4 + 3 * 2) / 6, (4 + 2) / 6])
    assert arrays["head.weight"].numpy().tolist() == [5]
    assert all(
        list(m.content["arrays"]) == ["w"]
        for m in strategy.configure_evaluate(1, arrays, ConfigRecord(), grid)
    )


def test_a_head_that_is_the_whole_model_is_refused() -> None:
    keys = ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert head_keys(keys, 1) == ["b.weight", "b.bias"]
    with pytest.raises(ValueError, match=r"strategy\.head_layers=2 is the whole model"):
        head_keys(keys, 2)


# Resuming


@pytest.mark.parametrize(
    "name", [*CHOOSING, "fedem", "fedrc", "scaffold", "ditto", "apfl", "fedavg_ft"]
)
def test_resumed_between_two_rounds_it_goes_on_as_if_nothing_had_happened(name: str) -> None:
    """Through JSON, as a checkpoint stores it, arrays beside it;
    the clients' states are the grid's to keep.
    """

    def fresh() -> Any:
        starts_apart = name in (*CHOOSING, "fedem", "fedrc")
        return _from({0: (2, 0), 1: (0, 2)}, name) if starts_apart else _build(name)

    expected = _rounds(fresh(), _grid(NEAR), 5)
    before, grid, after = fresh(), _grid(NEAR), fresh()
    arrays = _rounds(before, grid, 2)
    state = before.state_dict()
    models = {key: state.pop(key) for key in ("cluster_arrays", "control") if key in state}
    after.load_state_dict({**json.loads(json.dumps(state)), **models})
    assert values(_rounds(after, grid, 5, arrays, first=3)) == values(expected)
