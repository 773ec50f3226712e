"""``python -m benchmarks.nodes [NODES ...]``: bytes that a round sends between nodes.

So many raylets on this machine, each with an object store of its own, so that what one node needs
of another is sent, over the loopback device. What that device carried while a trial ran, over its
rounds without the first ones, is held against the least there can be: the model once to each other
node, and one partial sum from each. It counts all of the machine's loopback: run it alone.
"""

import argparse
import json
import subprocess
import sys
from statistics import median

from benchmarks.contender import ROOT

HIDDEN = (256, 4096, 32768)
"""Of the network, on the 64 pixels of the digits: 75, 1,200 and 9,600 kB."""
CLIENTS = 32
ROUNDS = 2, 8
"""Of a short trial and a long one: what they differ in is rounds alone."""
TURNS = 3

SCRIPT = f"""
import json, sys
from pathlib import Path
from ray.cluster_utils import Cluster
from fedsweep.config import HostGroup, ResourcesConfig
from fedsweep.data.sources import load_images
from fedsweep.engine.pool import HostPool, ray_session
from fedsweep.sweeps.compose import compose
from fedsweep.sweeps.prepare import make_split
from fedsweep.trial.trial import run_trial

nodes, hidden = int(sys.argv[1]), int(sys.argv[2])
store = 300 * 2**20
cluster = Cluster(initialize_head=True, head_node_args={{
    "num_cpus": 1, "resources": {{"node0": 1}}, "object_store_memory": store}})
for number in range(1, nodes):
    cluster.add_node(num_cpus=1, resources={{f"node{{number}}": 1}}, object_store_memory=store)
cluster.wait_for_nodes()


def carried():
    [line] = [l for l in Path("/proc/net/dev").read_text().splitlines() if "lo:" in l]
    return int(line.split(":")[1].split()[0])


def trial(rounds):
    config = compose([
        "dataset=digits", "partition=iid", "shift=none", "strategy=fedavg", "model=mlp",
        f"model.kwargs.hidden={{hidden}}", "num_clients={CLIENTS}", f"rounds={{rounds}}",
        "training.epochs=1", f"evaluate_every={{rounds}}", "partition.eval_fraction=0",
    ])
    images = load_images(config.dataset, config.data)
    before = carried()
    *_, result = run_trial(config, images, make_split(images, config), pool.hosts)
    sizes = sum(array.nbytes for array in result.models["global"].values())
    return carried() - before, sizes


groups = {{f"n{{i}}": HostGroup(count=1, num_cpus=0.5, resources={{f"node{{i}}": 1}})
          for i in range(nodes)}}
try:
    with ray_session(cluster.address):
        pool = HostPool(ResourcesConfig(hosts=groups))
        pool.warm("fedsweep.client.app")
        pool.wait()
        trial({ROUNDS[0]})
        turns = [(trial({ROUNDS[0]}), trial({ROUNDS[1]})) for _ in range({TURNS})]
        pool.close()
    print(json.dumps({{"model": turns[0][0][1], "rounds": [
        (long - short) / {ROUNDS[1] - ROUNDS[0]} for (short, _), (long, _) in turns]}}))
finally:
    cluster.shutdown()
"""


def bytes_of(nodes: int, hidden: int) -> dict[str, float]:
    """Return the model's bytes, and the median of those that a round sends between nodes."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(nodes), str(hidden)],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if ended.returncode:
        sys.exit(ended.stderr[-2000:])
    told = json.loads(ended.stdout.strip().splitlines()[-1])
    return {"model": told["model"], "round": median(told["rounds"])}


def main() -> None:
    """Print a row per number of nodes and size of the model."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nodes", description=__doc__)
    parser.add_argument("nodes", nargs="*", type=int, default=[2, 4], metavar="NODES")
    print("| nodes | model (kB) | a round sends (kB) | least (kB) | ratio |")
    print("|---|---|---|---|---|")
    for nodes in parser.parse_args().nodes:
        for hidden in HIDDEN:
            found = bytes_of(nodes, hidden)
            least = 2 * found["model"] * (nodes - 1)
            row = [found["model"] / 1e3, found["round"] / 1e3, least / 1e3]
            cells = " | ".join(f"{value:,.0f}" for value in row)
            print(f"| {nodes} | {cells} | {found['round'] / least:.2f} |", flush=True)


if __name__ == "__main__":
    main()
