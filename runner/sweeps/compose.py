"""From the words of a command line to validated configurations: Hydra composes, pydantic checks."""

import math
import os
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fedsweep.config import RunConfig, SessionConfig
from fedsweep.config.section import Group, find_part, flat, group_of, short_names
from fedsweep.config.trial import PARTS
from fedsweep.environ import variable
from fedsweep.errors import ConfigError, shown, unknown
from fedsweep.escape import command
from fedsweep.models import MODELS
from fedsweep.parts.registry import is_reference
from fedsweep.paths import component
from fedsweep.places import folder
from fedsweep.records import Json
from fedsweep.strategies.ranges import allowed, leaves
from fedsweep.sweeps.words import MOST_CELLS, SPACE, Word, literal, parse, setting

M = TypeVar("M", bound=BaseModel)
CONFIGS = folder("configs")
ADHOC = "adhoc"
"""What a sweep of words alone is called."""
_OPTIONS = "model.kwargs."
"""How the keys of a network's options begin, which the network alone knows."""
SEARCH = "search"
"""How words begin that are of a search (:mod:`fedsweep.search.settings`), and no trial's."""


class SweepFile(BaseModel):
    """A file of ``configs/sweep``: what all trials share, and the axes of the grid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = Field("", description="one paragraph; the note of the sweep's run in MLflow")
    overrides: tuple[str, ...] = Field((), description="settings of every trial")
    axes: dict[str, list[Any]] = Field(
        default_factory=dict, description="key or group -> its values"
    )
    halving: dict[str, Any] = Field(
        default_factory=dict, description="successive halving: axis, metric, ..."
    )
    search: dict[str, Any] = Field(
        default_factory=dict, description="a search for settings: space, budget, ..."
    )


@dataclass(frozen=True)
class Trial:
    """One cell of a grid at one seed: its configuration, and its place on the axes.

    Parameters
    ----------
    config : RunConfig
        All its settings, and those of the session that runs it.
    axes : dict[str, str]
        The axes that apply to it, by full key, with its values as its configuration has them.
    overrides : tuple[str, ...]
        The words that give it again.
    left_out : tuple[str, ...]
        Words and axes of the grid that do not apply to it.
    grid : tuple[str, ...]
        All axes of the grid by full key, those that do not apply to this trial too.
    experiment : str
        The file of ``configs/experiment`` that it is of, or nothing.
    unused : dict[str, str]
        Settings of that file that change nothing in this trial, and why.
    tags : dict[str, str]
        What else its run is to be found by.
    """

    config: RunConfig
    axes: dict[str, str]
    overrides: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    experiment: str = ""
    unused: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """The command that runs this trial alone."""
        return command(["fedsweep", "run", *self.overrides, *config_dir_words()])

    @property
    def label(self) -> str:
        """Its place on the axes, as people read it."""
        names = short_names(self.grid or self.axes)
        place = " ".join(f"{names[key]}={value}" for key, value in self.axes.items())
        return place or self.alone

    @property
    def alone(self) -> str:
        """What it is called where there are no axes."""
        return self.config.strategy.name


def options(group: str) -> list[str]:
    """Return the names of a group's options."""
    try:
        parts = list(PARTS.get(group, ()))
    except ValueError as error:
        raise ConfigError(f"a {group} can't be read: {error}") from error
    return sorted({*option_files(group), *parts})


def option_files(group: str) -> Mapping[str, Path]:
    """Return the files of a group's options by name: the project's, and those of one's own.

    Raises
    ------
    ConfigError
        ``$FEDSWEEP_CONFIG`` names no folder, or an option of one's own is called as another.
    """
    return _files_in(_config_folders(), group)


def _config_folders() -> tuple[str, ...]:
    """Return where files of configuration lie: the project's folder, then that of one's own."""
    own = variable("FEDSWEEP_CONFIG")
    if own and not os.path.isdir(own):
        raise ConfigError(f"--config-dir={shown(own, 200)} is not a folder; name another")
    return (str(CONFIGS), *([os.path.abspath(own)] if own else []))


def config_dir_words() -> list[str]:
    """Return the option that names the folder of one's own, if there is one."""
    own = variable("FEDSWEEP_CONFIG")
    return ["--config-dir", own] if own else []


@cache
def _files_in(folders: Sequence[str], group: str) -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    for path in (path for place in folders for path in sorted(Path(place, group).glob("*.yaml"))):
        if path.stem in found:
            raise ConfigError(f"{path}: there is a {group} '{path.stem}' already; rename yours")
        found[path.stem] = path
    return found


@cache
def groups() -> list[str]:
    """Return the names of the groups that a trial is composed of."""
    folders = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    return sorted((folders | {*PARTS}) - {"sweep"})


def compose(words: Sequence[str]) -> RunConfig:
    """Return the trial, and what runs it, that ``GROUP=OPTION`` and ``key=value`` words describe.

    Raises
    ------
    ConfigError
        In one line: an unknown group, option or key (with the nearest match), or a value out of
        range.
    """
    return compose_trial(words).config


def compose_trial(words: Sequence[str]) -> Trial:
    """Return that trial with its words, and what :func:`remarks` says of it.

    Raises
    ------
    ConfigError
        As :func:`compose` does.
    """
    parsed = _read(words)
    for word in parsed:
        if word.values is not None:
            as_list = shlex.quote(f"{word.key}=[{','.join(word.values[:5])}]")
            raise ConfigError(
                f"'{shown(word.line)}' has several values, and `run` takes one trial; "
                f"give one value, or use `sweep`, or quote a list as {as_list}"
            )
    trial = _build(parsed, prune=False)
    config = _identified(trial.config, {})
    if config.halving.axis:
        raise ConfigError(
            f"halving.axis={config.halving.axis} compares the trials of a sweep; leave it out, "
            "or use `sweep`"
        )
    return replace(trial, config=config)


class Planned(NamedTuple):
    """What a command line says of a sweep."""

    name: str
    description: str
    command: str  # that says it again
    trials: Sequence[Trial]
    search: Mapping[str, Json] = {}  # what is said of a search; nothing where there is none
    ranged: Collection[str] = ()  # keys of its space that words give, and not the file


def planned(sweep: str, words: Sequence[str], name: str = "") -> Planned:
    """Return a sweep that is called by its name or file, or by words alone.

    Parameters
    ----------
    sweep : str
        A sweep, a file, or nothing.
    words : sequence of str
        What else is said.
    name : str
        What it is called, if not as its file, or ``adhoc``.

    Raises
    ------
    ConfigError
        As :func:`load_sweep` and :func:`expand_grids` do; or nothing is said at all.
    RunnerError
        Its name can't be that of a folder.
    """
    if not sweep and not words:
        raise ConfigError(f"name a sweep ({', '.join(options('sweep'))}), a file, or axes: a=1,2")
    called = name or (Path(sweep).stem if sweep else ADHOC)
    search, rest = split_search(words)
    file, trials = expand(sweep, rest)
    component(called, "--name")
    given = [sweep] if sweep else []
    named = ["--name", name] if name else []
    return Planned(
        called,
        file.description,
        command(["fedsweep", "sweep", *given, *words, *named, *config_dir_words()]),
        trials,
        _overlaid(_with_space(file.search), search),
        [word.key.removeprefix(SPACE) for word in parse(words) if word.key.startswith(SPACE)],
    )


def split_search(words: Sequence[str]) -> tuple[dict[str, Json], list[str]]:
    """Return what words say of a search, as a file says it, and the other words.

    Raises
    ------
    ConfigError
        A setting of the search has several values.
    """
    found: dict[str, Json] = {}
    space: dict[str, Json] = {}
    rest = []
    for word, read in zip(words, parse(words), strict=True):
        top, _, key = read.key.partition(".")
        if top != SEARCH:
            rest.append(word)
        elif read.values is not None:
            raise ConfigError(
                f"'{shown(read.line)}' has several values, and a sweep has one search; give one"
            )
        elif key.startswith("space."):
            space[key.removeprefix("space.")] = read.value
        elif key == "space" and read.value == "auto":
            found["auto"] = True
        elif not key or key == "space":
            raise ConfigError(
                f"'{shown(read.line)}' is no setting of a search; give search.space=auto, or "
                "search.space.KEY=loguniform:a:b and search.budget=N"
            )
        else:
            found[key] = read.value
    return found | ({"space": space} if space else {}), rest


def _with_space(search: Mapping[str, Json]) -> dict[str, Json]:
    """Return what a file says of a search; ``auto`` is no mapping, and words add to one."""
    if search.get("space") == "auto":
        return {**search, "space": {}, "auto": True}
    return dict(search)


def expand(sweep: str, words: Sequence[str]) -> tuple[SweepFile, list[Trial]]:
    """Return a sweep's file and its trials: see :func:`load_sweep`, :func:`expand_grids`."""
    file = load_sweep(sweep)
    return file, expand_grids([file], words)


def names_file(sweep: str) -> bool:
    """Return whether a sweep is given by its file, as ``./study.yaml``."""
    return sweep.endswith((".yaml", ".yml"))


def split_sweep(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the sweep that words begin with, by its name or file; nothing if none; the rest."""
    begins = bool(words) and (names_file(words[0]) or "=" not in words[0])
    return (words[0], words[1:]) if begins else ("", words)


def load_sweep(sweep: str) -> SweepFile:
    """Return the file of a sweep: one of ``configs/sweep`` by its name, or any by its path.

    Parameters
    ----------
    sweep : str
        ``default``, ``./study.yaml``; nothing is a sweep of what its words say and nothing else.

    Raises
    ------
    ConfigError
        There is none, or it can't be read: file and line, or the key.
    """
    if not sweep:
        return SweepFile()
    own = names_file(sweep)
    if not own and sweep not in options("sweep"):
        raise ConfigError(
            unknown("sweep", sweep, options("sweep")) + " Or name a file, as ./x.yaml"
        )
    path = Path(sweep) if own else option_files("sweep")[sweep]
    try:
        loaded = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")))
    except OSError as error:
        why = error.strerror
        raise ConfigError(f"sweep {shown(sweep, 200)} can't be read: {why}") from error
    except Exception as error:  # a YAML parser raises what it likes
        raise ConfigError(f"sweep {shown(sweep, 200)}: {shown(str(error), 300)}") from error
    return validated(SweepFile, loaded or {}, "")


def expand_grids(files: Sequence[SweepFile], words: Sequence[str]) -> list[Trial]:
    """Return the trials of all grids: the products of their axes, without duplicates, in order.

    A word with several values (``seed=0,1``, ``strategy.q=range(0,3)``) adds or replaces an axis;
    one with a single value replaces an axis too, or is a setting of every trial. What does not
    apply to a trial is left out of it (``strategy.num_clusters`` under FedAvg), so that equal
    trials collapse; :func:`remarks` says what was left out.

    Raises
    ------
    ConfigError
        A word that applies to no trial, an axis that makes no difference or no part of a trial's
        key, a rule of halving under which no trials compete.
    """
    found: dict[str, Trial] = {}
    grid: dict[str, None] = {}
    for file in files:
        axes, trials = _cells(file, words)
        for trial in trials:
            found.setdefault(trial.config.key, trial)
        grid |= dict.fromkeys(axes)
    there = {key for trial in found.values() for key in trial.axes}
    known = tuple(key for key in grid if key in there)
    trials = [replace(trial, grid=known) for trial in found.values()]
    if len(files) > 1:
        trials = [replace(trial, axes=_on_all_axes(trial)) for trial in trials]
    for word in {word.key: word for word in _read(words)}.values():  # the last wins
        _check_effect(word, trials)
    _check_places(trials)
    _rivals(trials)
    return trials


def _check_places(trials: Sequence[Trial]) -> None:
    """Refuse two trials at one place of the grid: a table would take them for seeds of one cell."""
    found: dict[tuple[tuple[str, str], ...], Trial] = {}
    for trial in trials:
        other = found.setdefault(tuple(sorted(trial.axes.items())), trial)
        if other is not trial:
            raise ConfigError(
                f"two trials have the same values of all axes ({shown(trial.label, 200)}) and are "
                f"not the same: {shown(other.command, 200)} and {shown(trial.command, 200)}; leave "
                "one of them out, or give an axis what they differ in"
            )


def _on_all_axes(trial: Trial) -> dict[str, str]:
    """Return a trial's place on the axes of all grids: what its own grid sets for all is told, too.

    Else one of several grids, such as a reproduction's, would have no value in a column that is
    another one's axis. An axis that does not apply to the trial stays without.
    """
    settings = flat(trial.config.canonical())
    there = {key: settings.get(key, settings.get(f"{key}.name")) for key in trial.grid}
    told = {key: str(value) for key, value in there.items() if value is not None} | trial.axes
    return {key: told[key] for key in trial.grid if key in told}


def remarks(trials: Sequence[Trial]) -> list[str]:
    """Return what is to be known of a grid, in sentences: settings, halving, privacy, sums.

    Of settings and halving it is what does not hold for all trials; of privacy, what each trial's
    noise is, and what it spends; else what each tells of itself (:attr:`TrialConfig.told`).
    """
    told = [*_left_out(trials), *_unused_settings(trials), *_accounts(trials), *_told(trials)]
    if alone := _rivals(trials)[1]:
        axis = trials[0].config.halving.axis
        told.append(
            f"halving over {axis}: {alone} of {len(trials)} trials have no rival and run in full"
        )
    return told


def _left_out(trials: Sequence[Trial]) -> Iterable[str]:
    """Say which words apply to some trials only; of axes, the table shows to which they do."""
    for key in dict.fromkeys(_key(word) for trial in trials for word in trial.left_out):
        if key not in trials[0].grid:
            without = [word for trial in trials for word in trial.left_out if _key(word) == key]
            count = sum(any(_key(word) == key for word in trial.overrides) for trial in trials)
            what = f"axis {key}" if without[0] == key else without[0]
            yield f"{what} applies to {count} of {count + len(without)} trials"


def _accounts(trials: Sequence[Trial]) -> Iterable[str]:
    """Say what trials spend of privacy if all rounds go as planned, each that is other once."""
    found: dict[tuple[str, int], list[RunConfig]] = {}
    for config in (trial.config for trial in trials):
        if said := config.account.said:
            found.setdefault((said, config.rounds), []).append(config)
    for (said, rounds), configs in found.items():
        plan = configs[0].account.plan
        spent = f"; epsilon {plan.epsilon(rounds):.4g} after {rounds} rounds" if plan else ""
        yield f"{said}{spent}{_share(len(configs), trials)}"


def _told(trials: Sequence[Trial]) -> Iterable[str]:
    """Say what trials tell of themselves, each line once."""
    counts = Counter(line for trial in trials for line in trial.config.told)
    return (f"{line}{_share(count, trials)}" for line, count in counts.items())


def _share(count: int, trials: Sequence[Trial]) -> str:
    """Return how many trials a sentence is of, where it is not of all."""
    return f" ({count} of {len(trials)} trials)" if count < len(trials) else ""


def _unused_settings(trials: Sequence[Trial]) -> Iterable[str]:
    """Say which settings of an experiment's file apply to some trials only, or to none."""
    unused = dict.fromkeys((t.experiment, s, why) for t in trials for s, why in t.unused.items())
    for (name, setting_), why in {(name, word): why for name, word, why in unused}.items():
        of_it = [trial for trial in trials if trial.experiment == name]
        count = sum(setting_ not in trial.unused for trial in of_it)
        what = f"{setting_} of experiment={name}"
        none = f"{what} has no effect: {why}"
        yield f"{what} applies to {count} of {len(of_it)} trials" if count else none


def _cells(file: SweepFile, words: Sequence[str]) -> tuple[list[str], list[Trial]]:
    """Return a grid's axes by full key, and its trials."""
    axes, fixed = _grid(file, words)
    check_size(axes)
    # Files of one's own are read before the first cell: it may be told a setting that only
    # another one's part has.
    for word in parse([*fixed, *chain(*axes.values())]):
        group = word.key.removesuffix(".name")
        if group in PARTS and is_reference(str(word.value)):
            _option(group, word.value)
    check_known(map(_key, [*fixed, *axes]), _kinds_on(axes))
    trials: list[Trial] = []
    contents: dict[str, str] = {}
    for cell in product(*axes.values()):
        try:
            built = _build(_read([*fixed, *cell]), prune=True)
            config = _identified(built.config, contents)
        except ConfigError as error:
            raise ConfigError(f"{error} (in the cell {shown(' '.join(cell), 200)})") from error
        if config.halving.axis and config.halving.axis not in axes:
            raise ConfigError(unknown("axis", config.halving.axis, axes) + " (halving.axis)")
        trials.append(_placed(replace(built, config=config), axes, cell, fixed))
    for key, values in axes.items():
        if len(values) > 1 and key.split(".")[0] in SessionConfig.model_fields:
            _check_place(key, trials)
    return list(axes), trials


def check_known(keys: Iterable[str], kinds: Mapping[str, Collection[type[BaseModel]]]) -> None:
    """Refuse a key below a group that none of its options has.

    A cell would name the keys of its own option alone.

    Parameters
    ----------
    keys : iterable of str
        Full keys.
    kinds : mapping
        Group -> the classes of settings that a grid has of it, whose keys are named.

    Raises
    ------
    ConfigError
        In one line: the key, the nearest of all options, and those that these options have.
    """
    for top, _, rest in (key.partition(".") for key in keys):
        group = group_of(RunConfig.model_fields[top]) if top in kinds and rest else None
        if group is None:
            continue
        name, every = rest.split(".")[0], [*group.keys()]
        if name not in every:
            own = {f"{top}.{known}" for kind in kinds[top] for known in kind.model_fields}
            known = [f"{top}.{known}" for known in every]
            raise ConfigError(unknown("key", f"{top}.{name}", known, own))


def _kinds_on(axes: Mapping[str, Sequence[str]]) -> dict[str, list[type[BaseModel]]]:
    """Return the classes of settings of the options on a grid's axes, by group."""
    found = {}
    for key, words in axes.items():
        name = key.removesuffix(".name")
        field_ = RunConfig.model_fields.get(name) if name in groups() else None
        if field_ is not None and (group := group_of(field_)) is not None:
            chosen = [f"{name}={_option(name, word.value)}" for word in parse(words)]
            found[name] = [group.kind(_composed((option,)).get(name)) for option in chosen]
    return found


def _grid(file: SweepFile, words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the words of each axis by its full key, and those of every trial."""
    axes = {key: [f"{key}={literal(v)}" for v in values] for key, values in file.axes.items()}
    rule = (f"halving.{key}={literal(value)}" for key, value in file.halving.items())
    fixed = [*file.overrides, *rule]
    for word in _read(words):
        if word.values is not None and word.key.startswith("halving."):
            several = f"'{shown(word.line)}' has several values"
            raise ConfigError(f"{several}, and a sweep has one rule; give one value")
        if word.values is not None:
            axes[word.key] = [f"{word.key}={value}" for value in word.values]
        elif word.key in axes:
            axes[word.key] = [word.line]
        else:
            fixed.append(word.line)
    return axes, fixed


def check_size(axes: Mapping[str, Sequence[str]]) -> None:
    """Refuse a grid without cells, and one of too many."""
    for key, values in axes.items():
        if not values:
            raise ConfigError(
                f"the grid is empty: axis '{key}' has no value; give at least one, as {key}=a,b"
            )
    cells = math.prod(map(len, axes.values()))
    if cells > MOST_CELLS:
        sizes = " x ".join(f"{len(values):,} of {key}" for key, values in axes.items())
        raise ConfigError(
            f"the grid has {cells:,} cells ({sizes}), and at most {MOST_CELLS:,} are expanded; "
            "give fewer values, or make several sweeps of it"
        )


def _placed(trial: Trial, axes: Iterable[str], cell: Sequence[str], fixed: Sequence[str]) -> Trial:
    """Return a cell's trial with its place on the axes that apply to it, and its words."""
    config = trial.config
    resolved = flat(config.canonical())
    fits = partial(_applies, config, _without_effect(config, [*axes, *map(_key, fixed)]))
    applying = {key: word for key, word in zip(axes, cell, strict=True) if fits(key)}
    place = {
        key: str(resolved.get(key, _group_place(config, key, word)))
        for key, word in applying.items()
    }
    settings = [word for word in fixed if not word.startswith("halving.")]
    kept = (*(word for word in settings if fits(_key(word))), *applying.values())
    left_out = tuple(word for word in [*settings, *axes] if not fits(_key(word)))
    return replace(trial, axes=place, overrides=kept, left_out=left_out)


def _check_place(key: str, trials: Sequence[Trial]) -> None:
    """Refuse an axis of where trials run, unless other data come from there: other trials."""
    beside = {(tuple((k, v) for k, v in t.axes.items() if k != key), t.config.key) for t in trials}
    if len(beside) == len({place for place, _ in beside}):
        raise ConfigError(
            f"'{key}' is no axis: it says where trials run and are logged and changes none of "
            "them; give one value"
        )


def _group_place(config: RunConfig, key: str, word: str) -> str:
    """Return a trial's place on the axis of a group: its option, by its name if it is one's own."""
    given = word.split("=", 1)[1]
    return str(getattr(config, key).name) if is_reference(given) else given


def _check_effect(word: Word, trials: Sequence[Trial]) -> None:
    """Refuse a word of the command line that does nothing to any trial of a grid."""
    key, line = word.key, shown(word.line)
    if key.startswith("halving."):
        return
    if not any(key == _key(kept) for trial in trials for kept in trial.overrides):
        none = f"'{line}' applies to none of the {len(trials)} trials"
        if why := _without_effect(trials[0].config, [key]).get(key):
            raise ConfigError(
                f"{none}: it has no effect with {why}; leave it out, or change the other"
            )
        top, _, field_ = key.partition(".")
        group = group_of(RunConfig.model_fields[top])
        belongs = "|".join((group.options_of(field_.split(".")[0]) if group else None) or ())
        called = group.option_key(top) if group else top
        raise ConfigError(
            f"{none}; it belongs to {called}={belongs}: remove it, or add such a {top}"
        )
    places = {trial.axes[key] for trial in trials if key in trial.axes}
    if len(word.values or ()) > 1 and len(places) == 1:
        raise ConfigError(f"the values of '{line}' all give the same trials; give one of them")


def _rivals(trials: Sequence[Trial]) -> tuple[int, int]:
    """Return how many trials halving lets compete, and how many it leaves alone.

    Raises
    ------
    ConfigError
        No two trials differ in nothing but the axis.
    """
    axis = trials[0].config.halving.axis
    if not axis:
        return 0, 0
    sizes = Counter(
        tuple(item for item in trial.axes.items() if item[0] != axis) for trial in trials
    )
    alone = sum(size == 1 for size in sizes.values())
    if alone == len(trials):
        raise ConfigError(
            f"halving.axis={axis}: no two trials differ in it alone, so none would compete; "
            "give the axis several values, or name another"
        )
    return len(trials) - alone, alone


def applies(config: RunConfig, key: str) -> bool:
    """Return whether a setting has an effect in a trial."""
    return _applies(config, _without_effect(config, [key]), key)


def changed(trial: Trial, settings: Mapping[str, Json]) -> Trial:
    """Return a trial with other settings, by full key: on the same data, which are not read again.

    A setting that another one switches off is left out, as in a grid.

    Raises
    ------
    ConfigError
        A value is out of range, or does not go with the others.
    """
    kept = [word for word in trial.overrides if _key(word) not in settings]
    words = [f"{key}={literal(value)}" for key, value in settings.items()]
    built = _build(_read([*kept, *words]), prune=True)
    config = built.config.model_copy(update={"dataset": trial.config.dataset})
    return replace(trial, config=config, overrides=built.overrides)


def _key(word: str) -> str:
    return word.split("=", 1)[0].lstrip("+")


def with_contents(trials: Sequence[Trial]) -> list[Trial]:
    """Return trials that are about to run: of data that are there alone, the Hub tells the commit.

    Raises
    ------
    DataError
        It does not answer, or a data set can't be had.
    """
    contents: dict[str, str] = {}
    return [
        replace(trial, config=_identified(trial.config, contents, ask=True)) for trial in trials
    ]


def _identified(config: RunConfig, contents: dict[str, str], ask: bool = False) -> RunConfig:
    """Return a trial with the content of its data: see :func:`fedsweep.data.sources.identified`."""
    from fedsweep.data.sources import identified  # imports NumPy, which --help does without

    return identified(config, ask, contents)


def to_yaml(config: BaseModel) -> str:
    """Return a configuration as YAML, every key resolved."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def _read(words: Sequence[str]) -> list[Word]:
    """Read words whose key is a group, or a dotted path to a field."""
    parsed = parse(words)
    for word in parsed:
        top = word.key.split(".")[0]
        if top not in RunConfig.model_fields and top not in groups():
            raise ConfigError(unknown("key or group", top, {*RunConfig.model_fields, *groups()}))
        if word.key in groups() and word.values is None:
            _option(word.key, word.value)
    return parsed


def _option(group: str, given: Json) -> str:
    """Return the name of a group's option, which may be given by where it lies.

    Raises
    ------
    ConfigError
        There is no such option.
    """
    if group in PARTS and (is_reference(str(given)) or not option_files(group)):
        return find_part(PARTS[group], str(given))
    if str(given) not in options(group) and (given is not None or group != "experiment"):
        raise ConfigError(unknown(group, str(given), options(group)))
    return str(literal(given))


def _composed(choices: tuple[str, ...]) -> dict[str, Json]:
    """Return what the chosen options set."""
    return _composed_from(_config_folders(), choices)


@lru_cache(maxsize=256)
def _composed_from(folders: tuple[str, ...], choices: tuple[str, ...]) -> dict[str, Json]:
    """Compose each option once, where it sets its group alone."""
    if not choices or any(choice.startswith("experiment=") for choice in choices):
        return _hydra(choices, folders)
    found = base = _composed_from(folders, ())
    if len(choices) == 1:
        group, option = choices[0].split("=", 1)
        if group not in PARTS or option in _files_in(folders, group):
            return _hydra(choices, folders)
        return {**base, group: {"name": option}}  # its file has the rest
    for choice in choices:
        own, part = choice.partition("=")[0], _composed_from(folders, (choice,))
        if {**part, own: None} != {**base, own: None}:
            return _hydra(choices, folders)
        found = {**found, own: part.get(own)}
    return found


def _hydra(choices: tuple[str, ...], folders: Sequence[str]) -> dict[str, Json]:
    for group in PARTS:
        # What the option of a part sets is its name: its file has the rest.
        for name in PARTS[group]:
            ConfigStore.instance().store(group=group, name=name, node={"name": name})
    own: list[Json] = [f"file://{folder}" for folder in folders[1:]]
    searched = [f"hydra.searchpath={literal(own)}"] if own else []
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            found: Any = OmegaConf.to_container(hydra_compose("config", [*searched, *choices]))
    except (HydraException, OmegaConfBaseException) as error:
        reason = str(error.__cause__ or error)
        raise ConfigError(
            f"the configuration can't be composed from {' '.join(choices)}: {reason}"
        ) from error
    return dict(found)


def _build(parsed: Sequence[Word], *, prune: bool) -> Trial:
    """Compose the groups once, set the values on top, validate."""
    chosen = {word.key: _option(word.key, word.value) for word in parsed if word.key in groups()}
    if chosen.get("experiment") == "null":
        del chosen["experiment"]  # what there is without
    values = deepcopy(_composed(tuple(f"{group}={option}" for group, option in chosen.items())))
    experiment = chosen.get("experiment", "")
    if experiment:
        _check_overlaid(experiment, chosen, values, parsed)
    for word in parsed:
        if word.key not in groups():
            _put_value(values, word)
    if any("${" in word.line for word in parsed):
        values = _resolved(values)
    values.pop(
        "reproduction", None
    )  # what an experiment should give: see runner/reproduce/reproduce.py
    for name, field_ in RunConfig.model_fields.items():
        section = group_of(field_)
        own = values.get(name)
        if section is not None and isinstance(own, dict):
            values[name] = _drop_foreign(section, name, own, prune=prune)
    config = validated(RunConfig, values, "")
    idle = _without_effect(config, [word.key for word in parsed]) if prune else config.idle()
    without = [word for word in parsed if word.key in idle]
    if without and not prune:
        line, why = shown(without[0].line), idle[without[0].key]
        raise ConfigError(f"'{line}' has no effect with {why}; leave it out, or change the other")
    if without:
        return _build([word for word in parsed if word not in without], prune=True)
    words = tuple(word.line for word in parsed)
    unused = _unused(experiment, config, parsed)
    return Trial(config, {}, words, experiment=experiment, unused=unused)


def _check_overlaid(
    experiment: str,
    chosen: dict[str, str],
    values: dict[str, Json],
    parsed: Sequence[Word],
) -> None:
    """Refuse an option of a group some of whose settings an experiment's file sets otherwise."""
    there, given = flat(values), {word.key for word in parsed}
    for group, option in chosen.items():
        if group == "experiment":
            continue
        wanted = flat({group: _composed((f"{group}={option}",)).get(group) or {}})
        lost = {k: v for k, v in wanted.items() if there.get(k) != v and k not in given}
        if lost:
            key = next(iter(lost))
            words = " ".join(setting(*item) for item in lost.items())
            raise ConfigError(
                f"'{group}={option}' has no effect on {key}, which experiment={experiment} sets to "
                f"{there.get(key)}; leave out one of the two, or add {words}"
            )


def _put_value(values: dict[str, Json], word: Word) -> None:
    """Set the value of a word; one that is a mapping is merged with what is there."""
    *path, last = word.key.split(".")
    node = values
    for part in path:
        below = node.setdefault(part, {})
        if not isinstance(below, dict):
            there = f"there are no keys below {part}={shown(repr(below))}"
            raise ConfigError(f"'{shown(word.line)}' can't be set: {there}")
        node = below
    if isinstance(old := node.get(last), dict) and old and not isinstance(word.value, dict):
        beside = f"beside {word.key}={shown(repr(old))}"
        raise ConfigError(f"'{shown(word.line)}' can't be set {beside}; give one of them")
    node[last] = _merged(old, word.value)


def _overlaid(old: Mapping[str, Json], new: Mapping[str, Json]) -> dict[str, Json]:
    """Return what a file says, and what words say instead."""
    return {key: _merged(old.get(key), new.get(key, old.get(key))) for key in {**old, **new}}


def _merged(old: Json, new: Json) -> Json:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}


def _resolved(values: dict[str, Json]) -> dict[str, Json]:
    """Return values with what ``${...}`` in them stands for."""
    try:
        found: Any = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    except Exception as error:  # resolvers raise what they like
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"the configuration can't be resolved: {shown(reason, 200)}") from error
    return dict(found)


@lru_cache(maxsize=256)
def _settings_of_experiment(folders: tuple[str, ...], name: str) -> dict[str, Json]:
    """Return what a file of ``experiment`` sets, by full key."""
    base = flat(_composed_from(folders, ()))
    there = flat(_composed_from(folders, (f"experiment={name}",)))
    found = {key: value for key, value in there.items() if base.get(key) != value}
    return {key: value for key, value in found.items() if not key.startswith("reproduction.")}


def _unused(experiment: str, config: RunConfig, parsed: Sequence[Word]) -> dict[str, str]:
    """Return the settings of an experiment's file that change nothing in a trial, and why."""
    if not experiment:
        return {}
    given, idle = {word.key for word in parsed} - {*groups()}, config.idle()
    found = {}
    for key, value in _settings_of_experiment(_config_folders(), experiment).items():
        by_word = any(key == word or key.startswith(f"{word}.") for word in given)
        if not by_word and not _applies(config, idle, key):
            other = f"another {key.partition('.')[0]}"
            found[f"{key}={literal(value)}"] = idle.get(key, other)
    return found


def _drop_foreign(
    group: Group, name: str, values: dict[str, Json], *, prune: bool
) -> dict[str, Json]:
    """Refuse (or in a grid, leave out) the fields that belong to another option of the group."""
    option, called = group.option(values), group.option_key(name)
    kept = {}
    for key, value in values.items():
        allowed = group.options_of(key)
        if allowed is None or option in allowed:
            kept[key] = value
        elif not prune:
            raise ConfigError(
                f"{name}.{key} does not apply to {called}={option}; it belongs to "
                f"{called}={'|'.join(allowed)}: remove it, or change the {name}"
            )
    return kept


def _without_effect(config: RunConfig, keys: Iterable[str]) -> dict[str, str]:
    """Return which keys have no effect in a trial of a grid, and why.

    Beside :meth:`RunConfig.idle` they are options that its network does not take. ``run`` leaves
    these to the network, which refuses them when it is built.
    """
    found = config.idle()
    asked = [key for key in keys if key.startswith(_OPTIONS)]
    options_ = MODELS.takes(config.model.name) if asked else None
    if options_ is not None:
        why = f"model={config.model.name}, which takes {', '.join(options_) or 'no option'}"
        found |= {
            key: why for key in asked if key.removeprefix(_OPTIONS).split(".")[0] not in options_
        }
    return found


def _applies(config: RunConfig, idle: Collection[str], key: str) -> bool:
    if key in idle:
        return False
    top, _, rest = key.partition(".")
    group = group_of(RunConfig.model_fields[top]) if top in RunConfig.model_fields else None
    options_ = group.options_of(rest.split(".")[0]) if group else None
    if group is None or options_ is None:
        return True
    return group.option(getattr(config, top).model_dump()) in options_


def validated(model: type[M], values: object, prefix: str) -> M:
    """Return the values as a model, or refuse them in one line."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        issues = [_sentence(model, issue, prefix, values) for issue in error.errors()]
        raise ConfigError("; ".join([*dict.fromkeys(issues)][:3])) from error


def _sentence(model: type[BaseModel], issue: ErrorDetails, prefix: str, values: object) -> str:
    """Say one validation error as key, what was given and what is allowed."""
    path = [
        str(part) for part in issue["loc"] if not str(part).startswith(("constrained-", "literal["))
    ]
    key = prefix + ".".join(path)
    if issue["type"] == "extra_forbidden":
        every, own = (
            [".".join([*path[:-1], name]) for name in names]
            for names in _keys(model, path[:-1], values)
        )
        return unknown("key", key, every, own)
    message = issue["msg"].removeprefix("Value error, ")
    field_ = _field(model, issue["loc"], values)
    numbers = allowed(field_.annotation, field_.metadata) if field_ else None
    if numbers and issue["type"] != "value_error":
        message = f"it has to be {numbers}"
    return f"{key}={shown(repr(issue['input']))}: {message[0].lower()}{message[1:]}"


def _keys(
    model: type[BaseModel], path: Sequence[str], values: object
) -> tuple[Collection[str], Collection[str]]:
    """Return the keys there are at a place in the values under any option, and under its own."""
    field_ = _field(model, path, values)
    group = group_of(field_) if field_ else None
    if group is not None:
        section: Any = values
        for part in path:
            section = section.get(part, {}) if isinstance(section, dict) else {}
        return group.keys(), group.kind(section).model_fields.keys()
    owners: Iterable[Any] = leaves(field_.annotation if field_ else model)
    keys = next(kind for kind in owners if hasattr(kind, "model_fields")).model_fields.keys()
    return keys, keys


def _field(model: type[BaseModel], loc: Sequence[int | str], values: object) -> FieldInfo | None:
    """Return the field that a place in the values belongs to."""
    owner: Any = model
    found = None
    for part in loc:
        values = values.get(part) if isinstance(values, dict) else getattr(values, str(part), None)
        if hasattr(owner, "model_fields"):
            found = owner.model_fields.get(str(part))
            group = group_of(found) if found else None
            owner = group.kind(values) if group else found.annotation if found else None
        else:  # a name in a mapping of sections
            owner = next((kind for kind in leaves(owner) if hasattr(kind, "model_fields")), None)
        if owner is None:
            break
    return found
