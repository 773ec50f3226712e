"""Contenders that take turns: each is a process tree that runs one repetition when told to.

A contender says ``ready`` when it is warm; then every line it reads makes it run once and answer
with its measurements. So A and B alternate within seconds, and a slow minute of the machine slows
both.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

MARK = "BENCH "
ROOT = Path(__file__).resolve().parents[1]


def environ_of_users() -> dict[str, str]:
    """Return this environment as our tool's users have it: no Ray and no MLflow that is ours."""
    return {
        key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))
    }


def say(**values: Any) -> None:
    """Answer, on a line that no library's prints can be mistaken for."""
    print(MARK + json.dumps(values), flush=True)


def turns() -> Iterator[None]:
    """Say that this contender is ready, then yield once for each turn it is given."""
    say(ready=True)
    for _ in sys.stdin:
        yield


def serve(run: Callable[[], dict[str, float]]) -> None:
    """Answer each turn with what ``run`` measured."""
    for _ in turns():
        say(**run())


class ContenderError(RuntimeError):
    """A contender ended, or said nothing for too long; its last lines are in the message."""


class Contender:
    """A contender seen from the benchmark: start it, give it turns, end it with all its processes.

    Parameters
    ----------
    command : list of str
        What to run after ``python``.
    python : Path, optional
        The interpreter; this one by default.
    timeout_s : float
        Seconds that it may take to get ready, or for one turn.
    """

    def __init__(
        self, command: list[str], python: Path | None = None, timeout_s: float = 240.0
    ) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the contender
        self._timeout_s = timeout_s
        self._name = " ".join(command)
        env = os.environ | {
            "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0", "RAY_DEDUP_LOGS": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [str(python or sys.executable), *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=env,
            start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._answer()
        return self

    def turn(self) -> dict[str, float]:
        """Let it run once; return what it measured."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        watchdog = threading.Timer(self._timeout_s, self._kill)
        watchdog.start()
        assert self._process.stdout
        try:
            for line in self._process.stdout:
                if line.startswith(MARK):
                    return dict(json.loads(line.removeprefix(MARK)))
                self._log.write(line)
        finally:
            watchdog.cancel()
        self._log.seek(0)
        raise ContenderError(
            f"{self._name} ended without an answer:\n" + "".join(self._log.readlines()[-15:])
        )

    def _kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.close()  # the end of its input: it stops by itself
            self._process.wait(20)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            pass
        finally:
            with suppress(ProcessLookupError):
                self._kill()  # whatever its session still holds
            self._process.wait()
            self._log.close()
