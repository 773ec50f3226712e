"""SCAFFOLD: gradients corrected by the difference of server's and client's control variates.

Karimireddy, Kale, Mohri, Reddi, Stich and Suresh 2020, "SCAFFOLD: Stochastic Controlled Averaging
for Federated Learning" (arXiv:1910.06378), algorithm 1 with option II, for the objective
sum_i (n_i / n) F_i: each client counts by its examples n_i, in the model and in c.
Deviations: docs/strategies/scaffold.md.
"""

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedsweep.strategies.arrays import ModelRows
from fedsweep.strategies.base import (
    State,
    ask,
    int_keys,
    metrics_of,
    sort_replies,
    string_keys,
    weight_of,
)
from fedsweep.strategies.clients import ClientPart, Update, Work, with_method
from fedsweep.strategies.layout import between, is_floating, weighted_mean
from fedsweep.strategies.optimizers import StepSettings, check_sgd
from fedsweep.strategies.settings import Setting
from fedsweep.strategies.told import Noting

CONTROL = "control"
WHY = "its control variates are mean gradients of SGD"


class ScaffoldSettings(StepSettings):
    """FedAvg's, and the server's step."""

    def check_in(self, setting: Setting) -> None:
        """Refuse clients whose steps say nothing of their gradients."""
        super().check_in(setting)
        if setting.optimizer is not None:
            check_sgd(self.name, setting.optimizer, WHY)


class Scaffold(Noting):
    """FedAvg with control variates. c_i stays in the clients' state;
    c and its changes travel beside the model.

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

    settings = ScaffoldSettings
    title = "SCAFFOLD"
    colour = "#F4D48C"

    mean_of_models = False  # of control variates too

    def __init__(self, *, server_learning_rate: float = 1.0, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.server_learning_rate = server_learning_rate
        self.examples: dict[int, float] = {}
        # sum_i n_i c_i in float64: newcomers change n, and not this.
        self._sums: dict[str, np.ndarray] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the sampled clients the model and c, after newcomers have told their examples.

        Raises
        ------
        RuntimeError
            If no client answers ``query.examples`` in the first round.
        """
        self._meet(grid)
        config = with_method(config, Corrected.method)
        messages = list(super().configure_train(server_round, arrays, config, grid))
        content = RecordDict(
            {self.arrayrecord_key: arrays, CONTROL: self.control, self.configrecord_key: config}
        )
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
        mean = between(self.sent, mean, self.server_learning_rate)
        metrics = metrics_of(self, valid)
        return mean, metrics

    @property
    def control(self) -> ArrayRecord:
        """c, an array for each floating one of the model, of its shape and dtype."""
        total = sum(self.examples.values())
        control = ArrayRecord()
        for key, array in self.sent.items():
            if is_floating(array):
                mean = self._sums.get(key, np.zeros(array.shape)) / total
                control[key] = Array(np.asarray(mean, np.dtype(array.dtype)))
        return control

    def state_dict(self) -> State:
        """Return the sum of the n_i c_i, and the n_i; the clients keep their own c_i."""
        sums = ArrayRecord({key: Array(value) for key, value in self._sums.items()})
        return {"control": sums, "examples": string_keys(self.examples)}

    def load_state_dict(self, state: State) -> None:
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


class Corrected(ClientPart):
    """A client's gradients are corrected by c - c_i; it keeps c_i, and sends how that changed."""

    method = "scaffold"

    def fit(self, work: Work) -> Update:
        """Train with the correction, then renew c_i (option II).

        Raises
        ------
        ValueError
            If the clients' optimizer is not SGD: what y moved by says nothing of its gradients.
        """
        local = work.local
        check_sgd(self.method, local.optimizer, WHY)
        x, c = work.sent(), work.sent(CONTROL)
        c_i = work.kept(self.method, otherwise=c.with_rows(np.zeros_like(c.rows)))
        correction = c.rows - c_i.rows
        trained = work.train(x, correction=correction)

        steps = [int(count) for count in trained.of("steps")]
        weights = [gradient_weight(local.lr, local.momentum, count) for count in steps]
        weight_C1 = np.array(weights, x.rows.dtype)[:, None]
        renewed_CP = renewed(x.rows, trained.models.rows, correction, weight_C1)

        work.keep(self.method, c.with_rows(renewed_CP))
        change = c.with_rows(renewed_CP - c_i.rows)
        return Update(trained.results, trained.models, arrays={CONTROL: change})


def gradient_weight(lr: float, momentum: float, steps: int) -> float:
    """Return the total weight with which the gradients of K steps enter x - y.

    It is K lr without momentum, and lr sum_{t=1..K} (1 - b^t) / (1 - b) with momentum b.
    """
    return lr * sum((1 - momentum**t) / (1 - momentum) for t in range(1, steps + 1))


def renewed(
    x: ModelRows, y: ModelRows, correction: ModelRows, weight: ModelRows | float
) -> ModelRows:
    """Return c_i+ = c_i - c + (x - y) / weight, where the correction is c - c_i.

    y moved by the corrected gradients, g + c - c_i, so this is the mean of g alone.
    """
    return np.asarray((x - y) / weight - correction)
