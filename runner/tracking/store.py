"""Where results go: the tracking store is opened, or refused in a line, before anything starts."""

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedsweep.config import TrackingConfig
from fedsweep.environ import environ, keep, variable
from fedsweep.errors import TrackingError, one_line, shown
from fedsweep.imports import lasting
from fedsweep.redaction import redact
from fedsweep.tracking import database as local
from fedsweep.tracking.database import artifacts_uri, database_of, sqlite_uri
from fedsweep.tracking.noise import keep_aside, told

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

_log = logging.getLogger("fedsweep.tracking")
KIND = ("mlflow.experimentKind", "custom_model_development")
"""Tag of an experiment: without it the UI may open a page of traces, which has none of ours."""
_NOTE = """Clustered federated learning, run by **fedsweep**.
A parent run is a sweep; its children are trials.
Group by `strategy.num_clusters`, `partition`, ... to average over seeds."""
_VARIABLE: Final = "MLFLOW_TRACKING_URI"
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # The writer thread tries again by itself: MLflow's own tries would hold it for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
AT_ONCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""While the store is being opened, MLflow gives up on a dead server at once."""


@dataclass(frozen=True)
class Store:
    """An open tracking store and the experiment that runs are written to."""

    uri: str
    client: "MlflowClient"
    experiment_id: str
    name: str
    """What it is called in the output folder, see :func:`store_name`."""


def tracking_uri(cfg: TrackingConfig) -> str:
    """Return the configured URI, else MLFLOW_TRACKING_URI, else a SQLite file's; absolute.

    Raises
    ------
    TrackingError
        The URI's scheme is none that MLflow can keep runs under.
    """
    uri = cfg.uri or variable(_VARIABLE)
    if not uri:
        return sqlite_uri(_output(cfg) / "mlflow.db")
    named = _named(cfg)
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme == "sqlite":
        path = database_of(uri)
        if path is None or path == Path() or path.name.startswith(":memory:"):
            raise TrackingError(f"{named}={uri} names no file; give sqlite:///path/to/mlflow.db")
        if "?" in uri:
            raise TrackingError(
                f"{named}={redact(uri)} has options behind a ?, which are not for an MLflow store; "
                "leave them out, or write %3F where the ? belongs to the name"
            )
        return sqlite_uri(path.expanduser().absolute())
    if scheme not in ("http", "https", "postgresql", "mysql", "mssql", "databricks"):
        raise TrackingError(
            f"{named}={redact(uri)} is no MLflow store; give http://host:port, "
            "sqlite:///path/to/mlflow.db or a postgresql:// URI, or leave it out for an SQLite "
            "store under tracking.output"
        )
    return uri


def _named(cfg: TrackingConfig) -> str:
    """Return what says where the store is."""
    return _VARIABLE if cfg.uri is None and variable(_VARIABLE) else "tracking.uri"


def store_name(cfg: TrackingConfig, uri: str) -> str:
    """Return what tells a store from others in an output folder.

    For one that lies in the folder that is its place there: it stays the same where the folder is
    moved or copied.
    """
    database = database_of(uri)
    if database is not None and database.is_relative_to(_output(cfg)):
        return database.relative_to(_output(cfg)).as_posix()
    return uri


def open_store(cfg: TrackingConfig, write: bool = True) -> Store:
    """Open the tracking store and its experiment, both made where missing.

    A local one that was moved or copied gets to know its new place.

    Parameters
    ----------
    write : bool
        Whether runs will be written; where they are only read, a store may be read-only.

    Raises
    ------
    TrackingError
        The store can't be reached or written, or can't hold the experiment.
        Takes seconds, not MLflow's minutes.
    """
    uri = tracking_uri(cfg)
    database = database_of(uri)
    try:
        if database is not None:
            local.check(database, write or not database.exists())
        keep(_QUIET, unless_set=True)
        _import_mlflow()
        keep_aside(_output(cfg))
        with environ(AT_ONCE):
            from mlflow import MlflowClient

            if database is not None:
                local.create(database)
                if moved := local.settle_in(database):
                    _log.warning("%s", moved)
            elif not uri.startswith(("http", "databricks")):
                _connect_once(uri)
            client = MlflowClient(uri)
            experiment = client.get_experiment_by_name(cfg.experiment) or _create_experiment(
                client, uri, cfg
            )
    except TrackingError:
        raise
    except Exception as error:  # whatever driver, server or file system said, in one line
        reason = shown(redact(str(error)).partition("\n")[0], 300).rstrip(" .")
        given = f"{_named(cfg)}={redact(uri)}"
        mend = f"Start or mend that store, or set tracking.uri{told()}"
        raise TrackingError(f"{given} can't be used: {reason}. {mend}") from error
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"tracking.experiment={cfg.experiment} is deleted in {redact(uri)}; "
            f"restore it (mlflow experiments restore -x {experiment.experiment_id}) "
            "or name another"
        )
    if (experiment.artifact_location or "").startswith("mlflow-artifacts:") and not uri.startswith(
        "http"
    ):
        raise TrackingError(
            f"tracking.experiment={cfg.experiment} was made through an MLflow server, "
            "so only through it can it be written; set tracking.uri to the server's http:// "
            "address or name another experiment"
        )
    return Store(uri, client, experiment.experiment_id, store_name(cfg, uri))


def unusable(store: Store, error: Exception) -> TrackingError:
    """Return what is said of a store that was open, and fails."""
    return TrackingError(
        f"{redact(store.uri)} can't be used: {one_line(error)}; start or mend that store, or set "
        "tracking.uri"
    )


@cache
def _import_mlflow() -> None:
    with lasting():
        import mlflow  # noqa: F401


def _connect_once(uri: str) -> None:
    """Connect to a database server: MLflow itself would retry a wrong password for minutes."""
    import sqlalchemy

    options = {} if uri.startswith("mssql") else {"connect_timeout": 5}
    engine = sqlalchemy.create_engine(uri, connect_args=options)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _create_experiment(client: "MlflowClient", uri: str, cfg: TrackingConfig) -> "Experiment":
    """Create the experiment; its artifacts go where a server says, else beside the database.

    Another machine that starts at the same moment may be first: then it is that machine's.
    """
    artifacts: str | None = None
    tags = {"mlflow.note.content": _NOTE, **dict([KIND])}
    if database := database_of(uri):
        artifacts = artifacts_uri(database)
        tags |= dict([local.BESIDE])
    elif not uri.startswith(("http", "databricks")):
        artifacts = (_output(cfg) / "artifacts").as_uri()
    from mlflow.exceptions import MlflowException

    try:
        made = client.create_experiment(cfg.experiment, artifact_location=artifacts, tags=tags)
    except MlflowException:
        if (others := client.get_experiment_by_name(cfg.experiment)) is None:
            raise
        return others
    return client.get_experiment(made)


def _output(cfg: TrackingConfig) -> Path:
    return Path(cfg.output).expanduser().absolute()
