"""Data sets and splits of a sweep, made once and kept in the object store, owned by the driver.

Everything that can be wrong with the data comes to light here, before the first trial starts.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import ray
from flwr.app import ArrayRecord

from fedsweep.config import DataConfig, RunConfig, TrialConfig
from fedsweep.data.federated import FederatedData
from fedsweep.data.sources import ImageData, load_images
from fedsweep.engine.executors import Host
from fedsweep.errors import ConfigError, DataError, RunnerError, TrialError
from fedsweep.parts.code import blamed
from fedsweep.scenario.task import Task
from fedsweep.strategies import Layout
from fedsweep.sweeps.compose import Trial
from fedsweep.trial.privacy import check_state
from fedsweep.trial.trial import Split, initial_model, make_grid


@dataclass(frozen=True)
class Prepared:
    """References to a trial's images and split (values, for the inline engine)."""

    images: "ray.ObjectRef[ImageData] | ImageData"
    split: "ray.ObjectRef[Split] | Split"
    num_train: int
    train_bytes: int
    told: str  # what was read and what was left out, in a line

    @property
    def values(self) -> "tuple[ray.ObjectRef[Any] | Any, ...]":
        """What a trial is given."""
        return self.images, self.split


def _images_key(config: TrialConfig) -> str:
    if config.dataset.content is None:
        raise DataError(
            f"the content of data set '{config.dataset.name}' is not known, "
            "so the trial's key does not cover it; compose trials that run with "
            "fedsweep.sweeps.compose.with_contents"
        )
    return json.dumps([config.dataset.canonical(), config.natural_column], sort_keys=True)


def _split_key(config: TrialConfig) -> str:
    sections = (config.dataset, config.partition, config.shift, config.attack)
    parts = [section.canonical() for section in sections]
    return json.dumps([*parts, config.code, config.num_clients, config.seed], sort_keys=True)


def make_split(images: ImageData, config: RunConfig) -> Split:
    """Split a data set among the clients as a trial asks.

    Raises
    ------
    DataError
        It can't be done, or a partition, a shift or an attack of somebody's own raises.
    """
    try:
        data = FederatedData.build(images, config)
    except RunnerError:
        raise
    except Exception as error:
        if told := blamed(error):
            raise DataError(told) from error
        raise
    return Split(data.train_rows, data.eval_rows, data.shift, data.adversary, data.scaling)


@ray.remote(num_cpus=0)
def _load(dataset: Task, data: DataConfig, column: str) -> ImageData:
    return load_images(dataset, data, column)


@ray.remote(num_cpus=0)
def _split(images: ImageData, configs: list[RunConfig]) -> tuple[object, ...]:
    """Return what is to be known of the data, then a split per configuration.

    The first tells of an error without fetching a split.
    """
    return (len(images.train_y), images.train_x.nbytes, images.told), *(
        make_split(images, config) for config in configs
    )


def prepare_inline(trials: Sequence[Trial]) -> dict[str, Prepared]:
    """Prepare every trial's data in this process; by trial key."""
    images: dict[str, ImageData] = {}
    splits: dict[str, Split] = {}
    for config in (trial.config for trial in trials):
        if _images_key(config) not in images:
            images[_images_key(config)] = load_images(
                config.dataset, config.data, config.natural_column
            )
        if _split_key(config) not in splits:
            splits[_split_key(config)] = make_split(images[_images_key(config)], config)
    return {
        t.config.key: Prepared(
            (data := images[_images_key(t.config)]),
            splits[_split_key(t.config)],
            len(data.train_y),
            data.train_x.nbytes,
            data.told,
        )
        for t in trials
    }


def prepare(trials: Sequence[Trial]) -> dict[str, Prepared]:
    """Prepare every trial's data in Ray tasks, each data set and each split once; by trial key.

    Raises
    ------
    DataError
        A data set can't be had, has changed since it was identified, or can't be split as asked.
    """
    by_images: dict[str, dict[str, RunConfig]] = {}
    for config in (trial.config for trial in trials):
        by_images.setdefault(_images_key(config), {}).setdefault(_split_key(config), config)
    images: dict[str, ray.ObjectRef] = {}
    splits: dict[str, ray.ObjectRef] = {}
    checks = []
    for key, configs in by_images.items():
        first = next(iter(configs.values()))
        images[key] = _load.remote(first.dataset, first.data, first.natural_column)
        check, *refs = _split.options(num_returns=1 + len(configs)).remote(
            images[key], list(configs.values())
        )
        splits.update(zip(configs, refs, strict=True))
        checks.append(check)
    try:
        sizes = dict(zip(by_images, ray.get(checks), strict=True))
    except (
        RunnerError
    ) as error:  # Ray raises a copy whose text is a traceback; the cause is the one-line original
        raise getattr(error, "cause", error) from None
    return {
        t.config.key: Prepared(
            (key := _images_key(t.config)) and images[key],
            splits[_split_key(t.config)],
            *sizes[key],
        )
        for t in trials
    }


def check_models(
    trials: Sequence[Trial], prepared: dict[str, Prepared], hosts: list[Host] | None
) -> dict[str, int]:
    """Build each network once, before the first trial starts;
    return its number of parameters by trial key.

    Raises
    ------
    ConfigError
        A network can't be built for its data set, or keeps what privacy does not cover.
    """
    checked: dict[tuple[str, str], tuple[ArrayRecord, Layout]] = {}
    found = {}
    for config in (trial.config for trial in trials):
        key = _images_key(config), json.dumps(config.model.canonical(), sort_keys=True, default=str)
        if key not in checked:
            at = prepared[config.key]
            images, split = (
                (at.images, at.split) if hosts is None else ray.get([at.images, at.split])
            )
            try:
                grid = make_grid(config, split.on(images), hosts, at.images, at.split)
                checked[key] = initial_model(grid)
            except TrialError as error:
                raise ConfigError(str(error)) from error
        arrays, layout = checked[key]
        check_state(config, layout, arrays)
        found[config.key] = sum(prod(array.shape) for array in arrays.values())
    return found
