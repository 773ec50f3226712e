"""The trials of a sweep, several at once over one pool of hosts;
whatever happens in one trial stays in it.
"""

import gc
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeAlias

import ray
from ray.exceptions import OutOfDiskError, RayError

from fedsweep.catalog import CATALOG
from fedsweep.config import SessionConfig
from fedsweep.engine.engine import Engine
from fedsweep.engine.executors import Host
from fedsweep.engine.flower import quiet
from fedsweep.engine.pool import HostPool
from fedsweep.errors import CheckpointError, RunnerError, no_room
from fedsweep.imports import lasting
from fedsweep.parts.code import own_place, raised_by_own
from fedsweep.records import RoundRecord, TrialPaused, TrialResult, TrialRow, TrialStarted
from fedsweep.sweeps.compose import Trial
from fedsweep.sweeps.halving import Halving
from fedsweep.sweeps.interrupts import Interrupts
from fedsweep.sweeps.kinds import OURS, Kind, Ready
from fedsweep.sweeps.progress import TrialProgress
from fedsweep.sweeps.resume import Standing, tidying
from fedsweep.tracking import SweepRun, Tracker, TrialRun
from fedsweep.trial.checkpoint import CheckpointStore
from fedsweep.trial.trial import TrialEvent

_STAY_S = (
    1.0  # for a process that was just made ready, so that Ray starts another one for the next trial
)
WAIT_S = 0.5  # for an event: a signal is seen at least as often
RETRY_WAIT_S = 120.0
"""Longest wait of a trial that died for a host that answers;
a node that is started anew takes as long.
"""


@dataclass
class Outcome:
    """What became of the trials."""

    trials: Sequence[Trial] = ()  # all, in the grid's order
    ended: dict[str, TrialRow] = field(
        default_factory=dict
    )  # by trial key, in the order of arrival
    failures: list[tuple[str, str]] = field(default_factory=list)  # (trial, reason)
    stopped: list[tuple[str, str]] = field(default_factory=list)
    """Trials whose storage took no more, and why: the next session goes on with them."""
    also: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By trial key: what a row tells that no trial alone does, such as the gain of tuning."""
    searching: bool = False  # whether a search has yet to end: the trials are at default settings
    full: bool = False  # the disk of the store is: what was logged waits, or has to be made good
    report: dict[str, str | bytes] = field(default_factory=dict)  # its files, as on the sweep's run
    folder: Path | None = None  # where they were written, too
    missing: str = ""  # what could not be made at the end, why, and the command that makes it
    interrupted: bool = False
    broken: str = ""  # why nothing more could be run: Ray does not come back

    def add(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        """Take in a trial that ended: its final metrics, none where it failed."""
        tabled = CATALOG.tabled
        shown = {name: value for name, value in metrics.items() if name in tabled}
        self.ended[trial.config.key] = TrialRow(trial.axes, shown)

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of the grid by full key, in its order."""
        return self.trials[0].grid if self.trials else ()

    @property
    def rows(self) -> list[TrialRow]:
        """The trials that ended, in the grid's order."""
        found = ((trial, self.ended.get(trial.config.key)) for trial in self.trials)
        return [
            TrialRow(trial.axes, {**row.metrics, **self.also.get(trial.config.key, {})})
            if row.metrics
            else replace(row, axes=trial.axes)
            for trial, row in found
            if row is not None
        ]

    @property
    def exit_status(self) -> int:
        """0: all finished; 1: some failed or can't be run, or a report is missing; 3: storage took
        no more; 130: interrupted.
        """
        if self.interrupted:
            return 130
        return 3 if self.stopped or self.full else int(bool(self.failures or self.missing))


class Supply(Protocol):
    """Where trials come from that nobody could name when the sweep began."""

    @property
    def bases(self) -> Sequence[Trial]:
        """Trials on whose data, and with whose networks, all of its trials are run."""

    def take(self) -> Standing:
        """Return where the trials stand that have become due since it was asked last."""

    def ended(self, key: str, summary: Mapping[str, float]) -> None:
        """Take in that a trial ended: its final metrics, none where it failed."""

    def base_of(self, key: str) -> str:
        """Return the key of the base of one of its trials."""

    def goes_on(self, key: str) -> bool:
        """Return whether a trial may be gone on with for more rounds."""


@dataclass
class _Active:
    """A trial that runs now, or waits at a rung."""

    trial: Trial
    label: str
    checkpoints: CheckpointStore
    run: TrialRun | None = None
    deaths: int = 0
    round: int = -1  # last round that was shown
    rungs: Sequence[int] = ()  # rounds at which it has yet to wait
    lost: str = ""  # why it goes on no longer from a rung


_Events: TypeAlias = "ray.ObjectRefGenerator | Generator[TrialEvent, None, None]"
"""What a trial tells: references to its events, or, in this process, the events."""


@dataclass
class _Delayed:
    """A trial that died, and goes on as soon as a host answers."""

    active: _Active
    pings: list[ray.ObjectRef] = field(default_factory=list)
    until: float = field(default_factory=lambda: time.monotonic() + RETRY_WAIT_S)


@ray.remote(num_cpus=0, max_retries=0, scheduling_strategy="SPREAD")
def _trial_task(
    run: Callable[..., Iterator[TrialEvent]],
    config: SessionConfig,
    refs: list[ray.ObjectRef],
    hosts: list[Host],
    checkpoints: CheckpointStore,
    rungs: Sequence[int],
    lost: str,
    *values: object,
) -> Iterator[TrialEvent]:
    """Run a trial in a process of its own; a crash ends this process alone."""
    quiet()
    gc.freeze()  # what was imported is no garbage, which some of Flower's strategies collect often
    yield from run(config, *values, hosts, *refs, checkpoints, rungs, lost)


@ray.remote(num_cpus=0, max_retries=0, scheduling_strategy="SPREAD")
def _warm_task() -> None:
    """Have a trial's process pay for its imports before there is work."""
    import_trial()
    time.sleep(_STAY_S)


def import_trial() -> None:
    """Import what a trial would import in its first clustering round."""
    with lasting():
        import sklearn.cluster
        import sklearn.metrics  # noqa: F401


def warm_trials(count: int) -> None:
    """Have processes made ready for so many trials at once, and do not wait for them."""
    for _ in range(count):
        _warm_task.remote()


@dataclass
class Schedule:
    """Runs the trials that are left to run."""

    standing: Standing
    tracker: Tracker
    parent: SweepRun | None
    progress: TrialProgress
    outcome: Outcome
    prepared: Mapping[str, Ready]
    engine: Engine | None  # None: one trial after the other in this process
    interrupts: Interrupts
    halving: Halving
    parameters: Mapping[str, int]  # of each trial's network, by trial key
    kind: Kind = OURS
    supply: Supply | None = None
    waiting: dict[str, _Active] = field(default_factory=dict)  # at a rung, by trial key
    active: dict[_Events, _Active] = field(default_factory=dict)
    delayed: list[_Delayed] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)  # trial keys

    @property
    def hosts(self) -> list[Host] | None:
        """The client hosts there are now."""
        return self.engine.pool.hosts if self.engine else None

    def run(self, at_once: int) -> None:
        """Run all trials, ``at_once`` at a time.

        After an interrupt, running ones end with their round.
        """
        todo = self.standing.todo
        fresh = deque(self.kind.longest_first(todo, self.prepared, self.parameters))
        while True:
            if self.engine and self.engine.lost():
                self._restart(self.engine)
            self._go_on()
            fresh.extend(self._due())
            while (
                len(self.active) + len(self.delayed) < at_once
                and not self.interrupts.asked
                and (active := self._next_trial(fresh))
            ):
                self._launch(active)
            if not self.active and self.delayed and not self.interrupts.asked:
                time.sleep(WAIT_S)
                continue
            if not self.active:
                break
            for events in self._ready():
                self._take_event(events)
        self._interrupt_waiting()

    def _due(self) -> Sequence[Trial]:
        """Return the trials that have become due by what ended."""
        if self.supply is None or self.interrupts.asked:
            return ()
        more = self.supply.take()
        if more.todo:
            bases = {t.config.key: self.supply.base_of(t.config.key) for t in more.todo}
            self.standing = self.standing.joined(more)
            self.prepared = {**self.prepared, **{k: self.prepared[b] for k, b in bases.items()}}
            self.progress.more(len(more.todo), sum(t.config.rounds for t in more.todo))
        return more.todo

    def kill(self) -> None:
        """End running trials at once."""
        for events in list(self.active):
            self._interrupt(events)
        self._interrupt_waiting()

    def _interrupt_waiting(self) -> None:
        """Have trials that wait at a rung or for a host, after an interrupt, be interrupted too."""
        for active in [*self.waiting.values(), *(delayed.active for delayed in self.delayed)]:
            if active.run:
                active.run.killed()
            self.outcome.interrupted = True
        self.waiting.clear()
        self.delayed.clear()

    def _next_trial(self, fresh: deque[Trial]) -> _Active | None:
        """Return the trial that takes a free place: it leaves a rung, is new, or has lost."""
        if goes_on := self.halving.promote():
            active = self.waiting.pop(goes_on[0])
            active.rungs = goes_on[1]
            self.progress.line(f"{active.label}: among the best at round {active.round}, goes on")
            return active
        if fresh:
            trial = fresh.popleft()
            active = _Active(trial, trial.label, self.standing.checkpoints(trial))
            active.rungs = self.halving.rungs(trial.config.key)
            self.progress.started(trial.config.key, active.label, trial.config.rounds)
            return active
        if loser := self.halving.stop():
            active = self.waiting.pop(loser[0])
            active.rungs, active.lost = (loser[1],), loser[2]
            return active
        return None

    def _launch(self, active: _Active) -> None:
        config, values = active.trial.config, self.prepared[active.trial.config.key].values
        if self.hosts is None:
            events: _Events = self.kind.run(
                config,
                *values,
                checkpoints=active.checkpoints,
                rungs=active.rungs,
                lost=active.lost,
            )
        else:
            events = _trial_task.remote(
                self.kind.run,
                config,
                [*values],
                self.hosts,
                active.checkpoints,
                active.rungs,
                active.lost,
                *values,
            )
        self.active[events] = active

    def _restart(self, engine: Engine) -> None:
        """Start Ray again, and have the running trials go on there from their last checkpoints.

        That they died is not their fault, and counts as no retry.
        """
        running = [*self.active.values(), *(delayed.active for delayed in self.delayed)]
        self.active.clear()
        self.delayed.clear()
        # Until they run again: where Ray does not come back they end as interrupted.
        self.waiting |= {active.trial.config.key: active for active in running}
        if self.interrupts.asked:
            return
        engine.restart("its processes here died; running trials go on from their checkpoints")
        todo = [trial for trial in self.standing.todo if trial.config.key not in self.ended]
        todo += self.supply.bases if self.supply else ()

        def work(pool: HostPool) -> Mapping[str, Ready]:
            prepared = self.kind.prepare(todo, inline=False)
            pool.wait()
            return prepared

        self.prepared = engine.do(work)
        for active in running:
            del self.waiting[active.trial.config.key]
            self._launch(active)

    def _retry(self, active: _Active) -> None:
        """Launch a trial again once a host answers: before that a try would only be used up."""
        if self.hosts is None:
            self._launch(active)
        else:
            self.delayed.append(_Delayed(active))

    def _go_on(self) -> None:
        """Launch the trials that died and have a host that answers, or have waited long enough."""
        for delayed in list(self.delayed):
            ready, rest = [], delayed.pings
            if rest:
                ready, rest = ray.wait(rest, num_returns=len(rest), timeout=0)
            if any(_answered(ref) for ref in ready) or time.monotonic() > delayed.until:
                self.delayed.remove(delayed)
                self._launch(delayed.active)
            else:
                delayed.pings = rest or [host.actor.ping.remote() for host in self.hosts or ()]

    def _ready(self) -> list[_Events]:
        """Return the trials that have something to tell."""
        if self.hosts is None:
            return list(self.active)
        try:
            ready, _ = ray.wait(list(self.active), num_returns=1, timeout=WAIT_S, fetch_local=False)
        except RayError:
            if self.engine and self.engine.lost():
                return []
            raise
        return list(ready)

    def _take_event(self, events: _Events) -> None:
        """Take one event of a trial: log it, show it, or end the trial."""
        active = self.active[events]
        try:
            event = next(events)
            if self.hosts is not None:
                event = ray.get(event)
        except StopIteration:
            event = RunnerError("the trial ended without a result")
        except (
            RunnerError,
            RayError,
            Exception,
        ) as error:  # whatever a trial raises ends this trial alone
            event = error
        if isinstance(event, TrialStarted):
            self._started(active, event)
        elif isinstance(event, RoundRecord):
            self._take_round(events, event)
        elif isinstance(event, TrialPaused):
            active = self.active.pop(events)
            self.waiting[active.trial.config.key] = active
            self.halving.wait(active.trial.config.key, event.round)
        elif isinstance(event, TrialResult):
            self._finish_trial(events, event)
        else:
            self._died(events, event)

    def _started(self, active: _Active, event: TrialStarted) -> None:
        if event.first_round and event.first_round - 1 > active.round:
            active.round = event.first_round - 1
            self.progress.goes_on(active.trial.config.key, active.round)
        if active.run is not None and event.anew and active.round > 0:
            active.run.killed("it begins again, and may take another course")
            active.run, active.round = None, -1
        if active.run is None:
            active.run = self._open(active, event.anew)
            active.run.started(event)

    def _open(self, active: _Active, anew: bool = False) -> TrialRun:
        """Open the run of a trial: that of an earlier session, if it goes on with what is there."""
        trial = active.trial
        past = None if anew else self.standing.runs.get(trial.config.key)
        return self.tracker.start_trial(
            trial.config, trial.axes, trial.command, self.parent, past, trial.tags
        )

    def _take_round(self, events: _Events, record: RoundRecord) -> None:
        active = self.active[events]
        assert active.run
        active.run.round(record)
        if self.engine:
            self.engine.works()
        self.halving.record(active.trial.config.key, record)
        if record.round <= active.round:
            return  # it was shown before
        active.round = record.round
        self.progress.round(active.trial.config.key, record)
        config = active.trial.config
        if (
            self.interrupts.asked
            and record.round != config.rounds
            and record.round % config.checkpoint.every == 0
        ):
            self._interrupt(
                events
            )  # its checkpoint is written; what it has begun since is thrown away

    def _interrupt(self, events: _Events) -> None:
        active = self.active.pop(events)
        if self.hosts is None:
            events.close()
        else:
            ray.cancel(events)
        if active.run:
            active.run.killed()
        self.outcome.interrupted = True

    def _finish_trial(self, events: _Events, result: TrialResult) -> None:
        active = self.active[events]
        assert active.run
        active.run.finish(result)
        CATALOG.declare(result.declared)
        last = self.supply is not None and not self.supply.goes_on(active.trial.config.key)
        tidy = tidying(active.trial, active.checkpoints, last)
        self.tracker.writer.once_stored(active.run.token, tidy)
        self.outcome.add(active.trial, result.summary)
        self._end_trial(events, "FINISHED", result.stopped, result.summary)

    def _died(self, events: _Events, error: Exception) -> None:
        """Have a trial that died go on from its last checkpoint, or fail."""
        active = self.active[events]
        cause = getattr(error, "cause", None) or error
        notes = "\n".join(getattr(cause, "__notes__", ()))
        told = f"{''.join(traceback.format_exception(error))}\n{error}\n{notes}"
        place = own_place(told)
        reason = (
            str(cause)
            if isinstance(cause, RunnerError)
            else f"{place}: " * bool(place) + f"{type(cause).__name__}: {_last_line(cause)}"
        )
        retries = active.trial.config.resources.max_retries
        if self.engine and self.engine.lost() and not self.interrupts.asked:
            return  # all trials died: they go on together
        if self.interrupts.asked:
            self._interrupt(events)
        elif isinstance(cause, (CheckpointError, OutOfDiskError)) or no_room(cause):
            self._stop(events, reason)  # nothing is wrong with it, and a retry finds the same disk
        elif active.deaths < retries and not raised_by_own(told):  # who'd raise again
            active.deaths += 1
            self.progress.line(
                f"{active.label}: died, goes on (retry {active.deaths} of {retries}): {reason}"
            )
            self._retry(self.active.pop(events))
        else:
            trace = (
                f"{error}\n{notes}" if self.hosts else "".join(traceback.format_exception(error))
            )
            if (
                active.run is None
            ):  # it died before its first word: the run is made all the same, to keep the reason
                active.run = self._open(active)
            active.run.fail(reason, trace)
            self.outcome.add(active.trial, {})
            self.outcome.failures.append((active.label, reason))
            self._end_trial(events, "FAILED", reason)

    def _stop(self, events: _Events, reason: str) -> None:
        """End a trial whose storage took no more, so that the next session goes on with it."""
        active = self.active[events]
        if active.run is None:
            active.run = self._open(active)
        active.run.killed(reason)
        self.outcome.stopped.append((active.label, reason))
        self._end_trial(events, "KILLED", reason)

    def _end_trial(
        self, events: _Events, status: str, reason: str, summary: Mapping[str, float] | None = None
    ) -> None:
        key = self.active.pop(events).trial.config.key
        self.ended.add(key)
        self.halving.end(key, status != "FINISHED")
        if self.supply and status in ("FINISHED", "FAILED"):
            self.supply.ended(key, summary or {})
        self.progress.ended(key, status, reason, summary)


def _answered(ping: ray.ObjectRef) -> bool:
    try:
        ray.get(ping)
    except RayError:
        return False
    return True


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else "no message"
