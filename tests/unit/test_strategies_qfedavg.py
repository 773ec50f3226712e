"""q-FedAvg by hand: clients go half the way to their targets, F_k is the squared distance."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord

from fedsweep.strategies import build_strategy, settings_of
from fedsweep.strategies.insides import AggregationError
from tests.fakes import FakeGrid, halfway_app, record, values


def build(name: str = "qfedavg", lr: float = 0.5, **changes: Any) -> Any:
    params = settings_of(name=name, **changes).canonical()
    return build_strategy(name, params, seed=0, num_clients=4, client_learning_rate=lr)


def one_round(
    strategy: Any,
    targets: dict[int, tuple[float, ...]],
    examples: dict[int, int] | None = None,
    number: int = 1,
    **config: float,
) -> ArrayRecord:
    grid = FakeGrid(halfway_app(targets, examples), len(targets))
    start = record(*[0] * len(targets[1]))
    messages = strategy.configure_train(number, start, ConfigRecord(config), grid)
    return strategy.aggregate_train(number, grid.send_and_receive(messages))[0]


def test_q_one_by_hand() -> None:
    """Targets 2 and 4 from 0, L = 1 / .5: F = 4, 16 and w_k = 1, 2, so L (w - w_k) = -2, -4.

    Delta_k = F (L (w - w_k)) = -8, -64; h_k = (L (w - w_k))^2 + L F = 4 + 8, 16 + 32; 72 / 60.
    """
    assert values(one_round(build(q=1), {1: (2,), 2: (4,)})) == pytest.approx([1.2])


def test_q_one_half_by_hand() -> None:
    """Delta_k = -2 x 2, -4 x 4; h_k = .5 x 4 / 2 + 2 x 2, .5 x 16 / 4 + 2 x 4; 20 / 15."""
    assert values(one_round(build(q=0.5), {1: (2,), 2: (4,)})) == pytest.approx([20 / 15])


@pytest.mark.parametrize("lr", [0.01, 0.5, 3.0])
def test_q_zero_is_the_plain_mean_which_is_fedavg_where_sizes_are_equal(lr: float) -> None:
    targets = {1: (2.0, 1.0), 2: (4.0, -3.0), 3: (-1.0, 9.0)}
    for examples in ({1: 5, 2: 5, 3: 5}, {1: 1, 2: 3, 3: 6}):
        found = values(one_round(build(lr=lr, q=0), targets, examples))
        fedavg = values(one_round(build("fedavg"), targets, examples))
        assert found == pytest.approx(np.mean([np.array(t) / 2 for t in targets.values()], axis=0))
        assert (found == pytest.approx(fedavg)) is (len(set(examples.values())) == 1)


def test_the_step_is_that_of_the_rounds_learning_rate() -> None:
    """lr .5 x .1 in round 2: L = 20; Delta = -80, -640; h = 400 + 80, 1600 + 320."""
    targets = {1: (2.0,), 2: (4.0,)}
    found = one_round(build(q=1), targets, number=2, **{"lr": 0.5, "lr-decay": 0.1})
    assert values(found) == pytest.approx([720 / 2400])


def test_a_higher_q_leans_to_the_client_with_the_higher_loss() -> None:
    """Directions at right angles: the worse client's share of the step grows with q."""
    shares = []
    for q in (0, 0.5, 1, 5, 60):
        x, y = values(one_round(build(q=q), {1: (2, 0), 2: (0, 3)}))
        shares.append(y / (x + y))
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0.6)
    assert shares[-1] > 0.999


@pytest.mark.parametrize("q", [0.5, 1.0])
def test_a_loss_of_zero_divides_by_nothing(q: float) -> None:
    assert np.isfinite(values(one_round(build(q=q), {1: (0,), 2: (4,)}))).all()
    assert values(one_round(build(q=q), {1: (0,), 2: (0,)})) == [0]


def test_high_losses_do_not_overflow() -> None:
    far = {1: (1e60,), 2: (2e60,)}
    assert np.isfinite(values(one_round(build(q=5), far))).all()


def test_shapes_and_dtypes_stay() -> None:
    strategy = build(q=1)
    grid = FakeGrid(halfway_app({1: (2,), 2: (4,)}), 2)
    messages = list(strategy.configure_train(1, record(0), ConfigRecord(), grid))
    replies = grid.send_and_receive(messages)
    strategy.sent = ArrayRecord({"w": Array(np.zeros((), np.float32))})
    for reply in replies:
        [w] = values(reply.content["arrays"])
        reply.content["arrays"] = ArrayRecord({"w": Array(np.array(w, np.float32))})
    model, _ = strategy.aggregate_train(1, replies)
    assert (model["w"].dtype, tuple(model["w"].shape)) == ("float32", ())
    assert float(model["w"].numpy()) == pytest.approx(1.2)


def test_clients_that_do_not_tell_their_loss_are_refused() -> None:
    strategy, grid = build(q=1), FakeGrid(halfway_app({1: (2,), 2: (4,)}), 2)
    messages = strategy.configure_train(1, record(0), ConfigRecord(), grid)
    replies = grid.send_and_receive(messages)
    for reply in replies:
        del reply.content["metrics"]["start_loss"]
    with pytest.raises(AggregationError, match="client 1 replied without 'start_loss'"):
        strategy.aggregate_train(1, replies)


def test_without_replies_nothing_is_learned() -> None:
    assert build(q=1).aggregate_train(1, []) == (None, None)
