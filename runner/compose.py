"""From the words of a command line to validated configurations: Hydra composes, pydantic validates."""

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
from runner.config.section import axis_name
from runner.errors import ConfigError, unknown

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
    """One cell of a grid at one seed: its configuration, and its place on the axes."""

    config: TrialConfig
    axes: dict[str, str]
    overrides: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command that runs this trial alone."""
        return " ".join(["python -m runner run", *(_quoted(word) for word in self.overrides)])


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
    """Return a sweep's file and its trials: see :func:`expand_grid`."""
    if name not in options("sweep"):
        raise ConfigError(unknown("sweep", name, options("sweep")))
    file = validated(SweepFile, OmegaConf.to_container(OmegaConf.load(CONFIGS / "sweep" / f"{name}.yaml")), "")
    return file, expand_grid(file, words)


def expand_grid(file: SweepFile, words: Sequence[str]) -> list[Trial]:
    """Return the trials of a grid: the product of the axes, without duplicates, in order.

    A word with several values (``seed=0,1``, ``strategy.q=range(0,3)``) adds or replaces an axis; one with a single
    value replaces an axis too, or is a setting of every trial. An axis that does not apply to a trial is left out of
    it (``strategy.num_clusters`` under FedAvg), so that equal trials collapse.
    """
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
    empty = [key for key, values in axes.items() if not values]
    if empty:
        raise ConfigError(f"the grid is empty: axis '{empty[0]}' has no value; give at least one, as {empty[0]}=a,b")
    trials: dict[str, Trial] = {}
    contents: dict[str, str] = {}
    for cell in product(*axes.values()):
        try:
            config = _identified(_build(_parse([*fixed, *cell]), prune=True), contents)
        except ConfigError as error:
            raise ConfigError(f"{error} (in the cell {' '.join(cell)})") from error
        if config.halving.axis and config.halving.axis not in axes:
            raise ConfigError(unknown("axis", config.halving.axis, axes) + " (halving.axis)")
        applying = [(key, word) for key, word in zip(axes, cell, strict=True) if _applies(config, key)]
        label = {axis_name(key): word.split("=", 1)[1] for key, word in applying}
        alone = (word for word in fixed if _applies(config, word.split("=")[0]) and not word.startswith("halving."))
        kept = (*alone, *(word for _, word in applying))
        trials.setdefault(config.key, Trial(config, label, kept))
    return list(trials.values())


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


def _quoted(word: str) -> str:
    return f"'{word}'" if any(c in word for c in " []{}(),$*") else word


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
    return validated(TrialConfig, values, "")


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
