"""SCAFFOLD: gradients are corrected by the difference of the server's and the client's control variates.

Karimireddy, Kale, Mohri, Reddi, Stich and Suresh 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning" (arXiv:1910.06378), algorithm 1 with option II. Deviations: docs/strategies/scaffold.md.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from strategies.base import sort_replies, weight_of
from strategies.candidates import with_method
from strategies.layout import weighted_mean

CONTROL = "control"


class Scaffold(FedAvg):
    """FedAvg with control variates. c_i stays in the clients' state; c and its changes travel beside the model.

    Parameters
    ----------
    server_learning_rate : float
        eta_g: x <- x + eta_g (mean of the clients' models - x).
    **fedavg
        Parameters of Flower's FedAvg.
    """

    def __init__(self, *, server_learning_rate: float = 1.0, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.server_learning_rate = server_learning_rate
        self.control = ArrayRecord()  # c; empty before the first round
        self._arrays = ArrayRecord()
        self._num_nodes = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the sampled clients the model and c."""
        if not self.control:
            self.control = ArrayRecord({key: _scaled(array, 0.0) for key, array in arrays.items() if _floating(array)})
        self._arrays, self._num_nodes = arrays, len(list(grid.get_node_ids()))
        config = with_method(config, "scaffold")
        messages = list(super().configure_train(server_round, arrays, config, grid))
        content = RecordDict({self.arrayrecord_key: arrays, CONTROL: self.control, self.configrecord_key: config})
        for message in messages:
            message.content = content
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average models and changes: x <- x + eta_g mean(y_i - x), c <- c + |S| / N mean(change of c_i)."""
        valid, _ = sort_replies(self, replies, read_arrays=False)
        if not valid:
            return None, None
        weights = [weight_of(reply, self.weighted_by_key) for reply in valid]
        mean = weighted_mean([reply.content.array_records[self.arrayrecord_key] for reply in valid], weights)
        change = weighted_mean([reply.content.array_records[CONTROL] for reply in valid], weights)
        share = len(valid) / self._num_nodes
        moved = {key: _plus(self.control[key], change[key], share) for key in change}
        self.control = ArrayRecord({**self.control, **moved})
        if self.server_learning_rate != 1.0:
            step = self.server_learning_rate
            mean = ArrayRecord({key: _mixed(self._arrays[key], array, step) for key, array in mean.items()})
        metrics = self.train_metrics_aggr_fn([reply.content for reply in valid], self.weighted_by_key)
        return mean, metrics

    def state_dict(self) -> dict[str, Any]:
        """Return c; the clients keep their own."""
        return {"control": self.control}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` returned."""
        self.control = state["control"]


def _floating(array: Array) -> bool:
    return bool(np.issubdtype(np.dtype(array.dtype), np.floating))


def _scaled(array: Array, factor: float) -> Array:
    values = array.numpy()
    return Array((values * factor).astype(values.dtype))


def _plus(array: Array, more: Array, factor: float) -> Array:
    values = array.numpy()
    return Array((values + factor * more.numpy()).astype(values.dtype))


def _mixed(x: Array, y: Array, step: float) -> Array:
    values = x.numpy()
    return Array((values + step * (y.numpy() - values)).astype(values.dtype))
