"""SCAFFOLD on quadratics with a known optimum, clients of unequal sizes, half of them a round.

F_i(x) = 1/2 (x - b_i)' A_i (x - b_i) with a diagonal A_i; sum_i n_i F_i is least where
x = (sum_i n_i A_i)^-1 sum_i n_i A_i b_i. Clients take exact gradient steps; what becomes of their
control variates is computed by the built-in client's own functions.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsweep.strategies import build_strategy
from fedsweep.strategies.scaffold import gradient_weight, renewed
from tests.contract.test_strategies_flower import stored
from tests.fakes import FakeGrid, record, values

LR, STEPS, MOMENTUM = 0.1, 5, 0.5
N_I = {1: 1, 2: 40, 3: 3, 4: 5, 5: 100, 6: 2, 7: 8, 8: 30}
RNG = np.random.default_rng(0)
A = {node: RNG.uniform(0.5, 2.0, 3) for node in N_I}
B = {node: RNG.normal(0, 3, 3) for node in N_I}


def optimum(nodes: Any) -> np.ndarray:
    return sum(N_I[i] * A[i] * B[i] for i in nodes) / sum(N_I[i] * A[i] for i in nodes)


def everybody(node: int) -> bool:
    return True


def quadratic_app(momentum: float = 0.0, answers: Callable[[int], bool] = everybody) -> ClientApp:
    """Return clients that take STEPS gradient steps, corrected by c - c_i where c is sent."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        node, x = context.node_id, message.content["arrays"]["w"].numpy()
        corrects = message.content["config"].get("method") == "scaffold"
        c = message.content["control"]["w"].numpy() if corrects else np.zeros_like(x)
        c_i = np.zeros_like(x)
        if "scaffold" in context.state:
            c_i = context.state["scaffold"]["w"].numpy()
        y, velocity = x.copy(), np.zeros_like(x)
        for _ in range(STEPS):
            velocity = momentum * velocity + A[node] * (y - B[node]) + c - c_i
            y = y - LR * velocity
        content = RecordDict({"arrays": ArrayRecord({"w": Array(y)})})
        content["metrics"] = MetricRecord({"num-examples": N_I[node], "train_loss": 0.0})
        if corrects:
            after = renewed(x, y, c - c_i, gradient_weight(LR, momentum, STEPS))
            context.state["scaffold"] = ArrayRecord({"w": Array(after)})
            content["control"] = ArrayRecord({"w": Array(after - c_i)})
        return Message(content, reply_to=message)

    @app.query("examples")
    def examples(message: Message, context: Context) -> Message:
        if not answers(context.node_id):
            raise ValueError("not now")
        metrics = MetricRecord({"num-examples": N_I[context.node_id]})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def build(name: str, fraction: float = 0.5) -> Any:
    params = {"fraction_train": fraction, "min_train_nodes": 1, "min_available_nodes": 1}
    return build_strategy(name, params, seed=0, num_clients=8)


def rounds(
    strategy: Any,
    grid: FakeGrid,
    count: int,
    arrays: ArrayRecord,
    first: int = 1,
) -> ArrayRecord:
    for number in range(first, first + count):
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        replies = grid.send_and_receive(messages)
        arrays = strategy.aggregate_train(number, replies)[0] or arrays
    return arrays


def distance(arrays: ArrayRecord, nodes: Any = N_I) -> float:
    return float(np.linalg.norm(np.array(values(arrays)) - optimum(nodes)))


def own(grid: FakeGrid, node: int) -> np.ndarray:
    """Return c_i as the client keeps it; zero before it has trained."""
    state = grid._contexts[node].state if node in grid._contexts else {}
    return state["scaffold"]["w"].numpy() if "scaffold" in state else np.zeros(3)


def mean_control(grid: FakeGrid, nodes: Any) -> np.ndarray:
    """Return sum_i n_i c_i / sum_i n_i from the clients' own states."""
    return sum(N_I[i] * own(grid, i) for i in nodes) / sum(N_I[i] for i in nodes)


@pytest.mark.parametrize("momentum", [0.0, MOMENTUM])
def test_it_converges_to_the_optimum_by_examples_and_fedavg_does_not(momentum: float) -> None:
    found = {}
    for name in ("scaffold", "fedavg"):
        random.seed(1)
        grid = FakeGrid(quadratic_app(momentum), 8)
        found[name] = distance(rounds(build(name), grid, 200, record(0, 0, 0)))
    assert found["scaffold"] < 1e-3
    assert found["fedavg"] > 0.1


def test_c_is_the_mean_of_the_clients_own_weighted_by_examples_after_every_round() -> None:
    random.seed(3)
    strategy, grid, arrays = build("scaffold", 0.4), FakeGrid(quadratic_app(), 8), record(0, 0, 0)
    for number in range(1, 7):
        arrays = rounds(strategy, grid, 1, arrays, number)
        assert values(strategy.control) == pytest.approx(mean_control(grid, N_I), abs=1e-12)
        assert np.linalg.norm(values(strategy.control)) > 0.01


def test_every_client_is_asked_for_its_examples_once_and_before_it_trains() -> None:
    strategy, grid = build("scaffold"), FakeGrid(quadratic_app(), 6)
    arrays = rounds(strategy, grid, 2, record(0, 0, 0))
    grid.num_nodes = 8
    rounds(strategy, grid, 2, arrays, 3)
    queries = [sent for sent in grid.sent if sent[0].metadata.message_type == "query.examples"]
    asked = [[message.metadata.dst_node_id for message in sent] for sent in queries]
    assert asked == [[1, 2, 3, 4, 5, 6], [7, 8]]
    assert strategy.examples == N_I


def test_newcomers_count_from_their_first_round_on() -> None:
    """Two of eight join: c shrinks to its share of all at once, the optimum is that of all."""
    random.seed(5)
    strategy, grid = build("scaffold"), FakeGrid(quadratic_app(), 6)
    arrays = rounds(strategy, grid, 200, record(0, 0, 0))
    assert distance(arrays, range(1, 7)) < 1e-3
    grid.num_nodes = 8
    for number in range(201, 204):
        arrays = rounds(strategy, grid, 1, arrays, number)
        assert values(strategy.control) == pytest.approx(mean_control(grid, N_I), abs=1e-12)
    assert distance(rounds(strategy, grid, 200, arrays, 204)) < 1e-3


def test_a_client_that_left_counts_like_one_that_is_not_sampled() -> None:
    """Nobody tells the server whether it comes back: its part of c and all weights stay."""
    random.seed(7)
    strategy, grid = build("scaffold", 1.0), FakeGrid(quadratic_app(), 8)
    arrays = rounds(strategy, grid, 3, record(0, 0, 0))
    left = own(grid, 8)
    grid.num_nodes = 7
    rounds(strategy, grid, 3, arrays, 4)
    assert own(grid, 8) == pytest.approx(left)
    assert values(strategy.control) == pytest.approx(mean_control(grid, N_I), abs=1e-12)


def test_who_does_not_answer_is_asked_again_and_counts_once_known() -> None:
    silent = {8}
    app = quadratic_app(answers=lambda node: node not in silent)
    strategy, grid = build("scaffold", 1.0), FakeGrid(app, 8)
    grid.fails = lambda m: m.metadata.dst_node_id in silent
    arrays = rounds(strategy, grid, 1, record(0, 0, 0))
    assert strategy.examples == {node: n for node, n in N_I.items() if node != 8}
    assert values(strategy.control) == pytest.approx(mean_control(grid, range(1, 8)), abs=1e-12)
    silent.clear()
    rounds(strategy, grid, 1, arrays, 2)
    assert strategy.examples == N_I
    assert values(strategy.control) == pytest.approx(mean_control(grid, N_I), abs=1e-12)


def test_clients_that_can_not_tell_their_examples_are_refused() -> None:
    strategy, grid = build("scaffold"), FakeGrid(quadratic_app(), 8, fails=lambda _: True)
    with pytest.raises(RuntimeError, match=r"query\.examples: strategy=scaffold needs clients"):
        rounds(strategy, grid, 1, record(0, 0, 0))


def test_it_goes_on_from_its_state_to_the_bit() -> None:
    random.seed(9)
    strategy, grid = build("scaffold"), FakeGrid(quadratic_app(), 8)
    arrays = rounds(strategy, grid, 3, record(0, 0, 0))
    after = build("scaffold")
    after.load_state_dict(stored(strategy.state_dict()))
    drawn = random.getstate()
    expected = rounds(strategy, FakeGrid(quadratic_app(), 8), 3, arrays, 4)
    random.setstate(drawn)
    assert rounds(after, FakeGrid(quadratic_app(), 8), 3, arrays, 4)["w"].data == expected["w"].data


def kinds(arrays: ArrayRecord) -> dict[str, Any]:
    return {key: (array.dtype, tuple(array.shape)) for key, array in arrays.items()}


def test_arrays_of_no_dimension_and_their_dtypes() -> None:
    """A scalar of float32 beside a vector of float64: c has the shapes and dtypes of the model."""
    strategy = build("scaffold", 1.0)
    strategy.server_learning_rate = 0.5
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        sent, c = (message.content[name] for name in ("arrays", "control"))
        assert kinds(c) == kinds(sent)
        moved = {k: np.asarray(v.numpy() + v.numpy().dtype.type(2)) for k, v in sent.items()}
        model = ArrayRecord({k: Array(v) for k, v in moved.items()})
        content = RecordDict({"arrays": model, "control": model})
        content["metrics"] = MetricRecord({"num-examples": 3})
        return Message(content, reply_to=message)

    @app.query("examples")
    def examples(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 3})}), reply_to=message)

    start = ArrayRecord({"s": Array(np.array(1, np.float32)), "w": Array(np.zeros(2))})
    arrays = rounds(strategy, FakeGrid(app, 2), 2, start)
    assert kinds(arrays) == {"s": ("float32", ()), "w": ("float64", (2,))}
    assert float(arrays["s"].numpy()) == 3.0  # 1 + half of 2, twice
    assert arrays["w"].numpy().tolist() == [2.0, 2.0]
