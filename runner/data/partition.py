"""The split of the training set among clients, as row numbers: made once, also inside groups."""

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from fedsweep.data.shift import ClientGroups
from fedsweep.errors import DataError
from fedsweep.files import write_whole
from fedsweep.scenario.partition import Partition
from fedsweep.seeding import derive_seed

_FORMAT = 1  # of the cached partitions; raise it when the rules change


def cached_partition(
    partition: Partition, labels: np.ndarray, num_clients: int, seed: int, cache: Path
) -> list[np.ndarray]:
    """Return :meth:`Partition.rows` from the cache folder, where an earlier trial left them.

    The trials of a sweep share few partitions, and importing flwr-datasets costs a trial process
    five seconds.
    """
    rule = {"name": partition.name, **partition.rule}
    made_by = [_FORMAT, version("flwr-datasets"), np.__version__]
    own = [partition.part_origin.code.digest] if partition.part_origin else []
    covered = json.dumps([rule, num_clients, seed, *made_by, *own])
    key = hashlib.sha256(
        covered.encode() + np.ascontiguousarray(labels, np.int64).tobytes()
    ).hexdigest()[:16]
    path = cache / "partitions" / f"{partition.name}-{num_clients}-{key}.npz"
    try:
        with np.load(path) as stored:
            return np.split(stored["rows"], np.cumsum(stored["sizes"])[:-1])
    except (OSError, EOFError, ValueError, KeyError, BadZipFile):
        rows = partition.rows(labels, num_clients, seed)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = BytesIO()
        np.savez(content, rows=np.concatenate(rows), sizes=[len(r) for r in rows])
        write_whole(path, content.getvalue())
    except OSError as error:
        raise DataError(
            f"data.cache={cache} can't be written: {error}; set data.cache to another"
        ) from error
    return rows


def group_partition(
    partition: Partition, labels: np.ndarray, groups: ClientGroups, seed: int, cache: Path
) -> list[np.ndarray]:
    """Return each client's rows, split inside each group where groups have rows of their own.

    ``labels`` are classes, or the codes of the column that the partition goes by.

    Where a shift replicates, the clients of each group share all rows among themselves (IFCA);
    where groups have classes of their own they share those of their group's classes, and a class
    that several groups have is dealt out among these first.
    """
    num_clients = len(groups.groups)
    if groups.shift.replicates:
        pools = [np.arange(len(labels))] * groups.num_groups
    elif groups.class_sets:
        pools = _pools(labels, groups.class_sets, derive_seed(seed, "partition", "classes"))
    else:
        return cached_partition(partition, labels, num_clients, seed, cache)
    rows: dict[int, np.ndarray] = {}
    for group, pool in enumerate(pools):
        members = np.flatnonzero(groups.groups == group)
        own = derive_seed(seed, "partition", "group", group)
        parts = cached_partition(partition, labels[pool], len(members), own, cache)
        rows.update(zip(members.tolist(), (pool[part] for part in parts), strict=True))
    return [rows[client] for client in range(num_clients)]


def _pools(labels: np.ndarray, class_sets: Sequence[Sequence[int]], seed: int) -> list[np.ndarray]:
    """Return each group's rows: of a class an equal share for each of the groups that have it."""
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in class_sets]
    for label in sorted({label for classes in class_sets for label in classes}):
        owners = [group for group, classes in enumerate(class_sets) if label in classes]
        shares = np.array_split(rng.permutation(np.flatnonzero(labels == label)), len(owners))
        for group, share in zip(owners, shares, strict=True):
            parts[group].append(share)
    return [np.sort(np.concatenate(part)) for part in parts]


def split_rows(rows: np.ndarray, eval_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split a client's rows by chance into training and evaluation rows;
    one is always trained on.
    """
    shuffled = np.random.default_rng(seed).permutation(rows)
    held_out = min(round(len(rows) * eval_fraction), len(rows) - 1)
    return shuffled[held_out:], shuffled[:held_out]
