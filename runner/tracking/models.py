"""Final models as MLflow models: traced programs with their weights (``pt2``), nothing pickled.

``mlflow.pytorch.log_model`` would load each model again to check it and copy the run's metric histories to it; writing
the same folder with ``save_model`` and registering it takes a third of the time.
"""

import logging
import tempfile
import warnings
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from runner.config import ModelConfig
from runner.tracking.store import Store

_log = logging.getLogger(__name__)


@cache
def warm_up() -> None:
    """Trace a trivial network. The first trace of a process imports for seconds: better while the clients train."""
    import mlflow.pytorch  # noqa: F401
    import torch
    import torch.export

    torch.export.export(torch.nn.Linear(1, 1), (torch.zeros(2, 1),))


def log_model(
    store: Store,
    run_id: str,
    name: str,
    config: ModelConfig,
    state: Mapping[str, np.ndarray],
    input_shape: tuple[int, int, int],
    num_classes: int,
) -> None:
    """Log a model so that ``mlflow.pytorch.load_model("runs:/<run_id>/<name>")`` gives it back.

    A network that can't be traced (a user's own, with control flow on values) is logged as plain weights instead, in
    ``models/<name>.safetensors``, and a tag of the run says why.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    with tempfile.TemporaryDirectory(prefix="fedsweep-") as folder:
        logged = store.client.create_logged_model(
            store.experiment_id, name=name, source_run_id=run_id, model_type="pytorch"
        )
        try:
            _save(Path(folder, "model"), logged.model_id, run_id, name, config, state, input_shape, num_classes)
        except Exception as error:  # tracing runs the user's code: anything may come out
            _log.warning("model %s of run %s is logged as weights only: %s", name, run_id, error)
            from safetensors.numpy import save_file

            store.client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
            weights = Path(folder, f"{name}.safetensors")
            save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, weights)
            store.client.log_artifact(run_id, str(weights), "models")
            store.client.set_tag(run_id, "models.not_traced", f"{type(error).__name__}: {error}"[:500])
            return
        store.client.log_model_artifacts(logged.model_id, str(Path(folder, "model")))
        store.client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        store.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])


def _save(
    path: Path,
    model_id: str,
    run_id: str,
    name: str,
    config: ModelConfig,
    state: Mapping[str, np.ndarray],
    input_shape: tuple[int, int, int],
    num_classes: int,
) -> None:
    """Write MLflow's model folder."""
    import mlflow.pytorch
    import torch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    from models import build_model

    with torch.random.fork_rng(devices=[]):
        model = build_model(config.name, input_shape, num_classes, **config.kwargs).eval()
    model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state.items()})
    # Two examples: with one the trace would fix the batch size at 1.
    example = np.zeros((2, *input_shape), np.float32)
    single = np.dtype(np.float32)
    signature = ModelSignature(
        Schema([TensorSpec(single, (-1, *input_shape))]), Schema([TensorSpec(single, (-1, num_classes))])
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pytorch.save_model(
            model,
            str(path),
            mlflow_model=Model(artifact_path=name, run_id=run_id, model_id=model_id),
            signature=signature,
            input_example=example,
            serialization_format="pt2",
            pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "torch", "numpy")],
        )
