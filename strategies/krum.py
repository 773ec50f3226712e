"""Krum: the one reply that is closest to its neighbours.

Blanchard, El Mhamdi, Guerraoui and Stainer 2017, "Machine Learning with Adversaries: Byzantine
Tolerant Gradient Descent" (arXiv:1703.02757). Deviations: docs/strategies/robust.md.
"""

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedsweep.strategies.base import arrays_of, sort_replies
from fedsweep.strategies.robust import (
    AttackersSettings,
    check_cohort,
    check_replies,
    combined,
    mean,
    nearest,
    squared_distances,
)
from fedsweep.strategies.settings import Setting


class KrumSettings(AttackersSettings):
    """How many attackers there may be."""

    def check_in(self, setting: Setting) -> None:
        """Refuse fewer clients a round than the choice is defined for."""
        super().check_in(setting)
        check(self.num_malicious_nodes, setting.cohort)


def check(f: int, clients: int) -> None:
    """Refuse fewer than 2f + 3 clients.

    Raises
    ------
    ValueError
        There are fewer.
    """
    check_cohort(f"strategy=krum with num_malicious_nodes={f}", clients, 2 * f + 3)


class Krum(FedAvg):
    """The one model that is closest to its n - f - 2 nearest.

    Parameters
    ----------
    num_malicious_nodes : int
        f; n must be 2f + 3 or more in every round.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = KrumSettings
    colour = "#000000"

    def __init__(self, *, num_malicious_nodes: int = 0, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.num_malicious_nodes = num_malicious_nodes

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask clients as FedAvg does.

        Raises
        ------
        ValueError
            They are fewer than the mean is defined for.
        """
        messages = list(super().configure_train(server_round, arrays, config, grid))
        check(self.num_malicious_nodes, len(messages))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the chosen model, and its client's metrics.

        Raises
        ------
        AggregationError
            If too few clients replied.
        """
        f, valid = self.num_malicious_nodes, sort_replies(self, replies, read_arrays=True)[0]
        check_replies("krum", server_round, f, len(valid), 2 * f + 3)
        models = [arrays_of(reply) for reply in valid]
        return combined(self, valid, nearest(squared_distances(models), f, 1), mean)
