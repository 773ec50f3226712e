"""Nothing is left behind: process, port or file, after success, failure, Ctrl-C and SIGTERM."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.patience import PATIENCE_S, SETTLED_S

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "num_clients=4",
    "training.epochs=1",
    "tracking.log_models=false",
    "resources.hosts.cpu.count=1",
]


def marked(mark: str) -> list[str]:
    """Return live processes that were started with a variable of this run in their environment."""
    found = []
    for process in psutil.process_iter(["pid", "name", "status"]):
        try:
            if (
                process.info["status"] != psutil.STATUS_ZOMBIE
                and process.environ().get("FEDSWEEP_TEST_MARK") == mark
            ):
                found.append(f"{process.info['pid']} {process.info['name']}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def store_files(processes: list[str]) -> set[str]:
    """Return the object-store files that these processes hold open."""
    held = set()
    for line in processes:
        try:
            held |= {
                os.readlink(f"/proc/{line.split()[0]}/fd/{fd}")
                for fd in os.listdir(f"/proc/{line.split()[0]}/fd")
            }
        except OSError:
            continue
    return {path for path in held if path.startswith("/dev/shm/") and "(deleted)" not in path}


def listening(processes: list[str]) -> set[tuple[str, int]]:
    """Return the addresses that these processes listen on."""
    pids = {int(line.split()[0]) for line in processes}
    return {
        tuple(c.laddr)
        for c in psutil.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.pid in pids
    }


def kill(processes: list[str]) -> None:
    """End what a failed test leaves: a session without end would slow every test after it."""
    for line in processes:
        with suppress(ProcessLookupError):
            os.kill(int(line.split()[0]), signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
@pytest.mark.parametrize("end", ["success", "failure", "SIGINT", "SIGTERM"])
def test_nothing_is_left_behind(tmp_path: Path, end: str, request: pytest.FixtureRequest) -> None:
    mark = f"{end}-{os.getpid()}"
    rounds = 2 if end == "success" else 100_000
    command = [
        sys.executable,
        "-m",
        "fedsweep",
        "run",
        *WORDS,
        f"rounds={rounds}",
        f"tracking.output={tmp_path}",
    ]
    if end == "failure":  # no client can reply in time
        command += ["resources.round_timeout_s=0.001", "resources.max_retries=0"]
    env = os.environ | {"FEDSWEEP_TEST_MARK": mark, "PYTHONPATH": str(ROOT)}
    log = (tmp_path / "log").open("w+")
    run = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True
    )
    request.addfinalizer(lambda: kill(marked(mark)))
    deadline = time.monotonic() + PATIENCE_S
    held: set[str] = set()
    ports: set[tuple[str, int]] = set()
    if end in ("success", "failure"):
        status = run.wait(PATIENCE_S)
        assert status == (0 if end == "success" else 1), (tmp_path / "log").read_text()[-2000:]
    else:
        while (
            "round " not in (tmp_path / "log").read_text()
            and run.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.2)
        assert run.poll() is None, (tmp_path / "log").read_text()[-2000:]
        held, ports = store_files(marked(mark)), listening(marked(mark))
        assert ports
        os.kill(run.pid, getattr(signal, end))
        assert run.wait(PATIENCE_S) != 0
    settled = time.monotonic() + SETTLED_S
    while (left := marked(mark)) and time.monotonic() < settled:
        time.sleep(0.2)
    assert left == []
    assert [path for path in held if Path(path).exists()] == []
    assert (
        ports
        & {tuple(c.laddr) for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        == set()
    )
