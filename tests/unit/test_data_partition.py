"""Row numbers per client: sizes and classes by hand, determinism, refusals, the cache."""

import os
import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsweep.data.partition import cached_partition, split_rows
from fedsweep.data.shift import ClientGroups
from fedsweep.errors import DataError
from fedsweep.scenario.partition import FlowerPartition, Partition
from fedsweep.scenario.partitions import PARTITIONS, partition_of
from fedsweep.scenario.shifts import shift_of
from fedsweep.seeding import derive_seed

FLOWER = [
    "dirichlet",
    "inner_dirichlet",
    "shard",
    "pathological",
    "linear",
    "square",
    "exponential",
]
LABELS = np.repeat(np.arange(5), 20)  # 100 examples, sorted by class
RULES = [
    *({"name": name} for name in PARTITIONS if not PARTITIONS[name].by_column),
    *({"name": "inner_dirichlet", "sizes": sizes, "alpha": 0.1} for sizes in ("linear", "square")),
    {"name": "pathological", "classes_per_client": 1},
    {"name": "dirichlet", "alpha": 0.05},
]


def rule(name: str, **settings: Any) -> Partition:
    """A rule whose limits suit a hundred examples."""
    return partition_of(name, **({"min_size": 1} if name == "dirichlet" else {}) | settings)


@pytest.mark.parametrize("name", ["iid", *FLOWER])
def test_rows_are_disjoint_in_range_and_fixed_by_the_seed(name: str) -> None:
    rows = rule(name).rows(LABELS, 4, seed=1)
    again, other = (rule(name).rows(LABELS, 4, seed=seed) for seed in (1, 2))
    together = np.concatenate(rows)
    assert [r.dtype for r in rows] == [np.int64] * 4
    assert len(set(together.tolist())) == len(together)
    assert set(together.tolist()) <= set(range(100))
    assert all(np.array_equal(a, b) for a, b in zip(rows, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(rows, other, strict=True))


@pytest.mark.parametrize(
    ("name", "total", "clients", "sizes"),
    [
        ("iid", 10, 3, [4, 3, 3]),
        ("centralized", 10, 1, [10]),
        ("linear", 10, 4, [1, 2, 3, 4]),
        ("square", 30, 4, [1, 4, 9, 16]),
        (
            "exponential",
            100,
            3,
            [9, 24, 67],
        ),  # .0900, .2447, .6652 of 100; the largest takes the rest
        ("inner_dirichlet", 10, 3, [4, 3, 3]),
        ("shard", 11, 2, [4, 4]),  # four shards of two; three rows fill none
    ],
)
def test_sizes(name: str, total: int, clients: int, sizes: list[int]) -> None:
    rows = rule(name).rows(np.arange(total) % 2, clients, seed=0)
    assert sorted(map(len, rows), reverse=name in ("iid", "inner_dirichlet")) == sizes


@pytest.mark.parametrize("settings", [{"name": "linear"}, RULES[-4]])
def test_the_seed_deals_out_the_sizes(settings: dict[str, Any]) -> None:
    splits = [rule(**settings).rows(LABELS, 4, seed) for seed in range(40)]
    orders = {tuple(map(len, rows)) for rows in splits}
    assert {tuple(sorted(order)) for order in orders} == {(10, 20, 30, 40)}
    assert len(orders) > 12  # of 24


def test_every_row_is_given_out_but_by_shards() -> None:
    for name in set(FLOWER) - {"shard"} | {"iid"}:
        assert sorted(np.concatenate(rule(name).rows(LABELS, 5, seed=3)).tolist()) == list(
            range(100)
        ), name


def test_shards_hold_few_classes() -> None:
    """Five clients, ten shards of ten, sorted by class: a client sees one or two classes."""
    rows = rule("shard", shards_per_client=2).rows(LABELS, 5, seed=0)
    assert [len(own) for own in rows] == [20] * 5
    assert max(len(set(LABELS[own].tolist())) for own in rows) == 2


def test_pathological_clients_hold_their_number_of_classes() -> None:
    """Client i of those that are dealt out holds class i, so that no class is lost."""
    rows = rule("pathological", classes_per_client=3).rows(LABELS, 5, seed=0)
    classes = [set(LABELS[own].tolist()) for own in rows]
    assert [len(held) for held in classes] == [3] * 5
    assert set.union(*classes) == set(range(5))
    alone = rule("pathological", classes_per_client=1).rows(LABELS, 5, seed=0)
    assert sorted(LABELS[own].tolist() for own in alone) == [[label] * 20 for label in range(5)]


@pytest.mark.parametrize("settings", [own for own in RULES if own["name"] != "centralized"])
def test_groups_know_nothing_of_labels_and_sizes(settings: dict[str, Any]) -> None:
    """Groups that shift nothing: neither labels, sizes nor the clients' order tell them.

    By chance a correlation over C clients has deviation 1 / sqrt(C - 1), and the adjusted Rand
    index is 0 on average.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    labels, seeds = np.arange(2000) % 10, 25
    clients = {"square": 12, "exponential": 6}.get(settings["name"], 20)
    wanted = [groups for groups in (2, 5, 10) if 2 * groups <= clients]
    by_labels: dict[int, list[float]] = {groups: [] for groups in wanted}
    by_size: dict[int, list[float]] = {groups: [] for groups in (4, *by_labels, clients)}
    for seed in range(seeds):
        rows = rule(**settings).rows(labels, clients, seed)
        counts = np.array([np.bincount(labels[own], minlength=10) for own in rows])
        sizes = counts.sum(axis=1)
        for num_groups, found in by_size.items():
            still = shift_of("rotation", groups=num_groups, angles=(0.0,) * num_groups)
            groups = ClientGroups.build(still, clients, 10, seed).groups
            found.append(np.corrcoef(groups, sizes)[0, 1] if np.ptp(sizes) > 1 else 0)
            if num_groups in by_labels:
                likely = KMeans(num_groups, n_init=1, random_state=seed)
                guess = likely.fit_predict(counts / sizes[:, None])
                by_labels[num_groups].append(adjusted_rand_score(groups, guess))
    for found in by_labels.values():
        assert abs(np.mean(found)) < 0.01 + 3.5 * np.std(found) / np.sqrt(seeds)
    for found in by_size.values():
        assert abs(np.mean(found)) < 3.5 / np.sqrt((clients - 1) * seeds)


@pytest.mark.parametrize("clients", [5, 7, 10, 23])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_groups_are_of_one_size_before_and_after_a_drift(clients: int, fraction: float) -> None:
    for num_groups in range(1, clients + 1):
        drift = {"drift_round": 2, "drift_fraction": fraction}
        cfg = shift_of("rotation", groups=num_groups, **drift)
        shift = ClientGroups.build(cfg, clients, 10, seed=1)
        for groups in (shift.groups, shift.drifted):
            assert np.ptp(np.bincount(groups, minlength=num_groups)) <= 1


def test_alpha_skews_the_classes() -> None:
    """The share of a client's largest class: about 1/5 for a large alpha, far more for a small."""
    for name in ("dirichlet", "inner_dirichlet"):
        even, skewed = (
            np.mean(
                [np.bincount(LABELS[own]).max() / len(own) for own in cfg.rows(LABELS, 4, seed=0)]
            )
            for cfg in (rule(name, alpha=1000.0), rule(name, alpha=0.1))
        )
        assert even < 0.3 < 0.45 < skewed, name


def test_min_size_is_met() -> None:
    rows = rule("dirichlet", alpha=0.5, min_size=15).rows(LABELS, 4, seed=0)
    assert min(map(len, rows)) >= 15


@pytest.mark.parametrize("name", FLOWER)
def test_the_split_is_the_partitioners(name: str) -> None:
    """What is read from inside a partitioner is what its load_partition gives."""
    import datasets

    rows = rule(name).rows(LABELS, 4, seed=5)
    order = np.random.default_rng(derive_seed(5, "partition", "order")).permutation(100)
    own = rule(name)
    assert isinstance(own, FlowerPartition)
    flower = own.partitioner(100, 4, derive_seed(5, "partition", "draw"))
    flower.dataset = datasets.Dataset.from_dict({"label": LABELS[order], "row": order})
    theirs = [list(flower.load_partition(client)["row"]) for client in range(4)]
    ours = [own.tolist() for own in rows]
    numbered = name in ("pathological", "linear", "square", "exponential")
    assert sorted(theirs) == sorted(ours) if numbered else theirs == ours


def test_iid_is_what_the_iid_partitioner_gives() -> None:
    import datasets
    from flwr_datasets.partitioner import IidPartitioner

    rows = rule("iid").rows(LABELS, 7, seed=5)
    flower = IidPartitioner(7)
    flower.dataset = datasets.Dataset.from_dict({"row": np.concatenate(rows)})
    assert [list(flower.load_partition(client)["row"]) for client in range(7)] == [
        own.tolist() for own in rows
    ]


def test_classes_may_have_gaps() -> None:
    """InnerDirichlet counts classes from 0; a subset of a data set may lack some."""
    rows = rule("inner_dirichlet").rows(np.repeat([2, 7, 9], 10), 3, seed=0)
    assert sorted(np.concatenate(rows).tolist()) == list(range(30))


@pytest.mark.parametrize(
    ("cfg", "clients", "named"),
    [
        (rule("iid"), 101, ["num_clients=101", "100 training examples", "dataset.max_train"]),
        (
            rule("dirichlet", alpha=0.01, min_size=10),
            8,
            ["partition.alpha=0.01", "partition.min_size=10", "raise"],
        ),
        (rule("dirichlet", min_size=30), 4, ["partition.min_size=30", "num_clients=4"]),
        (
            rule("inner_dirichlet", alpha=1e-5),
            10,
            ["partition.alpha=1e-05", "raise partition.alpha"],
        ),
        (rule("shard", shards_per_client=30), 4, ["lower partition.shards_per_client"]),
        (
            rule("pathological", classes_per_client=6),
            4,
            ["5 classes", "lower partition.classes_per_client"],
        ),
        (
            rule("pathological", classes_per_client=5),
            30,
            ["partition.classes_per_client=5", "num_clients=30"],
        ),
        (rule("exponential"), 20, ["partition=exponential", "lower num_clients"]),
        (rule("square"), 30, ["partition=square", "lower num_clients"]),
    ],
)
def test_what_cant_be_met_is_refused_in_one_line(
    cfg: Partition, clients: int, named: list[str]
) -> None:
    with warnings.catch_warnings(action="error"), pytest.raises(DataError) as refused:
        cfg.rows(LABELS, clients, seed=0)
    message = str(refused.value)
    assert [word for word in named if word not in message] == []
    assert "\n" not in message


def test_a_stored_partition_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cached_partition(rule("linear"), LABELS, 4, 0, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Partition, "rows", lambda *_: pytest.fail("computed again"))
        again = cached_partition(rule("linear", eval_fraction=0.5), LABELS, 4, 0, tmp_path)
    assert [own.tolist() for own in again] == [own.tolist() for own in first]
    assert [own.dtype for own in again] == [np.int64] * 4
    (file,) = tmp_path.rglob("*.npz")
    whole = file.read_bytes()
    flipped = whole[:300] + bytes([whole[300] ^ 1]) + whole[301:]
    for broken in (b"broken", b"", whole[: len(whole) // 2], flipped):
        file.write_bytes(broken)
        again = cached_partition(rule("linear"), LABELS, 4, 0, tmp_path)
        assert [own.tolist() for own in again] == [own.tolist() for own in first]
        assert file.read_bytes() == whole


def test_a_cached_partition_is_read_by_whom_the_cache_is_shared_with(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        cached_partition(rule("linear"), LABELS, 4, 0, tmp_path)
    finally:
        os.umask(before)
    [file] = (path for path in tmp_path.rglob("*") if path.is_file())
    assert stat.filemode(file.stat().st_mode) == "-rw-r--r--"


def test_another_question_is_another_partition(tmp_path: Path) -> None:
    asked = [
        (rule("shard"), LABELS, 4, 0),
        (rule("shard", shards_per_client=3), LABELS, 4, 0),
        (rule("shard"), LABELS[::-1], 4, 0),
        (rule("shard"), LABELS, 3, 0),
        (rule("shard"), LABELS, 4, 1),
    ]
    for count, (cfg, labels, clients, seed) in enumerate(asked, 1):
        rows = cached_partition(cfg, labels, clients, seed, tmp_path)
        assert len(list(tmp_path.rglob("*.npz"))) == count
        expected = cfg.rows(labels, clients, seed)
        assert [own.tolist() for own in rows] == [own.tolist() for own in expected]


@pytest.mark.parametrize(
    ("total", "fraction", "sizes"),
    [
        (10, 0.2, (8, 2)),
        (10, 0.0, (10, 0)),
        (1, 0.5, (1, 0)),
        (2, 0.9, (1, 1)),
        (3, 0.2, (2, 1)),
        (2, 0.2, (2, 0)),
    ],
)
def test_split_keeps_one_for_training(total: int, fraction: float, sizes: tuple[int, int]) -> None:
    rows = np.arange(100, 100 + total)
    train, held = split_rows(rows, fraction, seed=4)
    assert (len(train), len(held)) == sizes
    assert sorted([*train.tolist(), *held.tolist()]) == rows.tolist()
    assert np.array_equal(train, split_rows(rows, fraction, seed=4)[0])
