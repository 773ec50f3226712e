"""MOON: what a client's model sees in an example is drawn to what the global model sees in it.

Li, He and Song 2021, "Model-Contrastive Federated Learning" (arXiv:2103.16257), algorithm 1.
Deviations: docs/strategies/moon.md.
"""

from typing import Any

from pydantic import Field

from fedsweep.strategies.clients import (
    ClientPart,
    Contrast,
    Effort,
    Update,
    Values,
    Work,
    training_effort,
)
from fedsweep.strategies.ranges import WEIGHT
from fedsweep.strategies.settings import FedAvgSettings, Setting
from fedsweep.strategies.told import Told


class MOONSettings(FedAvgSettings):
    """FedAvg's, and the contrast."""

    moon_mu: float = Field(1.0, ge=0, le=WEIGHT, description="weight of the contrastive loss")
    temperature: float = Field(0.5, gt=0, le=1000, description="tau, of the contrastive loss")

    def check_in(self, setting: Setting) -> None:
        """Refuse a model whose representations are the examples themselves."""
        super().check_in(setting)
        if setting.model == "logreg" and self.moon_mu:
            raise ValueError(
                f"strategy={self.name} with model=logreg: what goes into the last layer are the "
                "examples, which nothing can draw anywhere; take a model with more layers"
            )

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: key -> the setting that is why."""
        return super().idle() | ({} if self.moon_mu else {"temperature": "strategy.moon_mu=0"})


class Contrasted(ClientPart):
    """A client's representations are drawn to the global model's and from its own last ones."""

    method = "moon"

    def fit(self, work: Work) -> Update:
        """Train with the contrast, and keep the model that comes out."""
        sent = work.sent()
        contrast = Contrast(
            like=sent,
            unlike=work.kept(self.method, otherwise=sent),
            weight=float(work.config["mu"]),
            temperature=float(work.config["temperature"]),
        )
        trained = work.train(sent, contrast=contrast)
        work.keep(self.method, trained.models)
        return Update(trained.results, trained.models)

    def effort(self, config: Values, examples: int, models: int) -> Effort:
        """Return what the training and the passes of two more models have a client compute."""
        del models
        once = training_effort(config, examples)
        return Effort(once, 2 * once)


class MOON(Told):
    """FedAvg of models that were trained beside the one that was sent.

    Parameters
    ----------
    moon_mu : float
        mu: weight of the contrastive loss; 0 is FedAvg.
    temperature : float
        tau.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = MOONSettings
    colour = "#1FA81F"
    partial_means = True
    any_version = True

    clients = Contrasted

    def __init__(self, *, moon_mu: float = 1.0, temperature: float = 0.5, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.moon_mu, self.temperature = moon_mu, temperature

    def told(self) -> dict[str, Any]:
        """Tell the clients how they are contrasted."""
        return {"mu": self.moon_mu, "temperature": self.temperature}
