"""A Flower app as it is, on its own engine and on ours: ``flower`` or ``ours``, a round at a time.

The app is the NumPy quickstart of ``tests/flower_apps``, with 100 clients: what an engine costs.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import ray
from flwr.serverapp.strategy import FedAvg

from benchmarks.contender import say, turns
from benchmarks.ours import hosts
from benchmarks.work import PROCESSES
from fedsweep.app.sweep import expand_app
from fedsweep.app.trial import run_app
from tests import on_flower

APP, CLIENTS, ROUNDS, ENDLESS = "numpy_quick", 100, 3, 10**6


class Over(Exception):
    """No more turns are wanted."""


def pace() -> Iterator[None]:
    """Let a round pass each time it is asked: two that warm up, then those of the turns."""
    yield
    yield
    for _ in turns():
        begun = time.perf_counter()
        for _ in range(ROUNDS):
            yield
        say(seconds=(time.perf_counter() - begun) / ROUNDS)
    raise Over


def main(engine: str) -> None:
    """Run the app in turns: each of its rounds begins by asking the strategy whom to train."""
    rounds, configure = pace(), FedAvg.configure_train

    def configure_train(self: FedAvg, *args: Any, **kwargs: Any) -> Any:
        next(rounds)
        return configure(self, *args, **kwargs)

    FedAvg.configure_train = configure_train  # type: ignore[method-assign]
    endless = {"num-server-rounds": ENDLESS}
    if engine == "flower":
        on_flower.run(APP, nodes=CLIENTS, processes=PROCESSES, **endless)
        return
    words = [f"run_config.num-server-rounds={ENDLESS}", f"num_clients={CLIENTS}"]
    sweep = expand_app(str(on_flower.APPS / APP), words)
    with hosts() as actors:
        code = sweep.project.code
        for _ in run_app(sweep.trials[0].config, code, actors, ray.put(code)):
            pass


if __name__ == "__main__":
    with suppress(Over):
        main(*sys.argv[1:])
