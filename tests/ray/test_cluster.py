"""Two nodes (raylets) on this machine: the bits of one process, also when one leaves a sweep.

Ray holds one cluster per process, so these run in a process of their own.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
OWN_PAGE = (ROOT / "docs" / "own.md").read_text()

SCRIPT = """
import subprocess, sys, ray
from ray.cluster_utils import Cluster
from fedsweep.sweeps.compose import expand
from fedsweep.config import HostGroup, ResourcesConfig
from fedsweep.engine.pool import HostPool, ray_session
from fedsweep.sweeps.sweep import SweepPlan, run_sweep
from tests.trials import SMALL, events_of, outcome, small

WORDS = [*SMALL, "strategy=fedavg", "strategy.fraction_train=0.5", "model=mlp",
         "partition=iid", "shift=none"]
expected = {seed: outcome(events_of(small(*WORDS, f"seed={seed}"))) for seed in (0, 1)}
health = {"health_check_period_ms": 500, "health_check_timeout_ms": 1000,
          "health_check_failure_threshold": 3}
head = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "_system_config": health}
cluster = Cluster(initialize_head=True, head_node_args=head)
second = cluster.add_node(num_cpus=1, resources={"other": 1}, object_store_memory=80 * 2**20)
cluster.wait_for_nodes()
HOSTS = {"here": HostGroup(count=1, num_cpus=0.5),
         "there": HostGroup(count=1, num_cpus=0.5, resources={"other": 1})}


@ray.remote(num_cpus=0, resources={"other": 0.1})
def where():
    # On one machine Ray lets the driver's own folders come first; a node elsewhere has only what
    # came with the session.
    shipped = [path for path in sys.path if "py_modules_files" in path]
    code = (f"import sys; sys.path[:0] = {shipped}; "
            "import fedsweep.models, fedsweep.strategies as s; "
            "print(fedsweep.__file__, s.__file__, fedsweep.models.__file__)")
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True,
                          check=True)
    return done.stdout.split()


class KillsANode:
    # A view: in round 1 the second node goes.
    def __init__(self):
        self.lines, self.killed = [], False

    def show(self, event, text):
        self.lines.append(text)
        if event["event"] == "round" and event["round"] == 1 and not self.killed:
            self.killed = True
            cluster.remove_node(second, allow_graceful=False)

    def close(self):
        print("\\n".join(self.lines))


try:
    with ray_session(cluster.address):
        places = ray.get(where.remote())
        assert all("py_modules_files" in place for place in places), "no code came along"
        pool = HostPool(ResourcesConfig(hosts=HOSTS))
        pool.warm("fedsweep.client.app")
        pool.wait()
        events = events_of(small(*WORDS, "seed=0"), pool.hosts)
        assert outcome(events) == expected[0], "two nodes differ"
        pool.close()
        words = [*WORDS, f"tracking.output={sys.argv[1]}", "tracking.figures=none",
                 "tracking.log_models=false"]
        _, trials = expand("default", [*words, "seed=0,1", "resources.trials=2"])
        done, tracker = run_sweep(SweepPlan("default", "", "", trials), KillsANode())
        assert (done.exit_status, len(done.rows)) == (0, 2), done
        store = tracker.store
        runs = store.client.search_runs([store.experiment_id], "tags.kind = 'trial'")
        weights = {int(run.data.params["seed"]): run.data.tags["weights_sha256"] for run in runs}
        undisturbed = {seed: bits for seed, (bits, _) in expected.items()}
        assert weights == undisturbed, "a lost node changed the result"
        print("CLUSTER OK")
finally:
    cluster.shutdown()
"""


OWN = """
import os, subprocess, sys, time, ray
import fedsweep
from ray.cluster_utils import Cluster
from fedsweep.engine.pool import ray_session

folder, output = sys.argv[1:]
settings = {"strategy": f"{folder}/longer.py:Longer", "partition": f"{folder}/by_parity.py",
            "model": f"{folder}/net.py", "metrics": [f"{folder}/weakest.py"],
            "num_clients": 4, "rounds": 2, "tracking.figures": "none"}
here = fedsweep.run(settings={**settings, "resources": "inline", "tracking.output": output + "/a"},
                    show="quiet")

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
start = f"{sys.executable} -m ray.scripts.scripts start --block --address={cluster.address}"
hidden = subprocess.Popen(["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none {folder} && "
                           f"exec {start} --num-cpus=1 --resources='{{\\"other\\": 1}}'"])
try:
    with ray_session(cluster.address):
        while sum(node["Alive"] for node in ray.nodes()) < 2:
            time.sleep(0.5)
        seen = ray.remote(resources={"other": 0.1})(lambda: os.listdir(folder))
        assert ray.get(seen.remote()) == [], "the second node sees the folder"
    there = fedsweep.run(
        settings={**settings, "resources.address": cluster.address,
                  "resources.hosts.cpu.count": 1, "resources.hosts.cpu.resources": {"other": 1},
                  "tracking.output": output + "/b"},
        show="quiet")
    [one], [other] = here._stored.trials, there._stored.trials
    assert one.run.data.tags["weights_sha256"] == other.run.data.tags["weights_sha256"]
    assert here.rounds("3_clients/weakest").equals(there.rounds("3_clients/weakest"))
    print("HIDDEN OK")
finally:
    hidden.terminate()
    hidden.wait()
    cluster.shutdown()
"""


def _run(script: str, *arguments: Path) -> str:
    run = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-3000:]
    return run.stdout


def test_own_parts_reach_a_node_that_cannot_see_their_folder(tmp_path: Path) -> None:
    """The examples of docs/own.md, over whose folder another file system lies there."""
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("this user may not hide a folder from a process (unshare --mount)")
    own = tmp_path / "own"
    own.mkdir()
    blocks = re.findall(r"`(\w+\.py)`.*?^```python\n(.*?)^```", OWN_PAGE, re.MULTILINE | re.DOTALL)
    for name, text in blocks:
        (own / name).write_text(text)
    assert "HIDDEN OK" in _run(OWN, own, tmp_path)


def test_two_nodes_and_a_node_lost_in_a_sweep_change_no_bit(tmp_path: Path) -> None:
    said = _run(SCRIPT, tmp_path)
    assert "CLUSTER OK" in said
    assert re.search(r"cpu-\d lost|died, goes on", said), said
