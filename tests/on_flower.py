"""Runs the apps of ``tests/flower_apps`` on Flower's own engine, which ours is held against.

``flwr run`` would do the same behind a SuperLink: it ends in the same function. It is run on the
machine that tests ours, since processors differ in the last bits of a sum: nothing is kept.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.config import get_fused_config_from_dir, get_project_config
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.server.superlink.fleet.vce.backend import Backend, BackendConfig, raybackend
from flwr.serverapp.strategy import Strategy
from flwr.simulation.run_simulation import _run_simulation
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supercore.telemetry import EventType

APPS = Path(__file__).parent / "flower_apps"
ALL = sorted(path.parent.name for path in APPS.glob("*/pyproject.toml"))


def arrays_of(folder: Path) -> list[np.ndarray]:
    """Return what an app saved, in order."""
    if (saved := folder / "final_model.npz").exists():
        with np.load(saved) as found:
            return [found[name] for name in found]
    import torch

    return [v.numpy() for v in torch.load(folder / "final_model.pt").values()]


class HereBackend(Backend):
    """Runs clients in this process, one at a time, in place of Flower's actors on Ray."""

    def __init__(self, backend_config: BackendConfig) -> None:
        super().__init__(backend_config)
        self._turn, self._app = Lock(), ClientApp()

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        self._app = app_fn()

    @property
    def num_workers(self) -> int:
        return 2

    def is_worker_idle(self) -> bool:
        return True

    def terminate(self) -> None:
        pass

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        with self._turn:
            return self._app(message, context), context


@cache
def on_flower(name: str) -> dict[str, Any]:
    """Return what came out of an app: ``arrays``, and ``rounds`` with their metrics.

    Clients run in this process, which takes a tenth of the time and changes no number.
    """
    return run(name, here=True)


def run(
    name: str,
    nodes: int | None = None,
    processes: int | None = None,
    here: bool = False,
    **override: Any,
) -> dict[str, Any]:
    """Run one app, and return what came out; ``here``: without Flower's actors on Ray."""
    folder = APPS / name
    project = get_project_config(folder)
    components = project["tool"]["flwr"]["app"]["components"]
    options = project["tool"]["flwr"]["federations"]["local-simulation"]["options"]
    run_config = get_fused_config_from_dir(folder, override)
    flower_run = replace(
        Run.create_empty(run_id=1),
        override_config=override,
        primary_task_id=1,
        federation_id=NOOP_FEDERATION_ID,
    )
    TaskIdentity.run_id = TaskIdentity.task_id = 1
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    told: dict[str, Any] = {}
    start = Strategy.start

    def keeping(self: Strategy, *args: Any, **kwargs: Any) -> Any:
        result = start(self, *args, **kwargs)
        for origin, of in (
            ("train", result.train_metrics_clientapp),
            ("evaluate", result.evaluate_metrics_clientapp),
            ("server", result.evaluate_metrics_serverapp),
        ):
            for number, metrics in of.items():
                told.setdefault(str(number), {}).update(
                    {f"{origin}.{key}": value for key, value in metrics.items()}
                )
        return result

    Strategy.start = keeping  # type: ignore[method-assign]
    on_ray = raybackend.RayBackend
    raybackend.RayBackend = HereBackend if here else on_ray  # type: ignore[misc]
    before, path, modules = os.getcwd(), list(sys.path), set(sys.modules)
    place = tempfile.mkdtemp()
    os.chdir(place)
    try:
        _run_simulation(
            num_supernodes=nodes or options["num-supernodes"],
            exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
            client_app_attr=components["clientapp"],
            server_app_attr=components["serverapp"],
            backend_config={
                "init_args": {"num_cpus": processes} if processes else {},
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            },
            app_dir=str(folder),
            run=flower_run,
            server_app_context=Context(1, 0, {}, RecordDict(), run_config),
            is_app=True,
        )
        arrays = [array.tolist() for array in arrays_of(Path(place))]
    finally:
        os.chdir(before)
        sys.path[:] = path  # Flower leaves the app's folder and its modules there
        for module in sys.modules.keys() - modules:
            if str(getattr(sys.modules[module], "__file__", "")).startswith(str(folder)):
                del sys.modules[module]
        Strategy.start = start  # type: ignore[method-assign]
        raybackend.RayBackend = on_ray  # type: ignore[misc]
        shutil.rmtree(place)
    return {"arrays": arrays, "rounds": told}
