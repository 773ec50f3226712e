"""Ray's own processes are killed: what start-up needs is started again, and trials go on."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray

from fedsweep.config import HostGroup, ResourcesConfig
from fedsweep.engine.leftovers import SESSION, session_folder
from fedsweep.engine.pool import HostPool
from tests.patience import PATIENCE_S
from tests.ray.test_leftovers import kill, marked
from tests.trials import SMALL

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    *SMALL, "strategy=fedavg", "partition=iid", "shift=none", "seed=0,1", "rounds=12",
    "resources.trials=2", "tracking.figures=none", "tracking.log_models=false",
]  # fmt: skip


class Driver:
    """A sweep in a process of its own, whose Ray processes can be found."""

    def __init__(self, out: Path, *words: str) -> None:
        out.mkdir(exist_ok=True)
        self.log, self.mark = out / "log", f"restarts-{out.name}-{os.getpid()}"
        command = [sys.executable, "-u", "-m", "fedsweep", "sweep", "default", *WORDS, *words]
        env = os.environ | {"FEDSWEEP_TEST_MARK": self.mark}
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [*command, f"tracking.output={out}"], cwd=ROOT, env=env, stdout=file, stderr=file
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    def child(self, name: str, but: int = 0) -> int:
        """Return the process id of the driver's child of a name, as soon as there is one."""

        def there() -> int:
            for child in psutil.Process(self.process.pid).children():
                with suppress(psutil.NoSuchProcess):  # it ended meanwhile
                    if child.name() == name and child.pid != but and child.status() != "zombie":
                        return child.pid
            return 0

        return self.until(there)

    def until(self, found, seconds: float = PATIENCE_S):
        deadline = time.monotonic() + seconds
        while not (value := found()):
            assert time.monotonic() < deadline, self.text[-3000:]
            assert self.process.poll() is None, self.text[-3000:]
            time.sleep(0.02)
        return value


def test_a_raylet_killed_at_the_start_and_in_mid_sweep_uses_up_no_retry(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    driver = Driver(tmp_path / "killed", "resources.hosts.cpu.num_cpus=0.5", "rounds=30")
    request.addfinalizer(lambda: kill(marked(driver.mark)))
    first = driver.child("raylet")
    # not while the driver registers there: then Ray's own code ends the driver with the raylet
    driver.until(lambda: hosts_below(driver.process.pid))
    os.kill(first, signal.SIGKILL)
    second = driver.child("raylet", but=first)
    driver.until(lambda: "round 3/30" in driver.text)
    os.kill(second, signal.SIGKILL)
    status, text = driver.process.wait(PATIENCE_S), driver.text
    assert "Ray is started again: its processes here died" in text
    assert status == 0, text[-3000:]
    assert "Traceback" not in text, text
    assert "retry" not in text, "a retry was used up"


def test_hosts_get_the_share_of_the_machine_that_others_get(ray_hosts: list) -> None:
    """At Ray's niceness of 15 a small sweep beside three busy processes took 153 s, at 0 37 s."""
    ray.get([host.actor.ping.options(max_task_retries=-1).remote() for host in ray_hosts])
    nice = {psutil.Process(pid).nice() for pid in hosts_below(os.getpid())}
    assert nice == {psutil.Process().nice()}


def test_a_host_killed_while_it_starts_is_awaited(ray_runtime: None) -> None:
    before = hosts_below(os.getpid())
    pool = HostPool(ResourcesConfig(hosts={"cpu": HostGroup(count=2, num_cpus=0.1)}))
    pool.warm("fedsweep.client.app")
    deadline = time.monotonic() + PATIENCE_S
    # A process takes the name before it is up.
    while not (new := hosts_below(os.getpid()) - before):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(new.pop(), signal.SIGKILL)
    pool.wait()
    pool.close()


def hosts_below(driver: int) -> set[int]:
    """Return the hosts among the descendants of a driver's process."""
    found = set()
    for child in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if "_RayClient" in child.name():
                found.add(child.pid)
    return found


def test_a_driver_killed_while_ray_starts_leaves_nothing_to_the_next_start(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    driver = Driver(tmp_path / "killed")
    request.addfinalizer(lambda: kill(marked(driver.mark)))
    driver.child("raylet")
    os.kill(driver.process.pid, signal.SIGKILL)
    driver.process.wait()
    left = []
    for line in marked(driver.mark):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            left.append(Path(psutil.Process(int(line.split()[0])).environ()[SESSION]))
    with session_folder():
        pass
    assert marked(driver.mark) == []
    assert [folder for folder in left if folder.exists()] == []
