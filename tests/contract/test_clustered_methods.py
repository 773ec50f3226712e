"""Each clustered method on a Flower Grid: groups by hand, partial participation, resume.

Newcomers and clients that leave, too.
"""

import random
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord

from fedsweep.strategies import build_strategy, clustered
from fedsweep.strategies.cfl import CFL
from tests.contract.test_strategies_flower import (
    CPU_S,
    EXAMPLES,
    TARGETS,
    _fails,
    _grid,
    _rounds,
    stored,
)
from tests.contract.test_strategies_flower import _build as _built
from tests.fakes import FakeGrid, halfway_app, record, values

HERE: dict[str, dict[str, Any]] = {  # few clients, of which no gate would say that they are groups
    "flhc": {"choose_k": "given", "gate": 0.0},
    "fedclust": {"linkage": "average", "gate": 0.0},
    "cfl": {"relative": False, "gate": 0.0},
    **{name: {"gate": 0.0} for name in ("fedgroup", "fesem", "pacfl")},
}
CFL_HERE = {
    "eps1": 0.5,
    "eps2": 0.5,
}  # updates halve each round: the mean's length is 2.1, 1.1, .5 in rounds 1 to 3
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "kmeans updates": ("kmeans", {"num_clusters": 2}),
    "kmeans weights": (
        "kmeans",
        {"num_clusters": 2, "representation": "weights", "distance": "euclidean"},
    ),
    "kmeans last_layer": ("kmeans", {"num_clusters": 2, "representation": "last_layer"}),
    "kmeans losses": (
        "kmeans",
        {"num_clusters": 2, "representation": "losses", "distance": "euclidean"},
    ),
    "kmeans data": (
        "kmeans",
        {"num_clusters": 2, "representation": "data", "distance": "euclidean"},
    ),
    "kmeans sketch": ("kmeans", {"num_clusters": 2, "sketch": 2}),
    "kmeans silhouette": ("kmeans", {"choose_k": "silhouette"}),
    "flhc": ("flhc", {"num_clusters": 2}),
    "flhc threshold": ("flhc", {"threshold": 0.5}),
    "flhc manhattan": ("flhc", {"threshold": 3.0, "distance": "manhattan", "linkage": "single"}),
    "fedclust": ("fedclust", {"num_clusters": 2}),
    "fedgroup": ("fedgroup", {"num_clusters": 2}),
    "fesem": ("fesem", {"num_clusters": 2}),
    "pacfl": ("pacfl", {"num_clusters": 2}),
    "pacfl threshold": ("pacfl", {"threshold": 4.9, "measure": "smallest"}),
    "stocfl": ("stocfl", {"proximal_mu": 0.0}),
    "cfl": ("cfl", CFL_HERE),
    "oracle": ("oracle", {}),
}
GROUPS = {1: 0, 2: 0, 3: 1, 4: 1}


def _build(name: str, **changes: Any) -> Any:
    return _built(name, **{**HERE.get(name, {}), **changes})


def _method(name: str, **changes: Any) -> Any:
    kind, settings = METHODS[name]
    return _build(kind, **{**settings, **changes})


@pytest.mark.parametrize("name", METHODS)
def test_the_two_groups_are_found(name: str) -> None:
    """Two pairs of clients pull in two directions; each cluster's model ends on its own axis."""
    strategy, grid = _method(name), _grid()
    _rounds(strategy, grid, 8)
    assert strategy.assignment == GROUPS
    first, second = (values(strategy.cluster_arrays[cluster]) for cluster in (0, 1))
    assert first[0] > 4.5 > 1 > first[1]
    assert second[1] > 4.5 > 1 > second[0]
    assert set(strategy.servers) == {0, 1}


@pytest.mark.parametrize("name", METHODS)
def test_a_newcomer_finds_its_group(name: str) -> None:
    """Client 5 pulls like 3 and 4. CFL takes the largest cluster; the oracle knows a new group."""
    targets = {**TARGETS, 5: (0, 8)}
    strategy, grid = _method(name), _grid()
    arrays = _rounds(strategy, grid, 5)
    grid.app, grid.num_nodes = halfway_app(targets), 5
    _rounds(strategy, grid, 7, arrays, first=6)
    assert strategy.assignment == {**GROUPS, 5: {"cfl": 0, "oracle": 2}.get(name, 1)}


@pytest.mark.parametrize("name", METHODS)
def test_a_client_that_left_leaves_its_cluster(name: str) -> None:
    strategy, grid = _method(name), _grid()
    arrays = _rounds(strategy, grid, 5)
    grid.num_nodes = 3
    _rounds(strategy, grid, 6, arrays, first=6)
    assert strategy.assignment == {1: 0, 2: 0, 3: 1}
    assert 4 not in strategy.servers.values()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "cfl"])
def test_half_the_clients_a_round_are_enough(name: str) -> None:
    random.seed(1)
    strategy, grid = _method(name, fraction_train=0.5), _grid()
    _rounds(strategy, grid, 12)
    assert strategy.assignment == GROUPS
    trained = [batch for batch in grid.sent if batch and batch[0].metadata.message_type == "train"]
    assert {len(batch) for batch in trained} <= {2, 4}


@pytest.mark.parametrize("name", METHODS)
def test_a_lost_reply_leaves_the_client_where_it_was(name: str) -> None:
    strategy, grid = _method(name), _grid()
    arrays = _rounds(strategy, grid, 5)
    grid.fails = _fails(4, "train")
    _rounds(strategy, grid, 6, arrays, first=6)
    assert strategy.assignment == GROUPS


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("pause", [1, 4])
def test_resumed_it_goes_on_as_if_nothing_had_happened(name: str, pause: int) -> None:
    whole, grid = _method(name), _grid()
    expected = _rounds(whole, grid, 6)
    before, grid = _method(name), _grid()
    arrays = _rounds(before, grid, pause)
    after = _method(name)
    after.load_state_dict(stored(before.state_dict()))
    assert values(_rounds(after, grid, 6, arrays, first=pause + 1)) == values(expected)
    assert after.assignment == whole.assignment
    assert {c: values(a) for c, a in after.cluster_arrays.items()} == {
        c: values(a) for c, a in whole.cluster_arrays.items()
    }


@pytest.mark.parametrize("name", ["kmeans updates", "flhc", "fedclust", "fedgroup", "pacfl"])
def test_the_gate_keeps_equal_clients_together(name: str) -> None:
    """Eight clients drawn from one distribution: no split, and from then on plain FedAvg."""
    rng = random.Random(3)
    targets = {node: tuple(rng.gauss(5, 1) for _ in range(20)) for node in range(1, 9)}
    strategy = _method(name, gate=0.05)
    arrays = _rounds(strategy, FakeGrid(halfway_app(targets), 8), 3, record(*[0.0] * 20))
    assert set(strategy.assignment.values()) == {0}
    assert strategy.diagnostics()["gate_p"] > 0.05
    assert values(arrays) == values(
        _rounds(_build("fedavg"), FakeGrid(halfway_app(targets), 8), 3, record(*[0.0] * 20))
    )


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("kmeans losses", "losses"),
        ("kmeans data", "signature"),
        ("kmeans sketch", "sketch"),
        ("pacfl", "subspace"),
    ],
)
def test_a_newcomer_that_gives_no_answer_stops_nobody(name: str, query: str) -> None:
    strategy, grid = _method(name), _grid()
    arrays = _rounds(strategy, grid, 2)
    grid.app, grid.num_nodes = halfway_app({**TARGETS, 5: (0, 8)}), 5
    grid.fails = _fails(5, f"query.{query}")
    _rounds(strategy, grid, 4, arrays, first=3)
    assert {node: strategy.assignment[node] for node in GROUPS} == GROUPS
    assert strategy.assignment.get(5, 0) == 0  # the largest, the first of equals, or none yet


# CFL


def test_cfl_three_clusters_after_two_splits() -> None:
    """Known bug: after the first split the rows of a sub-matrix were taken for client ids.

    Groups {1, 4}, {2, 5} and {3, 6} want a = (8, 0, 0), b = (4, 8, 0) and c = (0, 0, 8). At their
    mean the cosines are -.22 (a, b), -.58 (a, c) and -.66 (b, c), so c leaves first; then a and b,
    which are rows 0, 2 and 1, 3 of their cluster's matrix, part. Rows taken for ids would have
    moved clients 1 and 3.
    """
    wanted = [(8, 0, 0), (4, 8, 0), (0, 0, 8)]
    targets = {node: wanted[(node - 1) % 3] for node in range(1, 7)}
    strategy, grid = _build("cfl", **CFL_HERE), FakeGrid(halfway_app(targets), 6)
    seen, arrays = [], record(0, 0, 0)
    for number in range(1, 13):
        arrays = _rounds(strategy, grid, number, arrays, first=number)
        if not seen or seen[-1] != strategy.assignment:
            seen.append(dict(strategy.assignment))
    assert seen == [
        dict.fromkeys(range(1, 7), 0),
        {1: 0, 2: 0, 3: 1, 4: 0, 5: 0, 6: 1},
        {1: 0, 2: 2, 3: 1, 4: 0, 5: 2, 6: 1},
    ]
    for cluster, target in zip((0, 2, 1), wanted, strict=True):
        assert values(strategy.cluster_arrays[cluster]) == pytest.approx(target, abs=0.2)


def test_cfl_does_not_split_while_it_moves_or_where_nobody_pulls() -> None:
    """Round 1: mean update (4 + 6, 4 + 2) / 6 = (1.67, 1), length 1.94. eps1 below it: later;
    eps2 above all: never.
    """
    for changes in ({"eps1": 1.9}, {"eps2": 100.0}, {"warmup_rounds": 9}, {"min_size": 4}):
        strategy = _build("cfl", **{"eps1": 2.0, "eps2": 0.5, **changes})
        _rounds(strategy, _grid(), 1)
        assert set(strategy.assignment.values()) == {0}
    strategy = _build("cfl", eps1=2.0, eps2=0.5)
    arrays = _rounds(strategy, _grid(), 1)
    assert set(strategy.assignment.values()) == {0}  # round 1 is the warm-up
    _rounds(strategy, _grid(), 2, arrays, first=2)
    assert strategy.assignment == GROUPS


def test_cfl_waits_for_a_missing_member() -> None:
    strategy, grid = _build("cfl", eps1=2.0, eps2=0.5), _grid(fails=_fails(4, "train"))
    arrays = _rounds(strategy, grid, 2)
    assert set(strategy.assignment.values()) == {0}
    grid.fails = lambda _: False
    _rounds(strategy, grid, 3, arrays, first=3)
    assert strategy.assignment == GROUPS
    assert isinstance(strategy, CFL)


# The others


def test_fesem_centres_are_plain_means() -> None:
    """Solutions (4, 0), (2, 0): 3, though client 2 has three times the examples;
    then (5.5, 0), (3.5, 0): 4.5.
    """
    strategy, grid = _method("fesem"), _grid()
    arrays = _rounds(strategy, grid, 1)
    assert values(strategy.cluster_arrays[0]) == [3, 0]
    _rounds(strategy, grid, 2, arrays, first=2)
    assert values(strategy.cluster_arrays[0]) == [4.5, 0]


def test_fesem_clients_change_over_and_an_empty_centre_stays() -> None:
    strategy, grid = _method("fesem"), _grid()
    arrays = _rounds(strategy, grid, 1)
    grid.app = halfway_app(dict.fromkeys(range(1, 5), (0.0, 40.0)), EXAMPLES, CPU_S)
    arrays = _rounds(strategy, grid, 2, arrays, first=2)
    assert set(strategy.assignment.values()) == {1}
    assert values(strategy.cluster_arrays[0]) == [3, 0]
    assert values(arrays) == values(strategy.cluster_arrays[1])


@pytest.mark.parametrize("seed", range(5))
def test_fesem_centres_do_not_collapse(seed: int) -> None:
    """Known bug: centres drawn among nine and three clients are of one group in 13 of 22 cases."""
    targets = {
        node: (0, 8 + node / 10) if node > 9 else (8 + node / 10, 0) for node in range(1, 13)
    }
    strategy = build_strategy("fesem", {"num_clusters": 2}, seed=seed, num_clients=12)
    _rounds(strategy, FakeGrid(halfway_app(targets), 12), 4)
    assert strategy.assignment == {node: int(node > 9) for node in targets}


def test_pacfl_groups_before_any_training_and_every_client_gets_a_model() -> None:
    strategy, grid = _method("pacfl"), _grid()
    messages = list(strategy.configure_train(1, record(0, 0), ConfigRecord(), grid))
    assert [m.metadata.message_type for m in grid.sent[0]] == ["query.subspace"] * 4
    assert strategy.assignment == GROUPS
    assert len(messages) == 4
    assert strategy.clustering_round is False


def test_pacfl_says_so_when_nobody_answers() -> None:
    grid = _grid(fails=lambda m: m.metadata.message_type == "query.subspace")
    with pytest.raises(RuntimeError, match=r"no client answered query.subspace: strategy=PACFL"):
        _method("pacfl").configure_train(1, record(0, 0), ConfigRecord(), grid)


def test_stocfl_draws_clusters_towards_the_global_model() -> None:
    """Round 1: models (2.5, 0), (0, 3), global (5/3, 1); with mu = 1 half way there."""
    strategy = _method("stocfl", proximal_mu=1.0)
    arrays = _rounds(strategy, _grid(), 1)
    assert values(arrays) == pytest.approx([5 / 3, 1])
    assert values(strategy.cluster_arrays[0]) == pytest.approx([(2.5 + 5 / 3) / 2, 0.5])


def test_stocfl_leaves_a_cluster_alone_whose_clients_are_away() -> None:
    """Round 2 without 1 and 2: their model stays; that of 3 and 4 goes half the way to the mean."""
    strategy, grid = _method("stocfl", proximal_mu=1.0), _grid()
    arrays = _rounds(strategy, grid, 1)
    before = {c: values(model) for c, model in strategy.cluster_arrays.items()}
    grid.fails = lambda m: m.metadata.dst_node_id in (1, 2)
    arrays = _rounds(strategy, grid, 2, arrays, first=2)
    assert values(strategy.cluster_arrays[0]) == before[0]
    trained = [before[1][0] / 2, (before[1][1] + 6) / 2]
    mean = values(arrays)
    assert mean == pytest.approx(
        [(4 * a + 2 * b) / 6 for a, b in zip(before[0], trained, strict=True)]
    )
    assert values(strategy.cluster_arrays[1]) == pytest.approx(
        [(a + b) / 2 for a, b in zip(trained, mean, strict=True)]
    )


def test_stocfl_averages_updates_as_long_as_they_are() -> None:
    """Updates (4, 0), (.8, .6), (0, 1): the first two merge, their mean is (2.4, .3).

    That is at cosine .124 to the third. At length 1 it would be (.9, .3), at cosine .316, and above
    tau = .2 all would be one cluster.
    """
    strategy = _method("stocfl", merge_cosine=0.2)
    _rounds(strategy, FakeGrid(halfway_app({1: (8, 0), 2: (1.6, 1.2), 3: (0, 2)}), 3), 1)
    assert strategy.assignment == {1: 0, 2: 0, 3: 1}


def test_fedgroup_places_newcomers_by_the_plain_mean_of_a_groups_updates() -> None:
    """Updates (4, 0), (.6, .8) and (-4.8, 6.4), (-1, 0): means at 10 and 132 degrees.

    A newcomer at 80 is nearer to 132. At length 1 they would be at 27 and 153, and it nearer to 27.
    """
    targets = {1: (8, 0), 2: (1.2, 1.6), 3: (-9.6, 12.8), 4: (-2, 0)}
    strategy, grid = _method("fedgroup"), FakeGrid(halfway_app(targets), 4)
    arrays = _rounds(strategy, grid, 1)
    assert strategy.assignment == GROUPS
    grid.app, grid.num_nodes = halfway_app({**targets, 5: (0.3473, 1.9696)}), 5
    _rounds(strategy, grid, 2, arrays, first=2)
    assert strategy.assignment == {**GROUPS, 5: 1}


def test_fedgroup_pre_trains_twenty_clients_per_group() -> None:
    targets = {node: TARGETS[1 + node % 4] for node in range(1, 51)}
    strategy, grid = _method("fedgroup"), FakeGrid(halfway_app(targets), 50)
    arrays = _rounds(strategy, grid, 1)
    assert len(grid.sent[0]) == len(strategy.assignment) == 40
    _rounds(strategy, grid, 2, arrays, first=2)
    assert len(strategy.assignment) == 50
    assert len({strategy.assignment[node] for node in targets if targets[node][0]}) == 1


def test_kmeans_stops_when_the_clusters_are_stable() -> None:
    strategy, grid = _method("kmeans updates", recluster_every=1, stable_after=2), _grid()
    arrays, together = record(0, 0), []
    for number in range(1, 6):
        arrays = _rounds(strategy, grid, number, arrays, first=number)
        together.append(strategy.clustering_round)
    assert together == [True, True, False, False, False]


def test_kmeans_asks_for_losses_of_some_peers() -> None:
    """Six models, three per wanted cluster, of eight clients."""
    targets = {node: TARGETS[1 + node % 4] for node in range(1, 9)}
    strategy, grid = _method("kmeans losses"), FakeGrid(halfway_app(targets), 8)
    _rounds(strategy, grid, 1)
    assert len(strategy.peers) == 6
    assert {len(m.content.array_records) for m in grid.sent[1]} == {6}
    assert all(isinstance(arrays, ArrayRecord) for arrays in strategy.peers.values())


@pytest.mark.parametrize("name", ["kmeans losses", "kmeans data"])
def test_kmeans_goes_on_without_a_client_that_diverged(name: str) -> None:
    """Its model is nobody's peer and in no cluster's mean; it comes back by the first model."""
    targets = {1: (float("nan"), 0), 2: (4, 0), 3: (0, 5), 4: (0, 4)}
    strategy, grid = _method(name), FakeGrid(halfway_app(targets), 4)
    arrays = _rounds(strategy, grid, 1)
    assert strategy.assignment == {2: 0, 3: 1, 4: 1}
    assert {c: values(a) for c, a in strategy.cluster_arrays.items()} == {0: [2, 0], 1: [0, 2.25]}
    grid.app = halfway_app({**targets, 1: (8, 0)})
    _rounds(strategy, grid, 2, arrays, first=2)
    assert strategy.assignment == GROUPS
    assert values(strategy.cluster_arrays[0]) == [3, 0]


def test_kmeans_groups_by_sketches_before_the_round_and_hosts_may_average_it() -> None:
    """No client's model is read: the round is one of partial means already."""
    strategy, grid = _method("kmeans sketch"), _grid(seals=lambda: True)
    messages = list(strategy.configure_train(1, record(0, 0), ConfigRecord(), grid))
    assert [m.metadata.message_type for m in grid.sent[0]] == ["query.sketch"] * 4
    assert strategy.assignment == GROUPS
    assert not strategy.clustering_round
    strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert values(strategy.cluster_arrays[0]) == [2.5, 0]  # (4 + 3 x 2) / 4


def test_a_client_that_gives_no_sketch_joins_the_largest_cluster() -> None:
    strategy, grid = _method("kmeans sketch"), _grid(fails=_fails(4, "query.sketch"))
    _rounds(strategy, grid, 2)
    assert strategy.assignment == {1: 0, 2: 0, 3: 1, 4: 0}


def test_seconds_of_clustering_are_without_those_of_the_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock that moves only while clients answer."""
    strategy, grid, now = _method("kmeans losses"), _grid(), [0.0]
    answers = grid.send_and_receive

    def slow(*args: Any, **kept: Any) -> Any:
        now[0] += 100
        return answers(*args, **kept)

    monkeypatch.setattr(clustered, "perf_counter", lambda: now[0])
    monkeypatch.setattr(grid, "send_and_receive", slow)
    _rounds(strategy, grid, 3)
    assert now[0] > 300  # they were asked between the rounds
    assert strategy.clustering_s == 0
