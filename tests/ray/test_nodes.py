"""Nodes that come and go (raylets on this machine), in the middle of a trial, change no bit.

Ray holds one cluster per process, so these run in a process of their own.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]

BEGIN = """
import sys, tempfile, threading, time, ray
from ray.cluster_utils import Cluster
from fedsweep.trial.checkpoint import CheckpointStore
from fedsweep.config import HostGroup, ResourcesConfig
from fedsweep.engine.pool import HostPool, ray_session
from fedsweep.errors import TrialError
from fedsweep.sweeps.prepare import make_split
from fedsweep.records import RoundRecord
from fedsweep.trial.trial import run_trial
from tests.trials import digits, events_of, outcome, small

def trial(config, pool, at_round, act, checkpoints=None, after=lambda record: None):
    events = []
    split = make_split(digits(), config)
    for event in run_trial(
        config, digits(), split, list(pool.hosts), checkpoints=checkpoints
    ):
        events.append(event)
        if isinstance(event, RoundRecord) and event.round == at_round:
            act()
        elif isinstance(event, RoundRecord) and event.round > at_round:
            after(event)
    return events

def records(events):
    return [event for event in events if isinstance(event, RoundRecord)]

health = {"health_check_period_ms": 500, "health_check_timeout_ms": 1000,
          "health_check_failure_threshold": 3}
head = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "_system_config": health}
cluster = Cluster(initialize_head=True, head_node_args=head)
second = cluster.add_node(num_cpus=1, resources={"other": 1}, object_store_memory=80 * 2**20)
cluster.wait_for_nodes()
"""

LEAVES = """
cases = {
    "fedavg": ["strategy=fedavg", "strategy.fraction_train=0.5"],
    "kmeans": ["strategy=kmeans", "strategy.num_clusters=2", "shift=rotation", "shift.groups=2"],
    "stateful": ["strategy=local"],
    "a buffer per cluster": [
        "devices=lognormal", "schedule=clustered_fedbuff", "schedule.buffer=2", "strategy=oracle",
        "strategy.server.mode=simulated", "shift=rotation", "shift.groups=2",
    ],
    "a deadline": ["devices=lognormal", "schedule=deadline", "schedule.seconds=0.3"],
}
expected = {name: outcome(events_of(small(*words))) for name, words in cases.items()}
with ray_session(cluster.address):
    far = HostGroup(count=1, num_cpus=0.5, resources={"other": 1})
    pool = HostPool(ResourcesConfig(hosts={"here": HostGroup(count=1, num_cpus=0.5), "there": far}))
    pool.wait()
    for name, words in cases.items():
        events = events_of(small(*words), pool.hosts)
        assert outcome(events) == expected[name], f"{name}: two nodes differ from none"
    config = small(*cases["fedavg"])
    events = trial(config, pool, 1, lambda: cluster.remove_node(second, allow_graceful=False))
    assert outcome(events) == expected["fedavg"], "a lost node changed the result"
    print("EVENTS", [line for record in records(events) for line in record.events])
    pool.close()
"""

JOINS = """
config = small("strategy=fedavg", "strategy.fraction_train=1", "rounds=4", "resources.chunk_size=1")
expected = outcome(events_of(config))
cluster.remove_node(second, allow_graceful=False)
with ray_session(cluster.address):
    while sum(node["Alive"] for node in ray.nodes()) > 1:
        time.sleep(0.1)
    pool = HostPool(ResourcesConfig(hosts={"cpu": HostGroup(num_cpus=1)}))
    pool.wait()
    assert [host.name for host in pool.hosts] == ["cpu-0"]

    def join():
        global second
        second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        while len(pool.hosts) < 2:
            time.sleep(0.1)
        pool.wait()
        time.sleep(1.1)  # a running trial looks for new hosts once a second

    def wait_for_the_new_host(record):
        if "cpu-1" not in record.clients["host"]:
            time.sleep(2)  # on a loaded machine it is slow to answer

    events = trial(config, pool, 1, join, after=wait_for_the_new_host)
    assert outcome(events) == expected, "a node that joined changed the result"
    hosts = [set(record.clients.get("host", ())) for record in records(events)]
    assert hosts[1] == {"cpu-0"} and hosts[4] == {"cpu-0", "cpu-1"}, hosts
    cluster.remove_node(second, allow_graceful=False)
    while len(pool.hosts) > 1:
        time.sleep(0.1)
    assert pool.hosts[0].name == "cpu-0"
    assert outcome(events_of(config, pool.hosts)) == expected
    pool.close()
"""

LOST_STATE = """
words = ["strategy=local", "model=mlp", "model.kwargs={hidden:1000}", "rounds=4", "num_clients=4"]
config = small(*words, "checkpoint.every=2")
expected = outcome(events_of(config))
with ray_session(cluster.address):
    there = HostGroup(num_cpus=0.6, resources={"other": 1})
    pool = HostPool(ResourcesConfig(hosts={"there": there}))
    pool.wait()
    store = CheckpointStore(tempfile.mkdtemp(), config.key)

    def swap():  # the states of round 3, of 300 kB, are on the node that goes, and nowhere else
        cluster.add_node(num_cpus=1, resources={"other": 1}, object_store_memory=80 * 2**20)
        while len(pool.hosts) < 2:
            time.sleep(0.1)
        pool.wait()
        cluster.remove_node(second, allow_graceful=False)
        time.sleep(1.1)

    try:
        trial(config, pool, 3, swap, store)
        raise SystemExit("nothing was lost")
    except TrialError as error:
        print("ERROR", error)
    while len(pool.hosts) > 1:
        time.sleep(0.1)
    events = trial(config, pool, 9, None, store)
    assert events[0].first_round == 3
    assert outcome(events) == expected, "a lost state changed the result"
    pool.close()
"""


@pytest.mark.parametrize("what", ["leaves", "joins", "lost state"])
def test_nodes_come_and_go_and_change_no_bit(what: str) -> None:
    script = {"leaves": LEAVES, "joins": JOINS, "lost state": LOST_STATE}[what]
    end = "cluster.shutdown()\nprint('CLUSTER OK')\n"
    run = subprocess.run(
        [sys.executable, "-c", BEGIN + script + end],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert run.returncode == 0, run.stdout[-1000:] + run.stderr[-3000:]
    assert "CLUSTER OK" in run.stdout
    if what == "leaves":
        [events] = [line for line in run.stdout.splitlines() if line.startswith("EVENTS")]
        assert "there-0 lost" in events
    if what == "lost state":
        assert "client tasks begin with were lost with their node" in run.stdout
