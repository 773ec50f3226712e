"""Per-FedAvg: the global model is one that a step on a client's own examples makes good.

Fallah, Mokhtari and Ozdaglar 2020, "Personalized Federated Learning: A Meta-Learning Approach"
(arXiv:2002.07948), algorithm 1, by its first-order and its Hessian-free approximation.
Deviations: docs/strategies/perfedavg.md.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from pydantic import Field

from fedsweep.strategies.arrays import ModelRows
from fedsweep.strategies.clients import (
    Batch,
    ClientPart,
    Effort,
    Gradient,
    Steps,
    Update,
    Values,
    Work,
    training_effort,
)
from fedsweep.strategies.models import Models
from fedsweep.strategies.stepped import Seen
from fedsweep.strategies.tuned import Tuned, TunedSettings

Approximation = Literal["first_order", "hessian_free"]


class PerFedAvgSettings(TunedSettings):
    """FedAvg's, and how a client makes the global model its own."""

    inner_lr: float = Field(
        0.01, gt=0, le=1000, description="alpha, step size of a client's own step"
    )
    approximation: Approximation = Field(
        "first_order", description="what stands for the second derivatives"
    )
    delta: float = Field(
        1e-3, gt=0, le=1, description="of hessian_free: how far apart gradients are compared"
    )

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: key -> the setting that is why."""
        first = {"delta": "strategy.approximation=first_order"}
        return super().idle() | (first if self.approximation == "first_order" else {})


class Meta(ClientPart):
    """A client trains w for the loss that it has after a step of its own."""

    method = "perfedavg"

    def fit(self, work: Work) -> Update:
        """Take a step of w per pair of batches D and D'.

        u = w - alpha grad f(w, D), and w steps along grad f(u, D'); of ``hessian_free`` along
        (I - alpha H) grad f(u, D'), where H v is the difference of two gradients on D. The last
        batch of a client that has an odd number is both D and D'.
        """
        alpha, delta = float(work.config["inner-lr"]), float(work.config["delta"])
        w, seen = work.begin(work.sent()), Seen(len(work))

        for first, second in _pairs(work.batches()):
            inner = w.gradient(first)
            seen.add(first, inner)
            outer_CP = _on(second, first, w, _along(w.rows, alpha, inner.rows))

            if work.config["approximation"] == "hessian_free":
                outer_CP = outer_CP - np.asarray(alpha, outer_CP.dtype) * _curved(
                    w, first, outer_CP, delta
                )
            w.step(first, outer_CP)
        return Update(seen.results(), w.models)

    def model(self, work: Work) -> Models:
        """Return the models after a client's own step: alpha on the first batch."""
        w = work.begin(work.sent(), proximal=False)
        batch = next(work.batches())
        inner = w.gradient(batch)
        return work.sent().with_rows(_along(w.rows, float(work.config["inner-lr"]), inner.rows))

    def effort(self, config: Values, examples: int, models: int) -> Effort:
        """Return what a gradient per batch has a client compute; two more of every other one."""
        del models
        once = training_effort(config, examples)
        return Effort(2 * once if config["approximation"] == "hessian_free" else once)


class PerFedAvg(Tuned):
    """FedAvg of models that are made for a step of the client's own.

    Parameters
    ----------
    inner_lr : float
        alpha: step size of a client's own step; beta is ``training.lr``.
    approximation : "first_order" | "hessian_free"
        What stands for the second derivatives: nothing, or a difference of gradients.
    delta : float
        Of that difference: how far apart the two models are.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = PerFedAvgSettings
    title = "Per-FedAvg"
    colour = "#D4A5A5"
    partial_means = True
    any_version = True

    clients = Meta

    def __init__(
        self,
        *,
        inner_lr: float = 0.01,
        approximation: Approximation = "first_order",
        delta: float = 1e-3,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        self.inner_lr, self.approximation, self.delta = inner_lr, approximation, delta

    def told(self) -> dict[str, Any]:
        """Tell the clients how they step."""
        return {
            "inner_lr": self.inner_lr,
            "approximation": self.approximation,
            "delta": self.delta,
        }


def _pairs(batches: Iterator[Batch]) -> Iterator[tuple[Batch, Batch | None]]:
    for first in batches:
        yield first, next(batches, None)


def _on(second: Batch | None, first: Batch, w: Steps, at: ModelRows) -> ModelRows:
    """Return the gradients at other models on D', or on D for clients that have no D'."""
    if second is None:
        return w.gradient(first, at=at).rows
    found: Gradient = w.gradient(second, at=at)
    alone = (second.sizes == 0) & (first.sizes > 0)
    if not alone.any():
        return found.rows
    return np.where(alone[:, None], w.gradient(first, at=at).rows, found.rows)


def _curved(w: Steps, batch: Batch, along_CP: ModelRows, delta: float) -> ModelRows:
    """Return the Hessian on a batch times rows: (grad(w + d v) - grad(w - d v)) / 2 d."""
    ahead, behind = (
        w.gradient(batch, at=_along(w.rows, sign * delta, along_CP)).rows for sign in (-1, 1)
    )
    return np.asarray((ahead - behind) / np.asarray(2 * delta, ahead.dtype))


def _along(rows_CP: ModelRows, step: float, slope_CP: ModelRows) -> ModelRows:
    """Return rows - step slope, in their own type."""
    return np.asarray(rows_CP - np.asarray(step, rows_CP.dtype) * slope_CP)
