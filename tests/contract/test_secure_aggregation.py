"""Flower's SecAgg+ workflow runs on our Grid: the server gets a sum, and no client's update."""

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

CLIENTS, RANGE, LEVELS, HEAVIEST = 6, 4.0, 2**22, 32.0
EXAMPLES = {node: 4 * node for node in range(1, CLIENTS + 1)}
SIZE = 50


def weights_of(node: int) -> np.ndarray:
    return np.random.default_rng(node).normal(0, 0.5, SIZE)


class Mine(NumPyClient):
    """It moves to weights of its own, or fails once it has shared its keys."""

    def __init__(self, node: int, fails: bool) -> None:
        self.node, self.fails = node, fails

    def fit(self, parameters, config):
        if self.fails:
            raise RuntimeError("gone")
        return [weights_of(self.node)], EXAMPLES[self.node], {}


def client_app(failing: tuple[int, ...]) -> ClientApp:
    def client_fn(context: Context):
        return Mine(context.node_id, context.node_id in failing).to_client()

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


@pytest.mark.parametrize("failing", [(), (3,)])
def test_the_server_gets_the_mean_and_nothing_of_one_client(failing: tuple[int, ...]) -> None:
    """Off the exact mean by less than a level of the quantisation per client."""
    grid = Watched(inline_grid(AppSpec("key", client_app, {"failing": failing}, CLIENTS, {})))
    strategy = FedAvg(
        fraction_evaluate=0,
        min_fit_clients=CLIENTS,
        min_available_clients=CLIENTS,
        initial_parameters=ndarrays_to_parameters([np.zeros(SIZE)]),
    )
    context = LegacyContext(
        Context(1, 0, {}, RecordDict(), {}), ServerConfig(num_rounds=1), strategy
    )
    secure = SecAggPlusWorkflow(
        5, 3, max_weight=HEAVIEST, clipping_range=RANGE, quantization_range=LEVELS
    )
    DefaultWorkflow(fit_workflow=secure)(grid, context)

    there = [node for node in EXAMPLES if node not in failing]
    total = sum(EXAMPLES[node] for node in there)
    exact = sum(EXAMPLES[node] * weights_of(node) for node in there) / total
    [found] = [array.numpy() for array in context.state.array_records["parameters"].values()]
    level = 2 * RANGE / LEVELS * HEAVIEST
    assert np.abs(found - exact).max() < level * len(there) / total
    assert np.abs(found - exact).max() > 0  # it is a sum of integers that was divided

    told: list[ConfigRecord] = [c.config_records[RECORD_KEY_CONFIGS] for c in grid.received]
    masked = [record for record in told if Key.MASKED_PARAMETERS in record]
    assert len(masked) == len(there)
    for content in grid.received:  # no array but the masked ones, which are uniform
        assert not any(array for record in content.array_records.values() for array in record)
