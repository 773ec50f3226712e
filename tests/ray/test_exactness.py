"""Same configuration, same bits: on any number of hosts, with hosts killed, and without Ray."""

import os
import random
import signal
import threading
from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import ray

from fedsweep.config import HostGroup, ResourcesConfig, RunConfig
from fedsweep.engine.pool import HostPool
from fedsweep.engine.ray_executor import RayExecutor
from fedsweep.engine.wire import Chunk
from fedsweep.records import RoundRecord
from fedsweep.sweeps.prepare import make_split
from fedsweep.trial.checkpoint import CheckpointStore
from fedsweep.trial.trial import run_trial
from tests.trials import digits, events_of, outcome, small

CASES = {
    "fedavg": ["strategy=fedavg", "strategy.fraction_train=0.5"],
    "kmeans": ["strategy=kmeans", "strategy.num_clusters=2", "shift=rotation", "shift.groups=2"],
    "stateful": ["strategy=local"],
    "a state of those that trained": ["strategy=ditto", "strategy.fraction_train=0.5"],
    "two records and a state": ["strategy=scaffold", "training.momentum=0"],
    "several models and a state": [
        "strategy=fedsoft",
        "strategy.num_clusters=2",
        "shift=rotation",
        "shift.groups=2",
    ],
    "wide convolutions": ["model=simple_cnn", "strategy=fedavg"],
    "noise": ["privacy=adaptive_client", "privacy.noise_multiplier=0.1", "privacy.strict=false"],
    "a deadline in virtual time": [
        "devices=lognormal",
        "devices.dropout=0.2",
        "schedule=deadline",
        "schedule.seconds=0.3",
    ],
    "stale replies, and a state": [
        "devices=lognormal",
        "schedule=fedbuff",
        "schedule.buffer=3",
        "strategy=ditto",
    ],
    "work ahead of need, and a state": [
        "devices=lognormal",
        "schedule=fedbuff",
        "schedule.buffer=4",
        "num_clients=30",
        "schedule.concurrency=26",
        "strategy=ditto",
    ],
    "a buffer per cluster": [
        "devices=lognormal",
        "schedule=clustered_fedbuff",
        "schedule.buffer=2",
        "strategy=oracle",
        "strategy.server.mode=simulated",
        "shift=rotation",
        "shift.groups=2",
    ],
    "each reply, and models sent as differences": [
        "rounds=6",
        "devices=lognormal",
        "schedule=fedasync",
        "compression=topk",
        "compression.down=true",
    ],
    "attackers, and examples of the server's own": ["attack=min_max", "strategy=fltrust"],
    "attackers, and a defence in clusters": [
        "attack=backdoor",
        "attack.replace=true",
        "defence=mixing",
        "strategy=kmeans",
        "strategy.num_clusters=2",
        "shift=label_noise",
        "shift.groups=2",
    ],
    "masked sums, one for each of several models": [
        "secure_aggregation=true",
        "secagg.neighbours=1",
        "secagg.threshold=0.3",
        "strategy=ifca",
        "strategy.num_clusters=2",
        "strategy.fraction_train=0.75",
        "shift=rotation",
        "shift.groups=2",
    ],
    "queries": ["strategy=clove", "strategy.num_clusters=2", "shift=rotation", "shift.groups=2"],
}


IN_VIRTUAL_TIME = [name for name, words in CASES.items() if "devices=lognormal" in words]
KILLS = int(os.environ.get("FEDSWEEP_KILLS", 2 * len(IN_VIRTUAL_TIME)))
"""Hosts that are killed under trials in virtual time."""


@pytest.fixture(scope="module")
def expected() -> dict:
    """What each case gives in this process, without Ray."""
    return {name: outcome(events_of(small(*words))) for name, words in CASES.items()}


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_the_number_of_hosts_changes_no_bit(ray_runtime: None, expected: dict, count: int) -> None:
    pool = HostPool(ResourcesConfig(hosts={"cpu": HostGroup(count=count, num_cpus=0.1)}))
    try:
        for name, words in CASES.items():
            assert outcome(events_of(small(*words), pool.hosts)) == expected[name], name
    finally:
        pool.close()


def run_with_kills(
    config: RunConfig,
    pool: HostPool,
    kills: int,
    checkpoints: CheckpointStore | None = None,
    until: int | None = None,
) -> list[Any]:
    """Run a trial, until a round or to its end; after its first rounds a host is killed at work."""
    events: list[Any] = []
    split = make_split(digits(), config)
    run = run_trial(config, digits(), split, pool.hosts, checkpoints=checkpoints)
    for event in run:
        events.append(event)
        if not isinstance(event, RoundRecord):
            continue
        if event.round == until:
            run.close()
        elif event.round < kills:
            pid = ray.get(
                pool.hosts[event.round % 2].actor.pid.options(max_task_retries=-1).remote()
            )
            if event.round == 0:  # at once: the round's first chunk finds the host dead
                os.kill(pid, signal.SIGKILL)
            else:
                threading.Timer(0.03, os.kill, (pid, signal.SIGKILL)).start()
    return events


def ran_again(events: list[Any]) -> bool:
    records = [event for event in events if isinstance(event, RoundRecord)]
    return any("run again" in line for record in records for line in record.events)


@pytest.fixture
def two_hosts(ray_runtime: None) -> Iterator[HostPool]:
    pool = HostPool(ResourcesConfig(hosts={"cpu": HostGroup(count=2, num_cpus=0.1)}))
    pool.warm("fedsweep.client.app")
    pool.wait()
    yield pool
    pool.close()


def test_killed_hosts_change_no_bit(two_hosts: HostPool, expected: dict) -> None:
    """In every round one of the hosts is killed while it works; its work runs again."""
    for name in ("fedavg", "kmeans", "stateful"):  # a host takes seconds to start again
        events = run_with_kills(small(*CASES[name]), two_hosts, kills=3)
        assert outcome(events) == expected[name], name
        assert ran_again(events), name


def test_kills_change_no_virtual_second(
    two_hosts: HostPool, expected: dict, tmp_path: Path
) -> None:
    """Under each schedule hosts are killed, and then the trial: it goes on on one of them.

    ``FEDSWEEP_KILLS=20`` kills more.
    """
    left, again = KILLS, False
    for name in cycle(IN_VIRTUAL_TIME):
        config = small(*CASES[name], "checkpoint.every=1")
        kills = min(2, left)
        store = CheckpointStore(str(tmp_path / f"{left}"), config.key)
        begun = run_with_kills(config, two_hosts, kills, store, until=config.rounds - 1)
        again |= ran_again(begun)  # a host that dies idle loses nothing

        split, one = make_split(digits(), config), two_hosts.hosts[:1]
        whole = list(run_trial(config, digits(), split, one, checkpoints=store))
        assert whole[0].first_round == config.rounds
        assert outcome(whole) == expected[name], name
        left -= kills
        if not left:
            break
    assert again


def test_the_order_of_chunks_changes_no_bit(
    ray_hosts: list, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks go out in a random order instead of the largest first."""
    chance = random.Random(0)

    def submit(self: RayExecutor, chunks: Iterable[Chunk]) -> None:
        self._waiting += chunks
        chance.shuffle(self._waiting)
        self._send_waiting()

    monkeypatch.setattr(RayExecutor, "submit", submit)
    for name, words in CASES.items():
        assert outcome(events_of(small(*words), ray_hosts)) == expected[name], name


def test_other_trials_change_no_bit(ray_hosts: list, expected: dict) -> None:
    """Two trials share the hosts; each gives what it gives alone."""
    results: dict[str, tuple] = {}

    def run(name: str) -> None:
        results[name] = outcome(events_of(small(*CASES[name]), ray_hosts))

    threads = [threading.Thread(target=run, args=(name,)) for name in ("fedavg", "kmeans")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {name: expected[name] for name in ("fedavg", "kmeans")}
