"""What the servers of methods with corrected or hierarchical means do, by hand on a Flower Grid."""

import json
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsweep.strategies import build_strategy, settings_of
from fedsweep.strategies.layout import Layout
from tests.fakes import FakeGrid, halfway_app, record, values

TARGETS = {1: (8, 0), 2: (4, 0), 3: (0, 8), 4: (0, 4)}
EXAMPLES = {1: 1, 2: 3, 3: 1, 4: 1}


def build(name: str, **changes: Any) -> Any:
    params = settings_of(name=name, **changes).canonical()
    return build_strategy(name, params, seed=1, num_clients=8)


def grid_of(targets: Any = None, **options: Any) -> FakeGrid:
    targets = targets or TARGETS
    return FakeGrid(halfway_app(targets, EXAMPLES), len(targets), **options)


def train(strategy: Any, grid: FakeGrid, number: int, arrays: ArrayRecord) -> ArrayRecord:
    """Return the global model after a round."""
    messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
    mean, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
    assert mean is not None
    return mean


# pFedMe


def test_pfedmes_server_steps_towards_the_clients_mean() -> None:
    """The clients' mean is (4 + 3 * 2) / 6, (4 + 2) / 6: half the way there."""
    mean = train(build("pfedme", server_beta=0.5), grid_of(), 1, record(0, 0))
    assert values(mean) == pytest.approx([5 / 6, 0.5])


# FedDyn


def test_feddyn_moves_by_what_the_clients_gradients_leave() -> None:
    """Clients count alike: the mean of half the way is (1.5, 1.5), h = -alpha (1.5, 1.5)."""
    strategy, grid = build("feddyn", dyn_alpha=0.1), grid_of()
    arrays = train(strategy, grid, 1, record(0, 0))
    assert strategy.h["w"] == pytest.approx([-0.15, -0.15])
    assert values(arrays) == pytest.approx([3, 3])
    # From (3, 3) the mean is (3, 3): h stays, and moves it again.
    arrays = train(strategy, grid, 2, arrays)
    assert strategy.h["w"] == pytest.approx([-0.15, -0.15])
    assert values(arrays) == pytest.approx([4.5, 4.5])


def test_feddyn_divides_by_all_clients_and_averages_those_that_replied() -> None:
    """Client 1 of four replies: y - x = (4, 0), h = -alpha / 4 (4, 0)."""

    def fails(message: Message) -> bool:
        return message.metadata.dst_node_id != 1 and message.metadata.message_type == "train"

    strategy = build("feddyn", dyn_alpha=0.1)
    arrays = train(strategy, grid_of(fails=fails), 1, record(0, 0))
    assert strategy.h["w"] == pytest.approx([-0.1, 0])
    assert values(arrays) == pytest.approx([4 + 1, 0])


def quadratic_app(targets: dict[int, float], alpha: float) -> ClientApp:
    """Return FedDyn's clients of f_i(y) = (y - target)^2 / 2, who solve their problem exactly."""
    app = ClientApp()

    @app.train()
    def fit(message: Message, context: Any) -> Message:
        x = message.content["arrays"]["w"].numpy()
        state = context.state.array_records
        g = state["g"]["w"].numpy() if "g" in state else np.zeros_like(x)
        y = (targets[context.node_id] + g + alpha * x) / (1 + alpha)
        context.state["g"] = ArrayRecord({"w": Array(g - alpha * (y - x))})
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": ArrayRecord({"w": Array(y)}), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def test_feddyn_ends_at_the_optimum_of_the_sum_with_half_the_clients_a_round() -> None:
    targets = {1: 8.0, 2: 4.0, 3: 0.0, 4: -2.0}
    strategy = build("feddyn", dyn_alpha=0.5, fraction_train=0.5)
    grid, arrays = FakeGrid(quadratic_app(targets, 0.5), 4), record(0)
    for number in range(1, 301):
        arrays = train(strategy, grid, number, arrays)
    assert values(arrays) == pytest.approx([2.5], abs=1e-3)


# FedNova


def normalised_app(norms: dict[int, float]) -> ClientApp:
    """Return clients that go half the way to their target, and say what to divide by."""
    app = ClientApp()

    @app.train()
    def fit(message: Message, context: Any) -> Message:
        node = context.node_id
        x = message.content["arrays"]["w"].numpy()
        y = x + 0.5 * (np.array(TARGETS[node]) - x)
        metrics = {"num-examples": EXAMPLES[node], "gradient_norm": norms[node]}
        content = {"arrays": ArrayRecord({"w": Array(y)}), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    return app


def test_fednova_by_its_formula() -> None:
    """p = (1, 3, 1, 1) / 6, a = (1, 2, 4, 4): tau = 15 / 6, sum of p d / a = (7, 1.5) / 6."""
    grid = FakeGrid(normalised_app({1: 1, 2: 2, 3: 4, 4: 4}), 4)
    mean = train(build("fednova"), grid, 1, record(0, 0))
    assert values(mean) == pytest.approx([2.5 * 7 / 6, 2.5 * 1.5 / 6])
    half = train(build("fednova", server_learning_rate=0.5), grid, 1, record(0, 0))
    assert values(half) == pytest.approx([2.5 * 7 / 12, 2.5 * 1.5 / 12])


def test_fednova_of_clients_that_take_as_many_steps_is_fedavg() -> None:
    grid = FakeGrid(normalised_app(dict.fromkeys(TARGETS, 3.0)), 4)
    found, plain = (train(build(name), grid, 1, record(1, 2)) for name in ("fednova", "fedavg"))
    assert values(found) == pytest.approx(values(plain))


# HierFAVG


def test_edges_are_of_equal_size_and_the_cloud_averages_them_when_it_is_due() -> None:
    strategy, grid = build("hierfavg", num_clusters=2, cloud_every=2), grid_of()
    arrays = train(strategy, grid, 1, record(0, 0))
    edges = {edge: [n for n, e in strategy.assignment.items() if e == edge] for edge in (0, 1)}
    assert sorted(map(len, edges.values())) == [2, 2]

    def mean_of(start: list[float], nodes: list[int]) -> np.ndarray:
        ends = [0.5 * (np.array(start) + np.array(TARGETS[node])) for node in nodes]
        return np.average(ends, axis=0, weights=[EXAMPLES[node] for node in nodes])

    of_edges = {edge: mean_of([0, 0], nodes) for edge, nodes in edges.items()}
    for edge, model in strategy.cluster_arrays.items():
        assert values(model) == pytest.approx(of_edges[edge].tolist())

    arrays = train(strategy, grid, 2, arrays)
    of_edges = {edge: mean_of(of_edges[edge].tolist(), nodes) for edge, nodes in edges.items()}
    sizes = [sum(EXAMPLES[node] for node in nodes) for nodes in edges.values()]
    cloud = np.average(list(of_edges.values()), axis=0, weights=sizes)
    assert values(arrays) == pytest.approx(cloud.tolist())
    assert all(values(model) == values(arrays) for model in strategy.cluster_arrays.values())


def test_a_cloud_of_every_round_is_fedavg_and_newcomers_join_the_smallest_edge() -> None:
    strategy, plain = build("hierfavg", num_clusters=2, cloud_every=1), build("fedavg")
    grid, other = grid_of(), grid_of()
    found = expected = record(0, 0)
    for number in (1, 2):
        found = train(strategy, grid, number, found)
        expected = train(plain, other, number, expected)
        assert values(found) == pytest.approx(values(expected))
    grid.app, grid.num_nodes = halfway_app({**TARGETS, 5: (2, 2), 6: (2, 2)}), 6
    train(strategy, grid, 3, found)
    assert sorted(list(strategy.assignment.values()).count(edge) for edge in (0, 1)) == [3, 3]


# FedBN


def test_fedbn_keeps_whole_layers_that_have_running_statistics() -> None:
    strategy = build("fedbn")
    arrays = ArrayRecord(
        {**record(0, 0), **{f"norm.{n}": record(1)["w"] for n in ("weight", "running_mean")}}
    )
    strategy.layout = Layout(("w", "norm.weight"), averaged=("norm.running_mean",))
    assert strategy.own(arrays) == ["norm.weight", "norm.running_mean"]
    mean = train(strategy, grid_of(), 1, arrays)
    assert values(mean) == pytest.approx([(4 + 3 * 2) / 6, 1])
    assert mean["norm.weight"].numpy().tolist() == [1]


def test_fedbn_without_batchnorm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strategy=fedbn with a model without BatchNorm"):
        build("fedbn").own(record(0, 0))


# Resuming


@pytest.mark.parametrize("name", ["feddyn", "hierfavg", "pfedme"])
def test_what_the_server_remembers_goes_through_a_checkpoint(name: str) -> None:
    def fresh() -> Any:
        return build(name, **({"num_clusters": 2} if name == "hierfavg" else {}))

    expected, grid = record(0, 0), grid_of()
    whole = fresh()
    for number in range(1, 5):
        expected = train(whole, grid, number, expected)

    arrays, grid = record(0, 0), grid_of()
    before, after = fresh(), fresh()
    for number in (1, 2):
        arrays = train(before, grid, number, arrays)
    state = before.state_dict()
    models = {key: state.pop(key) for key in ("cluster_arrays", "h") if key in state}
    after.load_state_dict({**json.loads(json.dumps(state)), **models})
    for number in (3, 4):
        arrays = train(after, grid, number, arrays)
    assert values(arrays) == values(expected)
