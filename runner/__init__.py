"""fedsweep: sweeps of (clustered) federated-learning experiments on Ray, tracked in MLflow.

They are reproducible to the bit. What is public in Python is named here; the parts of one's own
that a sweep takes are described in docs/own.md.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsweep.api import Results, compose, load, run, sweep, sweep_app
    from fedsweep.errors import RunnerError
    from fedsweep.scenario.partition import Partition
    from fedsweep.scenario.shift import SeenShift, Shift
    from fedsweep.strategies.clients import ClientPart, Update
    from fedsweep.strategies.settings import FedAvgSettings

__version__ = "0.1.0"

__all__ = [
    "ClientPart",
    "FedAvgSettings",
    "Partition",
    "Results",
    "RunnerError",
    "SeenShift",
    "Shift",
    "Update",
    "compose",
    "load",
    "run",
    "sweep",
    "sweep_app",
]

_HOMES = {
    "ClientPart": "strategies.clients",
    "FedAvgSettings": "strategies.settings",
    "Partition": "scenario.partition",
    "RunnerError": "errors",
    "SeenShift": "scenario.shift",
    "Shift": "scenario.shift",
    "Update": "strategies.clients",
}
"""Where a public name lies, if not in ``api``; it is imported when it is asked for."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'api')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
