"""One trial of an app: its ServerApp in a thread, whose rounds are yielded as they end."""

import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp

from fedsweep.app.client import client_app, ready, seeded
from fedsweep.app.config import AppConfig
from fedsweep.app.grid import AppGrid, Ended
from fedsweep.app.insides import in_order, watched
from fedsweep.app.journal import Journal
from fedsweep.app.modules import AppCode, Modules
from fedsweep.app.rounds import Rounds
from fedsweep.engine.executors import Host, InlineExecutor
from fedsweep.engine.flower import sampling
from fedsweep.engine.host import AppSpec
from fedsweep.engine.ray_executor import RayExecutor
from fedsweep.errors import RunnerError, TrialError, one_line
from fedsweep.escape import line
from fedsweep.parts.code import own_place, traceback_of
from fedsweep.records import RoundRecord, TrialResult, TrialStarted
from fedsweep.seeding import derive_seed
from fedsweep.trial.checkpoint import CheckpointStore
from fedsweep.trial.trial import weights_sha256

FILES_BYTES = 64 * 2**20
"""Most bytes of the files that a server leaves behind which go into its run."""

LEFT_OUT = "files-left-out.txt"
"""The file of a run that says which did not fit."""

_END_S = 10.0

Event = TrialStarted | RoundRecord | TrialResult


def run_app(
    config: AppConfig,
    code: AppCode,
    hosts: list[Host] | None = None,
    code_ref: Any = None,
    checkpoints: CheckpointStore | None = None,
    rungs: Sequence[int] = (),
    lost: str = "",
) -> Generator[Event, None, None]:
    """Run a trial of an app and yield what happens: its start, each round, its result.

    Parameters
    ----------
    config : AppConfig
        What to run.
    code : AppCode
        The app. Its reference goes to the hosts in its place.
    hosts : list of Host, optional
        Client hosts; without them every client runs in this process.
    checkpoints : CheckpointStore, optional
        Where the clients' replies are kept, and where to go on from.
    rungs, lost
        As :func:`fedsweep.trial.trial.run_trial` takes them: an app has none.

    Raises
    ------
    AppError
        The app can't be imported.
    TrialError
        All clients that were asked failed.
    """
    del rungs, lost
    begun = time.perf_counter()
    kept = config.journal_mb * 2**20
    journal = Journal(checkpoints, kept) if checkpoints and kept else None
    goes_on = journal.round if journal else 0
    yield TrialStarted(config.key, None, goes_on, anew=not goes_on)
    server = Server(config, code, hosts, code_ref or code, journal=journal)
    try:
        yield from server.rounds()
    finally:
        server.close()
    result = server.result()
    wall_s = time.perf_counter() - begun
    yield replace(result, summary={**result.summary, "wall_s": wall_s})


def run_alone(config: AppConfig, code: AppCode) -> TrialResult:
    """Run a trial in this process, its server in a folder of its own; return what came out.

    Raises
    ------
    AppError
        The app can't be imported.
    TrialError
        It fails: an app's own error is named with its file and line.
    """
    folder = Folder(code)
    folder.enter()
    try:
        *_, result = run_app(config, code)
    except RunnerError:
        raise
    except Exception as error:  # an app's own code raises what it likes
        place = own_place(traceback_of(error))
        where = f"{place}: " if place else ""
        raise TrialError(f"{where}{one_line(error)}") from error
    finally:
        folder.leave()
    assert isinstance(result, TrialResult)
    return result


class Server:
    """An app's server at work.

    Parameters
    ----------
    config, code, hosts, code_there
        As :func:`run_app` takes them.
    trial : str
        By which hosts know the trial: what runs under another name finds modules as new.
    journal : Journal, optional
        What its clients replied before it was interrupted, and reply now.
    """

    def __init__(
        self,
        config: AppConfig,
        code: AppCode,
        hosts: list[Host] | None,
        code_there: Any,
        trial: str = "",
        journal: Journal | None = None,
    ) -> None:
        self._config, self._code = config, code
        trial = trial or config.key
        kwargs = {"code": code_there, "seed": config.seed, "trial": trial}
        spec = AppSpec(trial, client_app, kwargs, config.num_clients, config.run_config)
        executor = RayExecutor(spec, hosts) if hosts else InlineExecutor(spec)
        size = config.resources.chunk_size
        chunk_size = size if isinstance(size, int) else None
        self.grid = AppGrid(executor, config.num_clients, chunk_size, journal)
        self._events: queue.Queue[RoundRecord | BaseException | None] = queue.Queue()
        self._rounds = Rounds(self._events.put, self.grid.drain, config.better)
        self.grid.rounds = self._rounds
        self._folder = Folder(code) if hosts else None
        self._modules = Modules.of(code, trial)
        self._thread = threading.Thread(target=self._run, name="server-app", daemon=True)

    def rounds(self) -> Generator[RoundRecord, None, None]:
        """Run the server to its end and yield its rounds; what it raises is raised here."""
        self._thread.start()
        while (event := self._events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    def close(self) -> None:
        """Have the server end, and wait a little for that."""
        self.grid.end()
        if self._thread.is_alive():
            self._thread.join(_END_S)
        self._modules.leave()
        if self._folder is not None:
            self._folder.leave()

    def result(self) -> TrialResult:
        """Return what came out."""
        record = self._rounds.arrays
        arrays = {key: array.numpy() for key, array in record.items()} if record else {}
        return TrialResult(
            key=self._config.key,
            models={"global": arrays} if arrays else {},
            weights_sha256=weights_sha256({"global": record} if record else {}),
            summary=self._rounds.summary(),
            confusion=None,
            input_shape=(0, 0, 0),
            declared=self._rounds.declared(),
            files=self._folder.written if self._folder is not None else {},
        )

    def _run(self) -> None:
        """Run the app, in a thread of its own: rounds are told while it goes on."""
        try:
            with ExitStack() as stack:
                stack.enter_context(sampling())
                stack.enter_context(in_order())
                stack.enter_context(watched(self._rounds))
                ready(self._code)
                if self._folder is not None:
                    self._folder.enter()
                # Seeded before the import: modules may draw, too.
                stack.enter_context(seeded(derive_seed(self._config.seed, "server")))
                app = self._modules.load(self._code.serverapp, ServerApp)
                app(self.grid, self._context())
                self._rounds.end()
            self._events.put(None)
        except Ended:
            self._events.put(None)
        except BaseException as error:  # an app's own code: it may call sys.exit
            self._events.put(error)

    def _context(self) -> Context:
        return Context(
            run_id=self.grid.run.run_id,
            node_id=0,
            node_config={},
            state=RecordDict(),
            run_config=dict(self._config.run_config),
        )


class Folder:
    """Where an app's server works: a folder that shows the app's files, and keeps what it writes.

    Trials that run at the same time would write the same names.
    """

    def __init__(self, code: AppCode) -> None:
        self._app = code.here
        self._before = ""
        self._place: Path | None = None  # until it was made: what is removed is this, and no other
        self.written: dict[str, bytes] = {}

    def enter(self) -> None:
        """Have this process work there."""
        self._place = Path(tempfile.mkdtemp(prefix="fedsweep-app-"))
        for path in self._app.iterdir():
            (self._place / path.name).symlink_to(path)
        before = os.getcwd()
        os.chdir(self._place)
        self._before = before

    def leave(self) -> None:
        """Go back, with what was written."""
        if self._before:
            os.chdir(self._before)
            self._before = ""
        if self._place is None:
            return
        self._gather(self._place)
        shutil.rmtree(self._place, ignore_errors=True)
        self._place = None

    def _gather(self, place: Path) -> None:
        """Take the files that were written there, as far as there is room; name the others."""
        size, left_out = 0, []
        paths = (
            Path(folder, name) for folder, _, names in os.walk(place) for name in sorted(names)
        )
        for path in paths:
            if path.is_symlink() or not path.is_file():
                continue
            name = str(path.relative_to(place))
            with suppress(OSError):  # one that can't be read, or is gone, costs no result
                more = path.stat().st_size
                if size + more > FILES_BYTES:
                    left_out.append(f"{line(name)}: {more} bytes\n")
                    continue
                self.written[name] = path.read_bytes()
                size += more
        if left_out:
            told = f"A run keeps {FILES_BYTES} bytes of what its app leaves behind. Not:\n"
            self.written[LEFT_OUT] = (told + "".join(sorted(left_out))).encode()
