"""Small trials for tests: digits, a few clients, some rounds."""

import gc
from functools import cache
from typing import Any

from fedsweep.catalog import CATALOG
from fedsweep.config import RunConfig
from fedsweep.data.sources import ImageData, load_images
from fedsweep.engine.executors import Host
from fedsweep.records import RoundRecord, TrialResult, TrialStarted
from fedsweep.strategies import STRATEGIES
from fedsweep.strategies.own_part import OwnHead
from fedsweep.sweeps.compose import compose
from fedsweep.sweeps.prepare import make_split
from fedsweep.trial.trial import run_trial

SMALL = ["num_clients=8", "rounds=3", "training.epochs=1"]


@cache
def digits() -> ImageData:
    config = compose([])
    return load_images(config.dataset, config.data)


def small(*words: str) -> RunConfig:
    """Return the configuration of a small trial on digits."""
    return compose([*SMALL, *words])


def network_of(strategy: str, otherwise: str) -> str:
    """Return a network for a method: some need more of it than a last layer."""
    if issubclass(STRATEGIES[strategy], OwnHead) or strategy == "moon":
        return "mlp"
    return "tests.networks.NormedMLP" if strategy == "fedbn" else otherwise


def events_of(
    config: RunConfig, hosts: list[Host] | None = None, images: ImageData | None = None
) -> list[Any]:
    """Run a trial to its end, on the digits if nothing else is given; return all that it yields."""
    import fedsweep.client.app  # noqa: F401  torch is there before the freeze

    gc.freeze()  # as in a trial's own process
    images = images or digits()
    events = list(run_trial(config, images, make_split(images, config), hosts))
    for record in events[1:-1]:
        undeclared = [key for key in record.metrics if key not in CATALOG]
        assert not undeclared, f"logged, and not in runner/catalog.py: {undeclared}"
    return events


def outcome(events: list[Any]) -> tuple[str, list[dict[str, float]]]:
    """Return what must be equal to the bit: the final weights' hash, rounds' learning metrics."""
    started, *rounds, result = events
    assert isinstance(started, TrialStarted)
    assert isinstance(result, TrialResult)
    assert all(isinstance(record, RoundRecord) for record in rounds)
    return result.weights_sha256, [
        {key: value for key, value in record.metrics.items() if CATALOG.follows(key) == "learning"}
        for record in rounds
    ]
