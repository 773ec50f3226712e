"""APFL: each client uses a mixture of the global model and one of its own, and may adapt the share.

Deng, Kamani and Mahdavi 2020, "Adaptive Personalized Federated Learning" (arXiv:2003.13461), algorithm 1.
Deviations: docs/strategies/apfl.md.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from strategies.candidates import with_method


class APFL(FedAvg):
    """FedAvg with mixtures. The local models stay in the clients' state; the mixtures are what clients evaluate.

    Parameters
    ----------
    alpha : float
        Share of the local model in the mixture, at first; 0 is FedAvg.
    adaptive : bool
        Adapt a client's share by a gradient step in each round.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    personal_models = True

    def __init__(self, *, alpha: float = 0.5, adaptive: bool = True, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.alpha = alpha
        self.adaptive = adaptive

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the sampled clients train both models."""
        return super().configure_train(server_round, arrays, self._named(config), grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the sampled clients evaluate their mixtures; who never trained has the global model."""
        return super().configure_evaluate(server_round, arrays, self._named(config), grid)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: local models and shares are the clients'."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back nothing."""

    def _named(self, config: ConfigRecord) -> ConfigRecord:
        return with_method(config, "apfl", alpha=self.alpha, adaptive=self.adaptive)
