"""Reports from a real store: what a user types, what comes out, what is refused."""

import json
import math
import re
import shutil
from html import escape

import numpy as np
import pandas as pd
import pytest

from fedsweep.cli import main
from fedsweep.config import TrackingConfig
from fedsweep.escape import line
from fedsweep.records import RoundRecord, TrialResult
from fedsweep.report.best import best_of
from fedsweep.report.curves import trial_curves
from fedsweep.report.layout import texts
from fedsweep.report.results import results_table
from fedsweep.tracking import Tracker
from fedsweep.tracking.read import StoredTrial, read_sweep
from tests.unit.test_tracking import TRIAL, started


def round_of(number, accuracy):
    clients = {"round": [number] * 4, "client": range(4), "eval_acc": [accuracy] * 4,
        "eval_loss": [1.0] * 4,
               "cpu_s": [0.1] * 4}  # fmt: skip
    assigned = {
        "round": [number] * 4, "client": range(4), "cluster": [0, 1, 0, 1],
        "server": [True, True, False, False], "score": [0.1] * 4, "tenure": [number] * 4,
        "x": [0.0, 1.0, 0.1, 1.1], "y": [0.0, 1.0, 0.1, 0.9],
    }  # fmt: skip
    metrics = {
        "3_clients/acc": accuracy,
        "3_clients/loss": 1 - accuracy,
        "4_comm/mb_total": 2.0 * number,
    }
    return RoundRecord(number, metrics, clients if number else {}, assigned if number else {})


def cell(clusters, seed):
    """The configuration of a trial."""
    strategy = TRIAL.strategy.model_copy(update={"num_clusters": clusters})
    return TRIAL.model_copy(update={"strategy": strategy, "seed": seed})


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A sweep of two cells and three seeds; with 4 clusters the accuracy grows twice as fast.

    One more trial failed.
    """
    folder = tmp_path_factory.mktemp("store")
    with Tracker(
        TrackingConfig(output=str(folder), uri=f"sqlite:///{folder}/mlflow.db", log_models=False)
    ) as tracker:
        places = [(1, 0), (1, 1), (1, 2), (4, 0), (4, 1), (4, 2), (4, 3)]
        axes = {
            place: {"strategy.num_clusters": str(place[0]), "seed": str(place[1])}
            for place in places
        }
        trials = {cell(*place).key: axes[place] for place in places}
        values = {"strategy.num_clusters": "1,4", "seed": "0,1,2,3"}
        sweep = tracker.start_sweep("grid", "key", "why", values, "make sweep", trials=trials)
        for clusters in (4, 1):  # not in the grid's order
            for seed in range(3):
                trial = sweep.start_trial(
                    cell(clusters, seed), axes[clusters, seed], f"run {clusters} {seed}"
                )
                trial.started(started())
                for number in range(4):
                    trial.round(
                        round_of(number, (0.2 if clusters == 4 else 0.1) * number + seed / 100)
                    )
                reached = 0.6 + seed / 100 if clusters == 4 else (0.3, 0.315, 0.315)[seed]
                final = {"client_acc": reached, "ari": 1.0, "wall_s": 2.0}
                trial.finish(
                    TrialResult("key", {}, "hash", final, np.eye(10, dtype=int), (1, 8, 8))
                )
        sweep.start_trial(cell(4, 3), axes[4, 3], "run 4 3").fail("it broke")
        sweep.finish()
    return folder


@pytest.fixture
def call(output, capsys):
    def run(*words):
        status = main(
            [*words, f"tracking.output={output}", f"tracking.uri=sqlite:///{output}/mlflow.db"]
        )
        return status, *capsys.readouterr()

    return run


def test_report(call, output, tmp_path):
    status, out, _ = call("report", "grid", "--target", "0.35", "--out", str(tmp_path))
    assert status == 0
    [one, four] = [line.split(" | ") for line in out.splitlines() if re.match(r"\| [14] ", line)]
    assert four[3] == "**61.0** ± 1.0 [58.5, 63.5]"
    assert one[3] == "31.0 ± 0.9 [28.8, 33.2]"
    assert [line[2:3] for line in out.splitlines() if re.match(r"\| [14] ", line)] == ["1", "4"]
    assert "paired t-test over at least 3 seeds" in out
    table = pd.read_csv(tmp_path / "report.csv").set_index("strategy.num_clusters")
    assert table.loc[4, ["trials", "failed", "reached"]].tolist() == [3, 1, 3]
    assert table["rounds_to_target_mean"].isna().tolist() == [
        True,
        False,
    ]  # with 1 cluster 0.32 is the end
    assert table.loc[4, "rounds_to_target_mean"] == 2
    assert table.loc[4, "mb_to_target_mean"] == 4
    page = (tmp_path / "index.html").read_text()
    assert "<b>61.0</b>" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing but what is in it
    figures = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert figures == {
        "acc_over_rounds", "acc_over_megabytes", "loss_over_rounds", "loss_over_megabytes",
        "client_acc_bars", "ari_bars", "client_acc_by_clusters", "ari_by_clusters",
        "client_accuracy", "label_distributions",
        "cluster_map", "servers", "embedding",
    }  # fmt: skip
    assert page.count("data:image/png;base64,") == len(figures)
    told, others = page.split("<h2 id=", 1)[0].split("<summary>Other settings")
    assert f"<dt>dataset</dt><dd>{TRIAL.dataset.name}</dd>" in told
    assert "<dt>strategy.num_clusters</dt><dd>1, 4</dd>" in told  # an axis
    assert "strategy.num_clusters" not in others
    assert f"<dt>training.lr</dt><dd>{TRIAL.training.lr}</dd>" in others
    assert "<figcaption>Accuracy of the single clients, last round, all seeds</figcaption>" in page
    assert (
        "![Accuracy of the single clients, last round, all seeds](plots/client_accuracy.png)"
        in (tmp_path / "report.md").read_text()
    )
    assert r"\toprule" in (tmp_path / "report.tex").read_text()


def test_a_report_for_machines_and_one_without_words(call, tmp_path):
    status, out, _ = call("report", "grid", "--out", str(tmp_path), "--json")
    told = json.loads(out)
    assert (status, told["sweep"], told["folder"]) == (0, "grid", str(tmp_path))
    cells = {cell["strategy.num_clusters"]: cell for cell in told["cells"]}
    assert cells[4]["client_acc_mean"] == pytest.approx(0.61)
    assert (cells[4]["client_acc_best"], cells[1]["client_acc_best"], cells[4]["failed"]) == (
        True,
        False,
        1,
    )
    assert set(told["files"]) == {
        str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()
    }
    assert call("report", "grid", "--out", str(tmp_path), "--quiet") == (0, "", "")


def test_a_table_that_is_damaged_costs_its_figures_alone(call, tmp_path, monkeypatch, caplog):
    whole = StoredTrial.table

    def damaged(trial, name):
        if name == "clients":
            raise OSError("not a Parquet file")
        return whole(trial, name)

    monkeypatch.setattr(StoredTrial, "table", damaged)
    assert call("report", "grid", "--out", str(tmp_path))[0] == 0
    assert not (tmp_path / "plots" / "client_accuracy.png").exists()
    assert (tmp_path / "plots" / "servers.png").exists()
    said = {
        record.getMessage() for record in caplog.records if " is missing: " in record.getMessage()
    }
    assert len(said) == 6  # a line for each trial's table
    assert (
        "report of grid: clients.parquet of num_clusters=1 seed=0 is missing: OSError: "
        "not a Parquet file" in said
    )
    assert (
        "clients.parquet of num_clusters=1 seed=0 is missing"
        in (tmp_path / "index.html").read_text()
    )


def test_compare_shows_where_runs_differ(call):
    status, out, _ = call("compare", "num_clusters=1 seed=0", "num_clusters=4 seed=0")
    assert status == 0
    rows = {
        words[0]: words[1:]
        for line in out.splitlines()
        if len(words := re.findall(r"[^│\s]+", line)) == 3
    }
    assert rows["strategy.num_clusters"] == ["1", "4"]
    assert rows["client_acc"] == ["0.3", "0.6"]
    assert "training.lr" not in rows


def test_best_names_the_cell_and_the_command(call):
    status, out, _ = call("best", "grid")
    assert status == 0
    assert out.startswith("strategy.num_clusters=4\nclient_acc 0.6100 [0.5852, 0.6348]")
    assert out.rstrip().endswith("run 4 2")


def test_best_where_a_trial_diverged(tmp_path, template):
    """A mean with a nan in it is no best one, and the diverged trial is counted."""
    shutil.copy(template, tmp_path / "mlflow.db")
    cfg = TrackingConfig(output=str(tmp_path), log_models=False, figures="none")
    values = {(1, 0): math.nan, (1, 1): 0.9, (4, 0): 0.5, (4, 1): 0.6}
    axes = {
        place: {"strategy.num_clusters": str(place[0]), "seed": str(place[1])} for place in values
    }
    trials = {cell(*place).key: axes[place] for place in values}
    with Tracker(cfg) as tracker:
        both = {"strategy.num_clusters": "1,4", "seed": "0,1"}
        sweep = tracker.start_sweep("grid", "key", "why", both, "make sweep", trials=trials)
        for place, value in values.items():
            final = {"client_acc": value, "wall_s": 2.0}
            sweep.start_trial(cell(*place), axes[place], f"run {place}").finish(
                TrialResult("key", {}, "hash", final, None, (1, 8, 8))
            )
        sweep.finish()
    stored = read_sweep(tracker.store, "grid")
    assert repr(best_of(stored, "client_acc")).splitlines()[:3] == [
        "strategy.num_clusters=4",
        "client_acc 0.5500 (mean of 2 trials: 0.5000 to 0.6000)",
        "1 trial of the sweep diverged: nan comes last",
    ]
    assert repr(best_of(stored, "client_acc", lowest=True)).startswith("strategy.num_clusters=4\n")
    assert texts(results_table(stored.rows()))[1][2] == "nan (1 of 2)"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("report", "gird"), "there is no sweep 'gird' in .* did you mean 'grid'"),
        (("report", "grid", "--target", "high"), "--target high is no target"),
        (
            ("compare", "num_clusters=9 seed=0"),
            "'num_clusters=9 seed=0' is no run in .* did you mean",
        ),
        (
            ("best", "grid", "--metric", "accuracy"),
            "unknown metric 'accuracy'.* Valid: ari, client_acc",
        ),
        (("best", "0" * 32), "there is no sweep '0"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(call, words, error):
    status, _, err = call(*words)
    assert status == 2
    assert err.count("\n") == 1
    assert re.search(error, err)


def test_curves_tell_what_was_not_evaluated_from_what_diverged(tmp_path, template):
    shutil.copy(template, tmp_path / "mlflow.db")
    cfg = TrackingConfig(output=str(tmp_path), log_models=False, figures="none")
    with Tracker(cfg) as tracker:
        sweep = tracker.start_sweep(
            "grid", "key", "why", {"seed": "0"}, "", trials={cell(1, 0).key: {"seed": "0"}}
        )
        trial = sweep.start_trial(cell(1, 0), {"seed": "0"}, "")
        for number, loss in enumerate([1.0, None, math.nan, 4.0]):
            values = {} if loss is None else {"3_clients/loss": loss, "3_clients/acc": 0.5}
            trial.round(RoundRecord(number, {"4_comm/mb_total": 2.0 * number, **values}))
        trial.finish(TrialResult("key", {}, "hash", {"acc": 0.5}, None, (1, 8, 8)))
        sweep.finish()
    curves = trial_curves(dict(enumerate(read_sweep(tracker.store, "grid").trials)))
    assert curves["round"].tolist() == [0, 1, 2, 3]
    assert curves["mb"].tolist() == [0, 2, 4, 6]
    assert curves["loss"].isna().tolist() == [False, True, True, False]
    assert curves["loss_nan"].tolist() == [False, False, True, False]
    assert not curves["acc_nan"].any()


HOSTILE = "<img src=x onerror=alert(1)>|`a` \\input{/etc/passwd} $x$ [red] \x1b[2J"


def test_what_others_wrote_to_a_shared_store_is_text(tmp_path, template, capsys):
    """Names and values of a sweep and its trials: none is mark-up, a path or a command."""
    shutil.copy(template, tmp_path / "mlflow.db")
    cfg = TrackingConfig(output=str(tmp_path), log_models=False, figures="none")
    name, told = f"../{HOSTILE}", line(HOSTILE)
    axes = {"strategy.num_clusters": HOSTILE, "seed": "0"}
    with Tracker(cfg) as tracker:
        sweep = tracker.start_sweep(name, "key", "why", axes, HOSTILE, trials={TRIAL.key: axes})
        trial = sweep.start_trial(TRIAL, axes, HOSTILE)
        trial.started(started())
        trial.round(round_of(1, 0.5))
        trial.finish(
            TrialResult("key", {}, "hash", {"client_acc": 0.5}, np.eye(10, dtype=int), (1, 8, 8))
        )
        sweep.finish()
    here = f"tracking.output={tmp_path}"
    assert main(["report", sweep.run_id, here]) == 2  # its name is no folder
    assert "is no name of a file or folder" in capsys.readouterr().err
    assert main(["report", sweep.run_id, here, "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<img src=x" not in page
    assert page.count(escape(told)) >= 4  # title, heading, cell, command
    assert r"\textbackslash{}input\{/etc/passwd\}" in (tmp_path / "out" / "report.tex").read_text()
    assert r"\<img src=x onerror=alert(1)>\|\`a\`" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "plots" / "acc_over_rounds.png").exists()
    assert "\x1b" not in capsys.readouterr().out
    assert main(["best", sweep.run_id, here]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"strategy.num_clusters={told}"
    assert out.splitlines()[-1] == told
    assert main(["compare", trial.run_id, here]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_flush_has_nothing_to_send(call):
    assert call("flush")[:2] == (0, "sent 0 events\n")
