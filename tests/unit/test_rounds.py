"""The cost of a round depends on the cohort; the central test runs beside the clients' evaluation."""

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, fedavg, strategy_utils

from runner.engine.grid import Trace, inline_grid
from runner.engine.host import AppSpec
from runner.errors import TrialError
from runner.evaluation import ask_scores
from runner.rounds import Loop, Round, _enough, _sampling_from_a_range, run_rounds

NODES = range(1, 10**12 + 1)
"""So many that a list of them can't be made."""


def test_flowers_sampling_never_lists_the_nodes():
    grid = inline_grid(AppSpec("key", ClientApp, {}, len(NODES), {}))
    strategy = FedAvg(fraction_train=1e-11, fraction_evaluate=2e-11, min_train_nodes=1, min_evaluate_nodes=1)
    record = ArrayRecord()
    with _sampling_from_a_range():
        train = list(strategy.configure_train(1, record, ConfigRecord(), grid))
        evaluate = list(strategy.configure_evaluate(1, record, ConfigRecord(), grid))
    assert (len(train), len(evaluate)) == (10, 20)
    assert all(message.metadata.dst_node_id in NODES for message in train + evaluate)


def test_flowers_module_is_left_as_it_was():
    with _sampling_from_a_range():
        assert fedavg.sample_nodes is not strategy_utils.sample_nodes
    assert fedavg.sample_nodes is strategy_utils.sample_nodes
    assert "list" not in vars(fedavg)


def rounds_with_a_central_test(
    did: list[str], timeout: float | None = None, takes_s: float = 0.0
) -> tuple[list[Round], dict]:
    """Two rounds of three clients who count in their state how often they evaluated, with a central test of 4,000.

    Returns the rounds, and the clients' states.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        time.sleep(takes_s)
        did.append("evaluate")
        before = context.state.metric_records.get("count", {"n": 0})["n"]
        context.state["count"] = MetricRecord({"n": before + 1})
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "seen": before})}), reply_to=message)

    @app.query("test")
    def test(message: Message, context: Context) -> Message:
        did.append("test")
        assert not len(context.state)
        size = message.content["config"]["stop"] - message.content["config"]["start"]
        metrics = MetricRecord({"loss_sum": 2.0 * size, "correct": 0.25 * size, "num-examples": size})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    grid = inline_grid(AppSpec("key", lambda: app, {}, 3, {}), chunk_size=1)
    loop = Loop(2, 0, ConfigRecord(), timeout=timeout)
    start = ArrayRecord({"w": Array(np.zeros(2, np.float32))})

    def ask(number: int, arrays: ArrayRecord):
        did.append(f"ask {number}")
        return ask_scores(grid, {"global": arrays}, {"global": range(3)}, np.zeros(3, int), 4000)

    rounds = list(run_rounds(FedAvg(min_train_nodes=3, min_evaluate_nodes=3), grid, start, loop, ask_scores=ask))
    return rounds, grid.states


def test_the_central_test_is_asked_for_before_the_clients_evaluate_and_is_none_of_their_tasks():
    did: list[str] = []
    rounds, _ = rounds_with_a_central_test(did)
    assert did == [step for n in (1, 2) for step in (f"ask {n}", *["evaluate"] * 3, *["test"] * 2)]
    for done in rounds:
        assert done.scores.mean("global", "loss") == 2.0
        assert done.scores.mean("global") == 0.25
        assert [task.message_type for task in done.evaluate.tasks] == ["evaluate"] * 3


def test_the_central_test_leaves_the_clients_states_alone():
    """It goes to nodes 1 and 2 before their evaluation's state has come back."""
    rounds, states = rounds_with_a_central_test([])
    assert [done.evaluate_metrics["seen"] for done in rounds] == [0, 1]
    assert {node: state["count"]["n"] for node, state in states.items()} == {1: 2, 2: 2, 3: 2}


def test_scores_come_although_clients_missed_the_deadline():
    did: list[str] = []
    rounds, _ = rounds_with_a_central_test(did, timeout=0.2, takes_s=0.3)
    assert did.count("evaluate") == 2  # one a round; the others were given up
    assert [done.scores.mean("global") for done in rounds] == [0.25, 0.25]
    assert any("replies were missing" in event for event in rounds[0].evaluate.events)


@pytest.mark.parametrize("asked", [10, 100, 1000])
def test_the_least_share_of_replies_is_counted_as_people_do(asked: int) -> None:
    """.07 of 100 is 7, although the product of the floats is a little more."""
    for needed in range(1, asked + 1):
        share = float(f"{needed / asked}")
        done: Any = SimpleNamespace(error=None, message_type="train", node_id=1)
        _enough(1, Trace([done] * needed), asked, share)
        with pytest.raises(TrialError, match=f"{needed - 1} of {asked} clients trained"):
            _enough(1, Trace([done] * (needed - 1)), asked, share)
