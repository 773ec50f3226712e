"""Multi-Krum: the mean of the replies that are closest to their neighbours.

Blanchard, El Mhamdi, Guerraoui and Stainer 2017, "Machine Learning with Adversaries: Byzantine
Tolerant Gradient Descent" (arXiv:1703.02757). Deviations: docs/strategies/robust.md.
"""

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from pydantic import Field

from fedsweep.strategies.base import arrays_of, sort_replies
from fedsweep.strategies.ranges import CLIENTS
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


class MultiKrumSettings(AttackersSettings):
    """How many attackers there may be, and how many replies are averaged."""

    num_nodes_to_select: int = Field(3, ge=1, le=CLIENTS, description="replies that are averaged")

    def check_in(self, setting: Setting) -> None:
        """Refuse fewer clients a round than the choice is defined for."""
        super().check_in(setting)
        check(self.num_malicious_nodes, self.num_nodes_to_select, setting.cohort)


def needed(f: int, m: int) -> int:
    """Return how many clients it takes to choose m of them."""
    return max(2 * f + 3, m + f + 2)


def check(f: int, m: int, clients: int) -> None:
    """Refuse fewer clients than the choice is defined for.

    Raises
    ------
    ValueError
        There are fewer.
    """
    settings = f"strategy=multikrum with num_malicious_nodes={f}, num_nodes_to_select={m}"
    check_cohort(settings, clients, needed(f, m))


class MultiKrum(FedAvg):
    """The mean of the m models that are closest to their n - f - 2 nearest.

    Parameters
    ----------
    num_malicious_nodes : int
        f; n must be 2f + 3 or more in every round.
    num_nodes_to_select : int
        m, n - f - 2 at most.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = MultiKrumSettings
    colour = "#882255"

    def __init__(
        self,
        *,
        num_malicious_nodes: int = 0,
        num_nodes_to_select: int = 1,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        self.num_malicious_nodes = num_malicious_nodes
        self.num_nodes_to_select = num_nodes_to_select

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
        check(self.num_malicious_nodes, self.num_nodes_to_select, len(messages))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the mean of the chosen models, and their clients' metrics.

        Raises
        ------
        AggregationError
            If too few clients replied.
        """
        f, m = self.num_malicious_nodes, self.num_nodes_to_select
        valid = sort_replies(self, replies, read_arrays=True)[0]
        check_replies("multikrum", server_round, f, len(valid), needed(f, m))
        models = [arrays_of(reply) for reply in valid]
        return combined(self, valid, nearest(squared_distances(models), f, m), mean)
