"""The coordinate-wise trimmed mean.

Yin, Chen, Ramchandran and Bartlett 2018, "Byzantine-Robust Distributed Learning"
(arXiv:1803.01498). Deviations: docs/strategies/robust.md.
"""

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord
from pydantic import Field

from fedsweep.strategies.base import sort_replies
from fedsweep.strategies.insides import AggregationError
from fedsweep.strategies.robust import CheckedCohort, combined, num_cut, trimmed_mean
from fedsweep.strategies.settings import FedAvgSettings, Setting


class TrimmedMeanSettings(FedAvgSettings):
    """FedAvg's, and how much is cut."""

    beta: float = Field(0.2, ge=0, lt=0.5, description="share cut at each end")

    def check_in(self, setting: Setting) -> None:
        """Refuse to cut nobody."""
        super().check_in(setting)
        check(self.beta, setting.cohort)


def check(beta: float, clients: int) -> None:
    """Refuse to cut nobody.

    Raises
    ------
    ValueError
        The share of the clients is less than one.
    """
    if num_cut(beta, clients) < 1:
        raise ValueError(
            f"strategy=fedtrimmedavg with strategy.beta={beta:g} cuts nobody of {clients} "
            "clients a round; train more clients or raise strategy.beta"
        )


class TrimmedMean(CheckedCohort):
    """Each number's mean without the share beta of the lowest and of the highest.

    Parameters
    ----------
    beta : float
        Share cut at each end, so that beta n is 1 or more.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = TrimmedMeanSettings
    title = "Trimmed mean"
    colour = "#44AA99"

    def __init__(self, *, beta: float = 0.2, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.beta = beta

    def check(self, clients: int) -> None:
        """Refuse to cut nobody."""
        check(self.beta, clients)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the trimmed mean, and the metrics of all that replied.

        Raises
        ------
        AggregationError
            If beta of those that replied is nobody.
        """
        valid = sort_replies(self, replies, read_arrays=True)[0]
        if (cut := num_cut(self.beta, len(valid))) < 1:
            raise AggregationError(
                f"round {server_round}: strategy=fedtrimmedavg with beta={self.beta:g} cuts nobody "
                f"of {len(valid)} replies; train more clients or raise strategy.beta"
            )
        everybody = range(len(valid))
        return combined(self, valid, everybody, lambda values: trimmed_mean(values, cut))
