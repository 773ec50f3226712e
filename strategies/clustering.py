"""The maths of clustering clients: what stands for a client, how far apart two are, which belong together.

Shapes: C clients, P parameters, K clusters. Everything here is a pure function; rows are in the caller's order, which
must not depend on the order of replies if the result is not to.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

Representation = Literal["updates", "weights", "last_layer"]
Distance = Literal["cosine", "euclidean"]

_BLOCK = 1 << 13  # columns widened to float64 at a time


@dataclass(frozen=True)
class Clusters:
    """Which clients belong together."""

    assignment: dict[int, int]  # node id -> cluster
    silhouette: float  # in [-1, 1]; nan where it is not defined (one cluster, or one client in each)
    plane: dict[int, tuple[float, float]]  # node id -> its first two principal coordinates, for pictures


def cluster_models(
    models: Mapping[int, ArrayRecord],
    common: ArrayRecord,
    num_clusters: int,
    representation: Representation,
    distance: Distance,
    seed: int,
) -> Clusters | None:
    """Group the clients of one round by K-means.

    Parameters
    ----------
    models : mapping
        Node id -> the client's model, in any order.
    common : ArrayRecord
        The model that all of them started from.
    num_clusters, representation, distance, seed
        See :func:`represent` and :func:`kmeans`.

    Returns
    -------
    Clusters or None
        Clients whose numbers are not all finite are left out; None if fewer than ``num_clusters`` are left.
    """
    nodes = np.array(sorted(models))
    rows_CP = represent([models[node] for node in nodes.tolist()], common, representation)
    usable = np.isfinite(rows_CP).all(axis=1)
    if np.count_nonzero(usable) < num_clusters:
        return None
    labels, silhouette = kmeans(rows_CP[usable], num_clusters, distance, seed)
    plane = zip(nodes[usable].tolist(), plane_of(rows_CP[usable], distance), strict=True)
    return Clusters(canonical(nodes[usable].tolist(), labels.tolist()), silhouette, dict(plane))


def float_keys(record: ArrayRecord) -> list[str]:
    """Return the names of a model's floating-point arrays; counters and masks say nothing about a client's data."""
    return [key for key, array in record.items() if np.issubdtype(np.dtype(array.dtype), np.floating)]


def last_layer_keys(keys: Sequence[str]) -> list[str]:
    """Return the names that share the last one's module: ``fc.weight`` and ``fc.bias`` of a torch state dict."""
    module, dot, _ = keys[-1].rpartition(".")
    return [key for key in keys if key.rpartition(".")[:2] == (module, dot)] if dot else [keys[-1]]


def flatten(record: ArrayRecord, keys: Sequence[str]) -> NDArray[np.float32]:
    """Return the named arrays as one vector (P,)."""
    return np.concatenate([record[key].numpy().ravel().astype(np.float32, copy=False) for key in keys])


def represent(records: Sequence[ArrayRecord], common: ArrayRecord, kind: Representation) -> NDArray[np.float32]:
    """Return one row per client (C, P).

    Parameters
    ----------
    records : sequence of C ArrayRecords
        The clients' models, all trained in one round from ``common``. Models of different rounds or different
        starting points are not comparable: drift would pass for difference.
    common : ArrayRecord
        The model that every client started from.
    kind : str
        ``updates``: model - common; ``weights``: the model; ``last_layer``: the update of the last layer.
    """
    keys = float_keys(common)
    if kind == "last_layer":
        keys = last_layer_keys(keys)
    origin = flatten(common, keys)
    rows_CP = np.empty((len(records), origin.size), np.float32)
    for row, record in zip(rows_CP, records, strict=True):
        row[:] = flatten(record, keys)
        if kind != "weights":
            row -= origin
    return rows_CP


def unit_rows(rows_CP: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows at length 1: their squared Euclidean distance is then 2 (1 - cosine). A zero row stays zero."""
    norms = np.array([np.linalg.norm(row.astype(np.float64)) for row in rows_CP])
    return np.divide(rows_CP, np.where(norms > 0, norms, 1.0)[:, None], dtype=np.float32, casting="same_kind")


def coordinates(rows_CP: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return points with the same distances in at most C dimensions: (C, min(C, P)).

    With far more parameters than clients, the C x C Gram matrix of the centred rows holds all that Euclidean K-means
    sees. Its eigenvectors, scaled, are the rows' principal coordinates: nothing is lost.
    """
    num_clients, num_parameters = rows_CP.shape
    if num_parameters <= num_clients:
        return rows_CP.astype(np.float64)
    gram_CC = np.zeros((num_clients, num_clients))
    for start in range(0, num_parameters, _BLOCK):
        block = rows_CP[:, start : start + _BLOCK].astype(np.float64)
        block -= block.mean(axis=0)
        gram_CC += block @ block.T
    values, vectors = np.linalg.eigh(gram_CC)
    points: NDArray[np.float64] = vectors * np.sqrt(np.clip(values, 0.0, None))
    return points


def plane_of(rows_CP: NDArray[np.float32], distance: Distance) -> list[tuple[float, float]]:
    """Return each row's first two principal coordinates: the flat picture that keeps most of the distances."""
    points = coordinates(unit_rows(rows_CP) if distance == "cosine" else rows_CP)
    points = points - points.mean(axis=0)
    _, _, axes = np.linalg.svd(points, full_matrices=False)
    flat = points @ axes[:2].T
    return [(float(row[0]), float(row[1]) if len(row) > 1 else 0.0) for row in flat]


def kmeans(
    rows_CP: NDArray[np.float32], num_clusters: int, distance: Distance, seed: int
) -> tuple[NDArray[np.int64], float]:
    """Return a label per row, and the silhouette of the grouping.

    There are fewer than ``num_clusters`` clusters only where fewer rows differ. One thread does it all, so that the
    bits do not depend on the number of cores.
    """
    from sklearn.cluster import KMeans  # seconds to import, and only clustering rounds need it
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import silhouette_score
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters: the labels show it
        points = coordinates(unit_rows(rows_CP) if distance == "cosine" else rows_CP)
        labels = KMeans(num_clusters, n_init=10, random_state=seed % 2**32).fit_predict(points).astype(np.int64)
        defined = 1 < len(np.unique(labels)) < len(labels)
        return labels, float(silhouette_score(points, labels)) if defined else float("nan")


def canonical(node_ids: Sequence[int], labels: Sequence[int]) -> dict[int, int]:
    """Return node id -> cluster, clusters numbered 0, 1, ... by their smallest node id."""
    numbers: dict[int, int] = {}
    assignment = {}
    for node, label in sorted(zip(node_ids, labels, strict=True)):
        assignment[node] = numbers.setdefault(label, len(numbers))
    return assignment
