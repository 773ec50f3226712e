"""Ray is shut down under a driver whose garbage is collected meanwhile."""

import subprocess
import sys
from pathlib import Path

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
DRIVER = """
import ray

from fedsweep.engine.pool import ray_session


class Worker:
    '''Ray's worker, at whose end others leave a stream of events behind and go on working.'''

    def __init__(self, worker, events):
        self._worker, self._events = worker, events

    def __getattr__(self, name):
        return getattr(self._worker, name)

    def shutdown_driver(self):
        circle = [self._events]
        circle.append(circle)
        del circle, self._events
        self._worker.shutdown_driver()
        for _ in range(100):
            [[] for _ in range(2000)]


@ray.remote(num_cpus=0)
def trial():
    yield "round 1"


with ray_session("local"):
    events = trial.remote()
    assert ray.get(next(events)) == "round 1"
    worker = ray._private.worker.global_worker
    worker.core_worker = Worker(worker.core_worker, events)
    del events
print("left", flush=True)
"""


def test_garbage_that_is_collected_while_ray_ends_does_not_end_the_driver() -> None:
    """Ray's code left with status 1 and not a word, in 1 of 3 sweeps whose raylet was killed."""
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "left"), ran.stderr[-2000:]
