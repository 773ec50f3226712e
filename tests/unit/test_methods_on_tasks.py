"""Every method on every task: it learns, or is refused before anything starts."""

from collections.abc import Iterator
from functools import cache
from math import prod

import numpy as np
import pytest
import torch
from torch import nn

from fedsweep.catalog import CATALOG
from fedsweep.config import RunConfig
from fedsweep.data.sources import ImageData, load_images
from fedsweep.errors import ConfigError
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
REFUSED = {
    (method, "a number of a table"): f"strategy={method} goes by classes"
    for method in ("fedrc", "fedrod")
}
"""(method, task) -> why it is refused; what is not here learns."""


class Normed(nn.Module):
    """Two dense layers with BatchNorm between them, on numbers or on embedded symbols."""

    def __init__(
        self, input_shape: tuple[int, ...], num_classes: int, num_symbols: int = 0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_symbols, 3) if num_symbols else nn.Identity()
        width = prod(input_shape) * (3 if num_symbols else 1)
        hidden, output = nn.Linear(width, 4), nn.Linear(4, num_classes)
        self.layers = nn.Sequential(nn.Flatten(), hidden, nn.BatchNorm1d(4), nn.ReLU(), output)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(self.embedding(x))
        return logits


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
    words = [*TASKS[task], *words_of(method), f"num_clients={CLIENTS}", "rounds=2",
             "evaluate_every=2", "training.batch_size=0"]  # fmt: skip
    if method == "fedbn":
        words = [word for word in words if not word.startswith("model")]
        words.append(f"model.name={__name__}.Normed")
    return compose(words)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", STRATEGIES)
def test_a_method_learns_a_task_or_is_refused(method: str, task: str) -> None:
    if (method, task) in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[method, task]):
            trial(method, task)
        return
    result = events_of(trial(method, task), images=data_of(task))[-1]
    weights = [values for model in result.models.values() for values in model.values()]
    assert all(np.isfinite(values).all() for values in weights)
    main = "client_r2" if "number" in task else "client_acc"
    assert np.isfinite(result.summary[main])
    if "number" in task:
        assert not [name for name in result.summary if CATALOG.final(name).unit == "%"]
