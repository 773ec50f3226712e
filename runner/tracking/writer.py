"""The one thread that writes to MLflow, so that a slow store does not slow training."""

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from runner.errors import TrackingError
from runner.tracking.store import redact

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    what: str  # for the error message: "round 3 of kmeans seed=1"
    run: Callable[[], None]
    closing: bool


class Writer:
    """Runs jobs one by one in the order given.

    After a job has failed, each call raises its error, and of the jobs behind it only those that close a run are done.

    Parameters
    ----------
    capacity : int
        Jobs that may wait; :meth:`put` blocks above it, which bounds memory when the store is slower than training.
    """

    def __init__(self, capacity: int = 1000) -> None:
        self._jobs: queue.Queue[_Job | None] = queue.Queue(capacity)
        self._error: TrackingError | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    def put(self, what: str, run: Callable[[], None], closing: bool = False) -> None:
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

    def flush(self) -> None:
        """Wait until every queued job is done. Raises the TrackingError of one that failed."""
        self._jobs.join()
        self.check()

    def stop(self) -> None:
        """Finish the queue and end the thread. Errors are left to :meth:`check`."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._error is None or job.closing:
                    job.run()
            except Exception as error:  # anything: the thread must live, the error goes to the caller
                _log.debug("tracking job failed: %s", job.what, exc_info=True)
                reason = redact(f"{type(error).__name__}: {error}")[:500]
                self._error = self._error or TrackingError(f"MLflow: {job.what} could not be written: {reason}")
            finally:
                self._jobs.task_done()
        self._jobs.task_done()
