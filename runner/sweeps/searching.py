"""Searches of a sweep: for each method of its grid one, whose runs are ordinary trials.

The grid's own trials are the methods at their default settings, on the seeds that are reported.
What a search asks for (:mod:`fedsweep.search.course`) is run on other seeds; its winner then runs
on the grid's. All of them are found again by their keys, so nothing of a search has to be kept.
"""

import json
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from math import inf, isfinite

from fedsweep.catalog import CATALOG
from fedsweep.config import RunConfig, SessionConfig
from fedsweep.config.section import flat, short_names
from fedsweep.errors import ConfigError, shown, unknown
from fedsweep.records import Json
from fedsweep.report.results import SEED
from fedsweep.report.searched import Searched, TriedHere, Tuning
from fedsweep.search.course import FAILED, Ask, Course, Heard, Tried
from fedsweep.search.proposer import grid_of, import_parts, importances
from fedsweep.search.settings import CLIENT_ROUNDS, SearchConfig
from fedsweep.search.space import Numbers, Range, Value, suggested
from fedsweep.strategies.settings import FedAvgSettings
from fedsweep.sweeps.compose import SEARCH, Trial, applies, changed, check_known, groups, validated
from fedsweep.sweeps.resume import Standing

_ELSEWHERE = (
    "seed", "rounds", "metrics", "stop", "halving",
    "privacy.noise_multiplier", "privacy.target_epsilon", "privacy.delta",
)  # fmt: skip
"""Settings that say how trials are run and measured, and are no way to solve a problem."""


@dataclass(frozen=True)
class Subject:
    """A method in a problem, as the grid has it: what one search is of.

    Parameters
    ----------
    place : mapping
        Its values of the axes, by full key, without the seed.
    trials : tuple of Trial
        At its default settings, one for each fresh seed.
    space : mapping
        Full key -> range, of the settings that have an effect there.
    """

    place: Mapping[str, str]
    trials: tuple[Trial, ...]
    space: Mapping[str, Range]

    @property
    def config(self) -> RunConfig:
        """What all of its trials share."""
        return self.trials[0].config

    @property
    def label(self) -> str:
        """Its place, as people read it."""
        names = short_names(self.trials[0].grid)
        told = " ".join(f"{names[key]}={value}" for key, value in self.place.items())
        return told or self.trials[0].alone

    @property
    def trained(self) -> int:
        """Clients that train in a round."""
        return self.config.strategy.trained(self.config.num_clients)

    @property
    def default(self) -> dict[str, Value]:
        """The values that its settings have without a search."""
        return {key: _value_at(self.config, key) for key in self.space}

    def price(self, config: SearchConfig) -> int:
        """Return what its first proposal costs, in trainings of a client."""
        return config.replicates * self.config.rounds * self.trained

    def course(self, config: SearchConfig, repeat: int) -> Course:
        """Return a search of it: the same one in any grid that has it, whatever else is there."""
        path = [self.config.model_copy(update={SEED: 0}).settings_key]
        rounds, trained = self.config.rounds, self.trained
        return Course(config, self.space, rounds, trained, self.default, path, repeat)

    def base(self, seed: int) -> Trial:
        """Return it at its default settings on another seed."""
        return changed(self.trials[0], {SEED: seed})

    def trial(self, values: Mapping[str, Value], ask: Ask, repeat: int) -> Trial:
        """Return the trial that a search asks for.

        Raises
        ------
        ConfigError
            The values do not go together.
        """
        rounds = {} if ask.rounds == self.config.rounds else {"rounds": ask.rounds}
        found = changed(self.trials[0], {**values, SEED: ask.seed, **rounds})
        told = {key: str(value) for key, value in values.items()}
        tags = {
            "search.of": self.label,
            "search.proposal": str(ask.proposal),
            "search.repeat": str(repeat),
        }
        return replace(
            found,
            axes={**self.place, **told, **{k: str(v) for k, v in rounds.items()},
                  SEED: str(ask.seed)},
            grid=tuple(dict.fromkeys([*self.trials[0].grid, *self.space, "rounds", SEED])),
            tags=tags,
        )  # fmt: skip

    def tuned(self, values: Mapping[str, Value]) -> list[Trial]:
        """Return its trials with other settings, on the fresh seeds."""
        return [changed(trial, dict(values)) for trial in self.trials]


@dataclass(frozen=True)
class SearchPlan:
    """What a sweep searches for."""

    config: SearchConfig
    subjects: tuple[Subject, ...]
    unused: tuple[str, ...] = ()  # ranges of the sweep's file that apply to no method

    @cached_property
    def key(self) -> str:
        """The identity of what is searched for."""
        spaces = [{key: str(of) for key, of in subject.space.items()} for subject in self.subjects]
        told = json.dumps([self.config.model_dump(), spaces], sort_keys=True)
        return sha256(told.encode()).hexdigest()[:12]

    @property
    def told(self) -> dict[str, str]:
        """What the sweep's run tells of it, by name."""
        told = {key: str(value) for key, value in self.config.model_dump().items()}
        spaces = {key: str(of) for s in self.subjects for key, of in s.space.items()}
        return {**told, "space": json.dumps(spaces)}

    def remarks(self) -> list[str]:
        """Return what is to be said of it before anything starts, in sentences."""
        cfg = self.config
        seeds = cfg.seeds()
        times = f", {cfg.repeats} times" if cfg.repeats > 1 else ""
        unit = cfg.unit.replace("_", "-")
        total = cfg.budget * len(self.subjects) * cfg.repeats
        told = [
            f"search: {cfg.budget:,.6g} {unit} for each of {len(self.subjects)} methods and "
            f"problems{times} ({total:,.6g} in all), by {cfg.sampler} on {cfg.metric} of seeds "
            f"{seeds[0]} to {seeds[-1]}; winners and defaults are run on the seeds of the grid"
        ]
        spaces: dict[str, list[str]] = {}
        for subject in self.subjects:
            space = ", ".join(f"{key}={of}" for key, of in subject.space.items())
            spaces.setdefault(space, []).append(subject.label)
        for space, labels in spaces.items():
            what = f"is searched over {space}" if space else "has nothing to search: its default"
            told.append(f"{'; '.join(labels)} {what}")
        told += [f"search.space.{key} applies to none of them" for key in self.unused]
        told += [self._grid(subject) for subject in self.subjects if cfg.sampler == "grid"]
        fresh = {trial.config.seed for subject in self.subjects for trial in subject.trials}
        if len(fresh) < 3:
            told.append(
                f"{len(fresh)} fresh seed{'s' * (len(fresh) > 1)}: a gain has no interval; "
                "give three or more, as seed=0,1,2"
            )
        return told + self.notes()

    def notes(self) -> list[str]:
        """Return what is to be said of it wherever its winners are shown."""
        noised = [s.label for s in self.subjects if s.config.privacy.name != "none" and s.space]
        told = "the search's own runs look at the clients' data too, and no epsilon covers that"
        return [f"{told}: {'; '.join(noised)}"] if noised else []

    def _grid(self, subject: Subject) -> str:
        points = len(grid_of(subject.space, self.config.grid_points))
        return f"{subject.label}: its grid has {points:,} points; what the budget lacks is left out"


def plan_search(
    given: Mapping[str, Json], trials: Sequence[Trial], ranged: Collection[str] = ()
) -> SearchPlan | None:
    """Return the searches of a grid; None where none is asked for.

    Parameters
    ----------
    given : mapping
        What the sweep's file and words say of a search.
    trials : sequence of Trial
        The grid.
    ranged : collection of str
        Keys of its space that words give: these have to apply to a method, those of a file need
        not.

    Raises
    ------
    ConfigError
        In one line: a range outside a setting's, a search over an axis or over what is no way to
        solve a problem, a metric that a method never logs, a budget that is too small for one
        proposal, ...
    """
    if not given:
        return None
    cfg = validated(SearchConfig, dict(given), f"{SEARCH}.")
    places: dict[tuple[tuple[str, str], ...], list[Trial]] = {}
    for trial in trials:
        place = tuple(item for item in trial.axes.items() if item[0] != SEED)
        places.setdefault(place, []).append(trial)
    _check_keys(cfg, trials, ranged)
    subjects = []
    for place, of in places.items():
        if of[0].config.halving.axis:
            raise ConfigError(
                f"halving.axis={of[0].config.halving.axis} beside a search, which has rungs of its "
                "own; leave it out, and set search.min_rounds"
            )
        subjects.append(Subject(dict(place), tuple(of), _space(cfg, of[0])))
    unused = [key for key in cfg.space if not _applies_to_any(key, subjects)]
    if refused := [key for key in unused if key in ranged]:
        why = trials[0].config.idle().get(_setting(refused[0]))
        behind = f": it has no effect with {why}" if why else ""
        raise ConfigError(
            f"search.space.{refused[0]}={cfg.space[refused[0]]} applies to none of the "
            f"{len(subjects)} methods{behind}"
        )
    for subject in subjects:
        _check(cfg, subject)
    return SearchPlan(cfg, tuple(subjects), tuple(unused))


def _applies_to_any(key: str, subjects: Sequence[Subject]) -> bool:
    method, _, setting = key.rpartition("/")
    return any(
        setting in subject.space and method in ("", subject.config.strategy.name)
        for subject in subjects
    )


def _setting(key: str) -> str:
    """Return the setting that a key of a space is of: without the method before it."""
    return key.rpartition("/")[2]


def _check_keys(cfg: SearchConfig, trials: Sequence[Trial], ranged: Collection[str]) -> None:
    """Refuse to search what is an axis, or no way to solve a problem."""
    axes = set(trials[0].grid)
    methods = {trial.config.strategy.name for trial in trials}
    for key, text in cfg.space.items():
        given, setting = f"search.space.{key}={text}", _setting(key)
        top = setting.partition(".")[0]
        method = key.rpartition("/")[0]
        if method and method not in methods and key in ranged:
            raise ConfigError(f"{given}: {unknown('strategy of this grid', method, methods)}")
        if setting in axes:
            raise ConfigError(
                f"{given}, and {setting} is an axis of the grid; leave one of them out"
            )
        if setting in groups():
            raise ConfigError(
                f"{given} is a group of settings; search a setting, or make it an axis"
            )
        if top in SessionConfig.model_fields:
            raise ConfigError(f"{given}: it says where trials run, and changes none of them")
        if {top, setting} & {*_ELSEWHERE} or RunConfig.is_problem(setting):
            raise ConfigError(
                f"{given}: it is what has to be solved or how that is measured, and no way to "
                "solve it; make it an axis"
            )
        if top in RunConfig.model_fields:
            of = [t.config for t in trials if method in ("", t.config.strategy.name)]
            try:
                check_known([setting], {top: {type(getattr(config, top)) for config in of}})
            except ConfigError as error:
                raise ConfigError(f"{given}: {error}") from error


def _space(cfg: SearchConfig, trial: Trial) -> dict[str, Range]:
    """Return what is searched of a method: what was given, and what its settings suggest."""
    method = trial.config.strategy.name
    found: dict[str, Range] = {}
    for key, of in cfg.ranges.items():
        named, _, setting = key.rpartition("/")
        own = f"{method}/{setting}" in cfg.ranges
        if named == method or (not named and not own):
            found[setting] = of
    if cfg.auto:
        found = {**_suggestions(trial.config, {*trial.grid}), **found}
    return {key: of for key, of in sorted(found.items()) if applies(trial.config, key)}


def _suggestions(config: RunConfig, axes: set[str]) -> dict[str, Range]:
    """Return the ranges of the learning rate, and of what the method has beside FedAvg."""
    own = type(config.strategy).model_fields
    fields = {"training.lr": type(config.training).model_fields["lr"]}
    fields |= {
        f"strategy.{key}": field_
        for key, field_ in own.items()
        if key not in FedAvgSettings.model_fields
    }
    found = {}
    for key, field_ in fields.items():
        of = suggested(field_, _value_at(config, key)) if key not in axes else None
        if of is not None:
            found[key] = of
    return found


def _check(cfg: SearchConfig, subject: Subject) -> None:
    """Refuse what can't be searched of a method."""
    config, at = subject.config, f"(in the search of {subject.label})"
    metric = CATALOG.final(cfg.metric)
    if why := config.never_logs(metric):
        raise ConfigError(f"search.metric={cfg.metric} is {why} {at}")
    if cfg.min_rounds >= config.rounds:
        raise ConfigError(
            f"search.min_rounds={cfg.min_rounds} is not less than rounds={config.rounds}; lower it"
        )
    if cfg.min_rounds and not config.checkpoint.keep:
        raise ConfigError(
            "search.min_rounds with checkpoint.keep=false: who goes on from a rung begins at its "
            "checkpoint; leave one of them out"
        )
    if cfg.unit in ("virtual_s", "joules") and not config.devices.timed:
        raise ConfigError(f"search.unit={cfg.unit} with devices=none: no time passes; set devices")
    fresh, used = {trial.config.seed for trial in subject.trials}, set[int]()
    for repeat in range(cfg.repeats):
        used |= set(cfg.seeds(repeat))
    if both := sorted(fresh & used):
        raise ConfigError(
            f"seed={both[0]} is one of the grid, which winners are reported on, and of the "
            f"search's (search.first_seed={cfg.first_seed}); set another search.first_seed"
        )
    numbers = [key for key, of in subject.space.items() if isinstance(of, Numbers)]
    if cfg.sampler == "cmaes" and subject.space and len(numbers) < 2:
        raise ConfigError(
            f"search.sampler=cmaes needs two numbers to search, and there is "
            f"{', '.join(numbers) or 'none'} {at}; set search.sampler=tpe"
        )
    for key, of in subject.space.items():
        for value in of.ends:
            try:
                changed(subject.trials[0], {key: value})
            except ConfigError as error:
                raise ConfigError(f"search.space.{key}={of}: {error} {at}") from error
    for rounds in cfg.rungs(config.rounds):
        try:
            changed(subject.trials[0], {"rounds": rounds})
        except ConfigError as error:
            raise ConfigError(f"search.min_rounds={cfg.min_rounds}: {error} {at}") from error
    price = subject.price(cfg)
    if subject.space and cfg.unit == CLIENT_ROUNDS and price > cfg.budget * (1 - cfg.race):
        kept = f" beside search.race={cfg.race:g} of it" if cfg.race else ""
        raise ConfigError(
            f"search.budget={cfg.budget:g} is too small for one proposal{kept}: {cfg.replicates} "
            f"seeds of {config.rounds} rounds with {subject.trained} clients are {price:,.0f} "
            f"client-rounds; raise it to {price / (1 - cfg.race):.0f} at least {at}"
        )


def _value_at(config: RunConfig, key: str) -> Value:
    """Return the value of a setting by its full key; an empty text where there is none."""
    found = flat(config.model_dump()).get(key, "")
    return found if isinstance(found, bool | int | float | str) else str(found)


@dataclass
class _Hunt:
    """A search that is under way."""

    number: int  # of its subject
    subject: Subject
    course: Course
    steps: Generator[list[Ask], Mapping[Ask, Heard], None]
    asks: dict[Ask, Trial | None] = field(default_factory=dict)  # None: it is not allowed
    before: dict[Ask, Trial | None] = field(default_factory=dict)  # of all that was asked so far
    over: bool = False
    final: Sequence[Trial] = ()  # the winner, on the fresh seeds


class Searching:
    """The searches of a sweep while it runs: a :class:`fedsweep.sweeps.schedule.Supply`.

    ::

        searching = Searching(plan, look, told)
        due = searching.take()          # where trials stand; those to be run are due.todo
        searching.ended(key, summary)   # until searching.finished

    Parameters
    ----------
    plan : SearchPlan
        What is searched for.
    look : callable
        Returns where trials stand, by the store.
    tell : callable
        Says a line.
    """

    def __init__(
        self,
        plan: SearchPlan,
        look: Callable[[Sequence[Trial]], Standing],
        tell: Callable[[str], None],
    ) -> None:
        import_parts(plan.config.sampler)
        self.plan = plan
        self.finished = False
        self._look, self._tell = look, tell
        self._heard: dict[str, Mapping[str, float]] = {}  # by trial key; empty where it failed
        self._running: set[str] = set()
        self._bases: dict[tuple[int, int], Trial] = {}  # by subject and seed
        self._base_of: dict[str, str] = {}
        self._passing: set[str] = set()  # trials that nobody goes on with
        self._changed = True
        for i, subject in enumerate(plan.subjects):
            self._bases |= {(i, trial.config.seed): trial for trial in subject.trials}
            for repeat in range(plan.config.repeats if subject.space else 0):
                seeds = plan.config.seeds(repeat)
                self._bases |= {(i, seed): subject.base(seed) for seed in seeds}
        self._hunts = []
        for i, subject in enumerate(plan.subjects):
            for repeat in range(plan.config.repeats if subject.space else 1):
                course = subject.course(plan.config, repeat)
                self._hunts.append(_Hunt(i, subject, course, course.steps()))
        self._running |= {trial.config.key for trial in self.defaults}

    @property
    def defaults(self) -> list[Trial]:
        """The grid's trials: methods at their default settings on the fresh seeds."""
        return [trial for subject in self.plan.subjects for trial in subject.trials]

    @property
    def bases(self) -> Sequence[Trial]:
        """Trials on whose data, and with whose networks, all of its trials are run."""
        return list(self._bases.values())

    def base_of(self, key: str) -> str:
        """Return the key of the base of one of its trials."""
        return self._base_of[key]

    def goes_on(self, key: str) -> bool:
        """Return whether a trial may be gone on with for more rounds."""
        return key not in self._passing

    def ended(self, key: str, summary: Mapping[str, float]) -> None:
        """Take in that a trial ended: its final metrics, none where it failed."""
        self._heard[key] = summary
        self._running.discard(key)
        self._changed = True

    def take(self) -> Standing:
        """Return where the trials stand that have become due since it was asked last."""
        due = Standing((), (), (), {}, None, "")
        while self._changed:
            self._changed = False
            asked: dict[str, Trial] = {}
            shorter: dict[str, str] = {}
            for hunt in self._hunts:
                self._go_on(hunt, asked, shorter)
            if asked:
                due = due.joined(self._stand(asked, shorter))
        self.finished = all(
            hunt.over and all(trial.config.key in self._heard for trial in hunt.final)
            for hunt in self._hunts
        ) and all(trial.config.key in self._heard for trial in self.defaults)
        return due

    def _stand(self, asked: Mapping[str, Trial], shorter: Mapping[str, str]) -> Standing:
        """Look up trials that nobody has heard of yet; what ended before is heard at once."""
        found = self._look(list(asked.values()))
        for trial, run in found.done:
            self.ended(trial.config.key, run.summary)
        for trial, _ in found.failed:
            self.ended(trial.config.key, {})
        self._running |= {trial.config.key for trial in found.todo}
        return replace(found, shorter={**found.shorter, **shorter})

    def _go_on(self, hunt: _Hunt, asked: dict[str, Trial], shorter: dict[str, str]) -> None:
        """Have a search take its next steps as far as all that it asked for has ended."""
        while not hunt.over and all(self._is_known(trial) for trial in hunt.asks.values()):
            heard = {ask: self._hear(trial) for ask, trial in hunt.asks.items()}
            try:
                asks = hunt.steps.send(heard) if hunt.asks else next(hunt.steps)
            except StopIteration:
                self._end(hunt, asked)
                return
            hunt.asks = {ask: self._trial(hunt, ask) for ask in asks}
            hunt.before |= hunt.asks
            for ask, trial in hunt.asks.items():
                if trial is None:
                    continue
                self._want(trial, asked)
                earlier = hunt.before.get(replace(ask, rounds=ask.before, before=_under(hunt, ask)))
                if earlier is not None:
                    shorter[trial.config.key] = earlier.config.key

    def _end(self, hunt: _Hunt, asked: dict[str, Trial]) -> None:
        """Have a search's winner run on the fresh seeds."""
        hunt.over = True
        winner, course = hunt.course.winner, hunt.course
        hunt.final = hunt.subject.tuned(winner.proposal.values) if winner else hunt.subject.trials
        for trial in hunt.final:
            self._base_of[trial.config.key] = self._bases[hunt.number, trial.config.seed].config.key
            self._want(trial, asked)
        if hunt.subject.space:
            chosen = _words(winner.proposal.values) if winner else "its default"
            self._tell(
                f"search of {hunt.subject.label}: {chosen} of {len(course.tried)} proposals, "
                f"{course.spent:,.6g} of {self.plan.config.budget:,.6g} "
                f"{self.plan.config.unit.replace('_', '-')} used ({course.told})"
            )

    def _want(self, trial: Trial, asked: dict[str, Trial]) -> None:
        key = trial.config.key
        if key not in self._heard and key not in self._running:
            asked[key] = trial

    def _trial(self, hunt: _Hunt, ask: Ask) -> Trial | None:
        """Return the trial of an ask, or None where its values do not go together."""
        try:
            values = hunt.course.values(ask.proposal)
            trial = hunt.subject.trial(values, ask, hunt.course.repeat)
        except ConfigError as error:
            self._tell(
                f"search of {hunt.subject.label}: proposal {ask.proposal} is not allowed: {error}"
            )
            return None
        self._base_of[trial.config.key] = self._bases[hunt.number, ask.seed].config.key
        if ask.rounds == hunt.course.rungs[-1]:
            self._passing.add(trial.config.key)
        return trial

    def _is_known(self, trial: Trial | None) -> bool:
        return trial is None or trial.config.key in self._heard

    def _hear(self, trial: Trial | None) -> Heard:
        """Return what became of a trial: its score, and what it cost."""
        if trial is None:
            return FAILED
        cfg, summary = self.plan.config, self._heard[trial.config.key]
        score = _finite(summary.get(cfg.metric))
        cost = _finite(summary.get(cfg.unit))
        return Heard(-inf if score is None else cfg.sign * score, cost or 0.0)

    # What came of it.

    def reported(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials that a report shows in place of the grid's: the winners there."""
        tuned = {
            default.config.key: trial
            for hunt in self._hunts
            if hunt.course.repeat == 0
            for default, trial in zip(hunt.subject.trials, hunt.final, strict=True)
        }
        return [tuned[trial.config.key] for trial in trials]

    @property
    def rungs(self) -> list[Trial]:
        """Trials of which a checkpoint was kept, for the next rung."""
        kept = {t.config.key: t for hunt in self._hunts for t in hunt.before.values() if t}
        return [trial for key, trial in kept.items() if self.goes_on(key)]

    def also(self) -> dict[str, dict[str, float]]:
        """Return what the rows of reported trials tell beside their own metrics, by trial key."""
        metric = self.plan.config.metric
        found: dict[str, dict[str, float]] = {}
        for hunt in self._hunts:
            if hunt.course.repeat or not hunt.subject.space:
                continue
            for tuned, default in zip(hunt.final, hunt.subject.trials, strict=True):
                ours = self._heard[tuned.config.key].get(metric)
                theirs = self._heard[default.config.key].get(metric)
                row = {"tuning_cost": hunt.course.spent}
                if ours is not None and theirs is not None:
                    row |= {"tuning_default": theirs, "tuning_gain": ours - theirs}
                found[tuned.config.key] = row
        return found

    def story(self) -> Searched:
        """Return what was tried and what came of it."""
        cfg = self.plan.config
        tunings = [self._tuning(hunt) for hunt in self._hunts if hunt.subject.space]
        return Searched(
            cfg.metric, cfg.unit, cfg.budget, cfg.sampler, cfg.seeds(), tunings, self.plan.notes()
        )

    def _tuning(self, hunt: _Hunt) -> Tuning:
        course, sign = hunt.course, self.plan.config.sign

        def told(trials: Sequence[Trial]) -> dict[str, float | None]:
            of = {str(trial.config.seed): self._heard[trial.config.key] for trial in trials}
            return {seed: _finite(end.get(self.plan.config.metric)) for seed, end in of.items()}

        def tried(one: Tried) -> TriedHere:
            at = {
                str(rounds): {str(s): sign * v if isfinite(v) else None for s, v in of.items()}
                for rounds, of in one.scores.items()
            }
            return TriedHere(
                one.number, one.generation, dict(one.proposal.values), one.complete, at
            )

        first = course.rungs[0]
        scored = [(one.proposal.values, one.mean(first)) for one in course.tried]
        several = len(hunt.subject.space) > 1  # else there is nothing to part between them
        finite = [(values, score) for values, score in scored if several and isfinite(score)]
        return Tuning(
            dict(hunt.subject.place),
            course.repeat,
            {key: str(of) for key, of in hunt.subject.space.items()},
            hunt.subject.default,
            [tried(one) for one in course.tried],
            course.winner.number if course.winner else None,
            course.spent,
            course.told,
            importances(hunt.subject.space, finite),
            told(hunt.final),
            told(hunt.subject.trials),
        )


def _under(hunt: _Hunt, ask: Ask) -> int:
    """Return the rounds of the rung below the one that an ask goes on from."""
    rungs = (0, *hunt.course.rungs)
    return rungs[rungs.index(ask.before) - 1] if ask.before else 0


def _words(values: Mapping[str, Value]) -> str:
    names = short_names(values)
    return shown(" ".join(f"{names[key]}={value}" for key, value in values.items()))


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and isfinite(value) else None
