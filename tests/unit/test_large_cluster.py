"""The simulation of a large cluster, on clusters so small that a round can be worked out."""

import pytest

from benchmarks.large_cluster import PLANS, Cluster, Plan, Work, simulate
from fedsweep.engine.chunks import MIN_CHUNKS, TARGET_CHUNKS

FREE = Cluster(nodes=1, hosts=1, network=1e15, send_s=0, task_s=0, adding=1e15, logging_s=0)
AS_IT_IS, SUMS = PLANS
LARGE = Work("large", clients=1000, client_s=1.0, model=50 * 2**20)


def test_hosts_that_cost_nothing_else_share_the_clients() -> None:
    work = Work("small", clients=64, client_s=0.5, model=1)
    alone = simulate(FREE, work, AS_IT_IS, trials=1, rounds=2)
    assert (alone.round_s, alone.hosts) == pytest.approx((32.0, 1.0))
    two = Cluster(2, 1, network=1e15, send_s=0, task_s=0, adding=1e15, logging_s=0)
    assert simulate(two, work, AS_IT_IS, trials=1).round_s == pytest.approx(16.0)
    assert simulate(two, work, AS_IT_IS, trials=2).round_s == pytest.approx(32.0)


def test_a_rounds_model_goes_down_once_a_node_and_a_sum_goes_up() -> None:
    """Two chunks of 4 s on two nodes: each waits for its own copy, 1 s; each sum takes 1 s up."""
    cluster = Cluster(2, 1, network=2**20, send_s=0, task_s=0, adding=1e15, logging_s=0)
    work = Work("two chunks", clients=16, client_s=0.5, model=2**20)
    got = simulate(cluster, work, Plan("two", target=2), trials=1, rounds=1)
    # The copies arrive after 1 and 2 s, the chunks end at 5 and 6 s, the sums are there at 6 and 7.
    assert got.round_s == pytest.approx(7.0)
    assert (got.down, got.up, got.hosts) == pytest.approx((2 / 7, 2 / 7, 8 / 14))


def test_what_a_round_is_cut_into() -> None:
    small = Work("small", clients=1000, client_s=1.0, model=1)
    assert abs(len(AS_IT_IS.chunks(small)) - TARGET_CHUNKS) <= 2
    assert len(AS_IT_IS.chunks(LARGE)) == MIN_CHUNKS  # what a trial's process can read
    assert len(SUMS.chunks(LARGE)) > 100
    assert all(sum(plan.chunks(LARGE)) == LARGE.clients for plan in PLANS)


def test_sums_of_sums_use_the_hosts_that_large_models_leave_idle() -> None:
    cluster = Cluster(nodes=8, hosts=8)
    idle, busy = (simulate(cluster, LARGE, plan, trials=1) for plan in PLANS)
    assert idle.hosts < MIN_CHUNKS / 64 < 0.5 < busy.hosts


def test_tracking_is_one_thread_for_all_trials() -> None:
    cluster = Cluster(nodes=64, hosts=8, logging_s=0.001)
    got = simulate(cluster, Work("quick", 1000, 0.001, 1), AS_IT_IS, trials=8)
    assert got.limit == "tracking"
