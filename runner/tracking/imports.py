"""All that the driver uses while its threads work side by side, imported before they do.

While one thread imports a library, others see half of it: whoever asks ``sys.modules`` whether
PyTorch is there, as scipy does for each array, finds a module without a Tensor. So the driver
imports in its main thread alone, and only while the writer's thread has nothing to do.
"""

from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module

from fedsweep.config import TrackingConfig, TrialConfig
from fedsweep.imports import lasting

_TABLES = (
    "jinja2", "pandas.core.arrays.arrow.extension_types", "pandas.core.methods.to_dict",
    "pandas.core.reshape.reshape", "pandas.io.formats.csvs", "pyarrow.dataset",
    "pyarrow.pandas_compat", "pyarrow.parquet", "scipy.stats", "rich._emoji_codes",
)  # fmt: skip
_FIGURES = (
    "PIL.Image", "matplotlib.backends.backend_agg", "matplotlib.figure", "matplotlib.lines",
    "matplotlib.patches", "matplotlib.ticker",
)  # fmt: skip
_STORE = (
    "mlflow.entities", "mlflow.exceptions", "mlflow.models",
    "mlflow.utils.search_logged_model_utils", "requests", "sqlalchemy.exc",
)  # fmt: skip
_OURS = (
    "fedsweep.report.figures", "fedsweep.tracking.artifacts", "fedsweep.tracking.models",
    "fedsweep.tracking.read",
)  # fmt: skip


def import_all(cfg: TrackingConfig, trials: Iterable[TrialConfig]) -> None:
    """Import what tables, figures, models and the report are made with.

    Parameters
    ----------
    cfg : TrackingConfig
        Says whether models are logged: PyTorch takes seconds and hundreds of megabytes.
    trials : iterable of TrialConfig
        What is left to run: its networks may come from modules of the user's.
    """
    with lasting():
        for module in (*_TABLES, *_FIGURES, *_STORE, *_OURS):
            with suppress(ModuleNotFoundError):  # another release may have no such part
                import_module(module)
        from PIL import Image

        Image.init()  # its formats
        networks = {trial.model.name for trial in trials} if cfg.log_models else set()
        if networks:
            from fedsweep.tracking.models import trace_once

            trace_once()
        for module in sorted(name.rpartition(".")[0] for name in networks if "." in name):
            with suppress(Exception):  # whoever builds the network says what is wrong with it
                import_module(module)
