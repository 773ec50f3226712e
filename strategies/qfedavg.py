"""q-FedAvg: clients with a higher loss count more, and more so the higher q.

Li, Sanjabi, Beirami and Smith 2020, "Fair Resource Allocation in Federated Learning"
(arXiv:1905.10497), algorithm 2. Deviations: docs/strategies/qfedavg.md.
"""

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from pydantic import Field

from fedsweep.strategies.base import arrays_of, metrics_of, sort_replies
from fedsweep.strategies.clients import (
    ClientPart,
    Effort,
    Update,
    Values,
    Work,
    training_effort,
    with_method,
)
from fedsweep.strategies.insides import AggregationError
from fedsweep.strategies.layout import is_floating
from fedsweep.strategies.settings import FedAvgSettings
from fedsweep.strategies.told import Noting

LOSS_KEY = "start_loss"
TINY = 1e-10
"""Added to each loss, as in the authors' code: F^(q - 1) has no value at 0."""


class QFedAvgSettings(FedAvgSettings):
    """FedAvg's, and the fairness."""

    q: float = Field(0.1, ge=0, le=1000, description="fairness; 0 is the plain mean over clients")


class QFedAvg(Noting):
    """FedAvg whose step weighs the clients by their losses.

    w <- w - sum_k F_k^q g_k / sum_k (q F_k^(q-1) ||g_k||^2 + L F_k^q) with g_k = L (w - w_k), where
    F_k is the loss of w, the model that was sent, on client k's examples.

    Parameters
    ----------
    client_learning_rate : float
        Of round 1; L is 1 over that of the round.
    q : float
        0: the plain mean over clients.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = QFedAvgSettings
    title = "q-FedAvg"
    colour = "#AA4466"

    def __init__(self, *, client_learning_rate: float, q: float = 0.1, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.client_learning_rate, self.q = client_learning_rate, q
        self._lipschitz = 1.0 / client_learning_rate

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the clients tell their loss before they train."""
        decay = float(cast(float, config.get("lr-decay", 1.0)))
        self._lipschitz = 1.0 / (self.client_learning_rate * decay ** (server_round - 1))
        config = with_method(config, TellingLoss.method)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Step from the model that was sent.

        Raises
        ------
        AggregationError
            If a client did not tell its loss.
        """
        valid, _ = sort_replies(self, replies, read_arrays=True)
        if not valid:
            return None, None
        losses = [_start_loss(reply) + TINY for reply in valid]
        highest, step, total = max(losses), dict[str, np.ndarray](), 0.0
        for reply, loss in zip(valid, losses, strict=True):
            # Both sums are in units of the highest F^q, which then can't overflow.
            share = float((loss / highest) ** self.q)
            gradient = self._gradient(arrays_of(reply))
            for key, value in gradient.items():
                step[key] = np.asarray(step.get(key, 0.0) + share * value)
            squared = sum(float(np.vdot(value, value)) for value in gradient.values())
            total += share * (self.q * squared / loss + self._lipschitz)
        arrays = ArrayRecord({**self.sent})
        for key, value in step.items():
            w = self.sent[key].numpy()
            arrays[key] = Array(np.asarray(w - value / total, w.dtype))
        return arrays, metrics_of(self, valid)

    def _gradient(self, model: ArrayRecord) -> dict[str, np.ndarray]:
        """Return L (w - w_k), float64; counters are no part of it, and stay as they were sent."""
        gradient = {}
        for key, array in self.sent.items():
            if is_floating(array):
                moved = array.numpy().astype(np.float64) - model[key].numpy()
                gradient[key] = np.asarray(self._lipschitz * moved)
        return gradient


class TellingLoss(ClientPart):
    """A client tells F_k: the loss of the model that it was sent, before it trains."""

    method = "qfedavg"

    def fit(self, work: Work) -> Update:
        """Score the model on the training examples, then train it."""
        losses = [float(own.mean()) for own in work.losses(work.candidates())]
        trained = work.train(work.sent())
        return Update(trained.results, trained.models, {LOSS_KEY: losses})

    def effort(self, config: Values, examples: int, models: int) -> Effort:
        """Return what a client computes that scores the model and trains it."""
        return Effort(training_effort(config, examples), float(examples * models))


def _start_loss(reply: Message) -> float:
    [metrics] = reply.content.metric_records.values()
    if LOSS_KEY not in metrics:
        raise AggregationError(
            f"client {reply.metadata.src_node_id} replied without '{LOSS_KEY}', the loss of the "
            "model it was sent: strategy=qfedavg needs clients that tell it under "
            f"method={TellingLoss.method}"
        )
    return float(cast(float, metrics[LOSS_KEY]))
