"""APFL: each client uses a mixture of the global model and one of its own, and may adapt the share.

Deng, Kamani and Mahdavi 2020, "Adaptive Personalized Federated Learning" (arXiv:2003.13461),
algorithm 1. Deviations: docs/strategies/apfl.md.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray
from pydantic import Field

from fedsweep.strategies.arrays import ModelRows
from fedsweep.strategies.base import State
from fedsweep.strategies.clients import (
    ClientPart,
    Effort,
    Update,
    Values,
    Work,
    training_effort,
    with_method,
)
from fedsweep.strategies.models import Models
from fedsweep.strategies.settings import FedAvgSettings


class APFLSettings(FedAvgSettings):
    """FedAvg's, and the mixture."""

    alpha: float = Field(
        0.5, ge=0, le=1, description="share of the local model in the mixture, at first"
    )
    adaptive: bool = Field(
        True, description="adapt each client's share by a gradient step per round"
    )


class APFL(FedAvg):
    """FedAvg with mixtures.

    The local models stay in the clients' state; the mixtures are what clients evaluate.

    Parameters
    ----------
    alpha : float
        Share of the local model in the mixture, at first; 0 is FedAvg.
    adaptive : bool
        Adapt a client's share by a gradient step in each round.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = APFLSettings
    colour = "#575757"
    partial_means = True
    any_version = True

    personal_models = True

    def __init__(self, *, alpha: float = 0.5, adaptive: bool = True, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.alpha = alpha
        self.adaptive = adaptive

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the sampled clients train both models."""
        return super().configure_train(server_round, arrays, self._named(config), grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the sampled clients evaluate their mixtures;
        who never trained has the global model.
        """
        return super().configure_evaluate(server_round, arrays, self._named(config), grid)

    def state_dict(self) -> State:
        """Return nothing: local models and shares are the clients'."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Put back nothing."""

    def _named(self, config: ConfigRecord) -> ConfigRecord:
        return with_method(config, Mixing.method, alpha=self.alpha, adaptive=self.adaptive)


class Mixing(ClientPart):
    """A client uses alpha v + (1 - alpha) w: its own model v and the global one w, in a mixture."""

    method = "apfl"
    _share = "apfl-alpha"

    def fit(self, work: Work) -> Update:
        """Train w and v on the same batches.

        Per batch, with m = alpha v + (1 - alpha) w: w steps along grad f(w), v along
        alpha grad f(m), which is the gradient of f(m) by v. With ``adaptive``, alpha is renewed at
        the round's first batch: alpha <- clip(alpha - lr <v - w, grad f(m)>, 0, 1). Source:
        equations 3 to 6, and algorithm 1.

        The proximal term is w's. Running statistics follow w and are not mixed.
        """
        sent = work.sent()
        alpha_C = self._alpha(work)
        w = work.begin(sent)
        v = work.begin(work.kept(self.method, otherwise=sent), proximal=False)
        seen, losses, personal, hits = np.zeros((4, len(work)))
        steps = np.zeros(len(work), np.int64)

        for batch in work.batches():
            of_mixed = w.gradient(batch, at=_mixture(alpha_C, v.rows, w.rows))
            of_global = w.gradient(batch)

            if work.config.get("adaptive") and batch.number == 0:
                moved_CP = (v.rows - w.rows).astype(np.float64)
                slope_C = np.einsum("cp,cp->c", moved_CP, of_mixed.rows)
                alpha_C = np.clip(alpha_C - work.local.lr * slope_C, 0.0, 1.0)

            w.step(batch, of_global.rows)
            v.step(batch, _scaled(alpha_C, of_mixed.rows))

            seen += batch.sizes
            steps += batch.sizes > 0
            losses += batch.sizes * of_global.losses
            personal += batch.sizes * of_mixed.losses
            hits += of_global.hits

        work.keep(self.method, w.models.with_rows(v.rows))
        work.remember(self._share, [{"alpha": float(alpha)} for alpha in alpha_C])
        results = [
            {"loss": float(loss / n), "accuracy": float(hit / n), "steps": int(count)}
            for loss, hit, n, count in zip(losses, hits, seen, steps, strict=True)
        ]
        metrics = {"personal_loss": (personal / seen).tolist(), "alpha": alpha_C.tolist()}
        return Update(results, w.models, metrics)

    def model(self, work: Work) -> Models:
        """Return the mixtures of the clients' v with the global model as it was sent.

        Running statistics are those that the client's own model was trained with.
        """
        w = work.sent()
        v = work.kept(self.method, otherwise=w)
        return v.with_rows(_mixture(self._alpha(work), v.rows, w.rows))

    def effort(self, config: Values, examples: int, models: int) -> Effort:
        """Return what two gradients a batch have a client compute: at w and at the mixture."""
        del models
        return Effort(2 * training_effort(config, examples))

    def _alpha(self, work: Work) -> NDArray[np.float64]:
        kept = work.recalled(self._share)
        first = float(work.config["alpha"])
        return np.array([first if own is None else float(own["alpha"]) for own in kept])


def _mixture(alpha_C: NDArray[np.float64], v: ModelRows, w: ModelRows) -> ModelRows:
    """Return alpha v + (1 - alpha) w, (C, P), in their dtype."""
    return np.asarray(_scaled(alpha_C, v) + _scaled(1 - alpha_C, w))


def _scaled(factors_C: NDArray[np.float64], rows_CP: ModelRows) -> ModelRows:
    return np.asarray(factors_C.astype(rows_CP.dtype)[:, None] * rows_CP)
