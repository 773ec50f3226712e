"""Methods whose clients train once more before they are evaluated, as in the last round."""

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fedsweep.strategies.base import State
from fedsweep.strategies.settings import FedAvgSettings
from fedsweep.strategies.told import Told


class TunedSettings(FedAvgSettings):
    """Of a method whose clients train for their evaluation."""

    def check(self) -> None:
        """Refuse to train for no evaluation."""
        super().check()
        if self.fraction_evaluate == 0:
            raise ValueError(
                f"strategy={self.name} with strategy.fraction_evaluate=0: clients fine-tune before "
                "they are evaluated, and none is; raise strategy.fraction_evaluate"
            )


class Tuned(Told):
    """Its clients are told for the evaluation how they trained in the last round.

    Their client part uses that in ``model``; nothing of what it trains there is kept or sent.
    """

    personal_models = True

    def __init__(self, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self._training = ConfigRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the sampled clients train, and note how."""
        messages = super().configure_train(server_round, arrays, config, grid)
        self._training = config
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the sampled clients train as they did, and evaluate the result."""
        as_trained = ConfigRecord({**self._training, **config})
        return super().configure_evaluate(server_round, arrays, as_trained, grid)

    def state_dict(self) -> State:
        """Return how the clients trained: a resumed trial may end early and be evaluated."""
        return {"training": dict(self._training)}

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        self._training = ConfigRecord(state["training"])
