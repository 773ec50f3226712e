"""The one thread that writes to MLflow: no slow or dead store slows training down."""

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from fedsweep.errors import TrackingError, no_room, one_line
from fedsweep.output import amount
from fedsweep.tracking import noise
from fedsweep.tracking.delivery import LeftOut, Sender
from fedsweep.tracking.ops import Op
from fedsweep.tracking.outbox import Outbox
from fedsweep.tracking.waiting import Damaged

_log = logging.getLogger("fedsweep.tracking")
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 10.0
_FIRST_TELL_S, _TELL_S = 1.0, 10.0
"""From a wait's begin to the first word about it, from there to the next; then twice as long."""
_NICE = 10
"""Clients' work goes first: drawing and logging take moments in which hosts wait, and the end."""


@dataclass(frozen=True)
class _Job:
    what: str  # for the error message: "round 3 of kmeans seed=1"
    token: str  # of the run it writes to
    work: Callable[[], Iterable[Op]]
    closing: bool


class Writer:
    """Turns jobs into operations and sends them one by one, in the order given.

    Where the store does not answer, or where more than ``limit`` jobs wait, operations go to the
    outbox on disk and are sent from there, in order, as soon as the store takes them; what is left
    at :meth:`stop` stays on disk.

    After an operation that the store refused as wrong, of the jobs behind it that write to the same
    run only the one that closes it is done, and the run ends as KILLED: :attr:`lost` says why.
    Other runs go on.

    Parameters
    ----------
    send : Callable[[Op], None] or Sender
        Does one operation; raises what :func:`fedsweep.tracking.ops.passing` judges.
    outbox : Outbox
        Where operations wait.
    runs : dict[str, str]
        Token -> MLflow's id of each run made so far, as ``send`` keeps it.
    limit : int
        Jobs that may wait in memory; :meth:`put` blocks at twice as many, until the disk has taken
        some.
    patience_s : float
        How long :meth:`settle` and :meth:`stop` wait without any progress: a store that answers,
        however slowly, is waited for.
    """

    def __init__(
        self,
        send: Callable[[Op], None] | Sender,
        outbox: Outbox,
        runs: dict[str, str] | None = None,
        limit: int = 256,
        patience_s: float = 60.0,
    ) -> None:
        self._delivery = send if isinstance(send, Sender) else Sender(send)
        self._outbox, self._runs = outbox, runs if runs is not None else {}
        self._limit, self._patience_s = limit, patience_s
        self._jobs: queue.Queue[_Job | None] = queue.Queue(2 * limit)
        self._then: list[tuple[str, Callable[[], object]]] = []
        self.tell: Callable[[str], None] = _log.warning
        """Says what is waited for, and what could not be written."""
        self.full = False
        """Whether nothing is taken at present because a disk is full."""
        self._retry_at, self._wait_s = 0.0, _FIRST_WAIT_S
        self._stopping = False
        self._progress_at = time.monotonic()  # of the last operation that the store took or refused
        self._waiting_since: float | None = None  # of a wait that has not ended well
        self._tell_at, self._tell_s = 0.0, _TELL_S  # when, and what then passes until the next word
        self._sending = False  # an operation was given to the store, which has not answered it yet
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    def put(
        self, what: str, token: str, work: Callable[[], Iterable[Op]], closing: bool = False
    ) -> None:
        """Queue a job that writes to the run with this token."""
        while self._thread.is_alive():
            with suppress(queue.Full):
                return self._jobs.put(_Job(what, token, work, closing), timeout=1.0)
        raise TrackingError(f"{what} came after the tracker was closed")

    def once_stored(self, token: str, act: Callable[[], object]) -> None:
        """Do something as soon as the store has all that was put for a run so far;
        never, where some of it was lost.
        """

        def work() -> Iterable[Op]:
            self._then.append((token, act))
            return ()

        self.put("what follows", token, work, closing=True)

    @property
    def lost(self) -> dict[str, str]:
        """Why a run is not whole in the store, by its token."""
        return dict(self._delivery.lost)

    @property
    def spilled(self) -> int:
        """Operations that wait on disk."""
        return len(self._outbox)

    @property
    def waiting(self) -> int:
        """Events that the store does not have yet: jobs in memory, and operations on disk."""
        return self._jobs.unfinished_tasks + len(self._outbox)

    def flush(self) -> None:
        """Wait until every queued job is done and sent, or its run lost."""
        with self._jobs.all_tasks_done:
            while self._jobs.unfinished_tasks and self._thread.is_alive():
                self._jobs.all_tasks_done.wait(1.0)
        while self._outbox and self._thread.is_alive():
            time.sleep(0.05)

    def settle(self) -> bool:
        """Wait, as long as there is progress, until everything is sent; return whether it is."""
        self._begin_to_wait()
        while self.waiting and self._thread.is_alive() and not self._lost_patience():
            self._tell()
            time.sleep(0.02)
        if self.waiting:
            return False
        self._waiting_since = None
        return True

    def stop(self) -> None:
        """Send what waits, as long as there is progress, and end the thread.

        Patience that :meth:`settle` lost is not given again. What was refused is in :attr:`lost`,
        what could not be sent is counted by :attr:`spilled`.
        """
        if self._thread.is_alive():
            self._begin_to_wait()
            self._stopping = True
            self._jobs.put(None)
            while self._thread.is_alive():
                self._thread.join(0.2)
                self._tell()

    def _begin_to_wait(self) -> None:
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()
            self._tell_at, self._tell_s = self._waiting_since + _FIRST_TELL_S, _TELL_S

    def _tell(self) -> None:
        """Say what is waited for, if it is time to: ever less often, as the wait goes on."""
        now = time.monotonic()
        if now < self._tell_at or not self.waiting:
            return
        quiet = now - self._patience_from()
        silent = (
            f", no answer for {quiet:.0f} of {self._patience_s:.0f} s"
            if quiet > 1.0 and self._sending
            else ""
        )
        self.tell(f"waiting for MLflow to take {amount(self.waiting, 'event')}{silent}")
        self._tell_at, self._tell_s = now + self._tell_s, 2 * self._tell_s

    def _patience_from(self) -> float:
        return max(self._progress_at, self._waiting_since or 0.0)

    def _lost_patience(self) -> bool:
        """Return whether the store was silent for too long; the thread's own work is no silence."""
        return self._sending and time.monotonic() > self._patience_from() + self._patience_s

    def _work(self) -> None:
        if sys.platform == "linux":  # elsewhere only whole processes can be nice
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while (job := self._next_job()) is not None:
            if job.token not in self._delivery.lost or job.closing:
                self._do(job)
            self._go_on()
            self._jobs.task_done()
        while self._outbox and not self._lost_patience():
            self._send_waiting()
        self._go_on()
        self._outbox.unlock()
        self._jobs.task_done()

    def _do(self, job: _Job) -> None:
        """Send a job's operations; of one that closes a run, all that can be."""
        operations = iter(job.work())
        while True:
            try:
                op = next(operations, None)
                if op is None:
                    return
                self._deliver(op)
            except LeftOut as left:
                self._tell_lost(job.what, left)
                if not job.closing:
                    return
            except Exception as error:  # anything: the thread must live, and other runs with it
                reason = one_line(error)
                self._tell_lost(
                    job.what, LeftOut(reason, self._delivery.lose(job.token, reason)), error
                )
                if not job.closing:
                    return

    def _go_on(self) -> None:
        """Do what waited for the store to have all that was put before it."""
        if self._outbox:
            return
        for token, act in self._then:
            if token in self._delivery.lost:
                continue
            try:
                act()
            except Exception as error:  # of any storage: what is left is removed by the next start
                _log.debug("what was to follow did not", exc_info=error)
        self._then.clear()

    def _next_job(self) -> _Job | None:
        """Return the next job; while there is none, send what waits on disk."""
        while True:
            try:
                return self._jobs.get(
                    timeout=0.0 if self._due() else self._until_retry() if self._outbox else None
                )
            except (queue.Empty, ValueError):
                self._send_waiting()

    def _due(self) -> bool:
        return bool(self._outbox) and time.monotonic() >= self._retry_at

    def _until_retry(self) -> float:
        until = (
            min(self._retry_at, self._patience_from() + self._patience_s)
            if self._stopping
            else self._retry_at
        )
        return max(0.0, until - time.monotonic())

    def _deliver(self, op: Op) -> None:
        """Send an operation, or put it on disk where others wait or the store does not answer."""
        direct = not self._outbox and self._jobs.qsize() <= self._limit
        while True:
            try:
                if direct:
                    return self._send_now(op)
            except LeftOut:
                raise
            except Exception as error:
                self._no_answer(error)
            try:
                return self._outbox.append(op, self._runs)
            except (
                OSError
            ) as error:  # no store and no disk either: wait here until one of them is back
                self._no_answer(error)
                if self._stopping and self._lost_patience():
                    raise
            time.sleep(self._until_retry())
            if self._outbox:
                self._send_waiting()
            direct = not self._outbox

    def _send_now(self, op: Op, waited: bool = False) -> None:
        """Give an operation to the store; that it took or refused it is progress."""
        if not self._sending:  # until now there was nothing that it had to answer
            self._progress_at = time.monotonic()
            self._sending = True
        try:
            self._delivery.send(op, waited)
        except LeftOut:
            self._answered()
            raise
        self._answered()

    def _answered(self) -> None:
        self.full = False
        self._progress_at = time.monotonic()
        self._sending = False

    def _send_waiting(self) -> None:
        """Try the first operation on disk, not before its time."""
        time.sleep(self._until_retry())
        try:
            op = self._outbox.first()
            self._send_now(op, waited=True)
        except Damaged as error:
            token = self._outbox.token()
            reason = f"an event that waited on disk is damaged: {error}"
            self._tell_lost("a waiting event", LeftOut(reason, self._delivery.lose(token, reason)))
            self._outbox.put_aside(str(error))
        except LeftOut as left:
            self._tell_lost(f"a waiting '{op.kind}'", left)
            self._outbox.put_aside(str(left))
        except Exception as error:
            self._no_answer(error)
            return
        else:
            if self._wait_s > _FIRST_WAIT_S:
                _log.warning(
                    "MLflow answers again; %d waiting events are being sent", len(self._outbox)
                )
            self._outbox.done(self._runs, op.kind == "create")
        self._retry_at, self._wait_s = 0.0, _FIRST_WAIT_S
        self._go_on()

    def _no_answer(self, error: Exception) -> None:
        """Wait twice as long as the last time before the next try."""
        if self._wait_s == _FIRST_WAIT_S:
            _log.warning(
                "MLflow does not answer (%s); training goes on, events wait on disk%s",
                one_line(error),
                noise.told(),
            )
        self.full = no_room(error)
        self._delivery.doubt()
        self._retry_at = time.monotonic() + self._wait_s
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)

    def _tell_lost(self, what: str, left: LeftOut, error: Exception | None = None) -> None:
        """Say once of a run that it is not whole."""
        _log.debug("tracking job failed: %s", what, exc_info=error or left.__cause__)
        if left.news:
            self.tell(
                f"MLflow: {what} could not be written: {left}; nothing more of this run is, "
                "others go on"
            )
