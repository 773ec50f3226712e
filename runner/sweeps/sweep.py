"""The sweep engine: what is left of a grid, over one pool of hosts, everything logged once."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

from fedsweep.catalog import CATALOG
from fedsweep.config import ResourcesConfig, SessionConfig, TrialConfig
from fedsweep.engine.engine import Engine
from fedsweep.engine.executors import Host
from fedsweep.engine.flower import quiet
from fedsweep.engine.pool import HostPool
from fedsweep.errors import ResourceError, RunnerError, first_of, one_line
from fedsweep.escape import command
from fedsweep.report.layout import texts
from fedsweep.report.report import Report, report
from fedsweep.report.results import best_means, results_table
from fedsweep.report.text import markdown
from fedsweep.sweeps.compose import Trial
from fedsweep.sweeps.halving import Halving
from fedsweep.sweeps.interrupts import Interrupts
from fedsweep.sweeps.kinds import OURS, Kind, Ready
from fedsweep.sweeps.progress import TrialProgress
from fedsweep.sweeps.resume import (
    Restart,
    Standing,
    check_nodes,
    look_again,
    look_back,
    only_driver,
    only_driver_of_store,
    storage_of,
    sweep_key,
)
from fedsweep.sweeps.schedule import Outcome, Schedule, import_trial, warm_trials
from fedsweep.sweeps.searching import Searching, SearchPlan
from fedsweep.sweeps.views import View
from fedsweep.sweeps.words import store_words
from fedsweep.tracking import SweepRun, Tracker
from fedsweep.tracking.imports import import_all
from fedsweep.tracking.past import PastRun, adopt, history, past_contents, redeclare
from fedsweep.tracking.read import axes_of, read_sweep, report_folder
from fedsweep.tracking.store import tracking_uri
from fedsweep.trial.checkpoint import CheckpointStore, open_storage

_log = logging.getLogger("fedsweep.sweeps")

MAX_TRIALS = 8
"""Trials at once at most under ``resources.trials=auto``: each takes some hundred megabytes."""


@dataclass(frozen=True)
class SweepPlan:
    """What to run: the trials, and how to call the whole."""

    name: str | None  # None: a single trial without a parent run
    description: str
    command: str
    trials: Sequence[Trial]
    restart: Restart = field(default_factory=Restart)
    kind: Kind = OURS
    search: SearchPlan | None = None

    @property
    def key(self) -> str:
        """The identity of the sweep."""
        return sweep_key(self.trials, self.search.key if self.search else "")

    @property
    def session(self) -> SessionConfig:
        """What its trials are run with; at most the data of each lie elsewhere."""
        return self.trials[0].config


def run_sweep(plan: SweepPlan, view: View) -> tuple[Outcome, Tracker]:
    """Run every trial of a plan that has not been run yet, log it and show it;
    return what became of all.

    Raises
    ------
    RunnerError
        Bad input that shows before the first trial starts: no run is made then.
    """
    first, session = plan.trials[0].config, plan.session
    outcome = Outcome(plan.trials, searching=plan.search is not None)
    quiet()
    with ExitStack() as stack:
        progress = stack.enter_context(TrialProgress(view))
        stack.enter_context(only_driver(plan.name, first))

        # What is left of it: maybe nothing to start Ray for. Else hosts come up meanwhile.
        opened = _open(plan, stack) if _was_run(plan) else None
        trials = len(opened[1].todo if opened else plan.trials)
        engine = _start_engine(plan, trials, stack, progress) if trials else None
        tracker, standing = opened or _open(plan, stack)  # while the hosts come up
        with tracker:
            # What is said before the first trial.
            where = (
                engine.pool.describe() if engine else "none: everything ran in the driver's process"
            )
            tracker.tags["cluster"] = where
            tracker.writer.tell = progress.line
            searching = _searching(plan, tracker, standing, outcome, progress)
            remarks = [
                *plan.kind.remarks(plan.trials),
                *(plan.search.remarks() if plan.search else ()),
            ]
            for remark in remarks:
                progress.remark(remark)
            with tracker.asked():
                standing, anew = _shown_now(plan, tracker, standing, progress)
            _take_back(standing, outcome)
            if searching:
                standing = standing.joined(searching.take())
            _recall(standing, progress)
            if not standing.todo and not anew and not _unfinished(standing.sweep):
                _conclude(plan, searching, outcome)
                outcome.folder = _report_there(plan, standing)
                return outcome, tracker

            # The data, the networks and the race, all checked before a run is made.
            bases = searching.bases if searching else ()
            prepared, parameters = _make_ready(plan, engine, standing, bases)
            for told in dict.fromkeys(data.told for data in prepared.values()):
                progress.line(told)
            with tracker.asked():
                logged = _history(tracker, standing)
            halving = Halving(
                first.halving,
                plan.trials,
                {trial.config.key for trial in standing.todo},
                logged,
            )

            # The trials.
            rounds = sum(trial.config.rounds for trial in standing.todo)
            progress.begin(
                plan.name, len(standing.todo), rounds, tracker.tags["cluster"], tracker.uri
            )
            parent = _start_sweep(plan, tracker, standing) if plan.name else None

            def tell() -> None:
                progress.line(
                    "interrupted: running trials end after their round; once more ends them at "
                    "once",
                    True,
                )

            with Interrupts(tell) as interrupts:
                schedule = Schedule(
                    standing,
                    tracker,
                    parent,
                    progress,
                    outcome,
                    prepared,
                    engine,
                    interrupts,
                    halving,
                    parameters,
                    plan.kind,
                    searching,
                )
                try:
                    schedule.run(
                        _trials_at_once(session.resources, engine.pool.hosts if engine else None)
                    )
                except KeyboardInterrupt:
                    outcome.interrupted = True
                    schedule.kill()
                except ResourceError as error:  # what has ended is kept, the rest is for later
                    outcome.broken = str(error)
                    outcome.missing = f"trials that did not end: {error}"
                    schedule.kill()
                    outcome.interrupted = False  # by nobody
                whole = (
                    len(outcome.rows) == len(plan.trials) if not searching else searching.finished
                )
                outcome.interrupted |= interrupts.asked and not whole
                if searching and whole and not outcome.stopped:
                    _conclude(plan, searching, outcome, parent)
                _end_sweep(plan, tracker, parent, outcome, progress)
                if searching and parent and whole:
                    rungs = [schedule.standing.checkpoints(trial) for trial in searching.rungs]
                    tracker.writer.once_stored(parent.token, partial(_remove, rungs))
    _add_losses(tracker, outcome)
    return outcome, tracker


def _add_losses(tracker: Tracker, outcome: Outcome) -> None:
    """Say which runs are not whole in the store, once everything is written that can be."""
    outcome.full = tracker.full
    lost = [f"'{name}' ({reason})" for name, reason in tracker.lost.items()]
    if not lost:
        return
    told = (
        f"not whole in the store: {first_of(lost, 3)}; "
        "the same command, run again, makes them good from their checkpoints"
    )
    outcome.missing = "; ".join(filter(None, [outcome.missing, told]))


def _unfinished(sweep: PastRun | None) -> bool:
    """Return whether the run of a sweep with nothing left to run lacks its end, or its report."""
    return sweep is not None and (sweep.status not in ("FINISHED", "FAILED") or not sweep.reported)


def _report_there(plan: SweepPlan, standing: Standing) -> Path | None:
    """Return the folder of the report that an earlier session wrote, if it is still there."""
    if plan.name is None or standing.sweep is None:
        return None
    folder = report_folder(plan.session.tracking, plan.name, standing.sweep.run_id)
    return folder if folder.is_dir() else None


def _was_run(plan: SweepPlan) -> bool:
    """Return whether a sweep may have been run to its end before."""
    session = plan.session
    if plan.name is None or plan.restart.fresh:
        return False
    fs, path = open_storage(storage_of(session, tracking_uri(session.tracking), plan.name))
    return bool(fs.exists(path))


def _searching(
    plan: SweepPlan,
    tracker: Tracker,
    standing: Standing,
    outcome: Outcome,
    progress: TrialProgress,
) -> Searching | None:
    """Return the searches of a sweep, if it has any, with what is known of the grid's trials."""
    if plan.search is None:
        return None
    name, storage = plan.name, standing.storage
    assert name is not None

    with tracker.asked():
        before = past_contents(tracker.store, name)

    def look(trials: Sequence[Trial]) -> Standing:
        found = look_again(name, trials, plan.restart, before, storage)
        _take_back(found, outcome)
        return found

    searching = Searching(plan.search, look, progress.line)
    for trial, run in standing.done:
        searching.ended(trial.config.key, run.summary)
    for trial, _ in standing.failed:
        searching.ended(trial.config.key, {})
    return searching


def _conclude(
    plan: SweepPlan,
    searching: Searching | None,
    outcome: Outcome,
    parent: SweepRun | None = None,
) -> None:
    """Have the winners of a search stand in the place of the grid's trials."""
    if searching is None:
        return
    outcome.searching = False
    outcome.trials = searching.reported(plan.trials)
    outcome.also = searching.also()
    if parent is not None:
        places = {trial.config.key: trial.axes for trial in outcome.trials}
        parent.searched(places, outcome.also, searching.story().to_json())


def _remove(checkpoints: Sequence[CheckpointStore]) -> None:
    for of in checkpoints:
        of.remove()


def _start_engine(
    plan: SweepPlan, trials: int, stack: ExitStack, progress: TrialProgress
) -> Engine | None:
    resources = plan.session.resources
    if resources.engine != "ray":
        return None

    def warm(pool: HostPool) -> None:
        pool.warm(plan.kind.client_app)
        at_once = _trials_at_once(resources, pool.hosts)
        warm_trials(min(at_once + 1, trials))  # a trial begins while the one before it ends

    # The first word of many seconds: half a minute where the machine is busy.
    progress.line(f"sweep '{plan.name}': waiting for Ray" if plan.name else "waiting for Ray")
    engine = Engine(resources, warm, progress.line)
    stack.callback(engine.close)
    return engine


def _make_ready(
    plan: SweepPlan, engine: Engine | None, standing: Standing, bases: Sequence[Trial] = ()
) -> tuple[Mapping[str, Ready], Mapping[str, int]]:
    """Return what each trial is run on and its network's number of parameters, once the hosts are
    up.

    Meanwhile all is imported that the sweep needs here: from then on threads work side by side.
    """
    kind, tracking = plan.kind, plan.session.tracking
    todo = [*standing.todo, *bases]
    configs = [trial.config for trial in todo if isinstance(trial.config, TrialConfig)]
    if engine is None:
        import_all(tracking, configs)
        import_trial()
        prepared = kind.prepare(todo, inline=True)
        return prepared, kind.parameters(todo, prepared, None)

    def work(pool: HostPool) -> tuple[Mapping[str, Ready], Mapping[str, int]]:
        check_nodes(standing.storage)
        prepared = kind.prepare(todo, inline=False)
        import_all(tracking, configs)
        pool.wait()
        return prepared, kind.parameters(todo, prepared, pool.hosts)

    return engine.do(work)


def _history(tracker: Tracker, standing: Standing) -> dict[str, dict[int, float]]:
    """Return the halving's metric as earlier sessions logged it: trial key -> round -> value."""
    config = next(iter(standing.todo)).config.halving if standing.todo else None
    if config is None or not config.axis:
        return {}
    runs = {**standing.runs, **{trial.config.key: run for trial, run in standing.done}}
    return {
        key: history(tracker.store, run, config.metric)
        for key, run in runs.items()
        if run.status != "FAILED"
    }


def _open(plan: SweepPlan, stack: ExitStack) -> tuple[Tracker, Standing]:
    """Open the store, be the only one who runs this sweep there, and see where it stands."""
    first = plan.trials[0].config
    tracker = Tracker(plan.session.tracking)
    try:
        stack.enter_context(only_driver_of_store(tracker.store, plan.name, first, plan.restart))
        with tracker.asked():
            return tracker, look_back(plan.name, plan.trials, plan.restart, tracker, plan.key)
    except BaseException:
        tracker.close()
        raise


def _shown_now(
    plan: SweepPlan, tracker: Tracker, standing: Standing, progress: TrialProgress
) -> tuple[Standing, bool]:
    """Have what was run before be shown as this session says.

    Returns
    -------
    Standing
        Where the sweep stands, its trials as they are shown now.
    bool
        Whether the report that there may be shows them otherwise.
    """
    runs = [run for _, run in standing.done]
    declared, said = plan.kind.recalled([run.declared for run in runs])
    for told in said:
        progress.line(told)
    now = [
        run if run.declared == told else redeclare(tracker.store, run, told)
        for run, told in zip(runs, declared, strict=True)
    ]
    done = [(trial, run) for (trial, _), run in zip(standing.done, now, strict=True)]
    anew = now != runs
    if standing.sweep is not None and not standing.todo and plan.search is None:
        axes = axes_of(tracker.store, standing.sweep.run_id)
        anew |= axes not in (None, plan.trials[0].grid)
    return replace(standing, done=done), anew


def _take_back(standing: Standing, outcome: Outcome) -> None:
    """Take the results of trials that were run before."""
    for trial, run in standing.done:
        CATALOG.declare(run.declared)
        outcome.add(trial, run.summary)
    for trial, run in standing.failed:
        outcome.add(trial, {})
        outcome.failures.append(
            (trial.label, f"{run.reason} (in an earlier session; --retry-failed tries it again)")
        )


def _recall(standing: Standing, progress: TrialProgress) -> None:
    """Say what was run before."""
    for note in standing.notes:
        progress.line(note)
    if standing.done or standing.failed:
        done, failed, todo = len(standing.done), len(standing.failed), len(standing.todo)
        progress.line(f"run before: {done} finished, {failed} failed; {todo} to run")


def _report(tracker: Tracker, parent: SweepRun, outcome: Outcome) -> str:
    """Make a sweep's report, or say why there is none; return the table as Markdown."""
    if not any(row.metrics for row in outcome.rows):
        return ""
    reason = ""
    if not tracker.writer.settle():
        reason = f"MLflow did not answer, {tracker.writer.waiting} events are not in the store yet"
    else:
        try:
            made = report(read_sweep(tracker.store, parent.run_id))
            outcome.report = made.files
            outcome.folder = _written(made, tracker, parent)
        except Exception as error:  # whatever the store or a figure said: the sweep is whole
            _log.debug("no report", exc_info=error)
            reason = one_line(error)
    if reason:
        words = store_words(tracker.cfg)
        again = command(["fedsweep", "report", parent.name, *words])
        if tracker.writer.waiting:
            again = f"{command(['fedsweep', 'flush', *words])} && {again}"
        outcome.missing = (
            f"the report of sweep '{parent.name}' is missing: {reason}; make it with: {again}"
        )
    try:
        return markdown(texts(results_table(outcome.rows, axes=outcome.axes)))
    except Exception:  # of the same cause as above, and told there
        _log.debug("no table", exc_info=True)
        return ""


def _written(made: Report, tracker: Tracker, parent: SweepRun) -> Path | None:
    """Write a report beside the store, too; where that can't be, the store has it all the same."""
    try:
        folder = report_folder(tracker.cfg, parent.name, parent.run_id)
        made.write(folder)
    except RunnerError as error:
        _log.warning("%s", error)
        return None
    return folder


def _start_sweep(plan: SweepPlan, tracker: Tracker, standing: Standing) -> SweepRun:
    assert plan.name
    axes: dict[str, list[str]] = {}
    for trial in plan.trials:
        for key, value in trial.axes.items():
            axes.setdefault(key, []).append(value)
    params = {key: ",".join(dict.fromkeys(axes[key])) for key in plan.trials[0].grid}
    places = {trial.config.key: trial.axes for trial in plan.trials}
    parent = tracker.start_sweep(
        plan.name,
        plan.key,
        plan.description,
        params,
        plan.command,
        standing.sweep,
        places,
        plan.search.told if plan.search else None,
    )
    before = [run for _, run in chain(standing.done, standing.failed)]
    if taken := [*before, *standing.runs.values()]:  # else nobody waits for the store
        with tracker.asked():
            adopt(tracker.store, parent.run_id, taken)
    return parent


def _end_sweep(
    plan: SweepPlan,
    tracker: Tracker,
    parent: SweepRun | None,
    outcome: Outcome,
    progress: TrialProgress,
) -> None:
    if outcome.interrupted or outcome.stopped or outcome.broken:
        why = "interrupted" if outcome.interrupted else "stopped"
        mend = "mend the storage and " if outcome.stopped else ""
        ended = f"{len(outcome.rows)} of {len(plan.trials)} trials ended"
        if plan.search:
            ended = f"{len(outcome.ended)} trials ended, and the search did not"
        progress.line(f"{why}: {ended}; to go on, {mend}run the same command again:", True)
        progress.line(f"  {plan.command}", True)
        if parent:
            parent.killed()
    elif parent:
        summary = _report(tracker, parent, outcome)
        best = best_means(results_table(outcome.rows, axes=outcome.axes)) if summary else {}
        parent.finish(summary, outcome.report, len(outcome.failures), outcome.missing, best)


def _trials_at_once(resources: ResourcesConfig, hosts: list[Host] | None) -> int:
    if isinstance(resources.trials, int):
        return resources.trials
    return 1 if hosts is None else min(len(hosts) + 1, MAX_TRIALS)
