"""How good servers' choices were, what simulated devices and links cost: all by hand."""

from math import isnan

import pytest

from fedsweep.links import MB, mb_by_link
from fedsweep.records import TaskRecord, TrialRow
from fedsweep.report.layout import texts
from fedsweep.report.results import results_table
from fedsweep.report.text import markdown
from fedsweep.strategies.devices import SPREAD, Device, device_of, load_on_device, nominal
from fedsweep.strategies.selection import Load, gini, regret, spearman


def test_gini_by_hand() -> None:
    """(1, 3): the differences are 0, 2, 2, 0; 4 / (2 x 4 x 2) = .25."""
    assert gini([1, 3]) == 0.25
    assert gini([5, 5, 5]) == pytest.approx(0)
    assert gini([0, 4, 0, 0]) == 0.75
    assert isnan(gini([0, 0]))
    assert isnan(gini([]))


def test_spearman_by_hand() -> None:
    """Ranks (1, 2, 3, 4) and (1, 3, 2, 4): 1 - 6 x 2 / (4 x 15) = .8. Ties have their mean rank."""
    assert spearman([1, 2, 3, 40], [1, 9, 5, 10]) == pytest.approx(0.8)
    assert spearman([1, 2, 3], [9, 4, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(
        0.75**0.5
    )  # ranks 1.5, 1.5, 3: 1.5 / sqrt(1.5 x 2)
    assert isnan(spearman([1, 1], [1, 2]))
    assert isnan(spearman([1], [1]))


def test_regret_is_the_distance_to_the_lowest_score() -> None:
    scores = {1: 0.2, 2: 0.7, 9: 0.0}
    assert regret(2, [1, 2], scores) == pytest.approx(0.5)
    assert regret(1, [1, 2], scores) == 0


def test_a_device_scales_its_load() -> None:
    assert Device(speed=2, memory=0.5, bandwidth=4).scaled(Load(6, 100, 80)) == Load(3, 200, 20)
    assert nominal(200) == pytest.approx(Load(0.2, 70, 50))


def test_the_modes() -> None:
    device, measured = device_of(3, 7), Load(1, 10, 60)
    assert load_on_device("measured", lambda: device, measured, 5) == measured
    assert load_on_device("hybrid", lambda: device, measured, 5) == device.scaled(measured)
    assert load_on_device("simulated", lambda: device, measured, 5) == device.scaled(nominal(5))
    assert load_on_device("simulated", lambda: device, None, 5) is not None
    assert (
        load_on_device("simulated", lambda: device, measured, None)
        is load_on_device("hybrid", lambda: device, None, 5)
        is None
    )


def test_devices_are_drawn_per_client_from_the_seed() -> None:
    devices = [device_of(0, node) for node in range(1, 401)]
    assert len(set(devices)) == 400
    assert device_of(0, 5) == devices[4] != device_of(1, 5)
    for column in zip(*devices, strict=True):
        assert 1 / SPREAD <= min(column) < 0.3 < 3 < max(column) <= SPREAD
        assert sum(value < 1 for value in column) == pytest.approx(
            200, abs=50
        )  # 5 deviations of a fair coin


def _task(node: int, kind: str, down: float, up: float) -> TaskRecord:
    return TaskRecord(node, kind, "host", 0.0, int(down * MB), int(up * MB), {}, {})


def test_links_by_hand() -> None:
    """Nodes 1 (the server), 2 and 3 in cluster 0; node 4 in cluster 1, which has no server.

    A model has 1 MiB.
    """
    tasks = [_task(node, "train", 1, 1) for node in (1, 2, 3, 4)] + [_task(2, "evaluate", 1, 0)]
    tasks += [_task(1, "query.aggregate", 3, 1), _task(1, "query.test", 1, 0)]
    where = {1: 0, 2: 0, 3: 0, 4: 1}, {0: 1}
    assert mb_by_link(tasks, *where, read_centrally=False) == {
        "client_server": 5, "client_global": 2, "server_global": 1, "broadcast": 0
    }  # fmt: skip
    # All four models go up to the global server, and three from there to the cluster's.
    assert mb_by_link(tasks, *where, read_centrally=True) == {
        "client_server": 1, "client_global": 8, "server_global": 4, "broadcast": 0
    }  # fmt: skip


def test_several_models_in_a_message_are_a_broadcast() -> None:
    """Four models to each client, one back to its server; a query's answer of no size."""
    tasks = [_task(1, "train", 4, 1), _task(2, "train", 4, 1), _task(2, "query.losses", 4, 0)]
    assert mb_by_link(tasks, {1: 0, 2: 0}, {0: 1}, read_centrally=False) == {
        "client_server": 1, "client_global": 0, "server_global": 0, "broadcast": 12
    }  # fmt: skip


def test_the_servers_numbers_are_in_tables_that_compare_servers() -> None:
    final = {"client_acc": 0.9, "handovers": 3.0, "server_regret": 0.25, "wall_s": 1.0}
    rules = [
        TrialRow({"strategy.server.rule": rule, "seed": "0"}, final) for rule in ("load", "random")
    ]
    table = markdown(texts(results_table(rules)))
    assert "regret" in table
    assert "0.250" in table
    others = results_table([TrialRow({"strategy": "kmeans", "seed": "0"}, final)])
    assert "regret" not in markdown(texts(others))
