"""A real MLflow server over HTTP goes away, answers 503, loses answers, while a trial trains."""

import shutil
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from fedsweep.config import TrackingConfig
from fedsweep.errors import TrackingError
from fedsweep.tracking import Tracker, flush
from tests.tracking.conftest import free_port, mlflow_server
from tests.unit.test_tracking import TRIAL, record, result, started

ROUNDS = 6


def cfg(uri, tmp_path, **changes):
    return TrackingConfig(
        uri=uri, output=str(tmp_path / "out"), experiment=tmp_path.name, patience_s=60, **changes
    )


def train(tracker, at_round=lambda number: None):
    """A sweep of one trial; return the longest that a call held up training, in seconds."""
    longest = 0.0
    sweep = tracker.start_sweep("grid", "key", "why", {"seed": "0"})
    trial = sweep.start_trial(TRIAL, {"seed": "0"})
    for number in range(ROUNDS):
        at_round(number)
        begin = time.monotonic()
        if number == 0:
            trial.started(started())
        trial.round(record(number))
        longest = max(longest, time.monotonic() - begin)
    trial.finish(result())
    sweep.finish("| table |")
    return longest


def check_all_there(store, tmp_path):
    """Everything once: runs, each metric of each round, each part file, the model."""
    client = store.client
    runs = {run.info.run_name: run for run in client.search_runs([store.experiment_id])}
    assert set(runs) == {"grid", "seed=0"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    trial = runs["seed=0"]
    assert trial.data.tags["mlflow.parentRunId"] == runs["grid"].info.run_id
    history = client.get_metric_history(trial.info.run_id, "1_global/acc")
    assert [(m.step, m.value) for m in history] == [(i, i / 10) for i in range(ROUNDS)]
    folder = Path(client.download_artifacts(trial.info.run_id, "", str(tmp_path)))
    assert pd.read_parquet(folder / "clients.parquet")["round"].tolist() == [
        i for i in range(ROUNDS) for _ in range(4)
    ]
    assert (folder / "plots" / "curves.png").exists()
    [model] = client.search_logged_models([store.experiment_id])
    assert (model.name, model.status, model.source_run_id) == ("global", "READY", trial.info.run_id)


def test_a_sweep_through_a_server(server, tmp_path):
    with Tracker(cfg(server, tmp_path)) as tracker:
        train(tracker)
    check_all_there(tracker.store, tmp_path)


@pytest.mark.parametrize("outage", ["down", "busy", "lost"])
def test_an_outage_delays_and_loses_nothing(proxy, tmp_path, outage):
    def at_round(number):
        if number == 1:
            proxy.mode = outage
        if number == ROUNDS - 1:
            proxy.mode = "up"

    with Tracker(cfg(proxy.address, tmp_path)) as tracker:
        assert train(tracker, at_round) < 1.0
    assert tracker.spilled == 0
    check_all_there(tracker.store, tmp_path)


def test_answers_lost_and_requests_refused_at_random_places(proxy, tmp_path):
    count = iter(range(1, 100_000))

    def fate(request):
        i = next(count)
        return "lost" if i % 11 == 0 else "busy" if i % 17 == 0 else "up"

    with Tracker(cfg(proxy.address, tmp_path)) as tracker:
        proxy.mode = fate
        train(tracker)
    proxy.mode = "up"
    assert tracker.spilled == 0
    assert any(seen.startswith("lost") for seen in proxy.seen)
    check_all_there(tracker.store, tmp_path)


def test_what_a_dead_server_did_not_take_is_sent_by_flush(proxy, tmp_path):
    settings = cfg(proxy.address, tmp_path).model_copy(update={"patience_s": 0.5})
    with Tracker(settings) as tracker:
        train(tracker, lambda number: setattr(proxy, "mode", "up" if number < 3 else "down"))
    assert tracker.spilled > 0
    with pytest.raises(TrackingError, match="can't be used"):
        flush(settings)
    proxy.mode = "up"
    assert flush(settings).sent == tracker.spilled
    assert flush(settings).sent == 0
    check_all_there(tracker.store, tmp_path)


def test_a_run_that_never_reached_the_server_is_made_by_the_next_tracker(proxy, tmp_path):
    settings = cfg(proxy.address, tmp_path).model_copy(update={"patience_s": 0.0})
    with Tracker(settings) as tracker:
        proxy.mode = "down"
        train(tracker)
    proxy.mode = "up"
    Tracker(settings).close()
    check_all_there(tracker.store, tmp_path)


def test_a_password_in_the_address_shows_nowhere(proxy, tmp_path, caplog):
    settings = cfg(proxy.address.replace("//", "//me:hunter2@"), tmp_path).model_copy(
        update={"patience_s": 0.0}
    )
    with Tracker(settings) as tracker:
        proxy.mode = "down"
        train(tracker)
    assert "hunter2" not in caplog.text
    assert "does not answer" in caplog.text
    for path in (tmp_path / "out").rglob("*"):
        assert "hunter2" not in str(path)
        assert not path.is_file() or b"hunter2" not in path.read_bytes()


def postgres_folder():
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [
        Path(shutil.which("initdb") or "")
    ]
    return found[-1].parent if found[-1].name else None


@pytest.mark.skipif(
    postgres_folder() is None, reason="no PostgreSQL server is installed (Debian: postgresql)"
)
def test_a_sweep_through_a_server_with_postgresql_behind_it(tmp_path):
    import os
    import pwd

    tools, port, data = postgres_folder(), free_port(), tmp_path / "data"
    try:
        other = (
            pwd.getpwnam("postgres") if os.getuid() == 0 else None
        )  # PostgreSQL does not run as root
    except KeyError:
        pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres")
    who = {"user": other.pw_uid, "group": other.pw_gid, "extra_groups": []} if other else {}
    data.mkdir()
    if other:
        os.chown(data, other.pw_uid, other.pw_gid)
        for parent in [data, *data.parents][:-2]:
            if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
                parent.chmod(parent.stat().st_mode | 0o011)
    words = [tools / "initdb", "-D", data, "-U", "me", "--auth=trust", "--no-sync"]
    subprocess.run(words, check=True, capture_output=True, cwd="/", **who)
    words = [tools / "postgres", "-D", data, "-p", str(port), "-k", data, "-h", "127.0.0.1", "-F"]
    database = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **who
    )
    try:
        for _ in range(100):
            ready = subprocess.run(
                [tools / "pg_isready", "-h", "127.0.0.1", "-p", str(port)], capture_output=True
            )
            if ready.returncode == 0:
                break
            time.sleep(0.1)
        with mlflow_server(
            tmp_path, f"postgresql://me:secret@127.0.0.1:{port}/postgres"
        ) as address:
            with Tracker(cfg(address, tmp_path)) as tracker:
                train(tracker)
            check_all_there(tracker.store, tmp_path / "got")
    finally:
        database.terminate()
        database.wait(20)
