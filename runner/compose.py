"""From the words of a command line to validated configurations: Hydra composes, pydantic validates."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from typing import Any, TypeVar, get_args

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runner.config import Section, TrialConfig
from runner.config.section import flat, short_names
from runner.errors import ConfigError, unknown
from runner.escape import command

M = TypeVar("M", bound=BaseModel)
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class SweepFile(BaseModel):
    """A file of ``configs/sweep``: what all trials share, and the axes of the grid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = Field("", description="one paragraph; the note of the sweep's run in MLflow")
    overrides: tuple[str, ...] = Field((), description="settings of every trial")
    axes: dict[str, list[Any]] = Field(default_factory=dict, description="key or group -> its values")
    halving: dict[str, Any] = Field(default_factory=dict, description="successive halving: axis, metric, ...")


@dataclass(frozen=True)
class Trial:
    """One cell of a grid at one seed: its configuration, and its place on the axes.

    Parameters
    ----------
    config : TrialConfig
        All its settings.
    axes : dict[str, str]
        The axes that apply to it, by full key, with its values as its configuration has them.
    overrides : tuple[str, ...]
        The words that give it again.
    left_out : tuple[str, ...]
        Words and axes of the grid that do not apply to it.
    grid : tuple[str, ...]
        All axes of the grid by full key, those that do not apply to this trial too.
    """

    config: TrialConfig
    axes: dict[str, str]
    overrides: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command that runs this trial alone."""
        return command(["python", "-m", "runner", "run", *self.overrides])

    @property
    def label(self) -> str:
        """Its place on the axes, as people read it."""
        names = short_names(self.grid or self.axes)
        return " ".join(f"{names[key]}={value}" for key, value in self.axes.items()) or self.config.strategy.name


def options(group: str) -> list[str]:
    """Return the names of a group's options."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@cache
def groups() -> list[str]:
    """Return the names of the groups that a trial is composed of."""
    return sorted(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "sweep")


def compose(words: Sequence[str]) -> TrialConfig:
    """Return the trial that ``GROUP=OPTION`` and ``key=value`` words describe.

    Raises
    ------
    ConfigError
        In one line: an unknown group, option or key (with the nearest match), or a value out of range.
    """
    parsed = _parse(words)
    for word in parsed:
        if word.is_sweep_override():
            raise ConfigError(
                f"'{word.input_line}' has several values, and `run` takes one trial; "
                f"give one value, or use `sweep`, or quote a list as {word.get_key_element()}=[a,b]"
            )
    config = _identified(_build(parsed, prune=False), {})
    if config.halving.axis:
        raise ConfigError(
            f"halving.axis={config.halving.axis} compares the trials of a sweep; leave it out, or use `sweep`"
        )
    return config


def expand(name: str, words: Sequence[str]) -> tuple[SweepFile, list[Trial]]:
    """Return a sweep's file and its trials: see :func:`expand_grids`."""
    if name not in options("sweep"):
        raise ConfigError(unknown("sweep", name, options("sweep")))
    loaded = OmegaConf.to_container(OmegaConf.load(CONFIGS / "sweep" / f"{name}.yaml"))
    file = validated(SweepFile, loaded, "")
    return file, expand_grids([file], words)


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
    for word in {word.get_key_element(): word for word in _parse(words)}.values():  # the last wins
        _check_effect(word, trials)
    _rivals(trials)
    return trials


def remarks(trials: Sequence[Trial]) -> list[str]:
    """Return what does not hold for all trials of a grid, in sentences: settings, and halving."""
    told = []
    for key in dict.fromkeys(_key(word) for trial in trials for word in trial.left_out):
        if key not in trials[0].grid:  # the table shows to which trials an axis applies
            without = [word for trial in trials for word in trial.left_out if _key(word) == key]
            count = sum(any(_key(word) == key for word in trial.overrides) for trial in trials)
            what = f"axis {key}" if without[0] == key else without[0]
            told.append(f"{what} applies to {count} of {count + len(without)} trials")
    if alone := _rivals(trials)[1]:
        axis = trials[0].config.halving.axis
        told.append(f"halving over {axis}: {alone} of {len(trials)} trials have no rival and run in full")
    return told


def _cells(file: SweepFile, words: Sequence[str]) -> tuple[list[str], list[Trial]]:
    """Return a grid's axes by full key, and its trials."""
    axes = {key: [f"{key}={_literal(value)}" for value in values] for key, values in file.axes.items()}
    fixed = [*file.overrides, *(f"halving.{key}={_literal(value)}" for key, value in file.halving.items())]
    for word in _parse(words):
        key = word.get_key_element()
        if word.is_sweep_override() and key.startswith("halving."):
            raise ConfigError(f"'{word.input_line}' has several values, and a sweep has one rule; give one value")
        if word.is_sweep_override():
            axes[key] = [f"{key}={value}" for value in word.sweep_string_iterator()]
        elif key in axes:
            axes[key] = [str(word.input_line)]
        else:
            fixed.append(str(word.input_line))
    for key, values in axes.items():
        if not values:
            raise ConfigError(f"the grid is empty: axis '{key}' has no value; give at least one, as {key}=a,b")
    trials: list[Trial] = []
    contents: dict[str, str] = {}
    for cell in product(*axes.values()):
        try:
            config = _identified(_build(_parse([*fixed, *cell]), prune=True), contents)
        except ConfigError as error:
            raise ConfigError(f"{error} (in the cell {' '.join(cell)})") from error
        if config.halving.axis and config.halving.axis not in axes:
            raise ConfigError(unknown("axis", config.halving.axis, axes) + " (halving.axis)")
        resolved = flat(config.canonical())
        applying = {key: word for key, word in zip(axes, cell, strict=True) if _applies(config, key)}
        place = {key: str(resolved.get(key, word.split("=", 1)[1])) for key, word in applying.items()}
        settings = [word for word in fixed if not word.startswith("halving.")]
        kept = (*(word for word in settings if _applies(config, _key(word))), *applying.values())
        left_out = tuple(word for word in [*settings, *axes] if not _applies(config, _key(word)))
        trials.append(Trial(config, place, kept, left_out))
    for key in (key for key in axes if len(axes[key]) > 1 and key.split(".")[0] in TrialConfig.PLACE):
        beside = {(tuple((k, v) for k, v in t.axes.items() if k != key), t.config.key) for t in trials}
        if len(beside) == len({place for place, _ in beside}):  # other data would be other trials
            raise ConfigError(
                f"'{key}' is no axis: it says where trials run and are logged and changes none of them; give one value"
            )
    return list(axes), trials


def _check_effect(word: Override, trials: Sequence[Trial]) -> None:
    """Refuse a word of the command line that does nothing to any trial of a grid."""
    key, line = word.get_key_element(), word.input_line
    if key.startswith("halving."):
        return
    if not any(key == _key(kept) for trial in trials for kept in trial.overrides):
        none = f"'{line}' applies to none of the {len(trials)} trials"
        if why := trials[0].config.idle().get(key):
            raise ConfigError(f"{none}: it has no effect with {why}; leave it out, or change the other")
        top, _, field = key.partition(".")
        section = type(getattr(trials[0].config, top))
        allowed = "|".join(section.options_of(field.split(".")[0]) or ())
        raise ConfigError(f"{none}; it belongs to {top}={allowed}: remove it, or add such a {top}")
    several = word.is_sweep_override() and len(list(word.sweep_string_iterator())) > 1
    if several and len({trial.axes[key] for trial in trials if key in trial.axes}) == 1:
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
    sizes = Counter(tuple(item for item in trial.axes.items() if item[0] != axis) for trial in trials)
    alone = sum(size == 1 for size in sizes.values())
    if alone == len(trials):
        raise ConfigError(
            f"halving.axis={axis}: no two trials differ in it alone, so none would compete; "
            "give the axis several values, or name another"
        )
    return len(trials) - alone, alone


def _key(word: str) -> str:
    return word.split("=", 1)[0].lstrip("+")


def with_contents(trials: Sequence[Trial]) -> list[Trial]:
    """Return trials that are about to run: the Hub says which commit it has of data that are there alone.

    Raises
    ------
    DataError
        It does not answer, or a data set can't be had.
    """
    contents: dict[str, str] = {}
    return [replace(trial, config=_identified(trial.config, contents, ask=True)) for trial in trials]


def _identified(config: TrialConfig, contents: dict[str, str], ask: bool = False) -> TrialConfig:
    """Return a trial with the content of its data: see :func:`runner.data.sources.identified`."""
    from runner.data.sources import identified  # imports NumPy, which --help does without

    return identified(config, ask, contents)


def to_yaml(config: BaseModel) -> str:
    """Return a configuration as YAML, every key resolved."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def _literal(value: Any) -> str:
    """Write a YAML value in Hydra's override grammar."""
    if isinstance(value, list):
        return "[" + ",".join(map(_literal, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_literal(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value)


def _parse(words: Iterable[str]) -> list[Override]:
    """Parse override words; a key is a group, or a dotted path to a field."""
    parser = OverridesParser.create()
    parsed = []
    for word in words:
        if word.startswith("-") or "=" not in word:
            raise ConfigError(f"'{word}' is not key=value; for example: dataset=mnist training.lr=0.1 seed=0,1,2")
        try:
            override = parser.parse_override(word.lstrip("+"))
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"'{word}' can't be read: {reason}; quote special characters as key='...'") from error
        key = override.get_key_element()
        top = key.split(".")[0]
        if top not in TrialConfig.model_fields and top not in groups():
            raise ConfigError(unknown("key or group", top, {*TrialConfig.model_fields, *groups()}))
        if key in groups() and not override.is_sweep_override():
            _check_option(key, override.value())
        parsed.append(override)
    return parsed


def _check_option(group: str, option: Any) -> None:
    if option is None and group == "experiment":
        return
    if str(option) not in options(group):
        raise ConfigError(unknown(f"{group}", str(option), options(group)))


@lru_cache(maxsize=256)
def _compose_groups(choices: tuple[str, ...]) -> DictConfig:
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return hydra_compose("config", list(choices))
    except (HydraException, OmegaConfBaseException) as error:
        reason = str(error.__cause__ or error)
        raise ConfigError(f"the configuration can't be composed from {' '.join(choices)}: {reason}") from error


def _build(parsed: Sequence[Override], *, prune: bool) -> TrialConfig:
    """Compose the groups once, set the values on top, validate."""
    in_groups = [word for word in parsed if word.get_key_element() in groups()]
    chosen = {word.get_key_element(): f"{word.get_key_element()}={word.value()}" for word in in_groups}
    for choice in chosen.values():
        _check_option(*choice.split("=", 1))
    raw = _compose_groups(tuple(chosen.values())).copy()
    OmegaConf.set_struct(raw, False)
    for word in parsed:
        if word.get_key_element() in groups():
            continue
        try:
            OmegaConf.update(raw, word.get_key_element(), _plain(word.value()), force_add=True)
        except (OmegaConfBaseException, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"'{word.input_line}' can't be set: {str(error).splitlines()[0]}") from error
    try:
        values: Any = OmegaConf.to_container(raw, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration can't be resolved: {str(error).splitlines()[0]}") from error
    values.pop("reproduction", None)  # what an experiment should give: see runner/reproduce.py
    for name, field in TrialConfig.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section) and isinstance(values.get(name), dict):
            values[name] = _drop_foreign(section, name, values[name], prune=prune)
    config = validated(TrialConfig, values, "")
    idle = config.idle()
    without = [word for word in parsed if word.get_key_element() in idle]
    if without and not prune:
        raise ConfigError(
            f"'{without[0].input_line}' has no effect with {idle[without[0].get_key_element()]}; "
            "leave it out, or change the other"
        )
    if without:
        return _build([word for word in parsed if word not in without], prune=True)
    return config


def _plain(value: Any) -> Any:
    """Turn the parser's quoted strings into strings, inside lists and mappings too."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value.text if hasattr(value, "text") else value


def _drop_foreign(section: type[Section], name: str, values: dict[str, Any], *, prune: bool) -> dict[str, Any]:
    """Refuse (or in a grid, leave out) the fields that belong to another option of the group."""
    option = values.get("name", section.model_fields["name"].default) if "name" in section.model_fields else None
    kept = {}
    for key, value in values.items():
        allowed = section.options_of(key) if key in section.model_fields else None
        if allowed is None or option in allowed:
            kept[key] = value
        elif not prune:
            raise ConfigError(
                f"{name}.{key} does not apply to {name}={option}; it belongs to {name}={'|'.join(allowed)}: "
                f"remove it, or change the {name}"
            )
    return kept


def _applies(config: TrialConfig, key: str) -> bool:
    top, _, rest = key.partition(".")
    section = getattr(config, top, None)
    field = rest.split(".")[0]
    if not isinstance(section, Section) or field not in type(section).model_fields:
        return True
    allowed = type(section).options_of(field)
    if key in config.idle():
        return False
    return allowed is None or getattr(section, "name", None) in allowed


def validated(model: type[M], values: Any, prefix: str) -> M:
    """Return the values as a model, or refuse them in one line."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(model, issue, prefix) for issue in error.errors()[:3])) from error


def _sentence(model: type[BaseModel], issue: Any, prefix: str) -> str:
    """Say one validation error as key, what was given and what is allowed."""
    path = [str(part) for part in issue["loc"] if not str(part).startswith(("constrained-", "literal["))]
    key = prefix + ".".join(path)
    if issue["type"] == "extra_forbidden":
        owner: Any = model
        for part in path[:-1]:  # a field of a section, or a name in a mapping of sections
            owner = owner.model_fields[part].annotation if hasattr(owner, "model_fields") else get_args(owner)[-1]
        return unknown("key", key, [".".join([*path[:-1], field]) for field in owner.model_fields])
    message = issue["msg"].removeprefix("Value error, ")
    return f"{key}={issue['input']!r}: {message[0].lower()}{message[1:]}"
