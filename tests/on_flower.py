"""Runs the apps of ``tests/flower_apps`` on Flower's own engine: ``python -m tests.on_flower``.

What each saves, and what its strategy returned, goes to ``tests/flower_apps/on_flower.json``, which
``tests/unit/test_app.py`` holds ours against. ``flwr run`` would do the same behind a SuperLink: it
ends in the same function. Apps that are named are run anew, others keep what there is.
With ``--here`` clients run in this process, and not in Flower's actors on Ray: on a busy machine.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
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
KEPT = APPS / "on_flower.json"
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


def run(
    name: str,
    nodes: int | None = None,
    processes: int | None = None,
    here: bool = False,
    **override: Any,
) -> dict[str, Any]:
    """Run one app and return what came out: ``arrays``, and ``rounds`` with their metrics.

    ``here``: without Ray, which takes some of the time and changes no number.
    """
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
    before = os.getcwd()
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
        Strategy.start = start  # type: ignore[method-assign]
        raybackend.RayBackend = on_ray  # type: ignore[misc]
        shutil.rmtree(place)
    return {"arrays": arrays, "rounds": told}


if __name__ == "__main__":
    known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    words = [word for word in sys.argv[1:] if word != "--here"]
    for app in words or sorted(path.name for path in APPS.iterdir() if path.is_dir()):
        known[app] = run(app, here="--here" in sys.argv)
        KEPT.write_text(json.dumps(dict(sorted(known.items())), indent=0))
