"""FedBABU: all train under the initial head, and each fine-tunes the model when it is evaluated.

Oh, Kim and Yun 2022, "FedBABU: Towards Enhanced Representation for Federated Image Classification"
(arXiv:2106.06042), algorithm 1 and section 5. Deviations: docs/strategies/fedbabu.md.
"""

from typing import Any, Literal

from pydantic import Field

from fedsweep.strategies.clients import ClientPart, Update, Work
from fedsweep.strategies.models import Models
from fedsweep.strategies.own_part import OWN, HeadSettings, OwnHead
from fedsweep.strategies.tuned import Tuned, TunedSettings

Tunes = Literal["all", "body", "head"]


class FedBABUSettings(HeadSettings, TunedSettings):
    """How large the head is, and what clients fine-tune for how long."""

    finetune_epochs: int = Field(
        1, ge=1, le=10**6, description="passes over a client's examples before its evaluation"
    )
    finetune: Tunes = Field("all", description="what is fine-tuned")


class BodyAlone(ClientPart):
    """A client trains the body under the initial head, which nobody ever changes."""

    method = "fedbabu"

    def fit(self, work: Work) -> Update:
        """Train the body, and send it."""
        start, head = self._whole(work), set(work.config[OWN])
        body = [name for name in start.names if name not in head]
        trained = work.train(start, only=body)
        return Update(trained.results, trained.models.part(body))

    def model(self, work: Work) -> Models:
        """Return the fine-tuned models; nothing of them is kept."""
        start, head = self._whole(work), list(work.config[OWN])
        parts = {"head": head, "body": [name for name in start.names if name not in set(head)]}
        only = parts.get(str(work.config["finetune"]))
        return work.train(start, only=only, epochs=int(work.config["finetune-epochs"])).models

    def _whole(self, work: Work) -> Models:
        return work.sent().completed(work.initial())


class FedBABU(OwnHead, Tuned):
    """FedAvg of the bodies, under a head that stays as it began.

    Parameters
    ----------
    head_layers : int
        Modules at the end of the model that are not trained.
    finetune_epochs : int
        Passes over a client's training examples before its evaluation.
    finetune : "all" | "body" | "head"
        What is trained in them.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = FedBABUSettings
    colour = "#B5A642"
    partial_means = True

    clients = BodyAlone
    has_global_model = True  # the head is the same for all: the averaged body goes with it

    def __init__(self, *, finetune_epochs: int = 1, finetune: Tunes = "all", **common: Any) -> None:
        super().__init__(**common)
        self.finetune_epochs, self.finetune = finetune_epochs, finetune

    def told(self) -> dict[str, Any]:
        """Tell the clients what they fine-tune."""
        return {"finetune_epochs": self.finetune_epochs, "finetune": self.finetune}
