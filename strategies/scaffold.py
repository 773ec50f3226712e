"""SCAFFOLD: gradients are corrected by the difference of the server's and the client's control variates.

Karimireddy, Kale, Mohri, Reddi, Stich and Suresh 2020, "SCAFFOLD: Stochastic Controlled Averaging
for Federated Learning" (arXiv:1910.06378), algorithm 1 with option II, for the objective
sum_i (n_i / n) F_i: each client counts by its examples n_i, in the model and in c.
Deviations: docs/strategies/scaffold.md.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from strategies.base import ask, int_keys, sort_replies, string_keys, weight_of
from strategies.candidates import with_method
from strategies.layout import is_floating, weighted_mean

CONTROL = "control"


class Scaffold(FedAvg):
    """FedAvg with control variates. c_i stays in the clients' state; c and its changes travel beside the model.

    After every round c = sum_i (n_i / n) c_i holds exactly, over all clients that have joined,
    trained or not: n is the sum of their n_i, and a newcomer's c_i is 0.

    Parameters
    ----------
    server_learning_rate : float
        eta_g: x <- x + eta_g (mean of the clients' models - x).
    **fedavg
        Parameters of Flower's FedAvg.

    Attributes
    ----------
    examples : dict[int, float]
        n_i of each client that has joined, as it told when it was first seen.
    control : ArrayRecord
        c as it was sent last, or after the last aggregation; empty before the first round.
    """

    def __init__(self, *, server_learning_rate: float = 1.0, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.server_learning_rate = server_learning_rate
        self.examples: dict[int, float] = {}
        # sum_i n_i c_i in float64: newcomers change n, and not this.
        self._sums: dict[str, np.ndarray] = {}
        self._arrays = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the sampled clients the model and c, after newcomers have told their examples.

        Raises
        ------
        RuntimeError
            If no client answers ``query.examples`` in the first round.
        """
        self._arrays = arrays
        self._meet(grid)
        config = with_method(config, "scaffold")
        messages = list(super().configure_train(server_round, arrays, config, grid))
        content = RecordDict({self.arrayrecord_key: arrays, CONTROL: self.control, self.configrecord_key: config})
        for message in messages:
            message.content = content
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Move x and c by what the clients S that replied did.

        x <- x + eta_g sum_S n_i (y_i - x) / sum_S n_i and c <- c + sum_S (n_i / n) (c_i+ - c_i).
        """
        valid, _ = sort_replies(self, replies, read_arrays=False)
        if not valid:
            return None, None
        weights = [weight_of(reply, self.weighted_by_key) for reply in valid]
        for reply, weight in zip(valid, weights, strict=True):
            # What a client told first stays its weight: its c_i is in the sum with that one.
            n_i = self.examples.setdefault(reply.metadata.src_node_id, weight)
            for key, change in reply.content.array_records[CONTROL].items():
                added = n_i * change.numpy().astype(np.float64)
                self._sums[key] = np.asarray(self._sums.get(key, 0.0) + added)
        models = [reply.content.array_records[self.arrayrecord_key] for reply in valid]
        mean = weighted_mean(models, weights)
        if (step := self.server_learning_rate) != 1.0:
            mean = ArrayRecord({key: _mixed(self._arrays[key], y, step) for key, y in mean.items()})
        metrics = self.train_metrics_aggr_fn([reply.content for reply in valid], self.weighted_by_key)
        return mean, metrics

    @property
    def control(self) -> ArrayRecord:
        """c, an array for each floating one of the model, of its shape and dtype."""
        total = sum(self.examples.values())
        control = ArrayRecord()
        for key, array in self._arrays.items():
            if is_floating(array):
                mean = self._sums.get(key, np.zeros(array.shape)) / total
                control[key] = Array(np.asarray(mean, np.dtype(array.dtype)))
        return control

    def state_dict(self) -> dict[str, Any]:
        """Return the sum of the n_i c_i, and the n_i; the clients keep their own c_i."""
        sums = ArrayRecord({key: Array(value) for key, value in self._sums.items()})
        return {"control": sums, "examples": string_keys(self.examples)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` returned."""
        self._sums = {key: array.numpy() for key, array in state["control"].items()}
        self.examples = int_keys(state["examples"])

    def _meet(self, grid: Grid) -> None:
        """Learn the examples of new clients; who does not answer is asked again the next time."""
        new = [node for node in grid.get_node_ids() if node not in self.examples]
        if not self.weighted_by_key:
            self.examples.update(dict.fromkeys(new, 1.0))
            return
        needed_by = "" if self.examples else "scaffold"
        answers = ask(grid, "query.examples", dict.fromkeys(new, RecordDict()), needed_by)
        for node, content in answers.items():
            [metrics] = content.metric_records.values()
            self.examples[node] = float(cast(float, metrics[self.weighted_by_key]))


def _mixed(x: Array, y: Array, step: float) -> Array:
    values = x.numpy()
    return Array(np.asarray(values + step * (y.numpy() - values), values.dtype))
