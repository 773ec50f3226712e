"""Flower's SecAgg+ workflow runs on our Grid, and opens the sums that ours opens."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

from fedsweep.engine.grid import EngineGrid, inline_grid
from fedsweep.engine.host import AppSpec
from fedsweep.scenario.masking import Masking, Sums
from tests.trials import events_of, small

CLIENTS, SIZE, ROUND = 6, 50, 1
EXAMPLES = {node: 4 * node for node in range(1, CLIENTS + 1)}

# The same in both: a client shares masks with two on either side, and of five shares three do.
OURS = Masking(bits=22, clipping_range=4.0, neighbours=2, threshold=0.6, heaviest=32.0, seed=0)
FLOWERS: dict[str, Any] = {"num_shares": 5, "reconstruction_threshold": 3}


def weights_of(node: int) -> np.ndarray:
    return np.random.default_rng(node).normal(0, 0.5, SIZE)


class Mine(NumPyClient):
    """It moves to weights of its own, or fails once it has shared its keys."""

    def __init__(self, weights: np.ndarray, examples: int, fails: bool) -> None:
        self.weights, self.examples, self.fails = weights, examples, fails

    def fit(self, parameters, config):
        if self.fails:
            raise RuntimeError("gone")
        return [self.weights], self.examples, {}


def client_app(
    weights: Mapping[int, np.ndarray], examples: Mapping[int, int], failing: tuple[int, ...]
) -> ClientApp:
    def client_fn(context: Context):
        node = context.node_id
        return Mine(weights[node], examples[node], node in failing).to_client()

    return ClientApp(client_fn=client_fn, mods=[secaggplus_mod])


class Watched:
    """Keeps what the server receives."""

    def __init__(self, grid: EngineGrid) -> None:
        self._grid = grid
        self.received: list[RecordDict] = []

    def __getattr__(self, name: str):
        return getattr(self._grid, name)

    def send_and_receive(self, messages, *, timeout=None):
        replies = list(self._grid.send_and_receive(messages, timeout=timeout))
        self.received += [reply.content for reply in replies if reply.has_content()]
        return replies


def flowers(
    weights: Mapping[int, np.ndarray],
    examples: Mapping[int, int],
    masking: Masking,
    failing: tuple[int, ...] = (),
    **shares: Any,
) -> tuple[np.ndarray, list[RecordDict]]:
    """Return the mean that Flower's workflow finds on our Grid, and what its server received."""
    nodes = len(weights)
    kwargs = {"weights": weights, "examples": examples, "failing": failing}
    grid = Watched(inline_grid(AppSpec("key", client_app, kwargs, nodes, {})))
    strategy = FedAvg(
        fraction_evaluate=0,
        min_fit_clients=nodes,
        min_available_clients=nodes,
        initial_parameters=ndarrays_to_parameters([np.zeros(len(weights[1]))]),
    )
    context = LegacyContext(
        Context(1, 0, {}, RecordDict(), {}), ServerConfig(num_rounds=1), strategy
    )
    secure = SecAggPlusWorkflow(
        **shares,
        max_weight=masking.heaviest,
        clipping_range=masking.clipping_range,
        quantization_range=masking.levels,
    )
    DefaultWorkflow(fit_workflow=secure)(grid, context)
    [found] = [array.numpy() for array in context.state.array_records["parameters"].values()]
    return found, grid.received


def ours(
    updates: Mapping[int, np.ndarray], examples: Mapping[int, int], failing: tuple[int, ...] = ()
) -> Sums:
    """Return what our server opens of the same updates."""
    nodes = list(updates)
    masked = {}
    for node in (node for node in nodes if node not in failing):
        numbers = OURS.numbers(updates[node], examples[node], 0, 1, node, ROUND)
        masked[node] = OURS.masked(numbers, node, nodes, ROUND)
    return OURS.opened(masked, nodes, 1, ROUND)


@pytest.mark.parametrize("failing", [(), (3,)])
def test_the_server_gets_the_mean_and_nothing_of_one_client(failing: tuple[int, ...]) -> None:
    """Off the exact mean by less than a level of the quantisation per client."""
    weights = {node: weights_of(node) for node in EXAMPLES}
    found, received = flowers(weights, EXAMPLES, OURS, failing, **FLOWERS)

    there = [node for node in EXAMPLES if node not in failing]
    total = sum(EXAMPLES[node] for node in there)
    exact = sum(EXAMPLES[node] * weights_of(node) for node in there) / total
    assert np.abs(found - exact).max() < len(there) * OURS.step * OURS.heaviest / total
    assert np.abs(found - exact).max() > 0  # it is a sum of integers that was divided

    told: list[ConfigRecord] = [c.config_records[RECORD_KEY_CONFIGS] for c in received]
    masked = [record for record in told if Key.MASKED_PARAMETERS in record]
    assert len(masked) == len(there)
    for content in received:  # no array but the masked ones, which are uniform
        assert not any(array for record in content.array_records.values() for array in record)


# Ours beside it


@pytest.mark.parametrize("failing", [(), (3,)])
def test_of_updates_in_whole_steps_both_open_the_same_sum(failing: tuple[int, ...]) -> None:
    """Nothing is rounded then: the last bits differ, as ours divides and Flower's multiplies.

    A client's update is weighted by its examples / 32, so eighths of an update's numbers have to be
    whole. Two of one client's lie beyond the range once they are weighted, and one before alone.
    """
    drawn = {node: np.random.default_rng(node).integers(-(2**18), 2**18, SIZE) for node in EXAMPLES}
    updates = {node: steps * 8 * OURS.step for node, steps in drawn.items()}
    updates[6][:3] = 99.0, -99.0, 5.0
    updates[1][0] = 0.0
    found, _ = flowers(updates, EXAMPLES, OURS, failing, **FLOWERS)
    sums = ours(updates, EXAMPLES, failing)

    np.testing.assert_allclose(sums.means_KP[0], found, rtol=1e-15, atol=1e-15)
    assert sums.error == 0
    assert sums.clipped == pytest.approx(2 / SIZE / (CLIENTS - len(failing)), rel=1e-3)
    assert sums.weights_K.tolist() == [sum(EXAMPLES.values()) - sum(EXAMPLES[n] for n in failing)]


def test_of_a_trial_s_own_updates_both_open_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off each other by less than a step a client, and by as much as two draws of the rounding."""
    updates: dict[int, np.ndarray] = {}
    examples: dict[int, int] = {}
    found: list[Sums] = []
    used: list[Masking] = []
    numbers, opened = Masking.numbers, Masking.opened

    def seen_numbers(self: Masking, update_P: Any, weight: float, *where: int) -> Any:
        node = where[2]
        updates[node], examples[node] = update_P, int(weight)
        return numbers(self, update_P, weight, *where)

    def seen_opened(self: Masking, *what: Any) -> Sums:
        used.append(self)
        found.append(opened(self, *what))
        return found[-1]

    monkeypatch.setattr(Masking, "numbers", seen_numbers)
    monkeypatch.setattr(Masking, "opened", seen_opened)
    events_of(small("secure_aggregation=true", "model=logreg", "rounds=1", "partition=dirichlet"))
    [sums], [masking] = found, used
    assert len(updates) == 8
    assert len(set(examples.values())) > 2

    np.random.seed(0)  # Flower rounds by NumPy's global generator
    beside, _ = flowers(
        updates, examples, masking, num_shares=1.0, reconstruction_threshold=masking.threshold
    )
    off = sums.means_KP[0] - beside
    weight = sum(round(n / masking.heaviest * masking.levels) for n in examples.values())
    assert np.abs(off).max() <= len(updates) * masking.step * masking.levels / weight
    assert np.sqrt(np.mean(off**2)) == pytest.approx(np.sqrt(2) * sums.error, rel=0.2)
    assert np.abs(sums.means_KP[0]).max() > 100 * np.abs(off).max()
