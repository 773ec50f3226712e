"""Small trials for tests: digits, a few clients, some rounds."""

import gc
from functools import cache
from typing import Any

from fedsweep.config import TrialConfig
from fedsweep.data.sources import ImageData, load_images
from fedsweep.engine.executors import Host
from fedsweep.records import RoundRecord, TrialResult, TrialStarted
from fedsweep.sweep.compose import compose
from fedsweep.sweep.prepare import make_split
from fedsweep.trial.trial import run_trial

SMALL = ["num_clients=8", "rounds=3", "training.epochs=1"]
WALL = ("5_time/", "6_load/")
"""Sections whose values are measured, and so differ from run to run."""
SERVERS = ("2_clusters/handovers", "2_clusters/server_", "4_comm/mb_client_server")
"""Who serves follows the measured load, and a server's own messages cross no link."""


@cache
def digits() -> ImageData:
    config = compose([])
    return load_images(config.dataset, config.data)


def small(*words: str) -> TrialConfig:
    """Return the configuration of a small trial on digits."""
    return compose([*SMALL, *words])


def events_of(config: TrialConfig, hosts: list[Host] | None = None) -> list[Any]:
    """Run a trial to its end and return all that it yields."""
    import fedsweep.client.app  # noqa: F401  torch is there before the freeze

    gc.freeze()  # as in a trial's own process
    return list(run_trial(config, digits(), make_split(digits(), config), hosts))


def outcome(events: list[Any]) -> tuple[str, list[dict[str, float]]]:
    """Return what must be equal to the bit: the hash of the final weights, and every round's learning metrics."""
    started, *rounds, result = events
    assert isinstance(started, TrialStarted)
    assert isinstance(result, TrialResult)
    assert all(isinstance(record, RoundRecord) for record in rounds)
    learning = [{k: v for k, v in r.metrics.items() if not k.startswith(WALL)} for r in rounds]
    # It must not change anything else.
    for metrics in learning:
        for key in [key for key in metrics if key.startswith(SERVERS)]:
            del metrics[key]
    return result.weights_sha256, learning
