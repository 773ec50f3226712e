"""How clients fall apart into groups: hierarchical clustering, how many groups there are, and whether there are any.

Shapes: C clients, D coordinates. Points are those of :func:`strategies.clustering.coordinates`: in at most C
dimensions, with the clients' own distances.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Labels = NDArray[np.int64]
Split = Callable[[Points, int], Labels]
"""Cuts points (C, D) into at most so many groups: a label per point."""

Rule = Literal["given", "silhouette", "gap", "davies_bouldin"]
Linkage = Literal["average", "complete", "single", "ward"]

_GAP_REFERENCES = 10
ROTATIONS = 99

WEAK = 0.18
"""Silhouette below which the gate sees no groups, however unlikely by chance: real clients are not quite normal, and
single odd ones pass the test. On digits IID clients reach .165 at most, those of four rotations .19 at least."""


@dataclass(frozen=True)
class HowMany:
    """How the number of clusters is chosen; fields and defaults are those of ``StrategyConfig``."""

    num_clusters: int = 4
    choose_k: Rule = "given"
    max_clusters: int = 8
    gate: float = 0.0


@dataclass(frozen=True)
class Found:
    """A grouping of C clients."""

    labels: Labels
    silhouette: float  # in [-1, 1]; nan where it is not defined (one group, or one client in each)
    p_value: float = float("nan")  # of the gate; nan where it was not asked


def find_groups(points_CD: Points, split: Split, how: HowMany, seed: int, labels: Labels | None = None) -> Found:
    """Cut points into as many groups as ``how`` says, or leave them in one where the gate finds no clusters.

    Parameters
    ----------
    points_CD : (C, D) float64
        The clients.
    split : Split
        The method's own way to cut.
    how : HowMany
        k, or the rule that chooses it, and the gate's level.
    seed : int
        Root of the references that the gap statistic and the gate draw.
    labels : (C,) int, optional
        A cut made already, by a threshold; then only the gate is asked.
    """
    if labels is None:
        k = min(choose_k(points_CD, split, how, seed), len(points_CD))
        labels = split(points_CD, k) if k > 1 else np.zeros(len(points_CD), np.int64)
    k, p_value = len(np.unique(labels)), float("nan")
    if how.gate and k > 1:
        p_value = split_p_value(points_CD, split, k, seed)
        if p_value > how.gate or silhouette(points_CD, labels) < WEAK:
            labels = np.zeros(len(points_CD), np.int64)
    return Found(labels, silhouette(points_CD, labels), p_value)


def silhouette(points_CD: Points, labels: Labels) -> float:
    """Return the mean silhouette (Rousseeuw 1987), nan where it is not defined."""
    from sklearn.metrics import silhouette_score

    defined = 1 < len(np.unique(labels)) < len(labels)
    return float(silhouette_score(points_CD, labels)) if defined else float("nan")


def choose_k(points_CD: Points, split: Split, how: HowMany, seed: int) -> int:
    """Return the number of groups.

    ``silhouette`` takes the largest mean silhouette and ``davies_bouldin`` the smallest index (Davies and Bouldin
    1979), of 2 to ``max_clusters`` groups, the first of equals; ``gap`` is :func:`gap_k` and may say 1.
    """
    if how.choose_k == "given":
        return how.num_clusters
    most = min(how.max_clusters, len(points_CD) - 1)
    if how.choose_k == "gap":
        return gap_k(points_CD, split, most, seed)
    from sklearn.metrics import davies_bouldin_score

    scores = {}
    for k in range(2, most + 1):
        labels = split(points_CD, k)
        if 1 < len(np.unique(labels)) < len(labels):
            good = silhouette(points_CD, labels)
            scores[k] = good if how.choose_k == "silhouette" else -davies_bouldin_score(points_CD, labels)
    return max(scores, key=lambda k: (scores[k], -k)) if scores else 1


def gap_k(points_CD: Points, split: Split, most: int, seed: int) -> int:
    """Return the smallest k with Gap(k) >= Gap(k + 1) - s(k + 1), up to ``most`` (Tibshirani et al. 2001).

    The references are uniform in the box around the points along their principal axes.
    """
    rng = np.random.default_rng(seed)
    centred = points_CD - points_CD.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    turned = centred @ axes.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    references = [rng.uniform(low, high, turned.shape) for _ in range(_GAP_REFERENCES)]

    def gap(k: int) -> tuple[float, float]:
        logs = np.log([max(_within(points, split, k), 1e-300) for points in (turned, *references)])
        return float(logs[1:].mean() - logs[0]), float(logs[1:].std() * np.sqrt(1 + 1 / _GAP_REFERENCES))

    here = gap(1)
    for k in range(1, most):
        after = gap(k + 1)
        if here[0] >= after[0] - after[1]:
            return k
        here = after
    return most


def split_p_value(points_CD: Points, split: Split, k: int, seed: int, rotations: int = ROTATIONS) -> float:
    """Return how likely k groups as tight as these are among clients that do not differ: the gate.

    A rotation test (Langsrud 2005, Statistics and Computing 15). Were the clients draws of one normal distribution,
    then, given their mean and covariance, every rotation of the C points that keeps both would be as likely as the one
    seen. So the share of the variance that lies within the groups is compared with that of randomly rotated points,
    cut by the same method. No covariance is estimated, so far more parameters than clients do no harm.

    Returns
    -------
    float
        (1 + rotations at least as tight) / (1 + rotations).
    """
    rng = np.random.default_rng(seed)
    sizes = np.linalg.svd(points_CD - points_CD.mean(axis=0), compute_uv=False)
    sizes = sizes[sizes > 1e-9 * max(sizes[0], 1e-300)]
    if not len(sizes):
        return 1.0
    observed = _within(points_CD, split, k) * (1 + 1e-9) + 1e-12 * float((sizes**2).sum())
    hits = 0
    for _ in range(rotations):
        normal = rng.normal(size=(len(points_CD), len(sizes)))
        rotated = np.linalg.qr(normal - normal.mean(axis=0))[0] * sizes
        hits += _within(rotated, split, k) <= observed
    return (1 + hits) / (1 + rotations)


def _within(points_CD: Points, split: Split, k: int) -> float:
    """Return the sum of squared distances to the groups' means."""
    labels = split(points_CD, k) if k > 1 else np.zeros(len(points_CD), np.int64)
    groups = (points_CD[labels == label] for label in np.unique(labels))
    return float(sum(((group - group.mean(axis=0)) ** 2).sum() for group in groups))


def tree_split(linkage: Linkage) -> Split:
    """Return the cut of a hierarchical clustering of points by Euclidean distance into k groups."""
    return lambda points_CD, k: cut_tree(euclidean(points_CD), linkage, num_clusters=k)


def euclidean(points_CD: Points) -> Points:
    """Return the distances between points, (C, C)."""
    from scipy.spatial.distance import pdist, squareform

    distances: Points = squareform(pdist(points_CD))
    return distances


def cut_tree(
    distances_CC: Points, linkage: Linkage, *, num_clusters: int | None = None, threshold: float | None = None
) -> Labels:
    """Cut a hierarchical clustering at a number of groups, or at a distance beyond which groups are not joined."""
    from scipy.cluster.hierarchy import fcluster
    from scipy.cluster.hierarchy import linkage as build_tree
    from scipy.spatial.distance import squareform

    tree = build_tree(squareform(distances_CC, checks=False), linkage)
    if threshold is None:
        labels = fcluster(tree, num_clusters, "maxclust")
    else:
        labels = fcluster(tree, threshold, "distance")
    return np.asarray(labels, np.int64) - 1
