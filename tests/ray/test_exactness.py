"""Same configuration, same bits: on any number of hosts, with hosts killed, and without Ray."""

import os
import random
import signal
import threading
from collections.abc import Iterable

import pytest
import ray

from fedsweep.config import HostGroup, ResourcesConfig
from fedsweep.engine.pool import HostPool
from fedsweep.engine.ray_executor import RayExecutor
from fedsweep.engine.wire import Chunk
from fedsweep.records import RoundRecord
from fedsweep.sweeps.prepare import make_split
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
    "queries": ["strategy=clove", "strategy.num_clusters=2", "shift=rotation", "shift.groups=2"],
}


@pytest.fixture(scope="module")
def expected() -> dict:
    """What each case gives in this process, without Ray."""
    return {name: outcome(events_of(small(*words))) for name, words in CASES.items()}


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_number_of_hosts_changes_no_bit(ray_runtime: None, expected: dict, count: int) -> None:
    pool = HostPool(ResourcesConfig(hosts={"cpu": HostGroup(count=count, num_cpus=0.1)}))
    try:
        for name, words in CASES.items():
            assert outcome(events_of(small(*words), pool.hosts)) == expected[name], name
    finally:
        pool.close()


def test_killed_hosts_change_no_bit(ray_runtime: None, expected: dict) -> None:
    """In every round one of the hosts is killed while it works; its work runs again."""
    pool = HostPool(ResourcesConfig(hosts={"cpu": HostGroup(count=2, num_cpus=0.1)}))
    pool.warm("fedsweep.client.app")
    pool.wait()
    try:
        for name in ("fedavg", "kmeans", "stateful"):  # a host takes seconds to start again
            words = CASES[name]
            config, events = small(*words), []
            for event in run_trial(config, digits(), make_split(digits(), config), pool.hosts):
                events.append(event)
                if isinstance(event, RoundRecord) and event.round < config.rounds:
                    pid = ray.get(
                        pool.hosts[event.round % 2].actor.pid.options(max_task_retries=-1).remote()
                    )
                    if event.round == 0:  # at once: the round's first chunk finds the host dead
                        os.kill(pid, signal.SIGKILL)
                    else:
                        threading.Timer(0.03, os.kill, (pid, signal.SIGKILL)).start()
            assert outcome(events) == expected[name], name
            assert any(
                "run again" in line
                for e in events
                if isinstance(e, RoundRecord)
                for line in e.events
            ), name
    finally:
        pool.close()


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
