"""What the writer sends to MLflow: small operations of plain data, so that they can wait on disk.

Each may be sent again after an answer that got lost: timestamps are those of the event, files have
fixed names, a run is looked up by its token before it is made a second time.
"""

import errno
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedsweep import escape
from fedsweep.environ import environ
from fedsweep.paths import relative
from fedsweep.redaction import redact_all, redact_files
from fedsweep.tracking import past
from fedsweep.tracking.past import TOKEN
from fedsweep.tracking.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

_VALUE = {"params": 6000, "tags": 8000}
"""Characters that MLflow takes in a value."""
_NAME = {"create": 250, "dataset": 500}
"""Characters that its databases take in the name of a run or of a data set."""
_NEVER = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
"""What a file system says of a name that it will never take."""
_ONCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
"""MLflow's client asks again where an answer got lost: what makes something would make it twice."""
_CLIENT_ERRORS = range(400, 500)
_PASSING = (408, 425, 429)  # timeout, too early, too many requests: worth another try


T = TypeVar("T")


@dataclass(frozen=True)
class Op:
    """One operation on one run: plain data and files without credentials, as MLflow takes them.

    Names and texts may come from outside: keys that it would refuse go by another name, each by its
    own (:func:`fedsweep.escape.key`), and what is too long for it is cut.

    ``data`` is JSON; ``runner/tracking/waiting.py`` says of which form.
    """

    kind: str  # create | reopen | batch | files | dataset | model | end
    run: str  # token
    data: dict[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)  # path in the run -> content

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", _acceptable(self.kind, redact_all(self.data)))
        object.__setattr__(self, "files", redact_files(self.files))


def create(run: str, name: str, start_ms: int, tags: Mapping[str, str], parent: str | None) -> Op:
    """Make a run, nested in the one whose token is ``parent``, if any."""
    return Op(
        "create", run, {"name": name, "start_ms": start_ms, "tags": dict(tags), "parent": parent}
    )


def reopen(run: str, run_id: str, was: str, tags: Mapping[str, str], parent: str | None) -> Op:
    """Go on with an earlier session's run, nested in the one whose token is ``parent``, if any.

    ``was`` is the token that the earlier session gave it: where the run has another one by the time
    this operation is sent, somebody else has gone on with it.
    """
    return Op("reopen", run, {"run_id": run_id, "was": was, "tags": dict(tags), "parent": parent})


def metrics(run: str, values: Mapping[str, float], step: int, now_ms: int) -> Op:
    """Log the metrics of one step in one batch with one timestamp."""
    return Op(
        "batch",
        run,
        {"metrics": [[key, float(value), now_ms, step] for key, value in values.items()]},
    )


def tags(run: str, values: Mapping[str, str]) -> Op:
    """Set tags."""
    return Op("batch", run, {"tags": dict(values)})


def params(run: str, values: Mapping[str, str]) -> Op:
    """Log params, which never change."""
    return Op("batch", run, {"params": dict(values)})


def files(run: str, content: Mapping[str, str | bytes]) -> Op:
    """Write artifacts; texts in UTF-8."""
    encoded = {
        path: escape.storable(part).encode() if isinstance(part, str) else part
        for path, part in content.items()
    }
    return Op("files", run, {}, encoded)


def end(run: str, status: str, end_ms: int, reason: str = "") -> Op:
    """Close a run; the reason, where there is one, becomes its tag."""
    return Op("end", run, {"status": status, "end_ms": end_ms, "reason": reason})


def apply(op: Op, store: Store, runs: dict[str, str]) -> None:
    """Do an operation; ``runs`` (token -> MLflow's id) gains the run that a ``create`` made."""
    client, data = store.client, op.data
    if op.kind == "create":
        found = past.by_token(store, op.run)  # an earlier try made it, whose answer got lost
        runs[op.run] = found.info.run_id if found else _create(store, op, runs)
        return
    if op.kind == "reopen":
        runs[op.run] = data["run_id"]
        past.reopen(store, data["run_id"], data["tags"] | _nested(op, runs) | {TOKEN: op.run})
        return
    run_id = runs[op.run]
    if op.kind == "batch":
        _log_batch(client, run_id, data)
    elif op.kind == "files":
        with tempfile.TemporaryDirectory(prefix="fedsweep-") as folder:
            _write(Path(folder), op.files)
            client.log_artifacts(run_id, folder)
    elif op.kind == "dataset":
        from mlflow.entities import Dataset, DatasetInput, InputTag

        client.log_inputs(
            run_id, [DatasetInput(Dataset(**data), [InputTag("mlflow.data.context", "training")])]
        )
    elif op.kind == "model":
        _log_model(store, run_id, op)
    elif op.kind == "end":
        if data["reason"]:
            client.set_tag(run_id, "reason", data["reason"])
        client.set_terminated(run_id, data["status"], data["end_ms"])
    else:
        raise ValueError(f"operation {op.kind} is unknown")


def amend(store: Store, run_id: str, content: Mapping[str, str], values: Mapping[str, str]) -> None:
    """Add artifacts and tags to a run that has ended."""
    for op in (files(run_id, content), tags(run_id, values)):
        apply(op, store, {run_id: run_id})


def passing(error: BaseException) -> bool:
    """Whether another try may help: no answer, 5xx, a locked database, a full disk;
    not what was refused as wrong.
    """
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
    elif isinstance(error, MlflowException):
        status = error.get_http_status_code()
    elif isinstance(error, OSError) and error.errno in _NEVER:
        return False
    else:
        return isinstance(error, (requests.RequestException, OperationalError, OSError))
    return status in _PASSING or status not in _CLIENT_ERRORS


def _acceptable(kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of an operation with the keys, names and values that MLflow takes."""
    data = dict(data)
    for what in _VALUE.keys() & data.keys():
        data[what] = {
            escape.key(name): escape.shortened(escape.storable(str(value)), _VALUE[what])
            for name, value in data[what].items()
        }
    if "metrics" in data:
        data["metrics"] = [[escape.key(name), *rest] for name, *rest in data["metrics"]]
    data = {
        name: escape.storable(value) if isinstance(value, str) else value
        for name, value in data.items()
    }
    return data | ({"name": escape.shortened(data["name"], _NAME[kind])} if kind in _NAME else {})


def _nested(op: Op, runs: Mapping[str, str]) -> dict[str, str]:
    """Return the tag that nests a run in its sweep's; none where that could not be made."""
    above = runs.get(op.data["parent"] or "")
    return {"mlflow.parentRunId": above} if above else {}


def _create(store: Store, op: Op, runs: Mapping[str, str]) -> str:
    tags = op.data["tags"] | _nested(op, runs) | {TOKEN: op.run}
    with environ(_ONCE):
        created = store.client.create_run(
            store.experiment_id, op.data["start_ms"], tags, op.data["name"]
        )
    return str(created.info.run_id)


def _log_batch(client: "MlflowClient", run_id: str, data: Mapping[str, Any]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    for some in _slices([Param(key, value) for key, value in data.get("params", {}).items()], 100):
        client.log_batch(run_id, params=some)
    for some in _slices([RunTag(key, value) for key, value in data.get("tags", {}).items()], 100):
        client.log_batch(run_id, tags=some)
    for some in _slices([Metric(*row) for row in data.get("metrics", ())], 1000):
        client.log_batch(run_id, metrics=some)


def _slices(values: list[T], most: int) -> Iterator[list[T]]:
    """Cut what is too long for one log_batch."""
    for first in range(0, len(values), most):
        yield values[first : first + most]


def _log_model(store: Store, run_id: str, op: Op) -> None:
    """Register a model folder; MLflow's ids are filled in here: a spilled model has none yet."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    client, name = store.client, op.data["name"]
    same = f"source_run_id = '{run_id}' AND name = '{name}'"
    made = client.search_logged_models([store.experiment_id], same)  # by an earlier try
    if made:
        model = made[0]
    else:
        with environ(_ONCE):
            model = client.create_logged_model(
                store.experiment_id, name=name, source_run_id=run_id, model_type="pytorch"
            )
    model_id = model.model_id
    with tempfile.TemporaryDirectory(prefix="fedsweep-") as folder:
        _write(Path(folder), op.files)
        described = Model.load(folder)
        described.run_id, described.model_id, described.artifact_path = run_id, model_id, name
        described.save(str(Path(folder, "MLmodel")))
        client.log_model_artifacts(model_id, folder)
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    outputs = client.get_run(run_id).outputs
    if not outputs or model_id not in {there.model_id for there in outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def _write(folder: Path, content: Mapping[str, bytes]) -> None:
    """Lay files out; one that stands where another one needs a folder is a ValueError."""
    for name, value in content.items():
        path = folder / relative(name, "the name of a file of a run")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(value)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise ValueError(f"{name} is a file and a folder") from error
