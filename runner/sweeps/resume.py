"""Before a sweep starts: which trials are done, which go on, whether another driver is at it."""

import hashlib
import platform
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedsweep.config import RunConfig, SessionConfig, TrialConfig
from fedsweep.data.content import changed_files
from fedsweep.data.sources import place_of
from fedsweep.drivers import driver_name, is_alive
from fedsweep.errors import CheckpointError, DataError, RunnerError, shown
from fedsweep.sweeps.compose import Trial
from fedsweep.tracking import Tracker, past
from fedsweep.tracking.claim import claim
from fedsweep.tracking.database import database_of
from fedsweep.tracking.describe import trial_params
from fedsweep.tracking.past import PastRun
from fedsweep.tracking.store import Store, store_name, tracking_uri
from fedsweep.tracking.store_claim import claim_in_store
from fedsweep.trial.checkpoint import CheckpointStore, open_storage, write_atomically

_CODE = "code."
"""How params begin that are digests of code."""


@dataclass(frozen=True)
class Restart:
    """What a command line says about trials that were run before."""

    fresh: bool = False  # start all over
    retry_failed: bool = False  # failed trials go on from their last checkpoint
    take_over: bool = False  # drivers of other machines are dead


@dataclass(frozen=True)
class Standing:
    """Where a sweep stands when its driver starts."""

    todo: Sequence[Trial]
    done: Sequence[tuple[Trial, PastRun]]
    failed: Sequence[tuple[Trial, PastRun]]  # and not to be tried again
    runs: dict[str, PastRun]  # by trial key: the runs that todo's trials go on with
    sweep: PastRun | None  # the parent run, where these very trials were run before
    storage: str  # folder of the sweep's checkpoints
    notes: Sequence[str] = ()  # what else is to be said before the sweep goes on
    shorter: Mapping[str, str] = field(default_factory=dict)  # trial key -> that of fewer rounds

    def joined(self, more: "Standing") -> "Standing":
        """Return it with trials that the sweep came to later."""
        return replace(
            self,
            todo=[*self.todo, *more.todo],
            done=[*self.done, *more.done],
            failed=[*self.failed, *more.failed],
            runs={**self.runs, **more.runs},
            shorter={**self.shorter, **more.shorter},
        )

    def checkpoints(self, trial: Trial) -> CheckpointStore:
        """Return where a trial's checkpoints are, and those of the same with fewer rounds."""
        shorter = self.shorter.get(trial.config.key)
        return _checkpoints(
            self.storage, trial.config.key, _checkpoints(self.storage, shorter) if shorter else None
        )


def _checkpoints(storage: str, key: str, shorter: CheckpointStore | None = None) -> CheckpointStore:
    return CheckpointStore(f"{storage}/{key}", key, shorter)


@contextmanager
def only_driver(name: str | None, trial: RunConfig) -> Iterator[None]:
    """Be the only driver of a sweep, or of a trial on its own, as long as the context lasts.

    What drivers say of themselves in the store shows only once they have made a run: of two that
    start at once, neither would see the other.

    Raises
    ------
    RunnerError
        Another driver runs it; or there is no room or no permission where the lock belongs.
    """
    tracking = trial.tracking
    database = database_of(tracking_uri(tracking))
    folder = database.parent if database else Path(tracking.output).expanduser().absolute()
    what = f"{_what(name, trial)} of experiment {tracking.experiment}"
    with claim(folder, what, driver_name()):
        yield


@contextmanager
def only_driver_of_store(
    store: Store, name: str | None, trial: TrialConfig, restart: Restart
) -> Iterator[None]:
    """Be the only driver of a sweep, or of a trial on its own, in a store, within the context.

    Beside the database of a local one lies the lock of :func:`only_driver`; drivers that write to a
    server may have an output folder each.

    Raises
    ------
    RunnerError
        Another driver runs it, or it can't be seen from here whether one does.
    """
    if database_of(store.uri) is not None:
        yield
        return

    def refuse(driver: str, since: str) -> None:
        _refuse_alive(driver, _what(name, trial), restart, f" since {since}")

    with claim_in_store(store, _what(name, trial), driver_name(), refuse):
        yield


def _what(name: str | None, trial: TrialConfig) -> str:
    return f"sweep '{name}'" if name else f"trial {trial.key}"


def sweep_key(trials: Sequence[Trial], search: str = "") -> str:
    """Return the identity of a grid, and of what is searched in it: 12 hex digits."""
    keys = [trial.config.key for trial in trials] + ([search] if search else [])
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()[:12]


def look_back(
    name: str | None, trials: Sequence[Trial], restart: Restart, tracker: Tracker, key: str
) -> Standing:
    """Find out where a sweep stands, close what a dead driver left RUNNING, check checkpoints.

    Parameters
    ----------
    name : str or None
        The sweep; a trial on its own (None) goes on where it was interrupted, and is run anew where
        it ended.
    key : str
        The identity of the sweep.

    Raises
    ------
    RunnerError
        Another driver runs this sweep.
    DataError
        The data of a trial changed since it was interrupted.
    CheckpointError
        A checkpoint is of another trial or version, or the storage can't be written.
    """
    store = tracker.store
    storage = storage_of(trials[0].config, store.uri, name)
    with _probe(storage):
        pass
    tracker.tags["driver"] = driver_name()
    runs = past.past_trials(store, name, [trial.config.key for trial in trials])
    _close_dead(_what(name, trials[0].config), name, runs, restart, store)
    if restart.fresh:
        if name:
            past.supersede(store, name)
        everything = Standing(trials, (), (), {}, None, storage)
        for trial in trials:
            everything.checkpoints(trial).remove()
        return everything
    found = _stand(name, trials, restart, lambda: past.past_contents(store, name), storage, runs)
    return replace(found, sweep=past.past_sweep(store, name, key)) if name else found


def look_again(
    name: str, trials: Sequence[Trial], restart: Restart, before: Sequence[PastRun], storage: str
) -> Standing:
    """Find out where trials stand that a sweep has come to while it runs.

    Parameters
    ----------
    before : sequence of PastRun
        The sweep's trials of earlier sessions, the newest first, as its start found them: nobody
        else writes them. The store is not asked again, which may not answer by now, and would be
        read from end to end for each few trials.

    Raises
    ------
    DataError, CheckpointError
        As :func:`look_back`.
    """
    keys = {trial.config.key for trial in trials}
    runs = {run.key: run for run in reversed(before) if run.key in keys}
    found = _stand(name, trials, restart, lambda: before, storage, runs)
    for trial in found.todo if restart.fresh else ():
        if trial.config.key not in runs:  # left by what counts no longer
            found.checkpoints(trial).remove()
    return found


def _stand(
    name: str | None,
    trials: Sequence[Trial],
    restart: Restart,
    trials_before: Callable[[], Sequence[PastRun]],
    storage: str,
    runs: dict[str, PastRun],
) -> Standing:
    """Return where trials stand, by their newest runs."""
    everything = Standing(trials, (), (), {}, None, storage)
    ours = [trial for trial in trials if isinstance(trial.config, TrialConfig)]
    new = [trial for trial in ours if trial.config.key not in runs]
    before = trials_before() if new else []
    shorter = _shorter(new, before, storage)
    notes = [*_check_contents(name, new, before), *_edited(new, before), *_lengthened(new, shorter)]
    over = ("FINISHED",) if name else ("FINISHED", "FAILED")
    ended = {run.key for run in runs.values() if run.status in over}
    for trial in trials:
        if trial.config.key in ended:  # its last driver may have died before it had tidied up
            left = everything.checkpoints(trial)
            tidy = tidying(trial, left) if name else left.remove
            tidy()
    if not name:
        goes_on = {key: run for key, run in runs.items() if key not in ended}
        return Standing(trials, (), (), goes_on, None, storage, notes, _keys(shorter))
    known = [(trial, runs[trial.config.key]) for trial in trials if trial.config.key in runs]
    done = [(trial, run) for trial, run in known if trial.config.key in ended]
    failed = [
        (trial, run) for trial, run in known if run.status == "FAILED" and not restart.retry_failed
    ]
    settled = {trial.config.key for trial, _ in [*done, *failed]}
    todo = [trial for trial in trials if trial.config.key not in settled]
    for trial in todo:
        everything.checkpoints(trial).check()
    return Standing(todo, done, failed, runs, None, storage, notes, _keys(shorter))


def _shorter(
    trials: Sequence[Trial], before: Sequence[PastRun], storage: str
) -> dict[str, PastRun]:
    """Return the longest of the runs whose last checkpoint a trial can begin with: by its key."""
    longer: dict[str, list[Trial]] = {}  # by course
    for trial in trials:
        longer.setdefault(trial.config.course_key, []).append(trial)
    longer.pop("", None)
    found: dict[str, PastRun] = {}
    for run in sorted(before, key=lambda run: run.round):
        fitting = [t for t in longer.get(run.course, ()) if run.round < t.config.rounds]
        if fitting and run.status == "FINISHED" and _checkpoints(storage, run.key).rounds():
            found |= {trial.config.key: run for trial in fitting}
    return found


def tidying(trial: Trial, checkpoints: CheckpointStore, last: bool = False) -> Callable[[], None]:
    """Return what is done with the checkpoints of a trial that ended; ``last``: nobody goes on."""
    kept = trial.config.checkpoint.keep and trial.config.course_key  # else nothing begins there
    keep = kept and not last
    return checkpoints.keep_last if keep else checkpoints.remove


def _keys(runs: Mapping[str, PastRun]) -> dict[str, str]:
    return {key: run.key for key, run in runs.items()}


def _lengthened(trials: Sequence[Trial], shorter: Mapping[str, PastRun]) -> list[str]:
    """Say how many trials begin where the same with fewer rounds ended."""
    begun = Counter(run.round for run in shorter.values())
    return [
        f"begun before: {count} of {len(trials)} trials go on from where the same with rounds="
        f"{number} ended, so that round {number} is evaluated in full"
        for number, count in sorted(begun.items())
    ]


def _close_dead(
    what: str, name: str | None, runs: Mapping[str, PastRun], restart: Restart, store: Store
) -> None:
    """Close the runs that are RUNNING in the store; refuse the sweep if one's driver is alive."""
    alone = (run for run in runs.values() if run.status == "RUNNING")
    left = past.running(store, name) if name else list(alone)
    for run in left:
        _refuse_alive(run.driver, what, restart)
    past.close(store, left)


def _check_contents(
    name: str | None, new: Sequence[Trial], before: Sequence[PastRun]
) -> Sequence[str]:
    """Compare the data of trials not run yet with what the same settings were run on before.

    Returns
    -------
    sequence of str
        What is to be said: trials that ended on other content are other trials.

    Raises
    ------
    DataError
        A trial was interrupted on other content of the same place.
    RunnerError
        An earlier version ran it, which did not know the content.
    """
    notes: dict[str, int] = {}
    for trial in new:
        params, place = trial_params(trial.config, {}), place_of(trial.config)
        for run in before:
            counts = name is not None or run.status != "FINISHED"
            if run.content is None and counts and _same_settings(params, run.params):
                raise _of_earlier_version(run, name)
            same = run.settings == trial.config.settings_key and run.place == place
            if not same or run.content is None:
                continue
            cache = Path(trial.config.data.cache)
            changed = changed_files(cache, run.content, trial.config.dataset.content or "")
            if run.status in ("RUNNING", "KILLED"):
                raise DataError(
                    f"the data of trial {run.key} changed since it was interrupted, "
                    f"in {shown(place, 200)}: {changed}; put them back, or add --fresh to start "
                    "over with the new ones"
                )
            told = f"run before on other content of {shown(place, 200)} ({changed})"
            notes[told] = notes.get(told, 0) + 1
    return [
        f"{told}: {count}; with the data as they are now these are other trials"
        for told, count in notes.items()
    ]


def _edited(new: Sequence[Trial], before: Sequence[PastRun]) -> list[str]:
    """Say how many trials were run before with another text of a file of somebody's own."""
    count = 0
    for trial in new:
        ours = trial_params(trial.config, {})
        count += bool(trial.config.own_code) and any(
            _same_settings(ours, run.params, _CODE)
            and any(
                ours[key] != run.params.get(key, ours[key]) for key in ours if key.startswith(_CODE)
            )
            for run in before
        )
    files = ", ".join(dict.fromkeys(str(c.path) for trial in new for c in trial.config.own_code))
    told = f"run before with another text of {shown(files, 200)}: {count}; as it is now these are"
    return [f"{told} other trials"] if count else []


def _of_earlier_version(run: PastRun, name: str | None) -> RunnerError:
    return RunnerError(
        f"run {run.run_id[:8]} of {f'sweep {name!r}' if name else 'this trial'} was made by an "
        "earlier version of fedsweep, which did not keep the content of its data; add --fresh to "
        "run it anew (what was run stays in the store), or set another tracking.experiment"
    )


def _same_settings(ours: Mapping[str, str], theirs: Mapping[str, str], but: str = "") -> bool:
    """Return whether two trials agree in all settings that both have, but for the data's place.

    Those that begin with ``but`` do not count either.
    """
    aside = "dataset.path", "dataset.content", *([but] if but else [])
    shared = [key for key in ours if key in theirs and not key.startswith(aside)]
    return bool(shared) and all(ours[key] == theirs[key] for key in shared)


def storage_of(session: SessionConfig, store_uri: str, name: str | None) -> str:
    """Return the folder of a sweep's checkpoints: one per store, experiment and sweep.

    In the output folder it is found again where that was moved with the store.
    """
    root, store = session.checkpoint.storage_path, store_uri
    if not root:
        root = str(Path(session.tracking.output).expanduser().absolute() / "checkpoints")
        store = store_name(session.tracking, store_uri)
    place = hashlib.sha256(f"{store} {session.tracking.experiment}".encode()).hexdigest()[:8]
    return f"{root}/{name or 'run'}-{place}"


@contextmanager
def _probe(storage: str) -> Iterator[str]:
    """Write a file to a storage for as long as the context lasts; yield its name.

    Raises
    ------
    CheckpointError
        The storage can't be written.
    """
    fs, path = open_storage(storage)
    name = f".probe-{uuid.uuid4().hex[:8]}"
    try:
        fs.makedirs(path, exist_ok=True)
        write_atomically(fs, f"{path}/{name}", b"x")  # a full disk takes empty files
    except Exception as error:  # each kind of storage has errors of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"checkpoint.storage_path: {storage} can't be written ({reason}); "
            "name another folder or URL"
        ) from error
    try:
        yield name
    finally:
        fs.rm_file(f"{path}/{name}")


def check_nodes(storage: str) -> None:
    """Check that every node of the cluster sees the storage: a trial may run on any of them.

    Raises
    ------
    CheckpointError
        It is local to one node, or to the driver's process.
    """
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) == 1 and "memory:" not in storage:
        return
    with _probe(storage) as name:
        seen = {
            host: _sees.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(storage, name)
            for node, host in nodes.items()
        }
        blind = [host for host, ref in seen.items() if not ray.get(ref)]
    if blind:
        raise CheckpointError(
            f"checkpoint.storage_path: {storage} is not seen by node {', '.join(blind)}; "
            "on several nodes give a shared folder or an object store, such as s3://bucket/folder"
        )


@ray.remote(num_cpus=0)
def _sees(storage: str, name: str) -> bool:
    fs, path = open_storage(storage)
    return bool(fs.exists(f"{path}/{name}"))


def _refuse_alive(driver: str, what: str, restart: Restart, since: str = "") -> None:
    """Raise the RunnerError for a driver that may still run something."""
    alive = is_alive(driver)
    if alive is False or (alive is None and restart.take_over) or driver == driver_name():
        return
    host, pid = driver.split(" ")[:2]
    if alive:
        raise RunnerError(
            f"{what} is being run by process {pid}{since}; wait for it, or end it with Ctrl-C or "
            f"kill {pid}"
        )
    raise RunnerError(
        f"{what} is being run, or was left RUNNING, by process {pid} of {host}{since}, which can't "
        f"be seen from {platform.node()}; wait for it, or add --take-over if it is gone"
    )
