"""FedDyn: each client's loss is corrected so that all agree where the sum of losses is least.

Acar, Zhao, Matas Navarro, Mattina, Whatmough and Saligrama 2021, "Federated Learning Based on
Dynamic Regularization" (arXiv:2111.04263), algorithm 1. Deviations: docs/strategies/feddyn.md.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from pydantic import Field

from fedsweep.strategies.base import State, arrays_of, metrics_of, sort_replies
from fedsweep.strategies.clients import ClientPart, Update, Work
from fedsweep.strategies.layout import weighted_mean
from fedsweep.strategies.ranges import WEIGHT
from fedsweep.strategies.settings import FedAvgSettings
from fedsweep.strategies.told import Told


class FedDynSettings(FedAvgSettings):
    """FedAvg's, and the regularisation."""

    pull = "dyn_alpha"

    dyn_alpha: float = Field(
        0.01, gt=0, le=WEIGHT, description="alpha, weight of the dynamic regularisation"
    )


class Regularised(ClientPart):
    """A client keeps g, the gradient of its loss where it ended last."""

    method = "feddyn"

    def fit(self, work: Work) -> Update:
        """Train f(y) - <g, y> + alpha / 2 |y - x|^2 from x, then g <- g - alpha (y - x)."""
        alpha, x = float(work.config["alpha"]), work.sent()
        g = work.kept(self.method, otherwise=x.with_rows(np.zeros_like(x.rows)))
        trained = work.train(x, mu=alpha, correction=-g.rows)

        moved_CP = trained.models.rows - x.rows
        renewed_CP = g.rows - np.asarray(alpha, g.rows.dtype) * moved_CP
        work.keep(self.method, x.with_rows(renewed_CP))
        return Update(trained.results, trained.models)


class FedDyn(Told):
    """The plain mean of the clients' models, less what all clients' gradients say is left.

    With S the clients that replied and m all clients: h <- h - alpha / m sum_S (y_i - x), and
    x <- mean_S y_i - h / alpha. Clients count alike, whatever their examples.

    Parameters
    ----------
    dyn_alpha : float
        alpha.
    **fedavg
        Parameters of Flower's FedAvg.

    Attributes
    ----------
    h : dict[str, ndarray]
        h by name of the array, float64; empty before the first round.
    """

    settings = FedDynSettings
    colour = "#A0522D"

    clients = Regularised

    def __init__(self, *, dyn_alpha: float = 0.01, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.dyn_alpha = dyn_alpha
        self.h: dict[str, np.ndarray] = {}
        self._clients = 0

    def told(self) -> dict[str, Any]:
        """Tell the clients alpha."""
        return {"alpha": self.dyn_alpha}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the sampled clients train, and note how many clients there are."""
        self._clients = len(list(grid.get_node_ids()))
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Renew h, and move x by it."""
        valid, _ = sort_replies(self, replies, read_arrays=True)
        if not valid:
            return None, None
        mean = weighted_mean([arrays_of(reply) for reply in valid], [1.0] * len(valid))
        share = len(valid) / self._clients
        moved = ArrayRecord()
        for name, array in mean.items():
            y = array.numpy().astype(np.float64)
            step = self.dyn_alpha * share * (y - self.sent[name].numpy())
            self.h[name] = self.h.get(name, np.zeros(y.shape)) - step
            moved[name] = Array(np.asarray(y - self.h[name] / self.dyn_alpha, array.dtype))
        metrics = metrics_of(self, valid)
        return moved, metrics

    def state_dict(self) -> State:
        """Return h; the clients keep their own g."""
        return {"h": ArrayRecord({name: Array(value) for name, value in self.h.items()})}

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        self.h = {name: array.numpy() for name, array in state["h"].items()}
