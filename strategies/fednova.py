"""FedNova: clients that take more steps do not pull the model to their own optimum.

Wang, Liu, Liang, Joshi and Poor 2020, "Tackling the Objective Inconsistency Problem in
Heterogeneous Federated Optimization" (arXiv:2007.07481), equation 6 and section 4.1.
Deviations: docs/strategies/fednova.md.
"""

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord

from fedsweep.strategies.base import arrays_of, metrics_of, sort_replies, weight_of
from fedsweep.strategies.clients import ClientPart, Update, Work
from fedsweep.strategies.layout import between, weighted_mean
from fedsweep.strategies.optimizers import StepSettings, check_sgd
from fedsweep.strategies.settings import Setting
from fedsweep.strategies.told import Told

NORM = "gradient_norm"
WHY = "a client's update is normalised by how SGD sums its gradients"


class FedNovaSettings(StepSettings):
    """FedAvg's, and the server's step."""

    def check_in(self, setting: Setting) -> None:
        """Refuse clients whose steps can't be normalised."""
        super().check_in(setting)
        if setting.optimizer is not None:
            check_sgd(self.name, setting.optimizer, WHY)


class Normalised(ClientPart):
    """Clients train as FedAvg's, and say by what their update is to be divided."""

    method = "fednova"

    def fit(self, work: Work) -> Update:
        """Train, and tell |a_i|, the total weight of the gradients in the update.

        Raises
        ------
        ValueError
            If the clients' optimizer is not SGD.
        """
        local = work.local
        check_sgd(self.method, local.optimizer, WHY)
        trained = work.train(work.sent())
        norms = [
            total_weight(int(steps), local.lr, local.momentum, local.proximal_mu)
            for steps in trained.of("steps")
        ]
        return Update(trained.results, trained.models, {NORM: norms})


class FedNova(Told):
    """FedAvg of normalised updates, times what the clients' steps come to on average.

    x <- x + eta_g tau sum_i p_i (y_i - x) / |a_i|, where p_i is a client's share of the examples
    and tau = sum_i p_i |a_i|.

    Parameters
    ----------
    server_learning_rate : float
        eta_g.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = FedNovaSettings
    colour = "#FF9E4A"

    clients = Normalised

    def __init__(self, *, server_learning_rate: float = 1.0, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.server_learning_rate = server_learning_rate

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the normalised updates."""
        valid, _ = sort_replies(self, replies, read_arrays=True)
        if not valid:
            return None, None
        weights = [weight_of(reply, self.weighted_by_key) for reply in valid]
        norms = [_norm(reply) for reply in valid]
        total = sum(weights)
        tau = sum(n * a for n, a in zip(weights, norms, strict=True)) / total

        # sum_i p_i (y_i - x) / |a_i| is the mean of y_i - x by p_i / |a_i|, times their sum.
        normed = [n / a for n, a in zip(weights, norms, strict=True)]
        mean = weighted_mean([arrays_of(reply) for reply in valid], normed)
        step = self.server_learning_rate * tau * sum(normed) / total
        metrics = metrics_of(self, valid)
        return between(self.sent, mean, step), metrics


def total_weight(steps: int, lr: float, momentum: float, mu: float) -> float:
    """Return |a|: by how much K steps of SGD with momentum move against a gradient of 1, over lr.

    It is K without momentum and proximal term; with the term, x is pulled back to where it began.
    """
    moved = velocity = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1 - mu * lr * moved
        moved += velocity
    return moved


def _norm(reply: Message) -> float:
    metrics: MetricRecord = next(iter(reply.content.metric_records.values()))
    return float(metrics[NORM])  # type: ignore[arg-type]
