"""A strategy around another one: what it does not change, the inner one does."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsweep.strategies.base import State
from fedsweep.strategies.state import load_strategy_state, strategy_state


class Around(Strategy):
    """Does as the strategy inside it does, and has no state of its own.

    Parameters
    ----------
    strategy : Strategy
        Any Flower strategy.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy choose whom to ask for what."""
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy aggregate the replies."""
        return self.strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy choose whom to ask for what."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate metrics as the strategy does."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log the strategy's own summary."""
        self.strategy.summary()

    def state_dict(self) -> State:
        """Return the strategy's state: the next round depends on nothing here."""
        return {"strategy": strategy_state(self.strategy)}

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        load_strategy_state(self.strategy, state["strategy"])
