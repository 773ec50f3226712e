"""The cost of a round depends on the cohort;
the central test runs beside the clients' evaluation.
"""

import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedsweep.engine.grid import inline_grid
from fedsweep.engine.host import AppSpec
from fedsweep.errors import TrialError
from fedsweep.strategies import STRATEGIES
from fedsweep.strategies.base import ask
from fedsweep.strategies.insides import aggregate_metricrecords
from fedsweep.strategies.local import Local
from fedsweep.trial.evaluation import ask_scores
from fedsweep.trial.rounds import Loop, Round, _check_share, run_rounds


def rounds_with_a_central_test(
    did: list[str], timeout: float | None = None, takes_s: float = 0.0
) -> tuple[list[Round], dict]:
    """Two rounds of three clients that count their evaluations in their state, a test of 4,000.

    Returns the rounds, and the clients' states.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = {
            "arrays": message.content["arrays"],
            "metrics": MetricRecord({"num-examples": 1}),
        }
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        time.sleep(takes_s)
        did.append("evaluate")
        before = context.state.metric_records.get("count", {"n": 0})["n"]
        context.state["count"] = MetricRecord({"n": before + 1})
        return Message(
            RecordDict({"metrics": MetricRecord({"num-examples": 1, "seen": before})}),
            reply_to=message,
        )

    @app.query("test")
    def test(message: Message, context: Context) -> Message:
        did.append("test")
        assert not len(context.state)
        size = message.content["config"]["stop"] - message.content["config"]["start"]
        metrics = MetricRecord(
            {"loss_sum": 2.0 * size, "correct": 0.25 * size, "num-examples": size}
        )
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    grid = inline_grid(AppSpec("key", lambda: app, {}, 3, {}), chunk_size=1)
    loop = Loop(2, 0, ConfigRecord(), timeout=timeout)
    start = ArrayRecord({"w": Array(np.zeros(2, np.float32))})

    def ask(number: int, arrays: ArrayRecord):
        did.append(f"ask {number}")
        return ask_scores(grid, {"global": arrays}, {"global": range(3)}, np.zeros(3, int), 4000)

    rounds = list(
        run_rounds(
            FedAvg(min_train_nodes=3, min_evaluate_nodes=3), grid, start, loop, ask_scores=ask
        )
    )
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


# Replies that were used

MIN = {"min_train_nodes": 4, "min_evaluate_nodes": 4}


def train_once(
    strategy: FedAvg, share: float = 0.0, together: bool = False, **loop: object
) -> Round:
    """One round of four clients.

    Client 3 has arrays of another shape; only client 0 answers the sketch query.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        size = 3 if context.node_id == 4 and together else 2
        arrays = ArrayRecord({"w": Array(np.full(size, context.node_id, np.float32))})
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
        return Message(content, reply_to=message)

    @app.query("sketch")
    def sketch(message: Message, context: Context) -> Message:
        if context.node_id > 1:
            raise OSError("no disk")
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    grid = inline_grid(AppSpec("key", lambda: app, {}, 4, {}), chunk_size=4 if together else 1)
    start = ArrayRecord({"w": Array(np.zeros(2, np.float32))})
    config = Loop(1, 0, ConfigRecord(), min_fit_fraction=share, held_out=False, **loop)
    return next(run_rounds(strategy, grid, start, config))


class NoModel(FedAvg):
    """Makes nothing of any reply, as Flower's privacy wrappers do where one client failed."""

    def aggregate_train(self, server_round, replies):
        return None, None


class Sketches(FedAvg):
    """Asks every client for a sketch before the training, or after it."""

    after = False

    def configure_train(self, server_round, arrays, config, grid):
        self._grid = grid
        if not self.after:
            ask(grid, "query.sketch", {node: RecordDict() for node in grid.get_node_ids()})
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        if self.after:
            ask(
                self._grid,
                "query.sketch",
                {node: RecordDict() for node in self._grid.get_node_ids()},
            )
        return super().aggregate_train(server_round, replies)


def test_replies_are_counted_one_by_one_and_in_partial_means() -> None:
    averages = {"train_metrics_aggr_fn": aggregate_metricrecords}
    assert (one := train_once(FedAvg(**MIN, **averages))).asked == one.used == 4
    done = train_once(STRATEGIES["fedavg"](**MIN, **averages), together=True)
    assert (done.asked, done.used) == (4, 3)  # the fourth could not be averaged
    assert done.arrays["w"].numpy().tolist() == [2, 2]
    [line] = done.train.events
    assert line.startswith("client 3: a reply to be averaged has arrays")


def test_a_reply_that_no_mean_can_take_is_none_that_trained() -> None:
    with pytest.raises(
        TrialError, match="3 of 4 clients trained, fewer than .*=0.9; first error: client 3"
    ):
        train_once(STRATEGIES["fedavg"](**MIN), share=0.9, together=True)


def test_a_strategy_that_makes_no_model_of_the_replies_is_not_silent() -> None:
    done = train_once(NoModel(**MIN))
    assert (done.asked, done.used) == (4, 0)
    assert done.arrays["w"].numpy().tolist() == [0, 0]
    assert done.train.events == ["the strategy made no model of 4 replies; the one before stays"]
    with pytest.raises(TrialError) as failed:
        train_once(NoModel(**MIN), share=0.5)
    assert str(failed.value) == (
        "round 1: 0 of 4 clients were used, fewer than strategy.min_fit_fraction=0.5; "
        "first error: the strategy made no model of 4 replies"
    )


def test_a_strategy_that_averages_nothing_by_design_says_nothing() -> None:
    done = train_once(Local(**MIN), share=0.5)
    assert (done.used, done.train.events) == (4, [])


@pytest.mark.parametrize("after", [False, True])
def test_too_few_answers_to_a_clustering_query_fail_the_trial(after: bool) -> None:
    strategy = Sketches(**MIN)
    strategy.after = after
    assert train_once(strategy, share=0.25).used == 4
    strategy = Sketches(**MIN)
    strategy.after = after
    match = "1 of 4 clients answered query.sketch, fewer than .*=0.5; first error: OSError: no disk"
    with pytest.raises(TrialError, match=match):
        train_once(strategy, share=0.5)


@pytest.mark.parametrize("asked", [10, 100, 1000])
def test_the_least_share_of_replies_is_counted_as_people_do(asked: int) -> None:
    """.07 of 100 is 7, although the product of the floats is a little more."""
    for needed in range(1, asked + 1):
        share = float(f"{needed / asked}")
        _check_share(1, needed, asked, share, {})
        with pytest.raises(TrialError, match=f"{needed - 1} of {asked} clients trained"):
            _check_share(1, needed - 1, asked, share, {})
