"""Flower's own strategies that we register, against their papers' formulas, two rounds by hand.

Clients go half the way to their targets, so the pseudo-gradient of a round is known exactly. Where
Flower departs from a paper, the formula here is Flower's; the docstring says what the paper has.
"""

from statistics import median
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsweep.strategies import build_strategy, settings_of
from tests.fakes import FakeGrid, halfway_app, record, values

TARGETS = {1: (8.0, -2.0), 2: (4.0, 1.0), 3: (-1.0, 8.0), 4: (0.5, 4.0)}
EXAMPLES = {1: 1, 2: 3, 3: 4, 4: 2}
NAMES_OF_MEANS = [
    "fedavg",
    "fedprox",
    "fedavgm",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "fedmedian",
]
ROBUST = ["fedtrimmedavg", "krum", "multikrum", "bulyan"]
START = np.array([1.0, -3.0])


def models(name: str, rounds: int = 3, **changes: Any) -> list[np.ndarray]:
    """Return the model after each round."""
    params = settings_of(name=name, **changes).canonical()
    strategy, arrays = build_strategy(name, params, seed=0, num_clients=4), record(*START)
    grid, found = FakeGrid(halfway_app(TARGETS, EXAMPLES), 4), []
    for number in range(1, rounds + 1):
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
        assert isinstance(arrays, ArrayRecord)
        found.append(np.array(values(arrays)))
    return found


def delta(x: np.ndarray) -> np.ndarray:
    """Return the mean update from x, weighted by examples."""
    total = sum(EXAMPLES.values())
    return sum(EXAMPLES[i] * 0.5 * (np.array(TARGETS[i]) - x) for i in TARGETS) / total


def assert_close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-12)


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_fedavg_moves_by_the_mean_update_weighted_by_examples(name: str) -> None:
    """McMahan et al. 2017. FedProx has the same server; its clients are told mu."""
    x, expected = START, []
    for _ in range(3):
        x = x + delta(x)
        expected.append(x)
    assert_close(models(name), expected)


def test_fedprox_tells_its_clients_mu() -> None:
    params = settings_of(name="fedprox", proximal_mu=0.25).canonical()
    strategy, grid = build_strategy("fedprox", params, 0, 4), FakeGrid(halfway_app(TARGETS), 4)
    messages = strategy.configure_train(1, record(*START), ConfigRecord(), grid)
    assert {message.content["config"]["proximal-mu"] for message in messages} == {0.25}


@pytest.mark.parametrize(("lr", "beta"), [(1.0, 0.9), (0.5, 0.5), (0.5, 0.0), (1.0, 0.0)])
def test_fedavgm_is_sgd_with_momentum_on_the_pseudo_gradient(lr: float, beta: float) -> None:
    """Hsu et al. 2019: v <- beta v + Delta, x <- x + lr v."""
    x, v, expected = START, np.zeros(2), []
    for _ in range(3):
        v = beta * v + delta(x)
        x = x + lr * v
        expected.append(x)
    assert_close(models("fedavgm", server_learning_rate=lr, server_momentum=beta), expected)


@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])
def test_adaptive_optimizers(name: str) -> None:
    """Reddi et al. 2021, algorithm 2: x <- x + eta m / (sqrt(v) + tau).

    Flower departs in three ways: v begins at 0 (the paper: at least tau^2), FedAdagrad has no first
    moment (beta_1 = 0, as in the paper's experiments), and FedAdam multiplies eta by Kingma and
    Ba's correction of the moments' bias, which the paper leaves out, with t + 1 for t.
    """
    eta, beta_1, beta_2, tau = 0.3, 0.6, 0.8, 0.05
    decays = {} if name == "fedadagrad" else {"beta_1": beta_1, "beta_2": beta_2}
    x, m, v, expected = START, np.zeros(2), np.zeros(2), []
    for t in range(1, 4):
        d = delta(x)
        m = d if name == "fedadagrad" else beta_1 * m + (1 - beta_1) * d
        v = {
            "fedadagrad": v + d**2,
            "fedadam": beta_2 * v + (1 - beta_2) * d**2,
            "fedyogi": v - (1 - beta_2) * d**2 * np.sign(v - d**2),
        }[name]
        step = eta
        if name == "fedadam":
            step *= np.sqrt(1 - beta_2 ** (t + 1)) / (1 - beta_1 ** (t + 1))
        x = x + step * m / (np.sqrt(v) + tau)
        expected.append(x)
    assert_close(models(name, eta=eta, tau=tau, **decays), expected)


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_fedmedian_of_an_even_number_is_the_mean_of_the_middle_two(nodes: int) -> None:
    """Yin et al. 2018; no client has a weight."""
    params = settings_of(name="fedmedian").canonical()
    strategy = build_strategy("fedmedian", params, 0, 4)
    grid = FakeGrid(halfway_app(TARGETS, EXAMPLES), nodes)
    messages = strategy.configure_train(1, record(0, 0), ConfigRecord(), grid)
    arrays, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    columns = zip(*[TARGETS[node] for node in range(1, nodes + 1)], strict=True)
    assert values(arrays) == [median(column) / 2 for column in columns]


@pytest.mark.parametrize("name", [*NAMES_OF_MEANS, "scaffold", "qfedavg", *ROBUST])
def test_arrays_keep_their_dtypes_and_shapes(name: str) -> None:
    """Halves, singles, doubles, and a scalar: what is sent in round 3 has the bytes of round 1."""
    params = settings_of(name=name).canonical()
    strategy = build_strategy(name, params, 0, 8, client_learning_rate=0.1)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        sent = {key: array.numpy() for key, array in message.content["arrays"].items()}
        step = context.node_id
        moved = {key: np.asarray(value + value.dtype.type(step)) for key, value in sent.items()}
        content = RecordDict({"arrays": ArrayRecord({k: Array(v) for k, v in moved.items()})})
        content["metrics"] = MetricRecord({"num-examples": step, "start_loss": 1.0})
        if "control" in message.content:
            content["control"] = content["arrays"]
        return Message(content, reply_to=message)

    @app.query("examples")
    def examples(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": context.node_id})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    start = {
        "scalar": np.array(1, np.float32),
        "half": np.zeros(2, np.float16),
        "single": np.zeros((2, 1), np.float32),
        "double": np.zeros(2),
    }
    arrays = ArrayRecord({key: Array(value) for key, value in start.items()})
    grid = FakeGrid(app, 8)
    for number in (1, 2):
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
    kinds = {key: (array.numpy().dtype, array.numpy().shape) for key, array in arrays.items()}
    assert kinds == {key: (value.dtype, value.shape) for key, value in start.items()}
