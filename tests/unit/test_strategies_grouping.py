"""How many groups, if any: against numbers by hand, and the gate's level on equal clients."""

from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from sklearn.cluster import AgglomerativeClustering
from sklearn.decomposition import TruncatedSVD
from sklearn.metrics.pairwise import cosine_similarity

from fedsweep.strategies import grouping
from fedsweep.strategies.cfl import bipartition, groups_apart, update_norms
from fedsweep.strategies.clustering import at_length_one, kmeans_split
from fedsweep.strategies.fedgroup import decomposed_cosines
from fedsweep.strategies.grouping import (
    HowMany,
    between,
    choose_k,
    cut_tree,
    find_groups,
    rotation_p_value,
    tree_split,
)
from fedsweep.strategies.pacfl import principal_angles
from fedsweep.strategies.stocfl import merge


def _blobs(centres: int, each: int, spread: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [10 * np.eye(8)[c] + spread * rng.normal(size=(each, 8)) for c in range(centres)]
    )


def test_cut_tree_by_hand() -> None:
    """0, 1, 3 and 10, average linkage: joined at 1, 2.5 and 8.67."""
    line = np.array([[0.0], [1.0], [3.0], [10.0]])
    distances_CC = np.abs(line - line.T)
    for threshold, groups in ((0.9, 4), (1.0, 3), (2.5, 2), (8.7, 1)):
        assert len(set(cut_tree(distances_CC, "average", threshold=threshold))) == groups
    assert cut_tree(distances_CC, "average", num_clusters=2).tolist() == [0, 0, 0, 1]
    assert len(set(cut_tree(distances_CC, "single", threshold=2.0))) == 2
    assert len(set(cut_tree(distances_CC, "complete", threshold=2.9))) == 3


@pytest.mark.parametrize("how", [{"num_clusters": 2}, {"threshold": 1.0}])
def test_one_client_alone_is_a_group(how: dict[str, Any]) -> None:
    assert cut_tree(np.zeros((1, 1)), "average", **how).tolist() == [0]


@pytest.mark.parametrize("rule", ["silhouette", "davies_bouldin"])
@pytest.mark.parametrize("wanted", [2, 3, 4])
def test_each_rule_counts_clear_groups(rule: str, wanted: int) -> None:
    points = _blobs(wanted, 6, 0.5, seed=wanted)
    for split in (kmeans_split(0), tree_split("average")):
        assert choose_k(points, split, HowMany(choose_k=rule), seed=0) == wanted


def test_the_gap_counts_clear_groups_in_the_plane() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate(
        [np.array(c) + 0.5 * rng.normal(size=(20, 2)) for c in ((0, 0), (0, 10), (10, 3))]
    )
    assert choose_k(points, tree_split("ward"), HowMany(choose_k="gap"), seed=0) == 3


def test_the_gap_says_one_where_there_is_no_group() -> None:
    points = np.random.default_rng(0).normal(size=(30, 2))
    assert choose_k(points, tree_split("ward"), HowMany(choose_k="gap"), seed=0) == 1


def test_no_more_groups_than_allowed() -> None:
    assert (
        choose_k(
            _blobs(4, 6, 0.5, 1), kmeans_split(0), HowMany(choose_k="silhouette", max_clusters=3), 0
        )
        <= 3
    )


def test_equal_clients_are_one_group() -> None:
    same = np.ones((6, 3))
    assert rotation_p_value(same, groups_apart, 0.05, seed=0) == 1.0
    for rule in ("given", "silhouette"):
        found = find_groups(
            same, kmeans_split(0), HowMany(num_clusters=2, choose_k=rule, gate=0.05), seed=0
        )
        assert found.labels.tolist() == [0] * 6
        assert np.isnan(found.silhouette)


@pytest.mark.parametrize("rule", ["given", "silhouette", "davies_bouldin"])
def test_the_gate_lets_true_groups_pass(rule: str) -> None:
    how = HowMany(num_clusters=3, choose_k=rule, max_clusters=4, gate=0.01)
    found = find_groups(_blobs(3, 5, 0.3, 0), tree_split("average"), how, seed=0)
    assert found.p_value == 0.01
    assert found.labels.reshape(3, 5).std(axis=1).tolist() == [0, 0, 0]


def test_share_of_the_variance_between_groups_by_hand() -> None:
    """0, 2 | 10: the mean is 4, the squares 16 + 4 + 36 = 56, of which 1 + 1 lie within."""
    line = np.array([[0.0], [2.0], [10.0]])
    assert between(line, np.array([0, 0, 1])) == pytest.approx(54 / 56)


@pytest.mark.parametrize("unit", [1.0, 2.0**-30, 2.0**30], ids=["one", "small", "large"])
def test_rotations_are_of_the_clients_before_the_method_saw_them(unit: float) -> None:
    """A score sees 99 sets of points with the clients' own mean and covariance;
    a rare one is kept, p is 1 in 100.
    """
    points = np.random.default_rng(0).normal(loc=(7, 0, 0), size=(5, 3))
    seen: list[np.ndarray] = []

    def score(points_CD: np.ndarray) -> float:
        seen.append(points_CD / unit)
        return -float(len(seen))

    assert rotation_p_value(points * unit, score, 0.01, seed=0) == 0.01
    assert len(seen) == 100
    for rotated in seen[1:]:
        assert rotated.mean(axis=0) == pytest.approx(points.mean(axis=0))
        assert np.cov(rotated.T) == pytest.approx(np.cov(points.T))
        assert not np.allclose(rotated, points)


@pytest.mark.parametrize(
    ("level", "drawn", "p_value"), [(0.01, 1, 1.0), (0.05, 5, 1.0), (0.0005, 1, 1.0)]
)
def test_the_gate_ends_when_its_level_is_out_of_reach(
    level: float, drawn: int, p_value: float
) -> None:
    """At .05 five of 99 rotations may be as good, less the clients: the fifth ends it.

    Besag and Clifford 1991.
    """
    scores = []

    def score(points_CD: np.ndarray) -> float:
        scores.append(points_CD)
        return 0.0

    assert rotation_p_value(np.eye(4), score, level, seed=0) == p_value
    assert len(scores) == 1 + drawn


@pytest.mark.parametrize(
    ("rule", "dimensions"), [("given", 3), ("given", 200), ("silhouette", 200)]
)
def test_the_gates_level_on_normal_clients(dimensions: int, rule: str) -> None:
    """40 draws of 12 equal clients seen by angle, of few and many parameters: about 2 splits.

    Where the rule chooses k, it chooses for the rotations too: else the best of many k passes for
    groups.
    """
    false = 0
    how = HowMany(num_clusters=2, choose_k=rule, max_clusters=3, gate=0.05)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rows = 3 + rng.normal(size=(12, dimensions)) * np.linspace(1, 4, dimensions)
        values, vectors = np.linalg.eigh(rows @ rows.T)
        points = vectors * np.sqrt(np.clip(values, 0, None))
        found = find_groups(points, tree_split("average"), how, seed, at_length_one)
        false += len(set(found.labels.tolist())) > 1
    assert false <= 5  # a binomial of 40 draws at 5 % is above 5 once in 70


def test_a_cut_by_threshold_only_asks_the_gate() -> None:
    labels = np.array([0, 1, 0, 1])
    points = np.array([[0.0], [10.0], [0.1], [10.1]])
    assert (
        find_groups(points, tree_split("average"), HowMany(num_clusters=3), 0, labels=labels).labels
        is labels
    )


def test_update_norms_by_hand() -> None:
    """Weights 1 and 3: the mean of (4, 0) and (0, 4) is (1, 3)."""
    mean, longest = update_norms(np.array([[4, 0], [0, 4]], np.float32), [1, 3])
    assert (mean, longest) == (pytest.approx(10**0.5), 4.0)


def test_bipartition_speaks_of_nodes_not_of_rows() -> None:
    points = np.array([[0.0], [9.0], [1.0], [10.0]])
    assert bipartition([3, 5, 8, 9], points) == ([3, 8], [5, 9])


def test_principal_angles_by_hand() -> None:
    """A line at 30 degrees; two planes that share a line; and the same planes in another basis."""
    e = np.eye(3, dtype=np.float32)
    line = np.array([[np.cos(np.pi / 6)], [np.sin(np.pi / 6)], [0]], np.float32)
    assert principal_angles(e[:, :1], line) == pytest.approx([30], abs=1e-4)
    assert principal_angles(e[:, [0, 1]], e[:, [0, 2]]) == pytest.approx([0, 90], abs=1e-4)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]], np.float32)
    assert principal_angles(e[:, [0, 1]] @ turn, e[:, [0, 2]]) == pytest.approx([0, 90], abs=0.1)
    elementwise = np.degrees(np.arccos((e[:, [0, 1]] @ turn).T @ e[:, [0, 2]]))
    assert elementwise.min() > 50  # what the reference takes for the smallest angle


def test_decomposed_cosines_by_hand() -> None:
    """Directions: the first axis (4 + 16), then the second (9); signs are free."""
    rows_CP = np.array([[2, 0, 0], [0, 3, 0], [-4, 0, 0]], np.float32)
    cosines = decomposed_cosines(rows_CP, 2)
    assert np.abs(cosines) == pytest.approx(np.array([[1, 0], [0, 1], [1, 0]]), abs=1e-9)
    assert cosines[0, 0] == pytest.approx(-cosines[2, 0])


@pytest.mark.parametrize("seed", range(5))
def test_decomposed_cosines_are_those_of_the_authors_code(seed: int) -> None:
    """FlexCFL: scikit-learn's truncated SVD of the updates as columns, then cosines with these."""
    rows_CP = np.random.default_rng(seed).normal(size=(12, 40)).astype(np.float32)
    svd = TruncatedSVD(n_components=3, algorithm="arpack", random_state=0)
    expected = cosine_similarity(rows_CP, svd.fit_transform(rows_CP.T).T)
    assert np.abs(decomposed_cosines(rows_CP, 3)) == pytest.approx(np.abs(expected), abs=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_a_cluster_is_cut_as_in_the_authors_code(seed: int) -> None:
    """Sattler's: scikit-learn's complete linkage of minus the cosines, in two."""
    rows = np.random.default_rng(seed).normal(size=(9, 4))
    tree = AgglomerativeClustering(2, metric="precomputed", linkage="complete")
    labels = tree.fit_predict(-cosine_similarity(rows))
    one, other = bipartition(range(9), at_length_one(rows))
    expected = {frozenset(np.flatnonzero(labels == half).tolist()) for half in (0, 1)}
    assert {frozenset(one), frozenset(other)} == expected


@pytest.mark.parametrize(
    ("tau", "renamed", "sizes"),
    [
        (0.65, {0: 0, 1: 0, 2: 2}, {0: 2, 2: 1}),  # .8 first; the mean (.9, .3) has .32 with (0, 1)
        (0.3, {0: 0, 1: 0, 2: 0}, {0: 3}),
        (0.9, {0: 0, 1: 1, 2: 2}, {0: 1, 1: 1, 2: 1}),
    ],
)
def test_stocfl_merges_by_hand(tau: float, renamed: dict[int, int], sizes: dict[int, int]) -> None:
    rows = [(1, 0), (0.8, 0.6), (0, 1)]
    means, counts = (
        {c: np.array(row, np.float32) for c, row in enumerate(rows)},
        dict.fromkeys(range(3), 1),
    )
    assert merge(means, counts, tau) == renamed
    assert counts == sizes
    if tau == 0.65:
        assert means[0] == pytest.approx([0.9, 0.3])


def test_a_sample_for_the_silhouette_has_nobody_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is drawn twice has a nearest neighbour at no distance: itself."""
    drawn: list[np.ndarray] = []
    score = sklearn.metrics.silhouette_score
    monkeypatch.setattr(grouping, "SAMPLED", 40)
    monkeypatch.setattr(
        sklearn.metrics, "silhouette_score", lambda x, y: drawn.append(x) or score(x, y)
    )
    grouping.silhouette(np.arange(50.0)[:, None], np.arange(50) % 2)
    assert len(np.unique(drawn[0])) == 40
