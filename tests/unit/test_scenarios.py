"""Clients that differ by known groups and over time: who holds which rows, and what comes out."""

from pathlib import Path

import numpy as np
import pytest

from fedsweep.data.divergence import divergence_metrics, earth_movers, js_divergence
from fedsweep.data.federated import FederatedData
from fedsweep.data.partition import group_partition
from fedsweep.data.shift import ClientGroups
from fedsweep.data.sources import ImageData
from fedsweep.errors import ConfigError
from fedsweep.figures.split import divergences
from fedsweep.records import RoundRecord
from fedsweep.scenario.partition import Partition
from fedsweep.scenario.partitions import partition_of
from fedsweep.scenario.partitions.inner_dirichlet import client_sizes
from fedsweep.scenario.shift import Shift
from fedsweep.scenario.shifts import shift_of
from fedsweep.sweeps.compose import compose
from tests.trials import digits, events_of, small

LABELS = np.arange(120) % 6


def _rows(
    tmp_path: Path, shift: Shift, partition: Partition | None = None, clients: int = 8
) -> list:
    made = ClientGroups.build(shift, clients, 6, seed=3)
    rows = group_partition(partition or partition_of(), LABELS, made, 3, tmp_path)
    return [made, rows]


def test_replication_gives_each_group_all_images(tmp_path: Path) -> None:
    """8 clients in 4 groups, 120 images: (m / k) n = 120, so n = 60 for each client."""
    shift, rows = _rows(tmp_path, shift_of("rotation", groups=4, replicate=True))
    assert [len(own) for own in rows] == [60] * 8
    for group in range(4):
        together = np.concatenate(
            [rows[client] for client in np.flatnonzero(shift.groups == group)]
        )
        assert sorted(together) == list(range(120))
    assert sorted(rows[0]) != sorted(rows[1])  # groups are split each in its own way


def test_without_replication_no_image_is_held_twice(tmp_path: Path) -> None:
    _, rows = _rows(tmp_path, shift_of("rotation", groups=4))
    assert sorted(np.concatenate(rows)) == list(range(120))


def test_label_groups_hold_their_classes_alone(tmp_path: Path) -> None:
    """Two groups of three classes, 60 images each, shared by four clients."""
    shift, rows = _rows(tmp_path, shift_of("label_groups", groups=2))
    assert [len(own) for own in rows] == [15] * 8
    assert sorted(np.concatenate(rows)) == list(range(120))
    for client, own in enumerate(rows):
        assert set(LABELS[own]) <= set(shift.class_sets[shift.groups[client]])


def test_a_class_of_several_groups_is_dealt_out_among_them(tmp_path: Path) -> None:
    """Four of six classes each: two are in both groups, at 10 of 20 images: 20 + 20 + 10 + 10."""
    shift, rows = _rows(tmp_path, shift_of("label_groups", groups=2, classes_per_group=4))
    assert len(set(shift.class_sets[0]) & set(shift.class_sets[1])) == 2
    assert [sum(len(rows[c]) for c in range(8) if c % 2 == group) for group in (0, 1)] == [60, 60]
    assert len(np.unique(np.concatenate(rows))) == 120


def test_sizes_times_labels(tmp_path: Path) -> None:
    """Eight clients have 1 to 8 of 36 shares, 120 / 36 = 3.33 each; their labels differ as well."""
    assert client_sizes("linear", 120, 8) == [3, 7, 10, 13, 17, 20, 23, 27]
    assert client_sizes("square", 14, 3) == [1, 4, 9]
    assert client_sizes("equal", 10, 4) == [3, 3, 2, 2]
    partition = partition_of("inner_dirichlet", sizes="linear", alpha=0.1)
    _, rows = _rows(tmp_path, shift_of(), partition)
    assert sorted(map(len, rows)) == [3, 7, 10, 13, 17, 20, 23, 27]
    counts = np.array([np.bincount(LABELS[own], minlength=6) for own in rows])
    assert js_divergence(counts).mean() > 0.2


def test_a_groups_test_set_holds_its_classes_alone() -> None:
    data = FederatedData.build(digits(), small("shift=label_groups", "shift.groups=5"))
    sizes = []
    for group in range(5):
        x, y = data.test(group)
        assert set(y) == set(data.shift.class_sets[group])
        assert len(x) == len(y)
        sizes.append(len(y))
    assert sum(sizes) == len(digits().test_y)


def test_a_drift_changes_what_a_client_sees_from_its_round_on() -> None:
    data = FederatedData.build(
        digits(), small("shift=inversion", "shift.drift_round=2", "shift.drift_fraction=1")
    )
    assert [data.phase(number) for number in (0, 1, 2, 3)] == [0, 0, 1, 1]
    assert data.groups_in(1).tolist() == [1, 0] * 4
    for client in (0, 1):
        before, after = data.client(client, "train", 0), data.client(client, "train", 1)
        assert np.array_equal(after[0], 255 - before[0])
        assert np.array_equal(after[1], before[1])
    assert FederatedData.build(digits(), small("shift=inversion")).phase(9) == 0


SHIFTS = {
    "rotation": [], "inversion": [], "noise": [], "morphology": [], "label_permutation": [],
    "label_groups": [], "rotation replicated": ["shift.replicate=true"],
    "rotation drifting": ["shift.drift_round=2"],
    "rotation with newcomers": ["shift.newcomers=0.25"],
    "label_groups mixed": ["partition=dirichlet", "partition.min_size=1"],
    "rotation of other sizes and labels": ["partition=inner_dirichlet", "partition.sizes=linear"],
}  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 9, 14)])
@pytest.mark.parametrize("scenario", SHIFTS)
def test_every_scenario_on_images_of_every_kind(scenario: str, shape: tuple[int, int, int]) -> None:
    """Grey, colour, oblong: images keep shape and type, known groups are in what is logged."""
    rng = np.random.default_rng(0)
    y = np.arange(400) % 10
    x = rng.integers(0, 256, (400, *shape), np.uint8)
    names = tuple("abcdefghij")
    images = ImageData(
        "any", "0", "", names, x, y, x[:50], y[:50], (0.0,) * shape[0], (1.0,) * shape[0]
    )
    config = compose([f"shift={scenario.split()[0]}", *SHIFTS[scenario]])
    data = FederatedData.build(images, config)
    groups = data.summary(config).groups
    assert groups.tolist() == [client % config.shift.groups for client in range(10)]
    for client in range(10):
        own, labels = data.client(client, "train", 0)
        assert (own.dtype, own.shape) == (np.uint8, (len(labels), *shape))
        assert len(labels) >= 1
    assert len(data.test(1)[0]) == len(data.test(1)[1]) > 0


# Divergence


def test_divergence_by_hand() -> None:
    """Global: half and half.

    A client with one class: JS = (1 log2(1/.75) + .5 log2(.5/.75) + .5 log2(.5/.25)) / 2.
    """
    counts = np.array([[4, 0], [0, 4], [3, 3]])
    one = (np.log2(4 / 3) + 0.5 * np.log2(2 / 3) + 0.5) / 2
    assert js_divergence(counts) == pytest.approx([one, one, 0])
    assert earth_movers(counts).tolist() == [0.5, 0.5, 0]
    assert divergence_metrics(counts) == {
        "7_data/js_mean": pytest.approx(one * 2 / 3),
        "7_data/js_max": pytest.approx(one),
        "7_data/emd_mean": pytest.approx(1 / 3),
        "7_data/emd_max": pytest.approx(0.5),
    }


def test_divergence_of_a_client_without_examples_is_not_counted() -> None:
    counts = np.array([[2, 2], [0, 0]])
    assert np.isnan(js_divergence(counts)).tolist() == [False, True]
    assert divergence_metrics(counts)["7_data/emd_max"] == 0


def test_divergence_is_drawn_per_client() -> None:
    figure = divergences(np.array([[4, 0], [0, 4], [3, 3]]), np.array([0, 1, 0]), "title")
    upper, lower = figure.axes
    assert [bar.get_height() for bar in lower.patches] == [0.5, 0, 0.5]  # by group: clients 0, 2, 1
    assert [label.get_text() for label in lower.get_xticklabels()] == ["0", "2", "1"]
    assert upper.get_ylabel() == "Jensen-Shannon (bits)"
    assert len(divergences(np.ones((100, 2), int), np.zeros(100, int), "").axes[0].patches) == 100


# Trials


@pytest.mark.parametrize("strategy", ["ifca", "clove", "kmeans", "fedavg", "scaffold", "ditto"])
def test_newcomers_join_in_their_round(strategy: str) -> None:
    words = ["shift=rotation", "shift.groups=2", "shift.newcomers=0.25", "shift.join_round=2"]
    config = small("resources=inline", f"strategy={strategy}", *words, "training.momentum=0")
    _, first, *rounds, _ = events_of(config)
    assert first.metrics["7_data/js_max"] > 0
    assert [len(record.clients["client"]) for record in rounds] == [6, 8, 8]
    if strategy in ("ifca", "clove", "kmeans"):
        assert [len(record.assignments["client"]) for record in rounds] == [6, 8, 8]


def test_a_drift_is_scored_against_the_groups_of_its_time() -> None:
    """IFCA chooses anew each round, and follows;
    the agreement is that with the groups of the round.
    """
    words = [
        "shift=inversion",
        "shift.drift_round=5",
        "strategy=ifca",
        "strategy.num_clusters=2",
        "rounds=6",
    ]
    config = small(
        "resources=inline", *words, "num_clients=12", "training.lr=0.1", "training.epochs=3"
    )
    _, _, *rounds, _ = events_of(config)
    groups = [tuple(record.clients["group"]) for record in rounds]
    assert groups[0] == groups[3] == tuple([0, 1] * 6)
    assert groups[4] == groups[5] != groups[3]
    assert rounds[3].metrics["2_clusters/ari"] == 1
    assert rounds[5].metrics["2_clusters/ari"] == 1
    assert rounds[4].metrics["2_clusters/churn"] == 6


def _clusters(record: RoundRecord) -> tuple[dict[int, int], dict[int, int]]:
    """Return the cluster and the true group of each client."""
    cluster, group = record.assignments, record.clients
    return (
        dict(zip(cluster["client"], cluster["cluster"], strict=True)),
        dict(zip(group["client"], group["group"], strict=True)),
    )


@pytest.mark.parametrize("words", [[], ["shift.newcomers=0.25", "shift.join_round=3"]])
def test_the_oracle_follows_the_groups_of_the_round(words: list[str]) -> None:
    """Half of each group moves in round 3: then the new groups are the clusters."""
    drift = ["shift=rotation", "shift.drift_round=3", "rounds=4", "num_clients=16", "model=logreg"]
    _, _, *rounds, _ = events_of(small("resources=inline", "strategy=oracle", *drift, *words))
    assert [record.metrics["2_clusters/ari"] for record in rounds] == [1, 1, 1, 1]
    assert [record.metrics["2_clusters/churn"] for record in rounds][:2] == [0, 0]
    (before, was), (after, group) = (_clusters(rounds[n]) for n in (1, 2))
    moved = {client for client in before if before[client] != after[client]}
    assert moved == {client for client in was if was[client] != group[client]}
    assert rounds[2].metrics["2_clusters/churn"] == len(moved) >= 6
    assert len(set(after.values())) == 4
    assert len({(after[client], group[client]) for client in group}) == 4


def test_clustering_traffic_is_counted() -> None:
    _, _, *rounds, _ = events_of(
        small("resources=inline", "strategy=clove", "strategy.num_clusters=2", "rounds=2")
    )
    metrics = rounds[0].metrics
    # Two models down to be chosen from, one to be trained, one to be evaluated.
    assert metrics["4_comm/mb_down"] == pytest.approx(4 * metrics["4_comm/mb_up"])
    assert metrics["4_comm/mb_clustering"] == pytest.approx(2 * metrics["4_comm/mb_up"])


@pytest.mark.parametrize("shift", ["label_groups", "noise", "morphology", "inversion"])
def test_every_shift_runs(shift: str) -> None:
    words = [
        "strategy=ifca",
        "strategy.num_clusters=2",
        "rounds=1",
        f"shift={shift}",
        "shift.groups=2",
    ]
    _, _, record, _ = events_of(small("resources=inline", *words))
    assert 0 <= record.metrics["3_clients/test_acc"] <= 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["shift=inversion", "shift.groups=3"],
            "shift.groups=3: it has to be a whole number from 1 to 2",
        ),
        (
            ["shift=label_groups", "shift.drift_round=3"],
            "shift.drift_round does not apply to shift=label_groups",
        ),
        (
            ["shift.newcomers=0.5", "strategy.min_available_nodes=6"],
            "the 5 clients there are before shift.join_round=2",
        ),
        (["strategy=fedper", "model=logreg"], "the head would be the whole model"),
        (["strategy=scaffold", "training=adam"], "set training.optimizer=sgd"),
        (
            ["strategy=ifca", "strategy.num_clusters=11"],
            "num_clusters=11 is more than num_clients=10",
        ),
        (["strategy=ditto", "privacy=fixed_server"], "strategy=ditto takes none; set"),
    ],
)
def test_bad_input_is_one_line(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(words)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
