"""Bulyan: Krum's choice again and again, then a trimmed mean around the median.

El Mhamdi, Guerraoui and Rouault 2018, "The Hidden Vulnerability of Distributed Learning in
Byzantium" (arXiv:1802.07927). Deviations: docs/strategies/robust.md.
"""

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedsweep.strategies.base import arrays_of, sort_replies
from fedsweep.strategies.robust import (
    AttackersSettings,
    around_the_median,
    check_cohort,
    check_replies,
    combined,
    one_by_one,
    squared_distances,
)
from fedsweep.strategies.settings import Setting


class BulyanSettings(AttackersSettings):
    """How many attackers there may be."""

    def check_in(self, setting: Setting) -> None:
        """Refuse fewer clients a round than the choice is defined for."""
        super().check_in(setting)
        check(self.num_malicious_nodes, setting.cohort)


def check(f: int, clients: int) -> None:
    """Refuse fewer than 4f + 3 clients.

    Raises
    ------
    ValueError
        There are fewer.
    """
    check_cohort(f"strategy=bulyan with num_malicious_nodes={f}", clients, 4 * f + 3)


class Bulyan(FedAvg):
    """Krum's choice again and again, then each number's mean of those nearest to its median.

    Parameters
    ----------
    num_malicious_nodes : int
        f; n must be 4f + 3 or more in every round.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = BulyanSettings
    colour = "#888888"

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
        """Return the model, and the metrics of the clients that Krum chose.

        Raises
        ------
        AggregationError
            If too few clients replied.
        """
        f, valid = self.num_malicious_nodes, sort_replies(self, replies, read_arrays=True)[0]
        check_replies("bulyan", server_round, f, len(valid), 4 * f + 3)
        chosen = one_by_one(squared_distances([arrays_of(reply) for reply in valid]), f)
        beta = len(chosen) - 2 * f
        return combined(self, valid, chosen, lambda values: around_the_median(values, beta))
