"""Against a real SQLite store: what MLflow's client reads back is what counts."""

import os
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from fedsweep.config import RunConfig, TrackingConfig
from fedsweep.errors import TrackingError
from fedsweep.models import build_model
from fedsweep.records import DataSummary, LoadSample, RoundRecord, TrialResult, TrialStarted
from fedsweep.tracking import Tracker, redact
from fedsweep.tracking.artifacts import Pictures
from fedsweep.tracking.past import SUPERSEDED, past_trials
from fedsweep.tracking.read import _trials_of

TRIAL = RunConfig.model_validate(
    {"model": {"name": "logreg"}, "strategy": {"name": "kmeans"}, "privacy": {"clipping_norm": 9.0}}
)


@pytest.fixture
def cfg(tmp_path, template):
    shutil.copy(template, tmp_path / "mlflow.db")
    return TrackingConfig(output=str(tmp_path), experiment="mine")


def started(classes=10):
    counts = np.arange(4 * classes).reshape(4, classes)
    example = np.zeros((2, 1, 8, 8), np.uint8), np.array([0, 1])
    data = DataSummary(
        "digits", "iid", "rotation", "f" * 64, "https://u:secret@host/data",
        tuple(map(str, range(classes))), counts, np.arange(4) % 2, {0: example, 1: example}, 100,
        20,
    )  # fmt: skip
    return TrialStarted("key", data)


def record(number):
    clients = {
        "round": [number] * 4,
        "client": range(4),
        "eval_acc": [0.1, 0.2, 0.3, 0.4],
        "eval_loss": [1.0] * 4,
    }
    assigned = {
        "round": [number] * 4, "client": range(4), "cluster": [0, 1, 0, 1],
        "server": [True, True, False, False], "score": [0.1] * 4, "tenure": [1] * 4,
    }  # fmt: skip
    load = (LoadSample(100.0 + number, "host-0", "node-0", 90.0, 300.0, 50.0, 40.0),)
    metrics = {"1_global/acc": number / 10, "1_global/loss": 1.0, "2_clusters/c0_acc": 0.5}
    return RoundRecord(
        number,
        metrics,
        clients,
        assigned if number else {},
        load,
        ("host-0 was lost",) if number else (),
    )


def result():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = {k: v.numpy() for k, v in build_model("logreg", (1, 8, 8), 10).state_dict().items()}
    return TrialResult(
        "key", {"global": state}, "abc", {"acc": 0.9, "ari": 1.0}, np.eye(10, dtype=int), (1, 8, 8)
    )


def runs(tracker):
    return {
        run.info.run_name: run
        for run in tracker.store.client.search_runs([tracker.store.experiment_id])
    }


def artifacts(tracker, run_id, path=None):
    found = set()
    for entry in tracker.store.client.list_artifacts(run_id, path):
        found |= artifacts(tracker, run_id, entry.path) if entry.is_dir else {entry.path}
    return found


def test_a_sweep_as_mlflow_stores_it(cfg, tmp_path):
    import mlflow

    command = "fedsweep run tracking.uri=http://me:pass@host"
    with Tracker(cfg, clock=lambda: 1000.0) as tracker:
        tracker.tags["cluster"] = "2 CPUs on 1 node"
        sweep = tracker.start_sweep("grid", "sweepkey", "why", {"seed": "0,1"}, "make sweep")
        trial = sweep.start_trial(
            TRIAL, {"partition": "iid", "strategy.num_clusters": "4", "seed": "0"}, command
        )
        trial.started(started())
        for number in range(3):
            trial.round(record(number))
        trial.finish(result())
        sweep.finish("| a table |", {"results.md": "| a table |"})
    client = tracker.store.client
    parent, child = (runs(tracker)[name] for name in ("grid", "num_clusters=4 iid seed=0"))

    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["strategy"] == "kmeans"
    assert child.data.tags["cluster"] == "2 CPUs on 1 node"
    assert child.data.tags["trial.key"] == TRIAL.key
    assert child.data.tags["mlflow.runColor"].startswith("#")
    assert child.data.tags["weights_sha256"] == "abc"
    assert "version.torch" in child.data.tags
    assert "http://***@host" in child.data.tags["mlflow.note.content"]
    assert parent.data.params == {"seed": "0,1"}
    assert "| a table |" in parent.data.tags["mlflow.note.content"]
    assert "why" in parent.data.tags["mlflow.note.content"]

    params = child.data.params
    assert (params["partition"], params["strategy.num_clusters"], params["seed"]) == (
        "iid",
        "4",
        "0",
    )
    assert params["training.lr"] == "0.02"
    assert params["strategy.server.rule"] == "load"
    assert "privacy.clipping_norm" not in params  # there is none
    assert not any(key.startswith("tracking") for key in params)

    history = client.get_metric_history(child.info.run_id, "1_global/acc")
    assert [(m.step, m.value, m.timestamp) for m in history] == [
        (0, 0.0, 10**6),
        (1, 0.1, 10**6),
        (2, 0.2, 10**6),
    ]
    assert client.get_metric_history(child.info.run_id, "0_final/ari")[0].step == 0

    dataset = child.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("digits iid rotation", "f" * 36)
    assert "secret" not in dataset.source

    logged = artifacts(tracker, child.info.run_id)
    images = {path for path in logged if path.startswith("images/clusters+step+")}
    assert len(images) == 6  # the known groups at step 0, rounds 1 and 2; as PNG and as thumbnail
    assert logged - images == {
        "config.yaml", "events.txt", "confusion.png", "split.parquet", "classes.parquet",
        *(f"{table}.parquet/part-00000.parquet" for table in ("clients", "assignments", "load")),
        "plots/curves.png", "plots/clusters.png", "plots/load.png", "plots/label_heatmap.png",
        "plots/label_bars.png", "plots/class_counts.png", "plots/divergence.png",
        "plots/examples_group0.png", "plots/examples_group1.png",
    }  # fmt: skip
    folder = client.download_artifacts(child.info.run_id, "", str(tmp_path))
    clients = pd.read_parquet(f"{folder}/clients.parquet")
    assert len(clients) == 12
    assert clients["eval_acc"].tolist() == [0.1, 0.2, 0.3, 0.4] * 3
    assigned = pd.read_parquet(f"{folder}/assignments.parquet")
    assert (len(assigned), assigned["server"].dtype) == (8, bool)
    assert pd.read_parquet(f"{folder}/load.parquet")["host_rss_mb"].tolist() == [300.0] * 3
    assert Path(folder, "events.txt").read_text().startswith("round 1: host-0 was lost")

    mlflow.set_tracking_uri(tracker.store.uri)
    loaded = mlflow.pytorch.load_model(f"runs:/{child.info.run_id}/global")
    x = torch.randn(5, 1, 8, 8)  # another batch size than that of the trace
    model = build_model("logreg", (1, 8, 8), 10)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in result().models["global"].items()})
    assert torch.equal(loaded(x), model(x))


def test_a_run_whose_end_cannot_be_made_says_why(cfg, monkeypatch):
    def broken(*words):
        raise ValueError("no such table")

    monkeypatch.setattr("fedsweep.tracking.artifacts.class_table", broken)
    with Tracker(cfg) as tracker:
        trial = tracker.start_trial(TRIAL)
        trial.started(started())
        trial.round(record(0))
        trial.finish(result())
    [run] = runs(tracker).values()
    assert (run.info.status, run.data.tags["reason"]) == ("KILLED", "ValueError: no such table")


def test_a_run_that_the_store_does_not_make_is_not_waited_for_without_end(cfg, monkeypatch):
    with Tracker(cfg.model_copy(update={"patience_s": 0.1})) as tracker:

        def no_answer(*words, **named):
            raise ConnectionError("unreachable")

        monkeypatch.setattr("fedsweep.tracking.ops.apply", no_answer)
        trial = tracker.start_trial(TRIAL)
        with pytest.raises(TrackingError, match="could not be made: the store did not answer"):
            _ = trial.run_id


def test_config_artifact_is_the_resolved_config_without_secrets(cfg, tmp_path):
    secret = TRIAL.model_copy(
        update={"tracking": TrackingConfig(uri="https://me:hunter2@host/x?token=abc")}
    )
    with Tracker(cfg) as tracker:
        trial = tracker.start_trial(secret)
        assert trial.name == "kmeans digits iid seed=0"
        tracker.writer.flush()
        path = tracker.store.client.download_artifacts(trial.run_id, "config.yaml", str(tmp_path))
    text = Path(path).read_text()
    assert "batch_size: 10" in text
    assert "https://***@host/x?token=***" in text
    assert "hunter2" not in text


def test_a_failed_trial_keeps_its_reason_traceback_and_rounds(cfg):
    with Tracker(cfg) as tracker:
        trial = tracker.start_trial(TRIAL)
        trial.round(record(1))
        trial.fail("no client replied", "Traceback: postgresql://me:pw@host")
        trial.killed()  # closed already: nothing happens
    run = next(iter(runs(tracker).values()))
    assert run.info.status == "FAILED"
    assert run.data.tags["reason"] == "no client replied"
    assert {"traceback.txt", "clients.parquet/part-00000.parquet", "plots/curves.png"} <= artifacts(
        tracker, run.info.run_id
    )
    assert "pw" not in tracker.store.client.get_run(run.info.run_id).data.tags["reason"]


def test_runs_left_open_are_killed_at_close(cfg):
    with pytest.raises(KeyboardInterrupt), Tracker(cfg) as tracker:  # noqa: PT012
        tracker.start_sweep("grid", "k").start_trial(TRIAL, {"seed": "0"})
        raise KeyboardInterrupt
    assert {run.info.status for run in runs(tracker).values()} == {"KILLED"}


def test_a_sweep_with_failed_trials_is_failed(cfg):
    with Tracker(cfg) as tracker:
        tracker.start_sweep("grid", "k").finish(failed=2)
    run = runs(tracker)["grid"]
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "2 trials failed")


def test_more_metrics_than_a_batch_holds(cfg):
    with Tracker(cfg) as tracker:
        trial = tracker.start_trial(TRIAL)
        trial.round(RoundRecord(1, {f"2_clusters/c{i}_acc": 0.5 for i in range(1500)}))
    assert (
        len(tracker.store.client.get_run(trial.run_id).data.metrics) == 1501
    )  # and the number of the round


def test_log_models_off(cfg):
    with Tracker(cfg.model_copy(update={"log_models": False})) as tracker:
        trial = tracker.start_trial(TRIAL)
        trial.started(started())
        trial.finish(result())
    assert tracker.store.client.search_logged_models([tracker.store.experiment_id]) == []


def test_a_model_that_cannot_be_traced_is_kept_as_weights(cfg, tmp_path):
    from safetensors.numpy import load_file

    trial = TRIAL.model_copy(
        update={"model": TRIAL.model.model_copy(update={"name": "no.such.Module"})}
    )
    with Tracker(cfg) as tracker:
        run = tracker.start_trial(trial)
        run.started(started())
        run.finish(result())
    stored = tracker.store.client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert "models.not_traced" in stored.data.tags
    weights = load_file(
        tracker.store.client.download_artifacts(
            run.run_id, "models/global.safetensors", str(tmp_path)
        )
    )
    assert all(
        np.array_equal(weights[key], value) for key, value in result().models["global"].items()
    )


def test_an_event_that_is_refused_costs_its_run_alone(cfg):
    """The run keeps what came before, is closed as KILLED for the next session, and says why."""
    with Tracker(cfg) as tracker:
        bad, good = (tracker.start_trial(TRIAL, {"seed": seed}) for seed in "01")
        for trial in (bad, good):
            trial.round(record(1))
        bad.round(RoundRecord(2, {"acc": "no number"}))
        for trial in (bad, good):
            trial.round(record(3))
            trial.finish(result())
    assert list(tracker.lost) == ["seed=0"]
    bad, good = (runs(tracker)[f"seed={seed}"] for seed in "01")
    assert (bad.info.status, good.info.status) == ("KILLED", "FINISHED")
    assert "no number" in bad.data.tags["reason"]
    steps = [
        [m.step for m in tracker.store.client.get_metric_history(run.info.run_id, "1_global/acc")]
        for run in (bad, good)
    ]
    assert steps == [[1], [1, 3]]


def test_the_id_of_a_run_that_was_refused_is_asked_for_in_vain(cfg):
    with Tracker(cfg) as tracker:
        tracker.store.client.delete_experiment(tracker.store.experiment_id)
        with pytest.raises(TrackingError, match="'kmeans digits iid seed=0' could not be made: "):
            _ = tracker.start_trial(TRIAL).run_id


def test_the_store_is_absolute_and_shared_by_later_trackers(cfg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = cfg.model_copy(update={"output": "."})
    with Tracker(relative) as first, Tracker(relative) as second:
        assert first.store.experiment_id == second.store.experiment_id
        assert first.uri == f"sqlite:///{tmp_path}/mlflow.db"
        experiment = first.store.client.get_experiment(first.store.experiment_id)
        assert experiment.artifact_location == f"file://{tmp_path}/artifacts"
    assert sorted(os.listdir(tmp_path)) == ["mlflow.db"]


def test_the_environment_names_the_store_where_the_config_does_not(cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with Tracker(cfg.model_copy(update={"output": "/nowhere"})) as tracker:
        assert tracker.uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_stores_that_cannot_be_used_are_refused_in_one_line_and_fast(cfg, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "text.db").write_text("no database, and long enough to be read as one " * 100)
    (tmp_path / "file").write_text("")
    begin = time.monotonic()
    for uri, words in {
        f"http://me:hunter2@127.0.0.1:{port}": "can't be used",
        f"sqlite:///{tmp_path}/text.db": "can't be used",
        f"sqlite:///{tmp_path}/file/x/mlflow.db": "can't be used",
        "sqlite://": "names no file",
        "file:///tmp/mlruns": "is no MLflow store",
        "mlruns": "is no MLflow store",
    }.items():
        with pytest.raises(TrackingError, match=words) as caught:
            Tracker(cfg.model_copy(update={"uri": uri}))
        assert "\n" not in str(caught.value)
        assert "hunter2" not in str(caught.value)
    assert time.monotonic() - begin < 20


def test_a_deleted_experiment_is_refused(cfg):
    with Tracker(cfg) as tracker:
        tracker.store.client.delete_experiment(tracker.store.experiment_id)
    with pytest.raises(TrackingError, match="mine is deleted"):
        Tracker(cfg)


def test_an_experiment_of_a_server_is_refused(cfg):
    with Tracker(cfg) as tracker:
        tracker.store.client.create_experiment("remote", artifact_location="mlflow-artifacts:/1")
    with pytest.raises(TrackingError, match="through an MLflow server"):
        Tracker(cfg.model_copy(update={"experiment": "remote"}))


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("http://host:5000", "http://host:5000"),
        ("http://user:pass@host:5000/x", "http://***@host:5000/x"),
        ("https://ghp_token@host", "https://***@host"),
        ("postgresql+psycopg://u:p@ss/w@host/db", "postgresql+psycopg://***@host/db"),
        ("https://host/db?access_token=abc&x=1", "https://host/db?access_token=***&x=1"),
        ("see 'http://a:b@c' and http://d:e@f", "see 'http://***@c' and http://***@f"),
        ("mail me@host", "mail me@host"),
    ],
)
def test_redact(text, safe):
    assert redact(text) == safe


def test_a_run_whose_driver_died_when_it_was_made_is_completed(cfg):
    with Tracker(cfg) as tracker:
        tracker.start_trial(TRIAL, {"seed": "0"}).finish(result())
        tracker.writer.flush()
        [whole] = runs(tracker).values()
        tags = {"trial.key": TRIAL.key, "kind": "trial"}
        bare = tracker.store.client.create_run(
            tracker.store.experiment_id, tags=tags, run_name="bare"
        ).info.run_id
        [past] = past_trials(tracker.store, None, [TRIAL.key]).values()
        assert (past.run_id, past.params) == (bare, {})
        tracker.start_trial(TRIAL, {"seed": "0"}, past=past).finish(result())
        tracker.writer.flush()
        assert tracker.store.client.get_run(bare).data.params == whole.data.params != {}
        assert "config.yaml" in artifacts(tracker, bare)


def test_a_loss_that_is_no_number_is_read_back_as_one(cfg):
    """From the rounds, the final metrics and the clients' table; what is missing stays missing."""
    from fedsweep.tracking.read import read_runs

    lost = float("nan")
    with Tracker(cfg) as tracker:
        sweep = tracker.start_sweep("grid", "sweepkey", "why", {"seed": "0"}, "make sweep")
        trial = sweep.start_trial(TRIAL, {"seed": "0"}, "command")
        trial.started(started())
        for number in (0, 1):
            rows = {
                "round": [number] * 2,
                "client": [0, 1],
                "eval_acc": [0.1, 0.5],
                "eval_loss": [lost, 1.0],
            }
            metrics = {
                "3_clients/loss": lost if number else 1.0,
                "3_clients/nonfinite": float(number),
            }
            trial.round(RoundRecord(number, metrics, rows))
        trial.finish(TrialResult("key", {}, "abc", {"client_test_acc": lost}, None, (1, 8, 8)))
        sweep.finish()
    [stored] = read_runs(cfg, ["seed=0"])
    history = stored.history(["3_clients/loss", "3_clients/nonfinite", "3_clients/acc"])
    assert history["3_clients/loss"].isna().tolist() == [False, True]
    assert history["3_clients/nonfinite"].tolist() == [0, 1]
    assert "3_clients/acc" not in history
    assert np.isnan(stored.final["client_test_acc"])
    assert np.isnan(stored.table("clients")["eval_loss"]).tolist() == [True, False] * 2


def test_a_session_draws_a_split_once_and_another_one_for_itself() -> None:
    data = started().data
    mine, others = Pictures(), Pictures()
    assert mine.of_data(data) is mine.of_data(replace(data))
    assert mine.of_data(data) is not mine.of_data(replace(data, partition="other"))
    assert others.of_data(data) is not mine.of_data(data)
    assert others.of_data(data).files == mine.of_data(data).files


def test_a_sweep_that_was_started_over_has_no_trial_of_before() -> None:
    """Else half of a report would be numbers that count no longer; the old run keeps its own."""

    class Page(list):
        token = None

    def run(key, run_id, parent="", **tags):
        tags |= {"sweep": "mine", "trial.key": key, "mlflow.parentRunId": parent}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id), data=SimpleNamespace(tags=tags))

    over = {SUPERSEDED: "true"}
    runs = Page([
        run("a", "new", "second"),
        run("a", "old", "first", **over),
        run("b", "lone", "first", **over),
    ])  # fmt: skip
    client = SimpleNamespace(search_runs=lambda *args, **kwargs: runs)
    store = SimpleNamespace(experiment_id="0", client=client)

    def found(sweep):
        return {key: there.info.run_id for key, there in _trials_of(store, sweep).items()}

    assert found(run("", "second")) == {"a": "new"}
    assert found(run("", "first", **over)) == {"a": "old", "b": "lone"}
