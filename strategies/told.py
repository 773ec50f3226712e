"""FedAvg whose clients do what a client part says: the frame of most personal methods."""

from collections.abc import Iterable
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedsweep.strategies.base import State
from fedsweep.strategies.clients import ClientPart, with_method


class Noting(FedAvg):
    """FedAvg that knows what it sent last, which the next model is to start from.

    Attributes
    ----------
    sent : ArrayRecord
        The model of the round that was configured last; empty before the first one.
    """

    def __init__(self, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.sent = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask clients as FedAvg does, and note what they are sent."""
        self.sent = arrays
        return super().configure_train(server_round, arrays, config, grid)


class Told(Noting):
    """FedAvg that names a client part in its messages, and tells it its settings.

    What the clients keep is in their own state; the server has nothing to remember.
    """

    clients: ClassVar[type[ClientPart]]
    """What the clients do."""

    def told(self) -> dict[str, Any]:
        """Return the settings that the client part reads, by name."""
        return {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the sampled clients train as their part says."""
        return super().configure_train(server_round, arrays, self._named(config), grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the sampled clients evaluate the models that they use."""
        return super().configure_evaluate(server_round, arrays, self._named(config), grid)

    def state_dict(self) -> State:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Put back nothing."""

    def _named(self, config: ConfigRecord) -> ConfigRecord:
        return with_method(config, self.clients.method, **self.told())
