"""FedAvg, then fine-tuning: each client trains the global model before it is evaluated.

Cheng, Chadha and Duchi 2021, "Fine-tuning is Fine in Federated Learning" (arXiv:2108.07313).
Deviations: docs/strategies/fedavg_ft.md.
"""

from typing import Any

from pydantic import Field

from fedsweep.strategies.clients import ClientPart, Work
from fedsweep.strategies.models import Models
from fedsweep.strategies.tuned import Tuned, TunedSettings


class FedAvgFTSettings(TunedSettings):
    """FedAvg's, and how long clients fine-tune."""

    finetune_epochs: int = Field(
        1, ge=1, le=10**6, description="passes over a client's examples before its evaluation"
    )


class Finetuning(ClientPart):
    """Clients train as FedAvg's, then use the global model after epochs on their own examples."""

    method = "finetune"

    def model(self, work: Work) -> Models:
        """Return the fine-tuned models; nothing of them is kept."""
        return work.train(work.sent(), epochs=int(work.config["finetune-epochs"])).models


class FedAvgFT(Tuned):
    """FedAvg whose clients are evaluated under the fine-tuned global model.

    Parameters
    ----------
    finetune_epochs : int
        Passes over a client's training examples before its evaluation;
        the rest is as in the last training round.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = FedAvgFTSettings
    title = "FedAvg + FT"
    colour = "#8CC0DC"
    partial_means = True
    any_version = True

    clients = Finetuning

    def __init__(self, *, finetune_epochs: int = 1, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.finetune_epochs = finetune_epochs

    def told(self) -> dict[str, Any]:
        """Tell the clients how long they fine-tune."""
        return {"finetune_epochs": self.finetune_epochs}
