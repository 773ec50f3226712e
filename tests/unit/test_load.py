"""Load meters see what a task does."""

import threading
import time
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict

from fedsweep.engine import load
from fedsweep.engine.flower import empty_run, identify
from fedsweep.engine.load import LoadSampler, TaskMeter, load_mod, node_load
from fedsweep.sweeps.compose import compose
from tests.trials import events_of


def allocate(mb: int) -> None:
    """Touch so many MiB and give them back before the task ends."""
    block = np.ones(mb * 2**20, np.uint8)
    del block


@pytest.fixture(params=["kernel", "sampled"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of finding the peak of resident memory."""
    if request.param == "kernel" and load._kernel_peak() is None:
        pytest.skip("this system does not let a process reset its peak")
    if request.param == "sampled":
        monkeypatch.setattr(load, "_kernel_peak", lambda: None)
    return request.param


def test_the_meter_sees_a_peak_that_is_gone_at_the_end(way: str) -> None:
    with TaskMeter() as meter:
        block = np.ones(50 * 2**20, np.uint8)
        time.sleep(0.1)  # the sampler looks every 20 ms
        del block
    assert 48 < meter.rss_mb < 60


def test_an_earlier_peak_does_not_count(way: str) -> None:
    allocate(80)
    with TaskMeter() as meter:
        time.sleep(0.03)
    assert 0 <= meter.rss_mb < 5


def test_cpu_and_wall_time() -> None:
    """By the process's own clocks around it: a loaded machine takes longer, and so do they."""
    wall, cpu = time.perf_counter(), time.process_time()
    with TaskMeter() as idle:
        time.sleep(0.1)
    assert 0.1 <= idle.wall_s <= time.perf_counter() - wall
    # The meter's clocks tick coarsely.
    assert idle.cpu_s <= time.process_time() - cpu + 0.02
    wall, cpu = time.perf_counter(), time.process_time()
    with TaskMeter() as busy:
        started = time.perf_counter()
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        took = time.perf_counter() - started
    assert 0.095 <= busy.cpu_s <= time.process_time() - cpu + 0.02
    assert took <= busy.wall_s <= time.perf_counter() - wall


def test_the_sampler_thread_ends_when_the_task_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_kernel_peak", lambda: None)
    with pytest.raises(KeyError), TaskMeter():
        raise KeyError
    assert "rss-sampler" not in {thread.name for thread in threading.enumerate()}


class CpuTimes(NamedTuple):
    user: float
    idle: float
    iowait: float
    guest: float


class FakePsutil:
    """A node of 4 cores whose clock the test moves: 30% busy, 60% of the memory used."""

    def __init__(self) -> None:
        self.now = 0.0

    def cpu_times(self) -> CpuTimes:
        return CpuTimes(user=1.2 * self.now, idle=2.0 * self.now, iowait=0.8 * self.now, guest=0.0)

    def virtual_memory(self) -> SimpleNamespace:
        return SimpleNamespace(percent=60.0)


def test_node_load_by_hand_and_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakePsutil()
    monkeypatch.setattr(load, "psutil", fake)
    clock = [100.0]
    monkeypatch.setattr(load.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(
        load.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds)
    )
    meter = load._NodeMeter()
    fake.now = 10.0
    assert meter.read() == (
        pytest.approx(30.0),
        60.0,
    )  # waits for its first window; never the 0.0 of a first call
    assert clock[0] == pytest.approx(100.1)
    fake.now = 20.0
    fake.virtual_memory = lambda: pytest.fail("read again within the period")
    clock[0] += 0.05
    assert meter.read() == (pytest.approx(30.0), 60.0)


def test_node_load_is_a_percentage() -> None:
    cpu, mem = node_load()
    assert 0 <= cpu <= 100
    assert 0 < mem < 100


def test_the_sampler_keeps_samples_for_everybody() -> None:
    sampler = LoadSampler("host-0", "node-a", period_s=0.1)
    start = time.time()
    time.sleep(0.7)
    sampler.close()
    samples = sampler.drain(0.0)
    assert 2 <= len(samples) <= 7
    assert {(s.host, s.node) for s in samples} == {("host-0", "node-a")}
    assert all(s.host_rss_mb > 1 and s.host_cpu >= 0 and 0 <= s.node_cpu <= 100 for s in samples)
    assert sampler.drain(0.0) == samples  # another trial on this host may ask for the same time
    assert sampler.drain(samples[0].time_s) == samples[1:]
    assert samples[0].time_s >= start


def test_short_work_has_a_sample_and_many_short_works_share_one() -> None:
    sampler = LoadSampler("host-0", "node-a", period_s=60.0)
    sampler.close()
    [first] = sampler.drain(time.time())
    assert sampler.drain(time.time()) == [first]  # a reading of less than 0.1 s would be noise
    time.sleep(0.15)
    [second] = sampler.drain(time.time())
    assert second.time_s - first.time_s >= 0.1


def message() -> Message:
    return Message(RecordDict({"arrays": ArrayRecord()}), dst_node_id=1, message_type="train")


def context() -> Context:
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


@pytest.fixture(autouse=True)
def _identity() -> None:
    """A message can only be made in a process that has a Flower identity."""
    identify(empty_run())


def test_the_mod_adds_the_load() -> None:
    def work(message: Message, context: Context) -> Message:
        time.sleep(0.02)
        return Message(RecordDict({"config": ConfigRecord({"a": 1})}), reply_to=message)

    reply = load_mod(message(), context(), work)
    assert list(reply.content) == ["config", "load"]
    measured = reply.content["load"]
    assert list(measured) == ["cpu_s", "wall_s", "rss_mb", "node_cpu", "node_mem"]
    assert measured["wall_s"] >= 0.02


def test_the_mod_leaves_error_replies_alone() -> None:
    reply = load_mod(message(), context(), lambda m, c: Message(Error(0, "no"), reply_to=m))
    assert reply.has_error()


def test_a_process_has_one_sampler_however_many_trials_it_runs() -> None:
    config = compose(["resources.engine=inline", "num_clients=2", "rounds=1", "model=logreg"])
    events_of(config)
    before = threading.active_count()
    for _ in range(3):
        events_of(config)
    assert threading.active_count() == before
