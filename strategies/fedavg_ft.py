"""FedAvg, then fine-tuning: each client trains the global model before it is evaluated.

Cheng, Chadha and Duchi 2021, "Fine-tuning is Fine in Federated Learning" (arXiv:2108.07313).
Deviations: docs/strategies/fedavg_ft.md.
"""

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from pydantic import Field

from fedsweep.strategies.base import State
from fedsweep.strategies.clients import ClientPart, Work, with_method
from fedsweep.strategies.models import Models
from fedsweep.strategies.settings import FedAvgSettings


class FedAvgFTSettings(FedAvgSettings):
    """FedAvg's, and how long clients fine-tune."""

    finetune_epochs: int = Field(
        1, ge=1, le=10**6, description="passes over a client's examples before its evaluation"
    )

    def check(self) -> None:
        """Refuse to fine-tune for no evaluation."""
        super().check()
        if self.fraction_evaluate == 0:
            raise ValueError(
                "strategy=fedavg_ft with strategy.fraction_evaluate=0: clients fine-tune before "
                "they are evaluated, and none is; raise strategy.fraction_evaluate"
            )


class FedAvgFT(FedAvg):
    """FedAvg whose clients are evaluated under the fine-tuned global model.

    Nothing of it is kept or sent.

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

    personal_models = True

    def __init__(self, *, finetune_epochs: int = 1, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.finetune_epochs = finetune_epochs
        self._training = ConfigRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Train as FedAvg, and note how: fine-tuning is done the same way."""
        messages = super().configure_train(server_round, arrays, config, grid)
        self._training = config
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the sampled clients fine-tune the global model, and evaluate the result."""
        tuned = ConfigRecord({**self._training, **config})
        tuned = with_method(tuned, Finetuning.method, finetune_epochs=self.finetune_epochs)
        return super().configure_evaluate(server_round, arrays, tuned, grid)

    def state_dict(self) -> State:
        """Return how the clients trained: a resumed trial may end early and be evaluated."""
        return {"training": dict(self._training)}

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        self._training = ConfigRecord(state["training"])


class Finetuning(ClientPart):
    """Clients train as FedAvg's, then use the global model after epochs on their own examples."""

    method = "finetune"

    def model(self, work: Work) -> Models:
        """Return the fine-tuned models; nothing of them is kept."""
        return work.train(work.sent(), epochs=int(work.config["finetune-epochs"])).models
