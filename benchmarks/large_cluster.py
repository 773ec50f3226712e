"""``python -m benchmarks.large_cluster``: what would limit sweeps on 64 nodes of 8 GPUs, on paper.

A simulation of the executor: its own chunks (``fedsweep.engine.chunks``) go to hosts that work one
chunk at a time, and what every chunk costs elsewhere is that of small machines, as measured
(docs/performance.md). Prints, for sweeps of different models and trials at a time, how busy the
hosts are and what else is, so that it can be seen what saturates first. Nothing runs on Ray.

Beside the engine as it is stands a plan: chunks for as many hosts as there may be, whose sums are
added up by hosts, in groups that the round's clients fix, before a trial's process reads them.
"""

import argparse
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count, product

from fedsweep.engine.chunks import MEANS_BYTES, MIN_CHUNKS, TARGET_CHUNKS, TOGETHER, make_chunks

MB = 2**20


@dataclass(frozen=True)
class Cluster:
    """Machines, and what the engine costs on them.

    Parameters
    ----------
    nodes, hosts : int
        Nodes beside the head, and client hosts (one a GPU) on each.
    network : float
        Bytes a second between the head and all others together, each way.
    cores : int
        Of the head, where the driver and the trials' processes run.
    send_s, task_s : float
        Of a trial's process: per chunk (sent, answered, collected), and per task (its message and
        its reply).
    adding : float
        Bytes of partial means that a trial's process reads and adds a second.
    logging_s : float
        Of the tracking thread, of which there is one: per client and round.
    """

    nodes: int = 64
    hosts: int = 8
    network: float = 1.25e9  # 10 Gbit/s
    cores: int = 32
    send_s: float = 0.003
    task_s: float = 0.00014
    adding: float = 1.5e9
    logging_s: float = 39e-6


@dataclass(frozen=True)
class Work:
    """A trial's rounds: clients in each, a client's seconds on a host, the model's bytes."""

    name: str
    clients: int
    client_s: float
    model: int


WORKS = (
    Work("LeNet, 1,000 clients of 20 ms", 1_000, 0.02, MB // 4),
    Work("ResNet-18, 1,000 clients of 0.5 s", 1_000, 0.5, 43 * MB),
    Work("ResNet-18, 10,000 clients of 0.5 s", 10_000, 0.5, 43 * MB),
    Work("ViT-B, 1,000 clients of 5 s", 1_000, 5.0, 328 * MB),
)


@dataclass(frozen=True)
class Plan:
    """How a round is cut.

    Parameters
    ----------
    name : str
        What it is called in the table.
    target : int
        Chunks to aim at.
    read : int
        Partial sums that a trial's process reads; 0: one a chunk, of as few chunks as it can read.
    """

    name: str
    target: int = TARGET_CHUNKS
    read: int = 0

    def chunks(self, work: Work) -> list[int]:
        """Return the clients of each chunk of a round."""
        target = self.target
        if not self.read:
            target = max(MIN_CHUNKS, min(target, MEANS_BYTES // work.model))
        ones = [1.0] * work.clients
        return [len(part) for part in make_chunks([0] * work.clients, ones, None, TOGETHER, target)]


PLANS = (Plan("as it is"), Plan("sums of sums", target=1024, read=MIN_CHUNKS))


@dataclass
class Station:
    """Something that serves one request after the other; busy seconds are added up."""

    free_at: float = 0.0
    busy_s: float = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """Return when a request that comes now has been served."""
        self.free_at = max(self.free_at, now) + seconds
        self.busy_s += seconds
        return self.free_at


@dataclass
class Trial:
    """A trial's process, between its rounds and in them."""

    process: Station = field(default_factory=Station)
    rounds: int = 0
    left: list[int] = field(default_factory=list)  # chunks of each sum that are not done yet
    unread: int = 0  # sums
    nodes: set[int] = field(default_factory=set)  # that have this round's model


@dataclass(frozen=True)
class Shares:
    """What share of the time each was busy, and the seconds of a round."""

    round_s: float
    hosts: float
    process: float  # the busiest trial's
    down: float
    up: float
    tracking: float

    @property
    def limit(self) -> str:
        """What of all but the hosts is busiest."""
        shares = {"a trial's process": self.process, "the head's network, down": self.down,
                  "the head's network, up": self.up, "tracking": self.tracking}  # fmt: skip
        return max(shares, key=lambda name: shares[name])


def simulate(cluster: Cluster, work: Work, plan: Plan, trials: int, rounds: int = 5) -> Shares:
    """Run some rounds of equal trials side by side."""
    sizes = plan.chunks(work)
    sums = plan.read or len(sizes)
    sum_of = [chunk * sums // len(sizes) for chunk in range(len(sizes))]
    down, up, tracking = Station(), Station(), Station()
    running = [Trial() for _ in range(trials)]
    idle = [(i % cluster.nodes, i) for i in range(cluster.nodes * cluster.hosts)]
    heapq.heapify(idle)
    waiting: list[tuple[float, int, int, int]] = []  # when it came, its order, trial, chunk
    events: list[tuple[float, int, str, tuple[int, ...]]] = []
    order = count()
    worked = ended = 0.0

    def at(when: float, what: str, *told: int) -> None:
        heapq.heappush(events, (when, next(order), what, told))

    for number in range(trials):
        at(0.0, "round", number)
    while events:
        now, _, what, (number, *told) = heapq.heappop(events)
        trial = running[number]
        if what == "round":
            trial.left, trial.unread = [sum_of.count(i) for i in range(sums)], sums
            trial.nodes = set()
            for chunk, size in enumerate(sizes):
                sent = trial.process.serve(now, cluster.send_s / 2 + size * cluster.task_s / 2)
                at(sent, "chunk", number, chunk)
        elif what == "chunk":
            heapq.heappush(waiting, (now, next(order), number, *told))
        elif what == "done":
            chunk, node, host = told
            heapq.heappush(idle, (node, host))
            trial.process.serve(now, cluster.send_s / 2 + sizes[chunk] * cluster.task_s / 2)
            trial.left[sum_of[chunk]] -= 1
            if not trial.left[sum_of[chunk]]:  # a host fetches the others of its sum and adds them
                others = (sum_of.count(sum_of[chunk]) - 1) * work.model
                at(now + others / cluster.network + others / cluster.adding, "sum", number)
        elif what == "sum":
            arrived = up.serve(now, work.model / cluster.network)
            at(trial.process.serve(arrived, work.model / cluster.adding), "read", number)
        elif what == "read":
            trial.unread -= 1
            if not trial.unread:
                tracking.serve(now, work.clients * cluster.logging_s)
                trial.rounds += 1
                ended = max(ended, now)
                if trial.rounds < rounds:
                    at(now, "round", number)
        while waiting and idle:
            _, _, number, chunk = heapq.heappop(waiting)
            node, host = heapq.heappop(idle)
            begins, seconds = now, sizes[chunk] * work.client_s
            if node not in running[number].nodes:  # a node fetches a round's model once
                running[number].nodes.add(node)
                begins = down.serve(now, work.model / cluster.network)
            worked += seconds
            at(begins + seconds, "done", number, chunk, node, host)
    return Shares(
        ended / rounds, worked / ended / (cluster.nodes * cluster.hosts),
        max(trial.process.busy_s for trial in running) / ended, down.busy_s / ended,
        up.busy_s / ended, tracking.busy_s / ended,
    )  # fmt: skip


def table(cluster: Cluster, works: Sequence[Work], at_once: Sequence[int]) -> str:
    """Return a row per work and number of trials, in Markdown."""
    head = ["work", "trials at once", "plan", "a round", "hosts busy", "a trial's process",
            "network down", "network up", "tracking", "busiest but the hosts"]  # fmt: skip
    rows = [head, ["---"] * len(head)]
    for work, trials, plan in product(works, at_once, PLANS):
        got = simulate(cluster, work, plan, trials)
        each = (got.hosts, got.process, got.down, got.up, got.tracking)
        shares = [f"{100 * share:.0f} %" for share in each]
        rows.append([work.name, str(trials), plan.name, f"{got.round_s:.2f} s", *shares, got.limit])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def main() -> None:
    """Print the table of a cluster."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large_cluster", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--hosts", type=int, default=8, help="client hosts a node (8)")
    parser.add_argument("--gbit", type=float, default=10.0, help="the head's network (10)")
    parser.add_argument("--trials", type=int, nargs="+", default=[1, 8, 32])
    given = parser.parse_args()
    cluster = replace(Cluster(), nodes=given.nodes, hosts=given.hosts, network=given.gbit * 1e9 / 8)
    print(table(cluster, WORKS, given.trials))


if __name__ == "__main__":
    main()
