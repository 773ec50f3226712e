"""pFedMe: each client trains a personal model near its copy of the global one, which follows it.

T. Dinh, Tran and Nguyen 2020, "Personalized Federated Learning with Moreau Envelopes"
(arXiv:2006.08848), algorithm 1. Deviations: docs/strategies/pfedme.md.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from pydantic import Field

from fedsweep.strategies.clients import ClientPart, Effort, Update, Values, Work, training_effort
from fedsweep.strategies.layout import between
from fedsweep.strategies.models import Models
from fedsweep.strategies.ranges import WEIGHT
from fedsweep.strategies.settings import FedAvgSettings
from fedsweep.strategies.stepped import Seen, stepped
from fedsweep.strategies.told import Told


class PFedMeSettings(FedAvgSettings):
    """FedAvg's, and the envelope."""

    pull = "pfedme_lambda"

    pfedme_lambda: float = Field(
        15.0, gt=0, le=WEIGHT, description="pull of the personal model to the client's global one"
    )
    inner_steps: int = Field(
        5, ge=1, le=10**4, description="K, steps of the personal model on each batch"
    )
    outer_lr: float = Field(
        0.005, gt=0, le=1000, description="eta, step size of the client's global model"
    )
    server_beta: float = Field(
        1.0, gt=0, le=10, description="beta, step of the server towards the clients' mean"
    )


class Enveloped(ClientPart):
    """A client moves w along lambda (w - theta), theta being its personal model near w."""

    method = "pfedme"

    def fit(self, work: Work) -> Update:
        """Take K steps of theta, then one of w, on each batch.

        theta <- theta - lr (grad f(theta) + lambda (theta - w)), by the clients' optimizer;
        w <- w - eta lambda (w - theta). Both begin as the model that was sent.
        """
        pull, eta = float(work.config["lambda"]), float(work.config["outer-lr"])
        w_CP = work.sent().rows.copy()
        theta = work.begin(work.sent(), proximal=False)
        seen = Seen(len(work))

        for batch in work.batches():
            for step in range(int(work.config["inner-steps"])):
                slope = theta.gradient(batch)
                if step == 0:
                    seen.add(batch, slope)
                theta.step(batch, slope.rows + np.asarray(pull, w_CP.dtype) * (theta.rows - w_CP))
            w_CP = stepped(w_CP, eta * pull * (w_CP - theta.rows), batch)

        work.keep(self.method, theta.models)
        return Update(seen.results(), theta.models.with_rows(w_CP))

    def model(self, work: Work) -> Models:
        """Return theta; a client that never trained has the global model."""
        return work.kept(self.method, otherwise=work.sent())

    def effort(self, config: Values, examples: int, models: int) -> Effort:
        """Return what K gradients a batch have a client compute."""
        del models
        return Effort(int(config["inner-steps"]) * training_effort(config, examples))


class PFedMe(Told):
    """FedAvg of the clients' w, with a step of the server; the personal models stay with them.

    Parameters
    ----------
    pfedme_lambda : float
        lambda: pull of the personal model to w.
    inner_steps : int
        K: steps of the personal model on each batch.
    outer_lr : float
        eta: step size of w.
    server_beta : float
        beta: x <- (1 - beta) x + beta (mean of the clients' w); 1 is their mean.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = PFedMeSettings
    title = "pFedMe"
    colour = "#B51DB5"
    partial_means = True

    clients = Enveloped
    personal_models = True

    def __init__(
        self,
        *,
        pfedme_lambda: float = 15.0,
        inner_steps: int = 5,
        outer_lr: float = 0.005,
        server_beta: float = 1.0,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        self.pfedme_lambda, self.inner_steps = pfedme_lambda, inner_steps
        self.outer_lr, self.server_beta = outer_lr, server_beta

    def told(self) -> dict[str, Any]:
        """Tell the clients how both models move."""
        return {
            "lambda": self.pfedme_lambda,
            "inner_steps": self.inner_steps,
            "outer_lr": self.outer_lr,
        }

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Step from the model that was sent towards the mean of the clients' w."""
        mean, metrics = super().aggregate_train(server_round, replies)
        if mean is None:
            return None, metrics
        return between(self.sent, mean, self.server_beta), metrics
