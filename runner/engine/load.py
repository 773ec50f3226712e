"""Load measured where it arises: per client task, per host, per node.

One process runs one client task at a time, so what the process used during a task is what the task
used.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Self

import psutil
from flwr.app import ConfigRecord, Context, Message

from fedsweep.records import LoadSample

_MB = 2.0**20
_NODE_PERIOD_S = 0.1  # the kernel counts CPU time in ticks of 10 ms: a shorter window is noise
_RSS_PERIOD_S = 0.02
_FRESH_S = 0.1  # a sample holds for as long as the node's reading


def end_processes(variable: str, folder: str) -> int:
    """Kill this user's processes that have a folder's path in an environment variable; count them.

    Ray's workers write their title over their environment, so those that name the folder in their
    command line, or keep a file open below it, are taken too.
    """
    ended = []
    for process in psutil.process_iter():
        try:
            mine = process.uids().real == os.getuid() and process.pid != os.getpid()
            if mine and _belongs(process, variable, folder):
                process.kill()
                ended.append(process)
        except psutil.Error:  # it is gone meanwhile
            continue
    psutil.wait_procs(ended, timeout=5)
    return len(ended)


def _belongs(process: psutil.Process, variable: str, folder: str) -> bool:
    if process.status() == psutil.STATUS_ZOMBIE:
        return False
    command = process.cmdline()
    if process.environ().get(variable) == folder or any(folder in word for word in command):
        return True
    is_worker = bool(command) and command[0].startswith("ray::")
    return is_worker and any(file.path.startswith(f"{folder}/") for file in process.open_files())


class TaskMeter:
    """Context manager that measures the task in its body.

    Attributes
    ----------
    cpu_s : float
        CPU seconds of the process, all threads.
    wall_s : float
        Seconds.
    rss_mb : float
        Peak resident memory above that at the start, MiB. Memory that the allocator kept from
        earlier tasks is not counted again, so a host's first task of a kind reads higher than the
        next.
    """

    cpu_s = wall_s = rss_mb = 0.0

    def __enter__(self) -> Self:
        self._peak = _kernel_peak() or _SampledPeak()
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cpu_s = time.process_time() - self._cpu
        self.wall_s = time.perf_counter() - self._wall
        self.rss_mb = max(0.0, self._peak.above_start() / _MB)


class _KernelPeak:
    """Peak memory as Linux keeps it: exact, and free while the task runs."""

    def __init__(self) -> None:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # sets the peak to the present size
        self._start = self._peak()

    def above_start(self) -> int:
        return self._peak() - self._start

    @staticmethod
    def _peak() -> int:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024
        raise OSError("/proc/self/status has no VmHWM")  # as in some sandboxes


class _SampledPeak(threading.Thread):
    """Peak memory from a sampler thread, where the system or the container can't reset the peak."""

    def __init__(self) -> None:
        super().__init__(name="rss-sampler", daemon=True)
        self._done = threading.Event()
        self._memory = psutil.Process().memory_info
        self._start = self._peak = self._memory().rss
        self.start()

    def run(self) -> None:
        while not self._done.wait(_RSS_PERIOD_S):
            self._peak = max(self._peak, self._memory().rss)

    def above_start(self) -> int:
        self._done.set()
        self.join()
        return max(self._peak, self._memory().rss) - self._start


def _kernel_peak() -> _KernelPeak | None:
    try:
        return _KernelPeak()
    except OSError:
        return None


class _NodeMeter:
    """CPU and memory of the node, by a reading of at most the period's age, for all threads.

    ``psutil.cpu_percent(None)`` keeps a state per thread and begins with 0.0 in each;
    this has one, primed when made.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._time = time.monotonic()
        self._busy, self._total = self._cpu_times()
        self._load: tuple[float, float] | None = None

    def read(self) -> tuple[float, float]:
        with self._lock:
            age = time.monotonic() - self._time
            if self._load is None and age < _NODE_PERIOD_S:
                time.sleep(_NODE_PERIOD_S - age)  # once per process, and only right after its start
                age = _NODE_PERIOD_S
            if self._load is None or age >= _NODE_PERIOD_S:
                busy, total = self._cpu_times()
                cpu = 100 * (busy - self._busy) / max(total - self._total, 1e-9)
                self._load = min(max(cpu, 0.0), 100.0), psutil.virtual_memory().percent
                self._time, self._busy, self._total = time.monotonic(), busy, total
            return self._load

    @staticmethod
    def _cpu_times() -> tuple[float, float]:
        """Return busy and total CPU seconds of the node since it started."""
        t = psutil.cpu_times()
        total = (
            sum(t) - getattr(t, "guest", 0.0) - getattr(t, "guest_nice", 0.0)
        )  # Linux counts guests twice
        return total - t.idle - getattr(t, "iowait", 0.0), total


_node = _NodeMeter()


def node_load() -> tuple[float, float]:
    """Return the node's CPU and memory load, in per cent. A reading holds for 0.1 s."""
    return _node.read()


class LoadSampler:
    """A daemon thread that samples this process's load and its node's into a ring of an hour.

    Parameters
    ----------
    host, node : str
        Names written into each sample.
    period_s : float
        Seconds between samples.
    """

    def __init__(self, host: str, node: str, period_s: float = 0.5) -> None:
        self._host, self._node, self._period_s = host, node, period_s
        self._samples: deque[LoadSample] = deque(maxlen=max(1, round(3600 / period_s)))
        self._process = psutil.Process(os.getpid())
        self._process.cpu_percent(None)  # the first reading of a process is 0.0
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load-sampler", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.wait(self._period_s):
            self._sample()

    def _sample(self) -> None:
        """Take a sample, unless the last one still holds."""
        with self._lock:
            if self._samples and time.time() - self._samples[-1].time_s < _FRESH_S:
                return
            cpu, mem = node_load()
            host_cpu, rss = self._process.cpu_percent(None), self._process.memory_info().rss
            self._samples.append(
                LoadSample(time.time(), self._host, self._node, host_cpu, rss / _MB, cpu, mem)
            )

    def drain(self, since_s: float) -> list[LoadSample]:
        """Return the samples taken after a Unix time, or one of now where there is none yet.

        They stay in the ring, for other trials that share the host, so short work may be given a
        sample twice.
        """
        if not self._samples or self._samples[-1].time_s <= since_s:
            self._sample()
            return [self._samples[-1]]
        return [sample for sample in self._samples.copy() if sample.time_s > since_s]

    def close(self) -> None:
        """Stop sampling."""
        self._done.set()
        self._thread.join()


@cache
def inline_sampler() -> LoadSampler:
    """Return the sampler of a process that runs its clients itself.

    It is one, however many trials run there: what is measured is the process.
    """
    return LoadSampler("inline", "inline")


def load_mod(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Flower mod that measures a client task and adds ``content["load"]`` to its reply.

    It holds cpu_s, wall_s and rss_mb (see :class:`TaskMeter`), node_cpu and node_mem (per cent, at
    the task's end).
    """
    with TaskMeter() as meter:
        reply = call_next(message, context)
    if reply.has_content():
        cpu, mem = node_load()
        reply.content["load"] = ConfigRecord(
            {
                "cpu_s": meter.cpu_s,
                "wall_s": meter.wall_s,
                "rss_mb": meter.rss_mb,
                "node_cpu": cpu,
                "node_mem": mem,
            }
        )
    return reply
