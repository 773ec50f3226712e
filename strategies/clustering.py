"""The maths of clustering clients: what stands for one, how far two are apart, who belongs where.

Shapes: C clients, P parameters, K clusters. Everything here is a pure function; rows are in the
caller's order, which must not depend on the order of replies if the result is not to.
"""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedsweep.strategies.grouping import Cut, Points, Seen, as_it_is, silhouette
from fedsweep.strategies.layout import Layout, flatten

Representation = Literal["updates", "weights", "last_layer", "losses", "data"]
Distance = Literal["cosine", "euclidean", "manhattan"]

_BLOCK = 1 << 13  # columns widened to float64 at a time


def check_angles(representation: str, distance: str) -> None:
    """Refuse angles between what has none.

    Raises
    ------
    ValueError
        The distance is ``cosine``, and what stands for a client is no update.
    """
    if distance == "cosine" and representation in ("weights", "losses", "data"):
        raise ValueError(
            f"strategy.representation={representation} with strategy.distance=cosine: only updates "
            "have an angle; set strategy.distance=euclidean or strategy.representation=updates"
        )


def represent(
    records: Sequence[ArrayRecord], common: ArrayRecord, kind: Representation, layout: Layout
) -> NDArray[np.float32]:
    """Return one row per client (C, P), from the trained arrays of its model.

    Parameters
    ----------
    records : sequence of C ArrayRecords
        The clients' models, all trained in one round from ``common``. Models of different rounds or
        different starting points are not comparable: drift would pass for difference.
    common : ArrayRecord
        The model that every client started from.
    kind : str
        ``updates``: model - common; ``weights``: the model; ``last_layer``:
        the update of the last layer.
    layout : Layout
        Of the models.
    """
    keys = layout.last_layer() if kind == "last_layer" else layout.trained
    origin = flatten(common, keys)
    rows_CP = np.empty((len(records), origin.size), np.float32)
    for row, record in zip(rows_CP, records, strict=True):
        row[:] = flatten(record, keys)
        if kind != "weights":
            row -= origin
    return rows_CP


def unit_rows(rows_CP: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows at length 1: their squared Euclidean distance is then 2 (1 - cosine).

    A zero row stays zero.
    """
    norms = np.array([np.linalg.norm(row.astype(np.float64)) for row in rows_CP])
    return np.divide(
        rows_CP, np.where(norms > 0, norms, 1.0)[:, None], dtype=np.float32, casting="same_kind"
    )


def coordinates(rows_CP: NDArray[np.float32], centred: bool = True) -> Points:
    """Return points with the same distances in at most C dimensions: (C, min(C, P)).

    With far more parameters than clients, the C x C Gram matrix of the rows holds all that
    distances and angles depend on. Its eigenvectors, scaled, are the rows' principal coordinates:
    nothing is lost. Centred ones are exact to more digits; the others keep the rows' angles too.
    """
    num_clients, num_parameters = rows_CP.shape
    if num_parameters <= num_clients:
        return rows_CP.astype(np.float64)
    gram_CC = np.zeros((num_clients, num_clients))
    for start in range(0, num_parameters, _BLOCK):
        block = rows_CP[:, start : start + _BLOCK].astype(np.float64)
        if centred:
            block -= block.mean(axis=0)
        gram_CC += block @ block.T
    return _from_gram(gram_CC)


def points_at(distances_CC: Points) -> Points:
    """Return points (C, C) of given distances, as near as can be: classical scaling (Torgerson)."""
    squares = distances_CC**2
    squares = squares - squares.mean(axis=0) - squares.mean(axis=1)[:, None] + squares.mean()
    return _from_gram(-0.5 * squares)


def _from_gram(gram_CC: Points) -> Points:
    values, vectors = np.linalg.eigh(gram_CC)
    noise = len(values) * np.finfo(np.float64).eps * values[-1]  # equal rows give equal points
    points: Points = vectors * np.sqrt(np.where(values > noise, values, 0.0))
    return points


def points_of(rows_CP: NDArray[np.float32], distance: Distance) -> Points:
    """Return points (C, min(C, P)) whose distances are those of the rows;
    for cosine, whose angles are too.
    """
    return coordinates(rows_CP, centred=distance != "cosine")


def view_of(distance: Distance) -> Seen:
    """Return points in which Euclid's distance is the one asked for (for cosine, grows with it)."""
    return at_length_one if distance == "cosine" else as_it_is


def at_length_one(points_CD: Points) -> Points:
    """Return points on the unit sphere: their squared Euclidean distance is 2 (1 - cosine).

    A zero stays zero.
    """
    lengths = np.linalg.norm(points_CD, axis=1, keepdims=True)
    return points_CD / np.where(lengths > 0, lengths, 1.0)


def plane_of(rows_CP: NDArray[np.float32], distance: Distance) -> list[tuple[float, float]]:
    """Return each row's first two principal coordinates: flat, and most of the distances kept."""
    points = view_of(distance)(points_of(rows_CP, distance))
    points = points - points.mean(axis=0)
    _, _, axes = np.linalg.svd(points, full_matrices=False)
    flat = points @ axes[:2].T
    return [(float(row[0]), float(row[1]) if len(row) > 1 else 0.0) for row in flat]


def kmeans(
    rows_CP: NDArray[np.float32], num_clusters: int, distance: Distance, seed: int
) -> tuple[NDArray[np.int64], float]:
    """Return a label per row, and the silhouette of the grouping.

    There are fewer than ``num_clusters`` clusters only where fewer rows differ.
    """
    with one_thread():
        points_CD = view_of(distance)(points_of(rows_CP, distance))
        labels = kmeans_split(seed)(points_CD, num_clusters)
        return labels, silhouette(points_CD, labels)


def kmeans_split(seed: int) -> Cut:
    """Return K-means as a cut of points; call it under :func:`one_thread`."""
    from sklearn.cluster import KMeans  # seconds to import, and only clustering rounds need it
    from sklearn.exceptions import ConvergenceWarning

    def split(points_CD: NDArray[np.float64], k: int) -> NDArray[np.int64]:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # fewer distinct points than clusters: labels show it
            found: NDArray[np.int32] = KMeans(k, n_init=10, random_state=seed % 2**32).fit_predict(
                points_CD
            )
            return found.astype(np.int64)

    return split


def one_thread() -> AbstractContextManager[object]:
    """Return a context of one thread for BLAS and OpenMP: sums have one order on any machine."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1)  # type: ignore[no-any-return]


def group_means(
    rows_CP: NDArray[np.float32], labels: NDArray[np.int64], distance: Distance
) -> NDArray[np.float32]:
    """Return the mean row of each group 0, 1, ... (K, P); for cosine of the rows at length 1."""
    rows_CP = unit_rows(rows_CP) if distance == "cosine" else rows_CP
    return np.stack([rows_CP[labels == label].mean(axis=0) for label in range(labels.max() + 1)])


def nearest(
    rows_NP: NDArray[np.float32], means_KP: NDArray[np.float32], distance: Distance
) -> NDArray[np.int64]:
    """Return the group whose mean is nearest to each row, the first of equals;
    for cosine by angle.
    """
    if distance == "cosine":
        rows_NP, means_KP = unit_rows(rows_NP), unit_rows(means_KP)
    order = 1 if distance == "manhattan" else 2
    labels = [
        np.argmin([np.linalg.norm((row - mean).astype(np.float64), order) for mean in means_KP])
        for row in rows_NP
    ]
    return np.array(labels, np.int64)


def canonical(node_ids: Sequence[int], labels: Sequence[int]) -> dict[int, int]:
    """Return node id -> cluster, clusters numbered 0, 1, ... by their smallest node id."""
    numbers: dict[int, int] = {}
    assignment = {}
    for node, label in sorted(zip(node_ids, labels, strict=True)):
        assignment[node] = numbers.setdefault(label, len(numbers))
    return assignment
