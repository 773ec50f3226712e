"""The sweep engine: several trials at once over one pool of hosts; whatever happens in one trial stays in it."""

import hashlib
import logging
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError
from rich.console import Console

from runner.compose import Trial
from runner.config import ResourcesConfig, TrialConfig
from runner.engine.executors import Host
from runner.engine.pool import HostPool, ray_session
from runner.errors import RunnerError
from runner.prepare import Prepared, prepare, prepare_inline
from runner.progress import TrialProgress
from runner.records import RoundRecord, TrialResult, TrialStarted
from runner.report import METRICS, markdown_table, report, results_table
from runner.tracking import SweepRun, Tracker, TrialRun
from runner.tracking.read import read_sweep
from runner.trial import TrialEvent, run_trial

MAX_TRIALS = 8
"""Trials that ``resources.trials=auto`` runs at once at most: each is a process of some hundred megabytes."""


@dataclass(frozen=True)
class SweepPlan:
    """What to run: the trials, and how to call the whole."""

    name: str | None  # None: a single trial without a parent run
    description: str
    command: str
    trials: Sequence[Trial]


@dataclass
class Outcome:
    """What became of the trials."""

    rows: list[dict[str, Any]] = field(default_factory=list)  # one per finished trial: axes, final metrics, wall_s
    failures: list[tuple[str, str]] = field(default_factory=list)  # (trial, reason)
    report: dict[str, str | bytes] = field(default_factory=dict)  # its files, as on the sweep's run
    interrupted: bool = False

    @property
    def exit_status(self) -> int:
        """0: all finished; 1: some failed; 130: interrupted."""
        return 130 if self.interrupted else 1 if self.failures else 0


def run_sweep(plan: SweepPlan, console: Console) -> tuple[Outcome, Tracker]:
    """Run every trial of a plan and log it; return what became of them.

    Raises
    ------
    RunnerError
        Bad input that shows before the first trial starts: no run is made then.
    """
    first = plan.trials[0].config
    outcome = Outcome()
    quiet_flower()
    with ExitStack() as stack:
        opening = stack.enter_context(ThreadPoolExecutor(1)).submit(Tracker, first.tracking)
        if first.resources.engine == "inline":
            prepared = prepare_inline(plan.trials)
            hosts = None
        else:
            stack.enter_context(ray_session(first.resources.address))
            pool = HostPool(first.resources)
            stack.callback(pool.close)
            hosts = pool.hosts
            prepared = prepare(plan.trials)
            pool.warm()
        tracker = opening.result()
        with tracker, TrialProgress(console, len(plan.trials)) as progress:
            parent = _start_sweep(plan, tracker) if plan.name else None
            sweep = _Sweep(plan, tracker, parent, progress, outcome, prepared, hosts)
            try:
                sweep.run(_trials_at_once(first.resources, hosts))
            except KeyboardInterrupt:
                outcome.interrupted = True
                progress.line("interrupted: running trials are marked KILLED")
                sweep.kill()
            if parent and outcome.interrupted:
                parent.killed()
            elif parent:
                summary, outcome.report = _report(tracker, parent, outcome)
                parent.finish(summary, outcome.report, len(outcome.failures))
    return outcome, tracker


def _report(tracker: Tracker, parent: SweepRun, outcome: Outcome) -> tuple[str, dict[str, str | bytes]]:
    """Return the results as Markdown and the report's files, those where the store has all trials by now."""
    if not any("wall_s" in row for row in outcome.rows):
        return "", {}
    summary = markdown_table(results_table(outcome.rows))
    if not tracker.writer.settle():
        return summary, {}
    return summary, report(read_sweep(tracker.store, parent.run_id))


def _start_sweep(plan: SweepPlan, tracker: Tracker) -> SweepRun:
    assert plan.name
    axes: dict[str, list[str]] = {}
    for trial in plan.trials:
        for key, value in trial.axes.items():
            axes.setdefault(key, []).append(value)
    params = {key: ",".join(dict.fromkeys(values)) for key, values in axes.items()}
    key = hashlib.sha256(" ".join(trial.config.key for trial in plan.trials).encode()).hexdigest()[:12]
    return tracker.start_sweep(plan.name, key, plan.description, params, plan.command)


def _trials_at_once(resources: ResourcesConfig, hosts: list[Host] | None) -> int:
    if isinstance(resources.trials, int):
        return resources.trials
    return 1 if hosts is None else min(len(hosts) + 1, MAX_TRIALS)


def quiet_flower() -> None:
    """Leave out what Flower logs about each message; its warnings stay."""
    logging.getLogger("flwr").setLevel(logging.WARNING)


@ray.remote(num_cpus=0, max_retries=0)
def _trial_task(
    config: TrialConfig, images: Any, split: Any, refs: list[Any], hosts: list[Host]
) -> Iterator[TrialEvent]:
    """Run a trial in a process of its own; a crash ends this trial alone."""
    quiet_flower()
    yield from run_trial(config, images, split, hosts, *refs)


@dataclass
class _Active:
    trial: Trial
    label: str
    started: float
    run: TrialRun | None = None


@dataclass
class _Sweep:
    """The state of a running sweep."""

    plan: SweepPlan
    tracker: Tracker
    parent: SweepRun | None
    progress: TrialProgress
    outcome: Outcome
    prepared: dict[str, Prepared]
    hosts: list[Host] | None
    active: dict[Any, _Active] = field(default_factory=dict)

    def run(self, at_once: int) -> None:
        """Run all trials, ``at_once`` at a time."""
        waiting = deque(self.plan.trials)
        while waiting or self.active:
            while waiting and len(self.active) < at_once:
                self._start(waiting.popleft())
            for events in self._ready():
                self._take(events)

    def kill(self) -> None:
        """Stop running trials and mark their runs."""
        for events, active in self.active.items():
            if self.hosts is not None:
                ray.cancel(events)
            if active.run:
                active.run.killed()
        self.active.clear()

    def _start(self, trial: Trial) -> None:
        config, data = trial.config, self.prepared[trial.config.key]
        label = " ".join(f"{key}={value}" for key, value in trial.axes.items()) or config.strategy.name
        if self.hosts is None:
            events: Any = run_trial(config, data.images, data.split)
        else:
            events = _trial_task.remote(config, data.images, data.split, [data.images, data.split], self.hosts)
        self.active[events] = _Active(trial, label, time.monotonic())
        self.progress.started(label, config.rounds)

    def _ready(self) -> list[Any]:
        """Return the trials that have something to tell; a short timeout lets Ctrl-C through."""
        if self.hosts is None:
            return list(self.active)
        ready, _ = ray.wait(list(self.active), num_returns=1, timeout=0.5, fetch_local=False)
        return list(ready)

    def _take(self, events: Any) -> None:
        """Take one event of a trial: log it, show it, or end the trial."""
        active = self.active[events]
        try:
            event = next(events)
            if self.hosts is not None:
                event = ray.get(event)
        except StopIteration:
            event = RunnerError("the trial ended without a result")
        except (RunnerError, RayError, Exception) as error:  # whatever a trial raises ends this trial alone
            event = error
        if isinstance(event, TrialStarted):
            trial = active.trial
            active.run = self.tracker.start_trial(trial.config, trial.axes, trial.command, self.parent)
            active.run.started(event)
        elif isinstance(event, RoundRecord):
            assert active.run
            active.run.round(event)
            self.progress.round(active.label, event)
        elif isinstance(event, TrialResult):
            assert active.run
            wall_s = time.monotonic() - active.started
            result = replace(event, summary={**event.summary, "wall_s": wall_s})
            active.run.finish(result)
            shown = {key: value for key, value in result.summary.items() if key in METRICS}
            self.outcome.rows.append({**active.trial.axes, **shown})
            self._end(events, "FINISHED")
        else:
            self._fail(events, event)

    def _fail(self, events: Any, error: Exception) -> None:
        active = self.active[events]
        cause = getattr(error, "cause", None) or error
        reason = str(cause) if isinstance(cause, RunnerError) else f"{type(cause).__name__}: {_last_line(cause)}"
        notes = "\n".join(getattr(cause, "__notes__", ()))
        if active.run is None:  # it failed before its first word: the run is made all the same, to keep the reason
            active.run = self.tracker.start_trial(
                active.trial.config, active.trial.axes, active.trial.command, self.parent
            )
        self.outcome.rows.append(dict(active.trial.axes))
        active.run.fail(reason, f"{error}\n{notes}" if self.hosts else "".join(traceback.format_exception(error)))
        self.outcome.failures.append((active.label, reason))
        self._end(events, f"FAILED: {reason}")

    def _end(self, events: Any, status: str) -> None:
        self.progress.finished(self.active.pop(events).label, status)


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else "no message"
