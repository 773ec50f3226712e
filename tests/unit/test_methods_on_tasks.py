"""Every method on every task: all of them learn each, whatever its arrays and its target are."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest

from fedsweep.catalog import CATALOG
from fedsweep.config import RunConfig
from fedsweep.data.sources import ImageData, load_images
from fedsweep.strategies.registry import STRATEGIES
from fedsweep.sweeps.compose import compose
from tests.trials import events_of

CLIENTS = 5
MLP = ["model=mlp", "model.kwargs={hidden:4}"]
LSTM = ["model=lstm", "model.kwargs={hidden:4,layers:1,embedding:3}"]
TASKS = {
    "classes of a table": ["dataset=wine", *MLP],
    "a number of a table": ["dataset=diabetes", *MLP, "dataset.max_train=60"],
    "synthetic": ["dataset=synthetic", "dataset.clients=5", "partition=natural", *MLP,
                  "partition.max_size=20", "dataset.groups=2"],
    "chains": ["dataset=chains", "dataset.clients=5", "dataset.groups=2", "partition=natural",
               "dataset.examples=15", "dataset.length=4", *LSTM],
    "series": ["dataset=cylinder_bell_funnel", "dataset.max_train=50", "dataset.length=8", *LSTM],
}  # fmt: skip
"""Each with few examples, and a small model."""


def words_of(method: str) -> Iterator[str]:
    """Yield what a method of so few clients needs to be told."""
    yield f"strategy={method}"
    keys = STRATEGIES.settings(method).model_fields
    if "num_clusters" in keys and method != "flhc":  # which finds the number itself
        yield "strategy.num_clusters=2"
    if "warmup_rounds" in keys:
        yield "strategy.warmup_rounds=1"
    if "num_malicious_nodes" in keys:
        yield "strategy.num_malicious_nodes=0"


@cache
def data_of(task: str) -> ImageData:
    config = compose([*TASKS[task], f"num_clients={CLIENTS}"])
    return load_images(config.dataset, config.data, config.natural_column)


def trial(method: str, task: str) -> RunConfig:
    return compose([*TASKS[task], *words_of(method), f"num_clients={CLIENTS}", "rounds=2",
                    "evaluate_every=2", "training.batch_size=0"])  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", STRATEGIES)
def test_a_method_learns_a_task(method: str, task: str) -> None:
    result = events_of(trial(method, task), images=data_of(task))[-1]
    weights = [values for model in result.models.values() for values in model.values()]
    assert all(np.isfinite(values).all() for values in weights)
    main = "client_r2" if "number" in task else "client_acc"
    assert np.isfinite(result.summary[main])
    if "number" in task:
        assert not [name for name in result.summary if CATALOG.final(name).unit == "%"]
