"""What open runs share: a store, a writer thread, an outbox for what the store refuses."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from fedsweep.config import TrackingConfig
from fedsweep.errors import TrackingError, one_line
from fedsweep.redaction import redact
from fedsweep.tracking import describe, ops
from fedsweep.tracking.delivery import Flushed, Sender, overtaken, send_spilled
from fedsweep.tracking.outbox import Outbox
from fedsweep.tracking.store import Store, open_store, unusable
from fedsweep.tracking.writer import Writer

if TYPE_CHECKING:
    from fedsweep.figures.canvas import Extras
    from fedsweep.tracking.artifacts import Pictures

_log = logging.getLogger("fedsweep.tracking")


class Open(Protocol):
    """A run that is open."""

    name: str
    token: str

    def killed(self) -> None:
        """Close it as interrupted."""


class Session:
    """The driver's connection to a store, from the first run that opens to the last that closes.

    A run that is still open when the session closes becomes KILLED: nothing is left RUNNING. A
    store that does not answer delays what is written and loses nothing: what :meth:`close` could
    not send stays on disk (:attr:`spilled`) until ``fedsweep flush``, or the next session with this
    store, sends it. What the store refuses as wrong costs its run alone, which ends as KILLED:
    :attr:`lost` has the reasons.

    Parameters
    ----------
    cfg : TrackingConfig
        Store, experiment and output folder.
    clock : Callable[[], float]
        Unix time in seconds.

    Raises
    ------
    TrackingError
        The store can't be reached or written.
    """

    def __init__(self, cfg: TrackingConfig, clock: Callable[[], float] = time.time) -> None:
        self.cfg = cfg
        self.store = open_store(cfg)
        try:
            flush(cfg, self.store)
        except (
            TrackingError
        ) as error:  # what an earlier session left must not keep this one from its work
            _log.warning("%s", error)
        self.runs: dict[str, str] = {}
        """MLflow's id of each run that has been made, by its token."""
        self.writer = Writer(
            Sender(
                lambda op: ops.apply(op, self.store, self.runs),
                lambda op: overtaken(op, self.store, self.runs),
            ),
            Outbox.fresh(spill_folder(cfg), self.store),
            self.runs,
            patience_s=cfg.patience_s,
        )
        self.clock = clock
        self.tags = describe.environment()
        """Tags of every run opened from now on;
        the driver adds ``cluster`` when it knows its hosts.
        """
        self.open_runs: list[Open] = []
        self._told: set[str] = set()
        self.names: dict[str, str] = {}
        """Names of the runs that were closed, by their token."""

    @property
    def uri(self) -> str:
        """The tracking URI, fit to be shown."""
        return redact(self.store.uri)

    @property
    def spilled(self) -> int:
        """Events that wait on disk for a store that does not answer."""
        return self.writer.spilled

    @property
    def full(self) -> bool:
        """Whether something lacks in the store for a full disk, as known after :meth:`close`."""
        return self.writer.full and bool(self.spilled or self.lost)

    @property
    def lost(self) -> dict[str, str]:
        """Why a run is not whole in the store, by its name, as known before :meth:`close`."""
        names = self.names | {run.token: run.name for run in self.open_runs}
        return {names[token]: reason for token, reason in self.writer.lost.items()}

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Ask the store for something, at the start: one that fails is refused in a line.

        Raises
        ------
        TrackingError
            It does not answer, or refuses.
        """
        import requests
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, requests.RequestException, SQLAlchemyError) as error:
            raise unusable(self.store, error) from error

    @cached_property
    def pictures(self) -> "Pictures":
        """What draws the pictures of its trials."""
        from fedsweep.tracking.artifacts import Pictures  # pandas, in the writer's thread

        return Pictures()

    def kept(self, pictures: "Extras") -> dict[str, bytes]:
        """Return the pictures that there are, and say once which failed: no run is lost for one."""
        for told in pictures.told():
            if told not in self._told:
                self._told.add(told)
                _log.warning("%s", told)
        return pictures.files

    def close(self) -> None:
        """Close what is open, write what is queued, end the thread."""
        for run in list(self.open_runs):
            run.killed()
        self.writer.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except Exception:
            if error is None:  # else what went wrong first is what the user must see
                raise


def flush(
    cfg: TrackingConfig, store: Store | None = None, tell: Callable[[str], None] = _log.warning
) -> Flushed:
    """Send what waits on disk for a store; say what can't be sent, or must not be any more.

    Raises
    ------
    TrackingError
        The store does not answer; what was not sent stays on disk.
    """
    try:
        return send_spilled(store or open_store(cfg), spill_folder(cfg), tell)
    except TrackingError:
        raise
    except Exception as error:  # whatever the store said: the user gets it as one line
        raise TrackingError(
            f"not all that waits in {spill_folder(cfg)} could be sent: {one_line(error)}"
        ) from error


def spill_folder(cfg: TrackingConfig) -> Path:
    """Return where events wait for a store that does not answer."""
    return Path(cfg.output).expanduser().absolute() / "spill"
