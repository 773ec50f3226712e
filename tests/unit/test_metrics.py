"""Metrics of a round against numbers worked out by hand."""

from dataclasses import replace
from math import inf, isnan, nan
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord

from fedsweep.catalog import jain
from fedsweep.config import StopConfig
from fedsweep.engine.grid import Trace
from fedsweep.records import RoundRecord, TaskRecord
from fedsweep.trial.evaluation import Score, TestScores
from fedsweep.trial.metrics import Ledger, agreement, own_test_metrics, round_record
from fedsweep.trial.rounds import Round
from fedsweep.trial.stop import StopRules


def test_jain_by_hand() -> None:
    """(1 + 0 + 0)^2 / (3 x 1) = 1/3; (.5 + 1)^2 / (2 x 1.25) = .9;
    nobody has anything: not defined.
    """
    assert jain(np.array([1.0, 0.0, 0.0])) == pytest.approx(1 / 3)
    assert jain(np.array([0.5, 1.0])) == pytest.approx(0.9)
    assert jain(np.full(7, 0.3)) == pytest.approx(1.0)
    assert np.isnan(jain(np.zeros(3)))


def test_the_round_of_stability_is_the_last_in_which_a_client_changed() -> None:
    ledger = Ledger()
    since = [
        ledger.settle(number, churn, seconds=0.5)["2_clusters/stable_since"]
        for number, churn in ((3, 0), (4, 2), (5, 0), (6, 0))
    ]
    assert since == [3, 4, 4, 4]
    again = Ledger(**vars(ledger))  # as from a checkpoint
    told = again.settle(7, 0, seconds=0.25)
    assert told["2_clusters/stable_since"] == 4
    assert told["5_time/clustering_total_s"] == 2.25


def test_agreement_by_hand() -> None:
    """Groups 0 0 1 1: exact under other names; one of four astray is .75 matched;
    one cluster has ARI 0 and AMI 0.
    """
    groups = np.array([0, 0, 1, 1])
    assert agreement({1: 7, 2: 7, 3: 2, 4: 2}, groups) == pytest.approx(
        {"ari": 1.0, "ami": 1.0, "matched": 1.0}
    )
    astray = agreement({1: 0, 2: 0, 3: 1, 4: 0}, groups)
    assert astray["matched"] == 0.75
    assert astray["ari"] == pytest.approx(
        0.0
    )  # pairs together: 1 in both, (2 x 3) / 6 = 1 by chance
    together = agreement(dict.fromkeys(range(1, 5), 0), groups)
    assert together == pytest.approx({"ari": 0.0, "ami": 0.0, "matched": 0.5}, abs=1e-12)


def task(client: int, kind: str, count: int, loss: float, acc: float, **more: float) -> TaskRecord:
    prefix = "train" if kind == "train" else "eval"
    metrics = {"num-examples": count, f"{prefix}_loss": loss, f"{prefix}_acc": acc, **more}
    return TaskRecord(client + 1, kind, "host", 1.0, 0, 0, metrics, {})


def recorded(train: list[TaskRecord], evaluate: list[TaskRecord], **more: Any) -> RoundRecord:
    trace = Trace(train), Trace(evaluate)
    done = Round(1, ArrayRecord(), None, None, *trace, {}, asked=9, used=len(train), **more)
    return round_record(done, np.zeros(4, int), None, done.scores, Ledger(), 1.0)


def test_figures_by_hand() -> None:
    """Client 2 holds out nothing: its zeros are nobody's accuracy."""
    train = [task(c, "train", 10, loss, 0.5) for c, loss in enumerate((1.0, 2.0, 6.0))]
    evaluate = [
        task(0, "evaluate", 4, 1.0, 0.5),
        task(1, "evaluate", 2, 3.0, 1.0),
        task(2, "evaluate", 0, 0.0, 0.0),
    ]
    record = recorded(train, evaluate)
    expected = {
        "train_loss": 3.0,
        "acc": 0.75,
        "acc_std": 0.25,
        "acc_p10": 0.55,
        "acc_min": 0.5,
        "loss": 2.0,
    }
    expected |= {
        "acc_jain": 0.9,
        "nonfinite": 0.0,
        "without_eval": 1.0,
        "asked": 9.0,
        "trained": 3.0,
    }
    found = {
        key.removeprefix("3_clients/"): v
        for key, v in record.metrics.items()
        if key.startswith("3_clients/")
    }
    assert found == pytest.approx(expected)
    assert isnan(record.clients["eval_acc"][2])
    assert record.clients["eval_examples"] == [4, 2, 0]


@pytest.mark.parametrize("lost", [nan, inf])
def test_one_clients_loss_that_is_no_number_is_not_left_out(lost: float) -> None:
    train = [task(0, "train", 10, lost, 0.1), task(1, "train", 10, 1.0, 0.5)]
    evaluate = [task(0, "evaluate", 4, lost, 0.1), task(1, "evaluate", 4, 1.0, 0.9)]
    metrics = recorded(train, evaluate).metrics
    assert metrics["3_clients/train_loss"] == pytest.approx(lost, nan_ok=True)
    assert metrics["3_clients/loss"] == pytest.approx(lost, nan_ok=True)
    assert metrics["3_clients/nonfinite"] == 1
    assert metrics["3_clients/acc_min"] == 0.1
    for kept in (train, []):
        record = recorded(kept, evaluate)
        reason = StopRules(StopConfig(divergence=True)).update(record)
        assert reason.startswith(f"diverged: 3_clients/{'train_' if kept else ''}loss is")


def test_an_accuracy_that_is_no_number_is_shown_as_one() -> None:
    evaluate = [task(0, "evaluate", 4, 1.0, nan), task(1, "evaluate", 4, 1.0, 0.9)]
    metrics = recorded([], evaluate).metrics
    assert all(
        isnan(metrics[f"3_clients/acc{what}"]) for what in ("", "_std", "_p10", "_min", "_jain")
    )


def test_a_personal_models_loss_counts_too() -> None:
    """Ditto's global model may be sound while a client's own is lost."""
    record = recorded(
        [task(0, "train", 10, 1.0, 0.5, personal_loss=nan), task(1, "train", 10, 1.0, 0.5)], []
    )
    assert record.metrics["3_clients/train_loss"] == 1.0
    assert record.metrics["3_clients/nonfinite"] == 1
    assert (
        StopRules(StopConfig(divergence=True)).update(record)
        == "diverged: 3_clients/nonfinite is 1"
    )
    assert StopRules(StopConfig()).update(record) == ""


def test_a_clusters_loss_that_is_no_number_ends_the_trial() -> None:
    record = RoundRecord(
        3, {"2_clusters/c1_loss": nan, "3_clients/loss": 1.0, "3_clients/nonfinite": 0.0}
    )
    assert (
        StopRules(StopConfig(divergence=True)).update(record)
        == "diverged: 2_clusters/c1_loss is nan"
    )


def test_own_models_by_hand() -> None:
    """Two clients use cluster 0 (.5, .7 on their groups), one has no cluster, one its own model."""
    scores = TestScores(
        of={
            ("cluster_0", 0): Score(1.0, 0.5),
            ("cluster_0", 1): Score(2.0, 0.7),
            ("global", 0): Score(3.0, 0.2),
        },
        clients={"cluster_0": {0: 1, 1: 1}, "global": {0: 5}},
        own={"cluster_0": {0: 1, 1: 1}, "global": {0: 1}},
        alone={7: Score(4.0, 1.0)},
    )
    assert sorted(scores.of_clients().tolist()) == [0.2, 0.5, 0.7, 1.0]
    assert own_test_metrics(scores, online=6) == pytest.approx(
        {
            "3_clients/test_acc": 0.6,
            "3_clients/test_acc_p10": 0.29,
            "3_clients/test_acc_min": 0.2,
            "3_clients/test_loss": 2.5,
            "3_clients/without_test": 2,
        }
    )
    assert scores.of_client(7, "global", 0) == Score(4.0, 1.0)
    assert scores.of_client(1, "cluster_0", 1) == Score(2.0, 0.7)
    assert scores.of_client(1, "cluster_1", 1) is None
    assert own_test_metrics(None, online=6) == own_test_metrics(TestScores(), online=6) == {}


def test_the_success_of_an_attack_on_own_models_by_hand() -> None:
    """Two clients use cluster 0, a quarter of which is as attackers want, and one its own, all."""
    users = {"cluster_0": {0: 2}}
    of_cluster, wanted = (
        TestScores({("cluster_0", 0): Score(1.0, acc)}, users, users) for acc in (0.5, 0.25)
    )
    told = TestScores(alone={7: Score(4.0, 0.8)}, goal=TestScores(alone={7: Score(3.0, 1.0)}))
    scores = replace(of_cluster, goal=wanted).with_alone(told)
    found = own_test_metrics(scores, online=3)
    assert found["3_clients/attack_success"] == pytest.approx(0.5)
    assert found["3_clients/test_acc"] == pytest.approx(0.6)
    alone = own_test_metrics(TestScores().with_alone(told), online=1)
    assert (alone["3_clients/attack_success"], alone["3_clients/test_acc"]) == (1.0, 0.8)
    assert "3_clients/attack_success" not in own_test_metrics(of_cluster, online=2)
