"""The sweep engine: what is left of a grid is run over one pool of hosts, and everything is logged once."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain

from runner.checkpoint import open_storage
from runner.compose import Trial
from runner.config import ResourcesConfig
from runner.engine.executors import Host
from runner.engine.pool import HostPool, ray_session
from runner.halving import Halving
from runner.interrupts import Interrupts
from runner.prepare import check_models, prepare, prepare_inline
from runner.progress import TrialProgress
from runner.report import METRICS, markdown_table, report, results_table
from runner.resume import Restart, Standing, check_nodes, look_back, storage_of, sweep_key
from runner.schedule import Outcome, Schedule, trial_label, warm_trials
from runner.tracking import SweepRun, Tracker
from runner.tracking.past import adopt, history
from runner.tracking.read import read_sweep
from runner.tracking.store import tracking_uri
from runner.trial import quiet_flower
from runner.views import View

MAX_TRIALS = 8
"""Trials that ``resources.trials=auto`` runs at once at most: each is a process of some hundred megabytes."""


@dataclass(frozen=True)
class SweepPlan:
    """What to run: the trials, and how to call the whole."""

    name: str | None  # None: a single trial without a parent run
    description: str
    command: str
    trials: Sequence[Trial]
    restart: Restart = field(default_factory=Restart)


def run_sweep(plan: SweepPlan, view: View) -> tuple[Outcome, Tracker]:
    """Run every trial of a plan that has not been run yet, log it and show it; return what became of all.

    Raises
    ------
    RunnerError
        Bad input that shows before the first trial starts: no run is made then.
    """
    first = plan.trials[0].config
    outcome = Outcome()
    quiet_flower()
    with ExitStack() as stack:
        progress = stack.enter_context(TrialProgress(view))
        was_run = _was_run(plan)
        opening = stack.enter_context(ThreadPoolExecutor(1)).submit(_open, plan)
        if was_run:  # maybe nothing is left: whether Ray has to start shows first
            _, standing = opening.result()
            pool = _start_pool(first.resources, len(standing.todo), stack) if standing.todo else None
        else:
            pool = _start_pool(first.resources, len(plan.trials), stack)
        tracker, standing = opening.result()
        with tracker:
            tracker.tags["cluster"] = pool.describe() if pool else "none: everything ran in the driver's process"
            _recall(standing, outcome, progress)
            if not standing.todo and (not standing.sweep or standing.sweep.status in ("FINISHED", "FAILED")):
                return outcome, tracker
            if pool is None:
                prepared = prepare_inline(standing.todo)
            else:
                check_nodes(standing.storage)
                prepared = prepare(standing.todo)
                pool.wait()
            for told in dict.fromkeys(data.told for data in prepared.values()):
                progress.line(told)
            hosts = pool.hosts if pool else None
            parameters = check_models(standing.todo, prepared, hosts)
            halving = Halving(
                first.halving, plan.trials, {trial.config.key for trial in standing.todo}, _history(tracker, standing)
            )
            rounds = sum(trial.config.rounds for trial in standing.todo)
            progress.begin(plan.name, len(standing.todo), rounds, tracker.tags["cluster"], tracker.uri)
            parent = _start_sweep(plan, tracker, standing) if plan.name else None

            def tell() -> None:
                progress.line("interrupted: running trials end after their round; once more ends them at once", True)

            with Interrupts(tell) as interrupts:
                schedule = Schedule(
                    standing, tracker, parent, progress, outcome, prepared, hosts, interrupts, halving, parameters
                )
                try:
                    schedule.run(_trials_at_once(first.resources, hosts))
                except KeyboardInterrupt:
                    outcome.interrupted = True
                    schedule.kill()
                outcome.interrupted |= interrupts.asked and len(outcome.rows) < len(plan.trials)
                _end_sweep(plan, tracker, parent, outcome, progress)
    return outcome, tracker


def _was_run(plan: SweepPlan) -> bool:
    """Return whether a sweep may have been run to its end before."""
    first = plan.trials[0].config
    if plan.name is None or plan.restart.fresh:
        return False
    fs, path = open_storage(storage_of(first, tracking_uri(first.tracking), plan.name))
    return bool(fs.exists(path))


def _start_pool(resources: ResourcesConfig, trials: int, stack: ExitStack) -> HostPool | None:
    if resources.engine != "ray":
        return None
    stack.enter_context(ray_session(resources.address))
    pool = HostPool(resources)
    pool.warm()
    stack.callback(pool.close)
    warm_trials(min(_trials_at_once(resources, pool.hosts) + 1, trials))  # a trial begins while the one before it ends
    return pool


def _history(tracker: Tracker, standing: Standing) -> dict[str, dict[int, float]]:
    """Return the metric that halving compares, as earlier sessions logged it: trial key -> round -> value."""
    config = next(iter(standing.todo)).config.halving if standing.todo else None
    if config is None or not config.axis:
        return {}
    runs = {**standing.runs, **{trial.config.key: run for trial, run in standing.done}}
    return {key: history(tracker.store, run, config.metric) for key, run in runs.items() if run.status != "FAILED"}


def _open(plan: SweepPlan) -> tuple[Tracker, Standing]:
    """Open the store and see where the sweep stands, while Ray starts."""
    tracker = Tracker(plan.trials[0].config.tracking)
    try:
        return tracker, look_back(plan.name, plan.trials, plan.restart, tracker)
    except BaseException:
        tracker.close()
        raise


def _recall(standing: Standing, outcome: Outcome, progress: TrialProgress) -> None:
    """Take the results of trials that were run before, and say so."""
    for trial, run in standing.done:
        outcome.rows.append({**trial.axes, **{k: v for k, v in run.summary.items() if k in METRICS}})
    for trial, run in standing.failed:
        outcome.rows.append(dict(trial.axes))
        outcome.failures.append(
            (trial_label(trial), f"{run.reason} (in an earlier session; --retry-failed tries it again)")
        )
    for note in standing.notes:
        progress.line(note)
    if standing.done or standing.failed:
        done, failed, todo = len(standing.done), len(standing.failed), len(standing.todo)
        progress.line(f"run before: {done} finished, {failed} failed; {todo} to run")


def _report(tracker: Tracker, parent: SweepRun, outcome: Outcome) -> tuple[str, dict[str, str | bytes]]:
    """Return the results as Markdown and the report's files, those where the store has all trials by now."""
    if not any("wall_s" in row for row in outcome.rows):
        return "", {}
    summary = markdown_table(results_table(outcome.rows))
    if not tracker.writer.settle():
        return summary, {}
    return summary, report(read_sweep(tracker.store, parent.run_id))


def _start_sweep(plan: SweepPlan, tracker: Tracker, standing: Standing) -> SweepRun:
    assert plan.name
    axes: dict[str, list[str]] = {}
    for trial in plan.trials:
        for key, value in trial.axes.items():
            axes.setdefault(key, []).append(value)
    params = {key: ",".join(dict.fromkeys(values)) for key, values in axes.items()}
    parent = tracker.start_sweep(
        plan.name, sweep_key(plan.trials), plan.description, params, plan.command, standing.sweep
    )
    before = [run for _, run in chain(standing.done, standing.failed)]
    adopt(tracker.store, parent.run_id, [*before, *standing.runs.values()])
    return parent


def _end_sweep(
    plan: SweepPlan, tracker: Tracker, parent: SweepRun | None, outcome: Outcome, progress: TrialProgress
) -> None:
    if outcome.interrupted:
        ended = len(outcome.rows)
        progress.line(
            f"interrupted: {ended} of {len(plan.trials)} trials ended; to go on, run the same command again:", True
        )
        progress.line(f"  {plan.command}", True)
        if parent:
            parent.killed()
    elif parent:
        summary, outcome.report = _report(tracker, parent, outcome)
        parent.finish(summary, outcome.report, len(outcome.failures))


def _trials_at_once(resources: ResourcesConfig, hosts: list[Host] | None) -> int:
    if isinstance(resources.trials, int):
        return resources.trials
    return 1 if hosts is None else min(len(hosts) + 1, MAX_TRIALS)
