"""The maths of clustering, against numbers worked out by hand."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsweep.strategies import clustered
from fedsweep.strategies.clustering import (
    at_length_one,
    canonical,
    coordinates,
    group_means,
    kmeans,
    nearest,
    points_at,
    points_of,
    represent,
    unit_rows,
    view_of,
)
from fedsweep.strategies.kmeans import KMeans
from fedsweep.strategies.layout import Layout, last_layer_keys
from tests.fakes import FakeGrid, record


def _net(body: float, head: float, count: int = 0) -> ArrayRecord:
    arrays = {
        "body.weight": [[body]],
        "body.steps": [[count]],
        "fc.weight": [[head, 0.0]],
        "fc.bias": [head],
    }
    kinds = {"body.steps": np.int64}
    return ArrayRecord(
        {key: Array(np.array(v, kinds.get(key, np.float32))) for key, v in arrays.items()}
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("updates", [2.0, 3.0, 0.0, 3.0]),
        ("weights", [3.0, 5.0, 0.0, 5.0]),
        ("last_layer", [3.0, 0.0, 3.0]),
    ],
)
def test_representation_of_a_client(kind: str, expected: list[float]) -> None:
    """Updates are model - common; counters are left out;
    the last layer is the last module's arrays.
    """
    layout = Layout.by_dtype(_net(1, 2))
    rows_CP = represent([_net(3, 5, count=9)], _net(1, 2), kind, layout)
    assert rows_CP.tolist() == [expected]


def test_last_layer_without_modules_is_the_last_array() -> None:
    assert last_layer_keys(["w", "b"]) == ["b"]
    assert last_layer_keys(["0.weight", "2.weight", "2.bias"]) == ["2.weight", "2.bias"]


def test_unit_rows_have_length_one_and_zero_stays_zero() -> None:
    rows_CP = np.array([[3, 4], [0, 0]], np.float32)
    assert unit_rows(rows_CP).tolist() == [[np.float32(0.6), np.float32(0.8)], [0.0, 0.0]]


def test_coordinates_lose_no_distance_where_parameters_outnumber_clients() -> None:
    """The Gram matrix keeps every distance, also across the blocks that it is summed in."""
    rows_CP = np.random.default_rng(0).normal(size=(5, 20_000)).astype(np.float32)
    points = coordinates(rows_CP)
    assert points.shape == (5, 5)
    for i in range(5):
        for j in range(5):
            expected = np.linalg.norm(rows_CP[i].astype(np.float64) - rows_CP[j].astype(np.float64))
            assert np.linalg.norm(points[i] - points[j]) == pytest.approx(expected, abs=1e-5)


def test_points_for_cosine_keep_the_angles() -> None:
    """(3, 4), (0, 5), (-6, -8) among zeros: two have the cosine 4/5, the third turns back."""
    rows_CP = np.zeros((3, 50), np.float32)
    rows_CP[:, :2] = [[3, 4], [0, 5], [-6, -8]]
    seen = view_of("cosine")(points_of(rows_CP, "cosine"))
    expected = np.array([[1, 0.8, -1], [0.8, 1, -0.8], [-1, -0.8, 1]])
    assert seen @ seen.T == pytest.approx(expected)
    assert at_length_one(np.array([[0.0, 2.0], [0.0, 0.0]])).tolist() == [[0, 1], [0, 0]]


def test_equal_clients_are_equal_points() -> None:
    rows_CP = np.random.default_rng(0).normal(size=(1, 300)).astype(np.float32).repeat(5, axis=0)
    for distance in ("cosine", "euclidean"):
        points = points_of(rows_CP, distance)
        assert points == pytest.approx(points[:1].repeat(5, axis=0), abs=1e-6)


def test_canonical_numbers_clusters_by_their_smallest_node() -> None:
    assert canonical([7, 3, 5, 1], [0, 0, 1, 2]) == {1: 0, 3: 1, 5: 2, 7: 1}


def test_euclidean_and_cosine_see_different_groups() -> None:
    """Two directions at two lengths: cosine groups by direction, Euclid by length."""
    rows_CP = np.array([[1, 0], [0, 1], [100, 0], [90, 10]], np.float32)
    cosine, _ = kmeans(rows_CP, 2, "cosine", seed=0)
    euclid, _ = kmeans(rows_CP, 2, "euclidean", seed=0)
    assert canonical(range(4), cosine.tolist()) == {0: 0, 1: 1, 2: 0, 3: 0}
    assert canonical(range(4), euclid.tolist()) == {0: 0, 1: 0, 2: 1, 3: 1}


def test_silhouette_by_hand() -> None:
    """Points 0, 1 | 10, 12: (b - a) / max(a, b) is 10/11, 9/10, 7.5/9.5, 9.5/11.5."""
    rows_CP = np.array([[0], [1], [10], [12]], np.float32)
    _, silhouette = kmeans(rows_CP, 2, "euclidean", seed=0)
    expected = np.mean([(11 - 1) / 11, (10 - 1) / 10, (9.5 - 2) / 9.5, (11.5 - 2) / 11.5])
    assert silhouette == pytest.approx(expected)


def test_silhouette_of_singletons_is_not_defined() -> None:
    _, silhouette = kmeans(np.array([[0], [5]], np.float32), 2, "euclidean", seed=0)
    assert np.isnan(silhouette)


def test_fewer_different_rows_than_clusters_give_fewer_clusters(
    recwarn: pytest.WarningsRecorder,
) -> None:
    labels, _ = kmeans(np.ones((3, 2), np.float32), 2, "euclidean", seed=0)
    assert set(labels.tolist()) == {0}
    assert not recwarn.list


def test_weights_and_updates_agree_only_from_a_common_start() -> None:
    """Pitfall: K-means on weights is that on updates: the common start shifts every row alike."""
    common = record(100.0, -100.0)
    models = [record(104, -100), record(100, -96), record(103, -100), record(100, -97)]
    for kind in ("weights", "updates"):
        labels, _ = kmeans(
            represent(models, common, kind, Layout.by_dtype(common)), 2, "euclidean", seed=0
        )
        assert canonical(range(4), labels.tolist()) == {0: 0, 1: 1, 2: 0, 3: 1}


def test_points_at_given_distances() -> None:
    """Three on a line at 0, 3 and 7."""
    line = np.array([[0.0], [3.0], [7.0]])
    distances_CC = np.abs(line - line.T)
    points = points_at(distances_CC)
    assert np.linalg.norm(points[:, None] - points[None], axis=2) == pytest.approx(distances_CC)


@pytest.mark.parametrize(
    ("distance", "expected"),
    [("cosine", [0, 1, 0]), ("euclidean", [0, 1, 1]), ("manhattan", [0, 1, 1])],
)
def test_nearest_group(distance: str, expected: list[int]) -> None:
    """(90, 10) points along the first mean, and lies next to the second."""
    means_KP = np.array([[1, 0], [80, 80]], np.float32)
    rows_NP = np.array([[2, 0], [50, 60], [90, 10]], np.float32)
    assert nearest(rows_NP, means_KP, distance).tolist() == expected


def test_group_means_by_angle_are_those_of_unit_rows() -> None:
    rows_CP = np.array([[2, 0], [0, 10], [3, 0]], np.float32)
    labels = np.array([0, 0, 1])
    assert group_means(rows_CP, labels, "cosine").tolist() == [[0.5, 0.5], [1, 0]]
    assert group_means(rows_CP, labels, "euclidean").tolist() == [[1, 5], [3, 0]]


def test_the_time_of_clustering_is_without_that_of_the_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three seconds of the server's own in each round, around thirty of the clients'."""
    now = [0.0]

    def passes(seconds: float) -> None:
        now[0] += seconds

    def asked(*_: object, **__: object) -> dict[int, RecordDict]:
        passes(30)
        return {}

    class Asking(KMeans):
        def prepare(self, server_round: int, arrays: ArrayRecord) -> None:
            passes(2)
            self.ask("query.losses", {})
            passes(1)

    monkeypatch.setattr(clustered, "perf_counter", lambda: now[0])
    monkeypatch.setattr(clustered, "ask", asked)
    strategy = Asking(num_clusters=2)
    grid = FakeGrid(ClientApp(), 4)
    for server_round in (1, 2):
        strategy.configure_train(server_round, record(0, 0), ConfigRecord(), grid)
        assert strategy.clustering_s == 3
