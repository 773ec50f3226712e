"""FedRep: heads are the clients' own, and are trained alone before the base that all share.

Collins, Hassani, Mokhtari and Shakkottai 2021, "Exploiting Shared Representations for Personalized
Federated Learning" (arXiv:2102.07078), algorithm 1. Deviations: docs/strategies/fedrep.md.
"""

from typing import Any

from pydantic import Field

from fedsweep.strategies.clients import Effort, Update, Values, Work, training_effort
from fedsweep.strategies.own_part import OWN, HeadSettings, KeepPart, OwnHead


class FedRepSettings(HeadSettings):
    """How large the head is, and how long it is trained alone."""

    head_epochs: int = Field(
        5, ge=1, le=10**6, description="passes of the head alone, before those of the base"
    )


class HeadFirst(KeepPart):
    """A client trains its head under the base that was sent, then the base under that head."""

    method = "fedrep"

    def fit(self, work: Work) -> Update:
        """Train the head for its passes, then the base as the round's settings say."""
        own, start = list(work.config[OWN]), self.model(work)
        head = work.train(start, only=own, epochs=int(work.config["head-epochs"]))

        base = [name for name in start.names if name not in set(own)]
        trained = work.train(head.models, only=base)

        work.keep(self.method, trained.models.part(own))
        return Update(trained.results, trained.models.part(base))

    def effort(self, config: Values, examples: int, models: int) -> Effort:
        """Return what the passes of the head and those of the base have a client compute."""
        del models
        return Effort(training_effort(config, examples) + int(config["head-epochs"]) * examples)


class FedRep(OwnHead):
    """FedAvg of the base layers, which the clients train under heads of their own.

    Parameters
    ----------
    head_epochs : int
        Passes of the head alone; the base trains as ``training`` says.
    **common
        Parameters of OwnHead.
    """

    settings = FedRepSettings
    colour = "#8D5EED"
    partial_means = True

    clients = HeadFirst

    def __init__(self, *, head_epochs: int = 5, **common: Any) -> None:
        super().__init__(**common)
        self.head_epochs = head_epochs

    def told(self) -> dict[str, Any]:
        """Tell the clients how long their heads train."""
        return {"head_epochs": self.head_epochs}
