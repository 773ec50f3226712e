"""The split of the training set among the clients, as row numbers.

flwr-datasets computes it. A partitioner needs only the label column, so it gets a data set of labels and row numbers,
and no image is touched. The rows are shuffled by the seed beforehand: half of the partitioners take them as they come.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsweep.config import PartitionConfig
from fedsweep.data.shift import Shift
from fedsweep.errors import DataError
from fedsweep.seeding import derive_seed

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

_FORMAT = 1  # of the cached partitions; raise it when the rules change
_REMEDIES = {
    "dirichlet": "raise partition.alpha, or lower partition.min_size or num_clients",
    "inner_dirichlet": "raise partition.alpha or lower num_clients",
    "shard": "lower partition.shards_per_client or num_clients",
    "pathological": "lower partition.classes_per_client or num_clients",
}


def partition_rows(
    cfg: PartitionConfig, labels: np.ndarray, num_clients: int, seed: int
) -> list[np.ndarray]:
    """Return the training rows of each client: disjoint, never empty, in an order fixed by the seed.

    Parameters
    ----------
    cfg : PartitionConfig
        The rule and its settings.
    labels : np.ndarray
        Class of each training example, int (N,).
    num_clients : int
        Number of clients; 1 with ``centralized``.
    seed : int
        The trial's seed.

    Returns
    -------
    list[np.ndarray]
        int64 row numbers, one array per client. ``shard`` leaves out what does not fill a shard, ``pathological`` the
        classes that no client drew; all other rules give out every row. Parts whose size or labels
        follow from their number are dealt out by the seed, so a client's number says nothing of it.

    Raises
    ------
    DataError
        There are fewer examples than clients, or the rule can't be met.
    """
    total = len(labels)
    if num_clients > total:
        raise DataError(
            f"num_clients={num_clients} is more than the {total} training examples; "
            "lower num_clients or raise dataset.max_train"
        )
    order = np.random.default_rng(derive_seed(seed, "partition", "order")).permutation(total)
    if cfg.name in ("iid", "centralized"):
        return np.array_split(
            order, num_clients
        )  # as IidPartitioner does it, without importing anything
    classes, codes = np.unique(
        labels, return_inverse=True
    )  # InnerDirichlet expects classes 0..K-1 without a gap
    try:
        # Repeated draws, unused classes and divisions by zero are warned of; what matters of it ends in a ValueError.
        with warnings.catch_warnings(action="ignore"):
            partitioner = _partitioner(
                cfg, total, num_clients, derive_seed(seed, "partition", "draw")
            )
            rows = _rows(partitioner, codes[order], order)
        if not all(map(len, rows)):
            raise ValueError("a client without examples")
    except (ValueError, ZeroDivisionError) as error:
        settings = {
            key: value
            for key, value in cfg.canonical().items()
            if key not in ("name", "eval_fraction")
        }
        given = "".join(f", partition.{key}={value}" for key, value in settings.items())
        raise DataError(
            f"partition={cfg.name}{given} can't split {total} examples of {len(classes)} classes among "
            f"num_clients={num_clients}; {_REMEDIES.get(cfg.name, 'lower num_clients')}"
        ) from error
    if not _goes_by_number(cfg):
        return rows
    # Known groups and newcomers go by a client's number: they must not tell its labels or its size.
    dealt = np.random.default_rng(derive_seed(seed, "partition", "dealt")).permutation(num_clients)
    return [rows[part] for part in dealt]


def _goes_by_number(cfg: PartitionConfig) -> bool:
    """Return whether the size or the labels of a rule's parts follow from their numbers."""
    sized = cfg.name == "inner_dirichlet" and cfg.sizes != "equal"
    return sized or cfg.name in ("pathological", "linear", "square", "exponential")


def _partitioner(cfg: PartitionConfig, total: int, num_clients: int, seed: int) -> "Partitioner":
    from flwr_datasets import partitioner as flwr

    match cfg.name:
        case "dirichlet":
            return flwr.DirichletPartitioner(
                num_clients, "label", alpha=cfg.alpha, min_partition_size=cfg.min_size, seed=seed
            )
        case "inner_dirichlet":
            sizes = client_sizes(cfg.sizes, total, num_clients)
            return flwr.InnerDirichletPartitioner(sizes, "label", alpha=cfg.alpha, seed=seed)
        case "shard":
            return flwr.ShardPartitioner(
                num_clients, "label", num_shards_per_partition=cfg.shards_per_client, seed=seed
            )
        case "pathological":
            # As in NIID-Bench: part i has class i mod K and others by chance, so that no class is
            # lost where clients >= K.
            return flwr.PathologicalPartitioner(
                num_clients,
                "label",
                num_classes_per_partition=cfg.classes_per_client,
                class_assignment_mode="first-deterministic",
                seed=seed,
            )
        case "linear":
            return flwr.LinearPartitioner(num_clients)
        case "square":
            return flwr.SquarePartitioner(num_clients)
        case "exponential":
            return flwr.ExponentialPartitioner(num_clients)
    raise AssertionError(cfg.name)


def client_sizes(rule: str, total: int, num_clients: int) -> list[int]:
    """Return how many of ``total`` examples each part has: in proportion to 1, i or i squared.

    Parts are numbered i = 1, 2, ...
    """
    power = {"equal": 0, "linear": 1, "square": 2}[rule]
    weights = np.arange(1, num_clients + 1, dtype=float) ** power
    bounds = np.rint(np.cumsum(weights) / weights.sum() * total).astype(int)
    sizes = np.diff(bounds, prepend=0).tolist()
    return sorted(sizes, reverse=True) if rule == "equal" else sizes


def _rows(partitioner: "Partitioner", labels: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Let a partitioner split labels and row numbers, and return the row numbers of each part.

    Its indices are read where it keeps them: ``load_partition`` builds a data set per client, seconds for thousands.
    """
    import datasets

    partitioner.dataset = datasets.Dataset.from_dict({"label": labels, "row": rows}).with_format(
        "arrow"
    )
    num_parts = partitioner.num_partitions  # makes the split
    rows = partitioner.dataset[:][
        "row"
    ].to_numpy()  # in the partitioner's order: ShardPartitioner sorts
    parts = partitioner._partition_id_to_indices
    return [rows[np.asarray(parts[part], np.int64)] for part in range(num_parts)]


def cached_partition(
    cfg: PartitionConfig, labels: np.ndarray, num_clients: int, seed: int, cache: Path
) -> list[np.ndarray]:
    """Return :func:`partition_rows` from the cache folder, where an earlier trial left it.

    The trials of a sweep share few partitions, and importing flwr-datasets costs a trial process five seconds.
    """
    rule = {key: value for key, value in cfg.canonical().items() if key != "eval_fraction"}
    made_by = [_FORMAT, version("flwr-datasets"), np.__version__]
    covered = json.dumps([rule, num_clients, seed, *made_by])
    key = hashlib.sha256(
        covered.encode() + np.ascontiguousarray(labels, np.int64).tobytes()
    ).hexdigest()[:16]
    path = cache / "partitions" / f"{cfg.name}-{num_clients}-{key}.npz"
    try:
        with np.load(path) as stored:
            return np.split(stored["rows"], np.cumsum(stored["sizes"])[:-1])
    except (OSError, ValueError, KeyError):
        rows = partition_rows(cfg, labels, num_clients, seed)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            np.savez(file, rows=np.concatenate(rows), sizes=[len(r) for r in rows])
        os.replace(file.name, path)
    except OSError as error:
        raise DataError(
            f"data.cache={cache} can't be written: {error}; set data.cache to another"
        ) from error
    return rows


def group_partition(
    cfg: PartitionConfig,
    labels: np.ndarray,
    shift: Shift,
    seed: int,
    cache: Path,
    *,
    replicate: bool,
) -> list[np.ndarray]:
    """Return each client's rows, split inside each group of clients where groups have rows of their own.

    With ``replicate`` the clients of each group share all rows among themselves (IFCA); under ``label_groups`` they
    share those of their group's classes, and a class that several groups have is dealt out among these first.
    """
    num_clients = len(shift.groups)
    if replicate:
        pools = [np.arange(len(labels))] * shift.num_groups
    elif shift.class_sets:
        pools = _pools(labels, shift.class_sets, derive_seed(seed, "partition", "classes"))
    else:
        return cached_partition(cfg, labels, num_clients, seed, cache)
    rows: dict[int, np.ndarray] = {}
    for group, pool in enumerate(pools):
        members = np.flatnonzero(shift.groups == group)
        own = derive_seed(seed, "partition", "group", group)
        parts = cached_partition(cfg, labels[pool], len(members), own, cache)
        rows.update(zip(members.tolist(), (pool[part] for part in parts), strict=True))
    return [rows[client] for client in range(num_clients)]


def _pools(labels: np.ndarray, class_sets: Sequence[Sequence[int]], seed: int) -> list[np.ndarray]:
    """Return the rows of each group: of each of its classes an equal share among the groups that have the class."""
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in class_sets]
    for label in sorted({label for classes in class_sets for label in classes}):
        owners = [group for group, classes in enumerate(class_sets) if label in classes]
        shares = np.array_split(rng.permutation(np.flatnonzero(labels == label)), len(owners))
        for group, share in zip(owners, shares, strict=True):
            parts[group].append(share)
    return [np.sort(np.concatenate(part)) for part in parts]


def split_rows(rows: np.ndarray, eval_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split a client's rows by chance into training and evaluation rows; at least one stays for training."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    held_out = min(round(len(rows) * eval_fraction), len(rows) - 1)
    return shuffled[held_out:], shuffled[:held_out]
