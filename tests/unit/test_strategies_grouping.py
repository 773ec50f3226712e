"""How many groups, and whether any: against numbers worked out by hand, and the gate's level on equal clients."""

import numpy as np
import pytest

from strategies.cfl import bipartition, update_norms
from strategies.clustering import kmeans_split
from strategies.fedgroup import decomposed_cosines
from strategies.grouping import HowMany, choose_k, cut_tree, find_groups, split_p_value, tree_split
from strategies.pacfl import principal_angles
from strategies.stocfl import merge


def _blobs(centres: int, each: int, spread: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([10 * np.eye(8)[c] + spread * rng.normal(size=(each, 8)) for c in range(centres)])


def test_cut_tree_by_hand() -> None:
    """0, 1, 3 and 10, average linkage: joined at 1, 2.5 and 8.67."""
    line = np.array([[0.0], [1.0], [3.0], [10.0]])
    distances_CC = np.abs(line - line.T)
    for threshold, groups in ((0.9, 4), (1.0, 3), (2.5, 2), (8.7, 1)):
        assert len(set(cut_tree(distances_CC, "average", threshold=threshold))) == groups
    assert cut_tree(distances_CC, "average", num_clusters=2).tolist() == [0, 0, 0, 1]
    assert len(set(cut_tree(distances_CC, "single", threshold=2.0))) == 2
    assert len(set(cut_tree(distances_CC, "complete", threshold=2.9))) == 3


@pytest.mark.parametrize("rule", ["silhouette", "davies_bouldin"])
@pytest.mark.parametrize("wanted", [2, 3, 4])
def test_each_rule_counts_clear_groups(rule: str, wanted: int) -> None:
    points = _blobs(wanted, 6, 0.5, seed=wanted)
    for split in (kmeans_split(0), tree_split("average")):
        assert choose_k(points, split, HowMany(choose_k=rule), seed=0) == wanted


def test_the_gap_counts_clear_groups_in_the_plane() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([np.array(c) + 0.5 * rng.normal(size=(20, 2)) for c in ((0, 0), (0, 10), (10, 3))])
    assert choose_k(points, kmeans_split(0), HowMany(choose_k="gap"), seed=0) == 3


def test_the_gap_says_one_where_there_is_no_group() -> None:
    points = np.random.default_rng(0).normal(size=(30, 2))
    assert choose_k(points, kmeans_split(0), HowMany(choose_k="gap"), seed=0) == 1


def test_no_more_groups_than_allowed() -> None:
    assert choose_k(_blobs(4, 6, 0.5, 1), kmeans_split(0), HowMany(choose_k="silhouette", max_clusters=3), 0) <= 3


def test_equal_clients_are_one_group() -> None:
    same = np.ones((6, 3))
    assert split_p_value(same, kmeans_split(0), 2, seed=0) == 1.0
    found = find_groups(same, kmeans_split(0), HowMany(num_clusters=2, gate=0.05), seed=0)
    assert found.labels.tolist() == [0] * 6
    assert np.isnan(found.silhouette)


def test_the_gate_lets_true_groups_pass() -> None:
    found = find_groups(_blobs(3, 5, 2.0, 0), kmeans_split(0), HowMany(num_clusters=3, gate=0.05), seed=0)
    assert found.p_value == pytest.approx(0.01)
    assert found.labels.reshape(3, 5).std(axis=1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dimensions", [3, 200])
def test_the_gates_level_on_normal_clients(dimensions: int) -> None:
    """100 draws of 12 equal clients, with few and with many parameters of unequal variance: about 5 false splits."""
    false = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(12, dimensions)) * np.linspace(1, 4, dimensions)
        points = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
        false += split_p_value(points[0] * points[1], tree_split("average"), 2, seed) <= 0.05
    assert false <= 10  # a binomial of 100 draws at 5 % is above 10 once in 90


def test_a_cut_by_threshold_only_asks_the_gate() -> None:
    labels = np.array([0, 1, 0, 1])
    points = np.array([[0.0], [10.0], [0.1], [10.1]])
    assert find_groups(points, tree_split("average"), HowMany(num_clusters=3), 0, labels).labels is labels


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
    means, counts = {c: np.array(row, np.float32) for c, row in enumerate(rows)}, dict.fromkeys(range(3), 1)
    assert merge(means, counts, tau) == renamed
    assert counts == sizes
    if tau == 0.65:
        assert means[0] == pytest.approx([0.9, 0.3])
