"""Final models as MLflow models: traced programs with their weights (``pt2``), nothing pickled.

``mlflow.pytorch.log_model`` would trace each model, check it by loading and copy the run's metric
histories to it. A network is traced once per shape here, and each model is that trace with other
weights.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsweep.config import ModelConfig
from fedsweep.escape import line, shortened
from fedsweep.tracking import ops
from fedsweep.tracking.ops import Op

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_log = logging.getLogger(__name__)
_PROGRAM = "data/model.pt2"


@cache
def trace_once() -> None:
    """Trace, save and load a trivial network: the first time in a process imports for seconds."""
    try:
        _, program, _ = _template(ModelConfig(name="logreg").model_dump_json(), (1, 1, 1), 2)
        weights = {key: value.detach().numpy() for key, value in program.state_dict.items()}
        _with_weights(program, weights)
    except Exception as error:  # the first model says it: no trial is lost over a preparation
        _log.debug("tracing can't be prepared", exc_info=error)


def model_op(
    run: str,
    name: str,
    config: ModelConfig,
    state: Mapping[str, np.ndarray],
    input_shape: tuple[int, ...],
    num_outputs: int,
    num_symbols: int = 0,
) -> Iterator[Op]:
    """Log a model so that ``mlflow.pytorch.load_model("runs:/<run_id>/<name>")`` gives it back.

    A network that can't be traced (a user's own, with control flow on values) is logged as plain
    weights instead, in ``models/<name>.safetensors``, and a tag of the run says why.
    """
    try:
        folder, program, first = _template(
            config.model_dump_json(), input_shape, num_outputs, num_symbols
        )
        whole = {name: state[shared] for name, shared in first.items()}
        yield Op("model", run, {"name": name}, {**folder, _PROGRAM: _with_weights(program, whole)})
    except Exception as error:  # tracing runs the user's code: anything may come out
        _log.warning("model %s is logged as weights only: %s", name, line(str(error)))
        yield weights_op(run, name, state)
        yield ops.tags(
            run, {"models.not_traced": shortened(f"{type(error).__name__}: {error}", 500)}
        )


def weights_op(run: str, name: str, state: Mapping[str, np.ndarray]) -> Op:
    """Log the weights of a model alone, in ``models/<name>.safetensors``."""
    from safetensors.numpy import save

    weights = save({key: np.ascontiguousarray(value) for key, value in state.items()})
    return ops.files(run, {f"models/{name}.safetensors": weights})


def _with_weights(program: "ExportedProgram", state: Mapping[str, np.ndarray]) -> bytes:
    """Return the traced program with these weights in the place of its own."""
    import torch

    if program.state_dict.keys() != state.keys():
        raise ValueError(f"the trace holds {sorted(program.state_dict)}, the model {sorted(state)}")
    with torch.no_grad():
        for key, value in state.items():
            program.state_dict[key].copy_(torch.from_numpy(np.array(value)))
    buffer = BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


@lru_cache(8)
def _template(
    config_json: str, input_shape: tuple[int, ...], num_outputs: int, num_symbols: int = 0
) -> "tuple[dict[str, bytes], ExportedProgram, dict[str, str]]":
    """Return MLflow's model folder of an architecture, but for the program, and the traced program.

    And every name of its state dict with the name that a record has the same tensor under.
    """
    import mlflow.pytorch
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from fedsweep.models import build_model
    from fedsweep.training.arrays import first_names

    config = ModelConfig.model_validate_json(config_json)
    with torch.random.fork_rng(devices=[]):
        model = build_model(config.name, input_shape, num_outputs, num_symbols, **config.kwargs)
        model.eval()
    # Two examples: with one the trace would fix the batch size at 1.
    taken = np.dtype(np.int64 if num_symbols else np.float32)
    example = np.zeros((2, *input_shape), taken)
    signature = ModelSignature(
        Schema([TensorSpec(taken, (-1, *input_shape))]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, num_outputs))]),
    )
    with tempfile.TemporaryDirectory(prefix="fedsweep-") as parent, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(parent, "model")
        mlflow.pytorch.save_model(
            model,
            str(folder),
            signature=signature,
            input_example=example,
            serialization_format="pt2",
            pip_requirements=[
                f"{package}=={version(package)}" for package in ("mlflow", "torch", "numpy")
            ],
        )
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        program = torch.export.load(BytesIO(files.pop(_PROGRAM)))
    return files, program, first_names(model)
