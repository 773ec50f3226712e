"""A cluster of two nodes (two raylets on this machine) gives the bits of one process, also when a node leaves.

Ray holds one cluster per process, so these run in a process of their own.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import sys, ray
from ray.cluster_utils import Cluster
from runner.config import HostGroup, ResourcesConfig
from runner.engine.pool import HostPool, ray_session
from runner.prepare import make_split
from runner.records import RoundRecord
from runner.trial import run_trial
from tests.trials import digits, events_of, outcome, small

config = small("strategy=fedavg", "strategy.fraction_train=0.5")
expected = outcome(events_of(config))
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
second = cluster.add_node(num_cpus=1, resources={"other": 1}, object_store_memory=80 * 2**20)
cluster.wait_for_nodes()
try:
    with ray_session(cluster.address):
        far = HostGroup(count=1, num_cpus=0.5, resources={"other": 1})
        pool = HostPool(ResourcesConfig(hosts={"here": HostGroup(count=1, num_cpus=0.5), "there": far}))
        pool.warm()
        pool.wait()
        assert outcome(events_of(config, pool.hosts)) == expected, "two nodes differ from one process"
        events = []
        for event in run_trial(config, digits(), make_split(digits(), config), pool.hosts):
            events.append(event)
            if isinstance(event, RoundRecord) and event.round == 1:
                cluster.remove_node(second, allow_graceful=False)
        assert outcome(events) == expected, "a lost node changed the result"
        records = [e for e in events if isinstance(e, RoundRecord)]
        print("HOSTS", sorted({host for record in records for host in record.clients.get("host", [])}))
        print("EVENTS", [line for record in records for line in record.events])
        print("CLUSTER OK")
finally:
    cluster.shutdown()
"""


def test_two_nodes_and_a_lost_node_change_no_bit() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "CLUSTER OK" in run.stdout
    [events] = [line for line in run.stdout.splitlines() if line.startswith("EVENTS")]
    assert "there-0 lost" in events
