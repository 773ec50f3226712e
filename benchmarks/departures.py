"""``python -m benchmarks.departures``: what methods find by their authors' code where ours departs.

Only what no setting reaches; settings are measured by ``benchmarks.gate``. Digits, twenty clients,
four known groups, an MLP (``configs/experiment/gate.yaml``); means over seeds 0 to 4.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from sklearn.metrics import adjusted_rand_score

from fedsweep.data.federated import FederatedData
from fedsweep.data.sources import load_images
from fedsweep.engine.flower import quiet
from fedsweep.strategies.cfl import update_norms
from fedsweep.strategies.clustering import coordinates, represent, unit_rows
from fedsweep.strategies.pacfl import principal_angles
from fedsweep.strategies.stocfl import StoCFL, merge
from fedsweep.sweeps.compose import compose
from fedsweep.sweeps.prepare import make_split
from fedsweep.trial.trial import run_trial

Rows = NDArray[np.float64]
SEEDS, CLIENTS, GROUPS = range(5), range(20), 4


def clients_of(*words: str) -> Iterable[tuple[FederatedData, list[str]]]:
    """Yield the clients' data, and the words of their trial, per seed."""
    base = compose(["experiment=gate"])
    images = load_images(base.dataset, base.data)
    for seed in SEEDS:
        given = ["experiment=gate", "rounds=1", *words, f"seed={seed}"]
        yield make_split(images, compose(given)).on(images), given


def said(what: str, found: Iterable[tuple[FederatedData, Iterable[int]]]) -> None:
    """Print the mean ARI and the mean number of clusters."""
    labels = [(np.asarray(data.groups), list(own)) for data, own in found]
    ari = np.mean([adjusted_rand_score(groups, own) for groups, own in labels])
    count = np.mean([len(set(own)) for _, own in labels])
    print(f"{what:60s} ARI {ari:5.2f}, {count:4.1f} clusters", flush=True)


# PACFL: angles between the bases of raw images


def bases(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Rows:
    """Return the top three left singular vectors of each label's images, side by side."""
    pixels = images.reshape(len(images), -1).astype(np.float64)
    svds = [np.linalg.svd(pixels[labels == c].T, full_matrices=False) for c in np.unique(labels)]
    return np.hstack([u[:, :3] for u, _, _ in svds])


def elementwise(u: Rows, v: Rows) -> float:
    """Return PACFL's code's angle: the smallest arccos of an inner product, in degrees."""
    return float(np.degrees(np.arccos(np.clip(u.T @ v, -1, 1))).min())


def principal(pick: Callable[[Rows], float]) -> Callable[[Rows, Rows], float]:
    """Return ours: the mean or the smallest principal angle of what the bases span."""
    return lambda u, v: float(pick(principal_angles(np.linalg.qr(u)[0], np.linalg.qr(v)[0])))


ANGLES = {"elementwise": elementwise, "mean": principal(np.mean), "smallest": principal(np.min)}


def pacfl() -> None:
    """Print what the angle and the linkage make of it (``weighted`` is the code's average)."""
    for shift in ("rotation", "label_groups", "none"):
        for name, angle in ANGLES.items():
            cuts: dict[str, list[tuple[FederatedData, Iterable[int]]]] = {}
            for data, _ in clients_of("strategy=pacfl", f"shift={shift}"):
                own = [bases(*data.client(client, "train")) for client in CLIENTS]
                distances = squareform([angle(own[i], own[j]) for i, j in combinations(CLIENTS, 2)])
                for link in ("average", "weighted"):
                    tree = linkage(squareform(distances, checks=False), link)
                    known = fcluster(tree, GROUPS, "maxclust")
                    near = fcluster(tree, 4.9, "distance")
                    cuts.setdefault(f"{link}, {GROUPS} clusters", []).append((data, known))
                    cuts.setdefault(f"{link}, 4.9 degrees", []).append((data, near))
            for cut, found in cuts.items():
                said(f"pacfl, {shift}: {name}, {cut}", found)


# StoCFL and CFL: updates of one round


def updates(*words: str) -> list[tuple[FederatedData, Rows, list[float]]]:
    """Return the clients' updates of round 1, in as many coordinates as clients; and examples."""
    kept = {}

    def keep(self: StoCFL, server_round: int, models: Mapping[int, ArrayRecord]) -> None:
        """Group as ever, and keep what was grouped."""
        kept["rows"] = represent([models[node] for node in sorted(models)], self.anchor, "updates")
        kept["examples"] = [self.election.examples[node] for node in sorted(models)]
        own(self, server_round, models)

    own, found = StoCFL.group, []
    StoCFL.group = keep  # type: ignore[method-assign]
    try:
        for data, given in clients_of("strategy=stocfl", *words):
            config = compose(given)
            for _ in run_trial(config, data.images, make_split(data.images, config)):
                pass
            found.append((data, coordinates(kept["rows"], centred=False), kept["examples"]))
    finally:
        StoCFL.group = own  # type: ignore[method-assign]
    return found


def ours(rows: Rows, tau: float) -> list[int]:
    """Return StoCFL's clusters: the two most similar are merged, their mean taken, and so on."""
    means = dict(enumerate(rows.astype(np.float32)))
    renamed = merge(means, dict.fromkeys(means, 1), tau)
    return [renamed[client] for client in range(len(rows))]


def theirs(rows: Rows, tau: float) -> list[int]:
    """Return the clusters of StoCFL's code: a round joins all pairs of clusters above tau at once.

    All clients take part, until a round joins nothing.
    """
    labels, before = np.arange(len(rows)), 0
    while before != (before := len(np.unique(labels))):
        means = np.stack([rows[labels == c].mean(axis=0) for c in np.unique(labels)])
        units = unit_rows(means.astype(np.float32))
        _, joined = connected_components(units @ units.T >= tau)
        labels = joined[np.unique(labels, return_inverse=True)[1]]
    return [int(label) for label in labels]


def stocfl() -> None:
    """Print what the rule of merging makes of it, by the epochs that an update stands for."""
    for shift in ("rotation", "label_permutation", "label_groups", "none"):
        for words in ((), ("training.epochs=5",), ("partition=linear",)):
            found = updates(f"shift={shift}", *words)
            for tau in (0.45, 0.65):
                for name, rule in (("ours", ours), ("theirs", theirs)):
                    own = [(data, rule(rows, tau)) for data, rows, _ in found]
                    said(f"stocfl, {' '.join((shift, *words))}: tau {tau}, {name}", own)


def cfl() -> None:
    """Print the norms that split a cluster: the mean by examples, and the code's plain mean."""
    for words in ((), ("partition=linear",)):
        norms = [
            (*update_norms(rows.astype(np.float32), examples), np.linalg.norm(rows.mean(axis=0)))
            for _, rows, examples in updates("shift=none", *words)
        ]
        weighted, longest, plain = np.mean(norms, axis=0)
        means = f"mean by examples {weighted:.3f}, plain mean {plain:.3f}"
        print(f"cfl, {' '.join(('none', *words))}: {means}, longest {longest:.3f}", flush=True)


def main() -> None:
    """Print all, or the methods that are named."""
    quiet()
    methods = {"pacfl": pacfl, "stocfl": stocfl, "cfl": cfl}
    for name in sys.argv[1:] or methods:
        if name not in methods:
            sys.exit(f"unknown method {name}; methods are {', '.join(methods)}")
        methods[name]()


if __name__ == "__main__":
    main()
