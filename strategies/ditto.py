"""Ditto: beside FedAvg's global model, each client trains one of its own, pulled to the global.

Li, Hu, Beirami and Smith 2021, "Ditto: Fair and Robust Federated Learning Through Personalization"
(arXiv:2012.04221), algorithm 1. Deviations: docs/strategies/ditto.md.
"""

from typing import Any

from pydantic import Field

from fedsweep.strategies.clients import ClientPart, Effort, Update, Values, Work, training_effort
from fedsweep.strategies.models import Models
from fedsweep.strategies.ranges import WEIGHT
from fedsweep.strategies.settings import FedAvgSettings
from fedsweep.strategies.told import Told


class DittoSettings(FedAvgSettings):
    """FedAvg's, and how the personal models are trained."""

    ditto_lambda: float = Field(
        0.1, ge=0, le=WEIGHT, description="pull of the personal model to the global one"
    )
    personal_epochs: int = Field(
        0,
        ge=0,
        le=10**6,
        description="passes of the personal model per round; 0: training's",
    )


class DittoClients(ClientPart):
    """Beside the global model w a client trains a personal one v, which is what it uses."""

    method = "ditto"

    def fit(self, work: Work) -> Update:
        """Train w; then v <- v - lr (grad F(v) + lambda (v - w)), w as it was sent.

        v begins as the first model that the client received.
        """
        w = work.sent()
        update = work.train(w)
        personal = work.train(
            self.model(work),
            anchor=w,
            mu=float(work.config["lambda"]),
            epochs=int(work.config.get("personal-epochs", 0)),
        )
        work.keep(self.method, personal.models)
        return Update(update.results, update.models, {"personal_loss": personal.of("loss")})

    def model(self, work: Work) -> Models:
        """Return v; a client that never trained has the global model."""
        return work.kept(self.method, otherwise=work.sent())

    def effort(self, config: Values, examples: int, models: int) -> Effort:
        """Return what the training of both models has a client compute."""
        del models
        trained, epochs = training_effort(config, examples), int(config.get("personal-epochs", 0))
        return Effort(trained + (epochs * examples or trained))


class Ditto(Told):
    """FedAvg with personal models.

    They stay in the clients' state, and are what the clients evaluate.

    Parameters
    ----------
    ditto_lambda : float
        Pull of the personal model to the global one; 0 is local training.
    personal_epochs : int
        Passes of the personal model per round; 0: as many as the global one.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = DittoSettings
    colour = "#30695F"
    partial_means = True
    any_version = True

    clients = DittoClients
    personal_models = True

    def __init__(
        self, *, ditto_lambda: float = 0.1, personal_epochs: int = 0, **fedavg: Any
    ) -> None:
        super().__init__(**fedavg)
        self.ditto_lambda = ditto_lambda
        self.personal_epochs = personal_epochs

    def told(self) -> dict[str, Any]:
        """Tell the clients how the personal models train."""
        return {"lambda": self.ditto_lambda, "personal_epochs": self.personal_epochs}
