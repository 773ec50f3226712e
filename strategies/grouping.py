"""How clients fall into groups: hierarchical clustering, how many groups there are, and if any.

Shapes: C clients, D coordinates. Points are those of
:func:`fedsweep.strategies.clustering.points_of`: in at most C dimensions, with the clients' own
distances and, where a method goes by angles, their own origin.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsweep.strategies.ranges import CLIENTS, METRIC
from fedsweep.strategies.selection import ServerSettings
from fedsweep.strategies.settings import NumClustersSettings

Points = NDArray[np.float64]
Labels = NDArray[np.int64]
Cut = Callable[[Points, int], Labels]
"""Cuts points (C, D) into at most so many groups: a label per point."""
Seen = Callable[[Points], Points]
"""What a method sees of the points that it cuts: at length 1 where it goes by cosines, for one."""

ChooseK = Literal["given", "silhouette", "gap", "davies_bouldin"]
Linkage = Literal["average", "complete", "single", "ward"]

_GAP_REFERENCES = 10
SAMPLED = 2_000  # clients that a silhouette is taken of, at most
ROTATIONS = 99  # of the gate, at least: as many as a level of .01 needs


@dataclass(frozen=True)
class HowMany:
    """How the number of clusters is chosen; fields as in :class:`GroupSettings`."""

    num_clusters: int = 4
    choose_k: ChooseK = "given"
    max_clusters: int = 8
    gate: float = 0.0


class GateSettings(ServerSettings):
    """Of a method that asks whether there are clusters."""

    gate: float = Field(
        0.0,
        ge=0,
        lt=1,
        description=(
            "level of the test whether there are clusters at all: the share of false splits "
            "allowed; 0: cluster untested"
        ),
    )


class GroupSettings(GateSettings, NumClustersSettings):
    """Of a method that groups the clients, into a number of clusters given or chosen."""

    cuts: ClassVar[tuple[str, ...]] = ("gate",)
    """Keys of what tells clusters apart, where there is more than one."""

    choose_k: ChooseK = Field(
        "given", description="given: num_clusters; else the rule that chooses their number"
    )
    max_clusters: int = Field(
        8, ge=2, le=CLIENTS, description="most clusters that choose_k may take"
    )

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: key -> the setting that is why."""
        return super().idle() | self._idle_numbers()

    def _idle_numbers(self) -> dict[str, str]:
        given = self.choose_k == "given"
        found = {"max_clusters" if given else "num_clusters": f"strategy.choose_k={self.choose_k}"}
        if given and self.num_clusters == 1:
            found |= dict.fromkeys(self.cuts, "strategy.num_clusters=1")
        return found


class TreeSettings(GroupSettings):
    """Of a method that cuts a tree of the clients, at a distance or into a number of clusters."""

    cuts: ClassVar[tuple[str, ...]] = ("gate", "linkage")

    linkage: Linkage = Field("average", description="how far apart two groups are")
    threshold: float | None = Field(
        None,
        gt=0,
        le=METRIC,
        description="distance at which the tree is cut; null: as choose_k says",
    )

    def _idle_numbers(self) -> dict[str, str]:
        if self.threshold is None:
            return super()._idle_numbers()
        keys = ("choose_k", "num_clusters", "max_clusters")
        return dict.fromkeys(keys, f"strategy.threshold={self.threshold:g}")


@dataclass(frozen=True)
class Found:
    """A grouping of C clients."""

    labels: Labels
    silhouette: float  # in [-1, 1]; nan where it is not defined (one group, or one client in each)
    p_value: float = float("nan")  # of the gate; nan where it was not asked


def as_it_is(points_CD: Points) -> Points:
    """Return what it is given: the view of a method that goes by Euclid's distance."""
    return points_CD


def find_groups(
    points_CD: Points,
    split: Cut,
    how: HowMany,
    seed: int,
    view: Seen = as_it_is,
    labels: Labels | None = None,
) -> Found:
    """Cut points into groups as ``how`` says, or leave them in one where the gate finds none.

    Parameters
    ----------
    points_CD : (C, D) float64
        The clients.
    split : Cut
        The method's own way to cut.
    how : HowMany
        k, or the rule that chooses it, and the gate's level.
    seed : int
        Root of the references that the gap statistic and the gate draw.
    view : Seen
        What the method makes of the points before it cuts them.
    labels : (C,) int, optional
        A cut made already, by a threshold; then only the gate is asked.
    """
    seen = view(points_CD)
    rule = how.choose_k if labels is None else "given"
    if labels is None:
        labels = _cut(seen, split, choose_k(seen, split, how, seed))
    k, p_value = len(np.unique(labels)), float("nan")
    if how.gate and k > 1:

        def score(points: Points) -> float:
            """Redo all that was done to the clients, choice of k too; tell how far they part."""
            if rule in ("given", "gap"):
                return between(view(points), _cut(view(points), split, k))
            found = _cut(view(points), split, choose_k(view(points), split, how, seed))
            return silhouette(view(points), found)

        p_value = rotation_p_value(points_CD, score, how.gate, seed)
        if p_value > how.gate:
            labels = np.zeros(len(points_CD), np.int64)
    return Found(labels, silhouette(seen, labels), p_value)


def _cut(points_CD: Points, split: Cut, k: int) -> Labels:
    k = min(k, len(points_CD))
    return split(points_CD, k) if k > 1 else np.zeros(len(points_CD), np.int64)


def silhouette(points_CD: Points, labels: Labels) -> float:
    """Return the mean silhouette (Rousseeuw 1987), nan where it is not defined;
    of a sample where there are many.
    """
    from sklearn.metrics import silhouette_score

    if len(labels) > SAMPLED:  # its cost grows with the square
        chosen = np.random.default_rng(0).choice(len(labels), SAMPLED, replace=False)
        points_CD, labels = points_CD[chosen], labels[chosen]
    defined = 1 < len(np.unique(labels)) < len(labels)
    return float(silhouette_score(points_CD, labels)) if defined else float("nan")


def choose_k(points_CD: Points, split: Cut, how: HowMany, seed: int) -> int:
    """Return the number of groups.

    ``silhouette`` takes the largest mean silhouette and ``davies_bouldin`` the smallest index
    (Davies and Bouldin 1979), of 2 to ``max_clusters`` groups, the first of equals; ``gap`` is
    :func:`gap_k` and may say 1.
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
            scores[k] = (
                good if how.choose_k == "silhouette" else -davies_bouldin_score(points_CD, labels)
            )
    return max(scores, key=lambda k: (scores[k], -k)) if scores else 1


def gap_k(points_CD: Points, split: Cut, most: int, seed: int) -> int:
    """Return the least k with Gap(k) >= Gap(k + 1) - s(k + 1), or ``most`` (Tibshirani 2001).

    The references are uniform in the box around the points along their principal axes.
    """
    rng = np.random.default_rng(seed)
    centred = points_CD - points_CD.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    turned = centred @ axes.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    references = [rng.uniform(low, high, turned.shape) for _ in range(_GAP_REFERENCES)]

    def gap(k: int) -> tuple[float, float]:
        logs = np.log([max(_within(p, _cut(p, split, k)), 1e-300) for p in (turned, *references)])
        return float(logs[1:].mean() - logs[0]), float(
            logs[1:].std() * np.sqrt(1 + 1 / _GAP_REFERENCES)
        )

    here = gap(1)
    for k in range(1, most):
        after = gap(k + 1)
        if here[0] >= after[0] - after[1]:
            return k
        here = after
    return most


def rotation_p_value(
    points_CD: Points, score: Callable[[Points], float], level: float, seed: int
) -> float:
    """Return how likely groups as good as these are among clients that do not differ: the gate.

    A rotation test (Langsrud 2005, Statistics and Computing 15). Were the clients draws of one
    normal distribution, then, given their mean and covariance, every rotation of the C points that
    keeps both would be as likely as the one seen. So ``score`` does to randomly rotated points all
    that the method did to the clients: whatever it normalises, projects or chooses, it does to
    both. No covariance is estimated: far more parameters than clients do no harm.

    It ends when the level is out of reach (Besag and Clifford 1991), which takes few rotations
    where there are no groups; else it draws 99, or as many as the level needs.

    Parameters
    ----------
    points_CD : (C, D) float64
        The clients, as they were before the method saw them.
    score : callable
        Points -> how well the groups that the method finds in them are apart;
        more is better, nan is worst.
    level : float
        Share of false groups allowed, above 0.
    seed : int
        Root of the rotations.
    """
    rotations = max(ROTATIONS, math.ceil(1 / level - 1e-9) - 1)
    most = math.floor(level * (1 + rotations) + 1e-9)  # hits that put the level out of reach
    observed = _or_worst(score(points_CD)) - 1e-9
    hits = 0
    for drawn, rotated in enumerate(_rotations(points_CD, rotations, seed), start=1):
        hits += _or_worst(score(rotated)) >= observed
        if hits == most:
            return hits / drawn
    return (1 + hits) / (1 + rotations)


def _or_worst(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def _rotations(points_CD: Points, number: int, seed: int) -> Iterator[Points]:
    """Yield points with the same mean and covariance, rotated at random;
    the points themselves where all are equal.
    """
    rng = np.random.default_rng(seed)
    mean = points_CD.mean(axis=0)
    _, sizes, axes = np.linalg.svd(points_CD - mean, full_matrices=False)
    kept = sizes > 1e-9 * np.linalg.norm(points_CD)
    sizes, axes = sizes[kept], axes[kept]
    for _ in range(number):
        normal = rng.normal(size=(len(points_CD), len(sizes)))
        yield mean + (np.linalg.qr(normal - normal.mean(axis=0))[0] * sizes) @ axes


def between(points_CD: Points, labels: Labels) -> float:
    """Return the share of the points' variance that lies between the groups' means, 0 to 1;
    nan where all are equal.
    """
    total = ((points_CD - points_CD.mean(axis=0)) ** 2).sum()
    return float(1 - _within(points_CD, labels) / total) if total > 0 else float("nan")


def _within(points_CD: Points, labels: Labels) -> float:
    """Return the sum of squared distances to the groups' means."""
    groups = (points_CD[labels == label] for label in np.unique(labels))
    return float(sum(((group - group.mean(axis=0)) ** 2).sum() for group in groups))


def tree_split(linkage: Linkage) -> Cut:
    """Return the cut of a hierarchical clustering of points by Euclidean distance into k groups."""
    return lambda points_CD, k: cut_tree(euclidean(points_CD), linkage, num_clusters=k)


def euclidean(points_CD: Points) -> Points:
    """Return the distances between points, (C, C)."""
    from scipy.spatial.distance import pdist, squareform

    distances: Points = squareform(pdist(points_CD))
    return distances


def cut_tree(
    distances_CC: Points,
    linkage: Linkage,
    *,
    num_clusters: int | None = None,
    threshold: float | None = None,
) -> Labels:
    """Cut a hierarchical clustering at a number of groups, or at a distance that none exceeds."""
    if len(distances_CC) < 2:  # one client is a group
        return np.zeros(len(distances_CC), np.int64)
    from scipy.cluster.hierarchy import fcluster
    from scipy.cluster.hierarchy import linkage as build_tree
    from scipy.spatial.distance import squareform

    tree = build_tree(squareform(distances_CC, checks=False), linkage)
    if threshold is None:
        labels = fcluster(tree, num_clusters, "maxclust")
    else:
        labels = fcluster(tree, threshold, "distance")
    return np.asarray(labels, np.int64) - 1
