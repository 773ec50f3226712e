"""The one thread that writes to MLflow, so that neither a slow store nor a dead one slows training."""

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from runner.errors import TrackingError
from runner.redaction import redact
from runner.tracking import ops
from runner.tracking.ops import Op
from runner.tracking.outbox import Outbox

_log = logging.getLogger("fedsweep.tracking")
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 10.0
_TELL_S = 10.0
"""From one word about a wait to the next; the first comes after a second."""
_NICE = 10
"""Clients' work goes first: drawing and logging take the moments in which hosts wait, and what is left at the end."""


@dataclass(frozen=True)
class _Job:
    what: str  # for the error message: "round 3 of kmeans seed=1"
    run: Callable[[], Iterable[Op]]
    closing: bool


class Writer:
    """Turns jobs into operations and sends them one by one, in the order given.

    Where the store does not answer, or where more than ``limit`` jobs wait, operations go to the outbox on disk and are
    sent from there, in order, as soon as the store takes them; what is left at :meth:`stop` stays on disk.

    After an operation that the store refused as wrong, each call raises its error, and of the jobs behind it only those
    that close a run are done.

    Parameters
    ----------
    send : Callable[[Op], None]
        Does one operation; raises what :func:`runner.tracking.ops.passing` judges.
    outbox : Outbox
        Where operations wait.
    runs : dict[str, str]
        Token -> MLflow's id of each run made so far, as ``send`` keeps it.
    limit : int
        Jobs that may wait in memory; :meth:`put` blocks at twice as many, until the disk has taken some.
    patience_s : float
        How long :meth:`settle` and :meth:`stop` wait without any progress: a store that answers,
        however slowly, is waited for.
    """

    def __init__(
        self,
        send: Callable[[Op], None],
        outbox: Outbox,
        runs: dict[str, str] | None = None,
        limit: int = 256,
        patience_s: float = 60.0,
    ) -> None:
        self._send, self._outbox, self._runs = send, outbox, runs if runs is not None else {}
        self._limit, self._patience_s = limit, patience_s
        self._jobs: queue.Queue[_Job | None] = queue.Queue(2 * limit)
        self._error: TrackingError | None = None
        self.tell: Callable[[str], None] = _log.warning
        """Says what is waited for."""
        self._retry_at, self._wait_s = 0.0, _FIRST_WAIT_S
        self._stopping = False
        self._progress_at = time.monotonic()  # of the last operation that the store took or refused
        self._waiting_since: float | None = None  # of a wait that has not ended well
        self._sending = False  # an operation was given to the store, which has not answered it yet
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    def put(self, what: str, run: Callable[[], Iterable[Op]], closing: bool = False) -> None:
        """Queue a job. Raises the TrackingError of an earlier one, except for a job that closes a run."""
        if not self._thread.is_alive():
            raise TrackingError(f"{what} came after the tracker was closed")
        if not closing:
            self.check()
        self._jobs.put(_Job(what, run, closing))

    def check(self) -> None:
        """Raise the TrackingError of the job that failed, if one has."""
        if self._error is not None:
            raise self._error

    @property
    def failed(self) -> bool:
        """Whether a job has failed."""
        return self._error is not None

    @property
    def spilled(self) -> int:
        """Operations that wait on disk."""
        return len(self._outbox)

    @property
    def waiting(self) -> int:
        """Events that the store does not have yet: jobs in memory, and operations on disk."""
        return self._jobs.unfinished_tasks + len(self._outbox)

    def flush(self) -> None:
        """Wait until every queued job is done and sent. Raises the TrackingError of one that failed."""
        self._jobs.join()
        while self._outbox and self._thread.is_alive():
            time.sleep(0.05)
        self.check()

    def settle(self) -> bool:
        """Wait, as long as there is progress, until everything is sent; return whether it is."""
        self._begin_to_wait()
        told = time.monotonic() + 1.0
        while self.waiting and not self._lost_patience():
            told = self._tell(told)
            time.sleep(0.02)
        if self.waiting:
            return False
        self._waiting_since = None
        return True

    def stop(self) -> None:
        """Send what waits, as long as there is progress, and end the thread.

        Patience that :meth:`settle` lost is not given again. Errors are left to :meth:`check`, and
        what could not be sent to :attr:`spilled`.
        """
        if self._thread.is_alive():
            self._begin_to_wait()
            self._stopping = True
            self._jobs.put(None)
            told = time.monotonic() + 1.0
            while self._thread.is_alive():
                self._thread.join(0.2)
                told = self._tell(told)

    def _begin_to_wait(self) -> None:
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()

    def _tell(self, due: float) -> float:
        """Say what is waited for, if it is time to; return when it is the next time."""
        now = time.monotonic()
        if now < due or not self.waiting:
            return due
        quiet = now - self._patience_from()
        silent = f", no answer for {quiet:.0f} of {self._patience_s:.0f} s" if quiet > 1.0 and self._sending else ""
        self.tell(f"waiting for MLflow to take {self.waiting} events{silent}")
        return now + _TELL_S

    def _patience_from(self) -> float:
        return max(self._progress_at, self._waiting_since or 0.0)

    def _lost_patience(self) -> bool:
        """Return whether the store was silent for too long; the thread's own work is no silence."""
        return self._sending and time.monotonic() > self._patience_from() + self._patience_s

    def _work(self) -> None:
        if sys.platform == "linux":  # elsewhere only whole processes can be nice
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while (job := self._next()) is not None:
            if self._error is None or job.closing:
                self._do(job)
            self._jobs.task_done()
        while self._outbox and not self._lost_patience():
            self._send_waiting()
        self._outbox.unlock()
        self._jobs.task_done()

    def _do(self, job: _Job) -> None:
        """Send a job's operations; of one that closes a run, all that can be."""
        operations = iter(job.run())
        while True:
            try:
                op = next(operations, None)
                if op is None:
                    return
                self._deliver(op)
            except Exception as error:  # anything: the thread must live, the error goes to the caller
                self._refused(job.what, error)
                if not job.closing:
                    return

    def _next(self) -> _Job | None:
        """Return the next job; while there is none, send what waits on disk."""
        while True:
            try:
                return self._jobs.get(timeout=0.0 if self._due() else self._until_retry() if self._outbox else None)
            except (queue.Empty, ValueError):
                self._send_waiting()

    def _due(self) -> bool:
        return bool(self._outbox) and time.monotonic() >= self._retry_at

    def _until_retry(self) -> float:
        until = min(self._retry_at, self._patience_from() + self._patience_s) if self._stopping else self._retry_at
        return max(0.0, until - time.monotonic())

    def _deliver(self, op: Op) -> None:
        """Send an operation, or put it on disk where others wait already or the store does not answer."""
        direct = not self._outbox and self._jobs.qsize() <= self._limit
        while True:
            try:
                if direct:
                    return self._send_now(op)
            except Exception as error:
                if not ops.passing(error):
                    raise
                self._no_answer(error)
            try:
                return self._outbox.append(op, self._runs)
            except OSError as error:  # no store and no disk either: wait here until one of them is back
                if self._stopping and self._lost_patience():
                    raise
                self._no_answer(error)
            time.sleep(self._until_retry())
            if self._outbox:
                self._send_waiting()
            direct = not self._outbox

    def _send_now(self, op: Op) -> None:
        """Give an operation to the store; that it took or refused it is progress."""
        if not self._sending:  # until now there was nothing that it had to answer
            self._progress_at = time.monotonic()
            self._sending = True
        try:
            self._send(op)
        except Exception as error:
            if ops.passing(error):
                raise
            self._answered()
            raise
        self._answered()

    def _answered(self) -> None:
        self._progress_at = time.monotonic()
        self._sending = False

    def _send_waiting(self) -> None:
        """Try the first operation on disk, not before its time."""
        time.sleep(self._until_retry())
        op = self._outbox.first()
        try:
            self._send_now(op)
        except Exception as error:
            if ops.passing(error):
                self._no_answer(error)
                return
            self._refused(f"a waiting '{op.kind}'", error)
        else:
            if self._wait_s > _FIRST_WAIT_S:
                _log.warning("MLflow answers again; %d waiting events are being sent", len(self._outbox))
        self._retry_at, self._wait_s = 0.0, _FIRST_WAIT_S
        self._outbox.done(self._runs, op.kind == "create")

    def _no_answer(self, error: Exception) -> None:
        """Wait twice as long as the last time before the next try."""
        if self._wait_s == _FIRST_WAIT_S:
            reason = redact(f"{type(error).__name__}: {error}").partition("\n")[0][:300]
            _log.warning("MLflow does not answer (%s); training goes on, events wait on disk", reason)
        self._retry_at = time.monotonic() + self._wait_s
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)

    def _refused(self, what: str, error: Exception) -> None:
        _log.debug("tracking job failed: %s", what, exc_info=error)
        reason = redact(f"{type(error).__name__}: {error}")[:500]
        self._error = self._error or TrackingError(f"MLflow: {what} could not be written: {reason}")
