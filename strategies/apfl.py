"""APFL: each client uses a mixture of the global model and one of its own, and may adapt the share.

Deng, Kamani and Mahdavi 2020, "Adaptive Personalized Federated Learning" (arXiv:2003.13461),
algorithm 1. Deviations: docs/strategies/apfl.md.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsweep.strategies.arrays import ModelRows
from fedsweep.strategies.clients import ClientPart, Effort, Update, Values, Work, training_effort
from fedsweep.strategies.models import Models
from fedsweep.strategies.settings import FedAvgSettings
from fedsweep.strategies.stepped import Seen
from fedsweep.strategies.told import Told


class APFLSettings(FedAvgSettings):
    """FedAvg's, and the mixture."""

    alpha: float = Field(
        0.5, ge=0, le=1, description="share of the local model in the mixture, at first"
    )
    adaptive: bool = Field(
        True, description="adapt each client's share by a gradient step per round"
    )


class Mixing(ClientPart):
    """A client uses alpha v + (1 - alpha) w: its own model v and the global one w, in a mixture."""

    method = "apfl"
    _share = "apfl-alpha"

    def fit(self, work: Work) -> Update:
        """Train w and v on the same batches.

        Per batch, with m = alpha v + (1 - alpha) w: w steps along grad f(w), v along
        alpha grad f(m), which is the gradient of f(m) by v. With ``adaptive``, alpha is renewed
        after the round's first batch: alpha <- clip(alpha - lr <v - w, grad f(m)>, 0, 1), by v and
        w as they were in m. Source: equations 3 to 6, and algorithm 1.

        The proximal term is w's. Running statistics follow w and are not mixed.
        """
        sent = work.sent()
        alpha_C = self._alpha(work)
        w = work.begin(sent)
        v = work.begin(work.kept(self.method, otherwise=sent), proximal=False)
        seen, personal = Seen(len(work)), Seen(len(work))

        for batch in work.batches():
            of_mixed = w.gradient(batch, at=_mixture(alpha_C, v.rows, w.rows))
            of_global = w.gradient(batch)

            of_own_CP, renewed_C = _scaled(alpha_C, of_mixed.rows), alpha_C
            if work.config.get("adaptive") and batch.number == 0:
                moved_CP = (v.rows - w.rows).astype(np.float64)
                slope_C = np.einsum("cp,cp->c", moved_CP, of_mixed.rows)
                renewed_C = np.clip(alpha_C - work.local.lr * slope_C, 0.0, 1.0)

            w.step(batch, of_global.rows)
            v.step(batch, of_own_CP)
            alpha_C = renewed_C

            seen.add(batch, of_global)
            personal.add(batch, of_mixed)

        work.keep(self.method, w.models.with_rows(v.rows))
        work.remember(self._share, [{"alpha": float(alpha)} for alpha in alpha_C])
        metrics = {"personal_loss": personal.losses.tolist(), "alpha": alpha_C.tolist()}
        return Update(seen.results(), w.models, metrics)

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


class APFL(Told):
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

    clients = Mixing
    personal_models = True

    def __init__(self, *, alpha: float = 0.5, adaptive: bool = True, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.alpha = alpha
        self.adaptive = adaptive

    def told(self) -> dict[str, Any]:
        """Tell the clients how the mixtures begin."""
        return {"alpha": self.alpha, "adaptive": self.adaptive}


def _mixture(alpha_C: NDArray[np.float64], v: ModelRows, w: ModelRows) -> ModelRows:
    """Return alpha v + (1 - alpha) w, (C, P), in their dtype."""
    return np.asarray(_scaled(alpha_C, v) + _scaled(1 - alpha_C, w))


def _scaled(factors_C: NDArray[np.float64], rows_CP: ModelRows) -> ModelRows:
    return np.asarray(factors_C.astype(rows_CP.dtype)[:, None] * rows_CP)
