"""What earlier sessions left in the store: runs that a sweep takes up, skips or declares dead."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedsweep.catalog import FINAL, ROUND
from fedsweep.escape import tag_is
from fedsweep.tracking.describe import APP_METRICS, LAYOUT, LAYOUT_NOW
from fedsweep.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

REPORT = "report"
"""Tag of a sweep's run: "made", or why its report is missing."""

TOKEN = "run.token"
"""Tag that names a run before MLflow has given it an id, one for each session that writes to it."""

ROUNDS_A_PART = "table.rounds"
"""Tag: how many rounds share a part of a trial's tables; one, where a first edition wrote it."""

SUPERSEDED = "superseded"
"""Tag of runs that count no longer: their sweep was started over."""

_PAGE = 1000
_NOT_FOUND = 404


@dataclass(frozen=True)
class PastRun:
    """A sweep's or a trial's run as it stands in the store."""

    run_id: str
    key: str  # of the trial, or of the sweep
    status: str  # RUNNING, FINISHED, FAILED or KILLED
    driver: str  # host, process and start time of the driver that wrote it last
    parent: str  # run id of its sweep
    reason: str
    params: Mapping[str, str]  # none, where the driver died right after it made the run
    round: int  # last round that was logged; -1 if none was
    summary: Mapping[str, float]  # final metrics by bare name; empty where they were not logged
    reported: bool = False  # a sweep's report was made, and what it tells of its trials can be read
    settings: str = ""  # of a trial: its key but for the content of its data
    content: str | None = (
        None  # of its data; None where a version of fedsweep ran it that did not know
    )
    place: str = ""  # where they lay
    course: str = ""  # of a trial: its key but for the number of rounds
    token: str = ""  # of the session that wrote it last
    rounds_a_part: int = 1  # of a trial's tables
    declared: str = ""  # how the metrics are shown that the catalog has not


def past_trials(store: Store, sweep: str | None, keys: Iterable[str]) -> dict[str, PastRun]:
    """Return each trial's newest run by key, of those run in this sweep (None: on their own)."""
    wanted = list(keys)
    if sweep is None:
        found = [run for key in wanted for run in _search(store, {"trial.key": key})]
    else:
        found = _search(store, {"kind": "trial", "sweep": sweep})
    past: dict[str, PastRun] = {}
    for run in found:
        if run.data.tags.get("sweep") == sweep and run.data.tags.get("trial.key") in wanted:
            past.setdefault(run.data.tags["trial.key"], _past(run, "trial.key"))
    return past


def past_contents(store: Store, sweep: str | None) -> list[PastRun]:
    """Return the trials that were run in this sweep (None: on their own), whatever their keys."""
    tags = {"kind": "trial", **({"sweep": sweep} if sweep else {})}
    return [
        _past(run, "trial.key")
        for run in _search(store, tags)
        if run.data.tags.get("sweep") == sweep
    ]


def history(store: Store, run: PastRun, metric: str) -> dict[int, float]:
    """Return the values of a run's metric by step."""
    return {
        point.step: point.value for point in store.client.get_metric_history(run.run_id, metric)
    }


def finished_trials(store: Store) -> list[tuple[Mapping[str, str], Mapping[str, float]]]:
    """Return the settings of the newest trials that finished, and their last metrics."""
    found = _search(store, {"kind": "trial"}, " and attributes.status = 'FINISHED'")
    return [(run.data.params, run.data.metrics) for run in found[:_PAGE]]


def past_sweep(store: Store, name: str, key: str) -> PastRun | None:
    """Return the newest run of a sweep with these very trials."""
    runs = _search(store, {"kind": "sweep", "sweep": name, "sweep.key": key})
    return _past(runs[0], "sweep.key") if runs else None


def running(store: Store, name: str) -> list[PastRun]:
    """Return the runs of a sweep, its trials and itself, that nobody has closed."""
    runs = _search(store, {"sweep": name}, " and attributes.status = 'RUNNING'")
    return [_past(run, "trial.key") for run in runs]


def close(store: Store, runs: Iterable[PastRun]) -> None:
    """Close runs whose driver is gone."""
    for run in runs:
        store.client.set_terminated(run.run_id, "KILLED")


def by_token(store: Store, token: str) -> "Run | None":
    """Return the run that a session has made or gone on with under a token."""
    clause = tag_is(TOKEN, token)
    found = store.client.search_runs([store.experiment_id], clause, max_results=1)
    return next((run for run in found if run.data.tags[TOKEN] == token), None)


def same_identity(store: Store, tags: Mapping[str, str], since_ms: int) -> "Run | None":
    """Return the newest run that counts and is of the same trial or sweep as these tags say.

    A trial on its own is run anew where it ended: only runs that began at ``since_ms`` or later are
    of a later session. In a sweep one run of each trial counts, whenever it began.
    """
    key = "sweep.key" if tags.get("kind") == "sweep" else "trial.key"
    if key not in tags:
        return None
    sweep = tags.get("sweep")
    for run in _search(store, {key: tags[key]}):
        there = run.data.tags
        same = there.get("kind") == tags.get("kind") and there.get("sweep") == sweep
        if same and (sweep is not None or run.info.start_time >= since_ms):
            return run
    return None


def find_run(store: Store, run_id: str) -> "Run | None":
    """Return a run, whatever became of it; None where the store has none of this id."""
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_run(run_id)
    except MlflowException as error:
        if error.get_http_status_code() == _NOT_FOUND:
            return None
        raise


def supersede(store: Store, name: str) -> None:
    """Have the runs of a sweep count no longer; they stay to be looked at."""
    for run in _search(store, {"sweep": name}):
        store.client.set_tag(run.info.run_id, SUPERSEDED, "true")


def redeclare(store: Store, run: PastRun, declared: str) -> PastRun:
    """Have the metrics of a trial be shown otherwise from now on; return it as it is then."""
    store.client.set_tag(run.run_id, APP_METRICS, declared)
    return replace(run, declared=declared)


def adopt(store: Store, parent: str, runs: Iterable[PastRun]) -> None:
    """Move trials under the run of the sweep that they now belong to."""
    for run in runs:
        if run.parent != parent:
            store.client.set_tag(run.run_id, "mlflow.parentRunId", parent)


def reopen(store: Store, run_id: str, tags: Mapping[str, str]) -> None:
    """Make a run RUNNING again, without its failure's reason and models that it may log again."""
    client = store.client
    client.update_run(run_id, status="RUNNING")
    for key, value in tags.items():
        client.set_tag(run_id, key, value)
    if "reason" in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, "reason")
    for model in client.search_logged_models([store.experiment_id], f"source_run_id = '{run_id}'"):
        client.delete_logged_model(model.model_id)


def _search(store: Store, tags: Mapping[str, str], also: str = "") -> "list[Run]":
    """Return the runs with these tags that still count, the newest first."""
    query = " and ".join(tag_is(tag, value) for tag, value in tags.items()) + also
    found: list[Run] = []
    token = None
    while True:
        page = store.client.search_runs(
            [store.experiment_id],
            query,
            max_results=_PAGE,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        same = [run for run in page if tags.items() <= run.data.tags.items()]
        found += [run for run in same if SUPERSEDED not in run.data.tags]
        token = page.token
        if not token:
            return found


def _past(run: "Run", key: str) -> PastRun:
    tags, metrics = run.data.tags, run.data.metrics
    return PastRun(
        run_id=run.info.run_id,
        key=tags.get(key, ""),
        status=run.info.status,
        driver=tags.get("driver", ""),
        parent=tags.get("mlflow.parentRunId", ""),
        reason=tags.get("reason", ""),
        params=dict(run.data.params),
        round=int(metrics.get(ROUND, -1)),
        summary={
            name.removeprefix(FINAL): value
            for name, value in metrics.items()
            if name.startswith(FINAL)
        },
        reported=tags.get(REPORT) == "made" and tags.get(LAYOUT) == LAYOUT_NOW,
        settings=tags.get("trial.settings", ""),
        content=tags.get("data.content"),
        place=tags.get("data.place", ""),
        course=tags.get("trial.course", ""),
        token=tags.get(TOKEN, ""),
        rounds_a_part=int(tags.get(ROUNDS_A_PART, 1)),
        declared=tags.get(APP_METRICS, ""),
    )
