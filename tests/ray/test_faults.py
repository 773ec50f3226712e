"""Contract 6: a fault costs time, not results."""

import re
from pathlib import Path

import pytest
import ray
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsweep.config import HostGroup, ResourcesConfig
from fedsweep.engine.grid import ray_grid
from fedsweep.engine.host import AppSpec
from fedsweep.engine.pool import HostPool, plan
from fedsweep.errors import ResourceError, TrialError
from fedsweep.strategies.kmeans import KMeans
from fedsweep.trial.rounds import Loop, run_rounds
from tests.apps import add_app, model, server_app
from tests.fakes import record

NODES = 4


@pytest.fixture
def pool(ray_runtime: None):
    """Two hosts that a test may kill."""
    pool = HostPool(ResourcesConfig(hosts={"cpu": HostGroup(count=2, num_cpus=0.1)}))
    pool.wait()
    yield pool
    pool.close()


def messages() -> list[Message]:
    content = RecordDict({"arrays": model(), "config": ConfigRecord()})
    return [Message(content, node, "train") for node in range(1, NODES + 1)]


def grid_of(pool: HostPool, **kwargs: object):
    return ray_grid(
        AppSpec(f"app-{sorted(kwargs.items())}", add_app, dict(kwargs), NODES, {}), pool.hosts
    )


def test_a_killed_host_loses_nothing(pool: HostPool, tmp_path: Path) -> None:
    grid = grid_of(pool, kill_once=str(tmp_path))
    replies = grid.send_and_receive(messages())
    assert [float(reply.content["arrays"]["w"].numpy()[0]) for reply in replies] == [1, 2, 3, 4]
    assert [reply.content["metrics"]["n"] for reply in replies] == [1, 1, 1, 1]
    events = grid.drain().events
    assert any("lost" in event and "run again" in event for event in events)
    again = grid.send_and_receive(messages())
    assert [reply.content["metrics"]["n"] for reply in again] == [2, 2, 2, 2]


def test_a_client_that_always_kills_its_host_fails_alone(pool: HostPool) -> None:
    replies = grid_of(pool, kill_always=(2,)).send_and_receive(messages())
    assert [reply.has_error() for reply in replies] == [False, False, True, False]
    assert "the host running this client died" in replies[2].error.reason


def test_a_client_that_kills_its_host_takes_nobody_out_of_a_mean(pool: HostPool) -> None:
    """In a chunk of all four, without client 1: (1 + 9 + 16) * 10 / 80 = 3.25, weight 80."""
    grid = grid_of(pool, kill_always=(1,))
    grid.weight_key, grid._chunk_size = "num-examples", NODES
    good, bad = sorted(grid.send_and_receive(messages()), key=lambda reply: reply.has_error())
    assert good.content["arrays"]["w"].numpy().tolist() == [3.25] * 4
    assert good.content["metrics"]["num-examples"] == 80
    assert bad.metadata.src_node_id == 2
    assert any("4 clients run one by one" in event for event in grid.drain().events)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("what", ["unpicklable", "corrupt", "memory"])
def test_a_reply_that_cannot_be_read_or_made_costs_its_client_alone(
    pool: HostPool, what: str, mean: bool
) -> None:
    grid = grid_of(pool, replies=what)
    grid.weight_key, grid._chunk_size = "num-examples" if mean else None, NODES
    replies = grid.send_and_receive(messages())
    found = {reply.metadata.src_node_id: reply for reply in replies}
    if (
        what == "unpicklable" and mean
    ):  # what can't be pickled does not travel: a mean holds numbers alone
        assert found[1].content["metrics"]["num-examples"] == 100
        return
    reason = {
        "unpicklable": "cannot pickle",
        "corrupt": "the reply's array 'w' can't be read",
        "memory": "MemoryError",
    }
    assert reason[what] in found[2].error.reason
    expected = {1: 3.25} if mean else {1: 1.0, 3: 3.0, 4: 4.0}
    assert {
        n: float(r.content["arrays"]["w"].numpy()[0]) for n, r in found.items() if n != 2
    } == expected


def test_a_client_that_hangs_gets_no_reply_and_its_host_is_restarted(pool: HostPool) -> None:
    grid = grid_of(pool, hang=(0,))
    replies = grid.send_and_receive(messages(), timeout=6)
    assert [reply.metadata.src_node_id for reply in replies] == [2, 3, 4]
    assert any("1 of 4 replies were missing" in event for event in grid.drain().events)
    assert len(grid_of(pool).send_and_receive(messages(), timeout=60)) == 4


def test_chunks_behind_a_slow_one_are_called_back(pool: HostPool) -> None:
    """A quick round lets chunks be sent ahead;
    behind the slow client they go to the other host, and none is lost.
    """
    grid = grid_of(pool, slow=(0,))
    for _ in range(6):
        replies = grid.send_and_receive(messages(), timeout=60)
        assert [reply.metadata.src_node_id for reply in replies] == [1, 2, 3, 4]


def test_an_app_that_cannot_be_built_is_told_as_such(pool: HostPool) -> None:
    grid = ray_grid(AppSpec("broken", add_app, {"no_such": 1}, NODES, {}), pool.hosts)
    replies = grid.send_and_receive(messages())
    assert all(reply.has_error() for reply in replies)
    assert "no_such" in replies[0].error.reason


def test_too_few_replies_fail_the_trial_with_the_tracebacks(pool: HostPool) -> None:
    grid = grid_of(pool, fail=(0, 1, 2))
    loop = Loop(2, 0, ConfigRecord(), min_fit_fraction=0.5)
    with pytest.raises(TrialError, match="1 of 4 clients trained") as caught:
        list(run_rounds(FedAvg(), grid, model(), loop))
    assert "client 0 fails on purpose" in caught.value.__notes__[0]
    assert "tests/apps.py" in caught.value.__notes__[0]


def test_the_round_goes_on_without_a_failed_client(pool: HostPool) -> None:
    """Without client 1 the weights are 10, 30, 40: (1 + 9 + 16) / 8 = 3.25."""
    rounds = list(
        run_rounds(FedAvg(), grid_of(pool, fail=(1,)), model(), Loop(1, 0, ConfigRecord()))
    )
    assert rounds[0].arrays["w"].numpy().tolist() == [3.25] * 4


def test_a_server_killed_while_it_aggregates_changes_no_bit(pool: HostPool, tmp_path: Path) -> None:
    """Killed once, it aggregates on another host;
    killed each time, the next best member takes over (1 -> 2).
    """
    found = {}
    for name, kwargs in {
        "none": {},
        "once": {"kill_once": str(tmp_path)},
        "always": {"kill_always": (1,)},
    }.items():
        grid = ray_grid(AppSpec(f"servers-{name}", server_app, kwargs, NODES, {}), pool.hosts)
        strategy = KMeans(num_clusters=2)
        rounds = list(run_rounds(strategy, grid, record(0, 0), Loop(2, 0, ConfigRecord())))
        events = [event for done in rounds for event in done.train.events]
        found[name] = (
            rounds[-1].arrays["w"].data,
            strategy.servers[0],
            any("lost" in event for event in events),
        )
    bits = found["none"][0]
    assert found == {"none": (bits, 1, False), "once": (bits, 1, True), "always": (bits, 2, True)}


def test_hosts_must_fit_the_cluster() -> None:
    nodes = {"a": {"CPU": 4.0, "GPU": 1.0}, "b": {"CPU": 2.0}}
    groups = {
        "gpu": HostGroup(count="auto", num_cpus=1, num_gpus=0.5),
        "cpu": HostGroup(num_cpus=1),
    }
    assert plan(groups, nodes) == {"gpu": ["a", "a"], "cpu": ["b", "b", "a", "a"]}
    assert plan({"two": HostGroup(count=2)}, nodes) == {
        "two": ["b", "a"]
    }  # a given count is spread
    with pytest.raises(
        ResourceError, match=r"asks for 9 host\(s\) with CPU=1 each, but the cluster has CPU=6"
    ):
        plan({"cpu": HostGroup(count=9)}, nodes)
    with pytest.raises(ResourceError, match="GPU=0"):
        plan({"gpu": HostGroup(num_gpus=1)}, {"a": {"CPU": 2.0}})


def test_groups_of_hosts_with_different_specs_share_the_work(ray_runtime: None) -> None:
    groups = {"large": HostGroup(count=1, num_cpus=0.3), "small": HostGroup(count=2, num_cpus=0.1)}
    pool = HostPool(ResourcesConfig(hosts=groups))
    pool.wait()
    try:
        assert [host.name for host in pool.hosts] == ["large-0", "small-0", "small-1"]
        grid = grid_of(pool, slow=(0, 1, 2, 3))
        replies = grid.send_and_receive(messages())
        assert [float(reply.content["arrays"]["w"].numpy()[0]) for reply in replies] == [1, 2, 3, 4]
        assert {task.host for task in grid.drain().tasks} == {"large-0", "small-0", "small-1"}
    finally:
        pool.close()


def test_hosts_that_others_leave_no_room_for_are_awaited_and_that_is_said(
    ray_runtime: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsweep.engine.pool.SAID_S", 1.0)
    free = ray.available_resources()["CPU"]
    others = HostPool(ResourcesConfig(hosts={"all": HostGroup(count=1, num_cpus=free)}))
    others.wait()
    told: list[str] = []

    def say(text: str) -> None:
        told.append(text)
        others.close()

    pool = HostPool(ResourcesConfig(hosts={"cpu": HostGroup(count=1, num_cpus=free)}), say)
    try:
        pool.wait()
    finally:
        pool.close()
    assert re.match(r"waiting for 1 of 1 hosts: free are [\d.]+ of 4 CPUs, 0 of 0 GPUs", told[0])
