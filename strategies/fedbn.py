"""FedBN: layers that normalise by a batch are every client's own, and the rest is averaged.

Li, Jiang, Zhang, Kamp and Dou 2021, "FedBN: Federated Learning on Non-IID Features via Local Batch
Normalization" (arXiv:2102.07623), algorithm 1. Deviations: docs/strategies/fedbn.md.
"""

from flwr.app import ArrayRecord

from fedsweep.strategies.own_part import KeepPart, OwnPart
from fedsweep.strategies.settings import FedAvgSettings


class OwnNormalisation(KeepPart):
    """A client keeps its normalisation: scale, shift and running statistics."""

    method = "fedbn"


class FedBN(OwnPart):
    """FedAvg of all layers that keep no running statistics. All parameters are FedAvg's."""

    settings = FedAvgSettings
    colour = "#17A2B8"
    partial_means = True

    clients = OwnNormalisation

    def own(self, arrays: ArrayRecord) -> list[str]:
        """Return the arrays of layers with running statistics.

        Raises
        ------
        ValueError
            There are none.
        """
        normed = {name.rpartition(".")[0] for name in self.laid_out(arrays).averaged}
        if not normed:
            raise ValueError(
                "strategy=fedbn with a model without BatchNorm: nothing would be the clients' own; "
                "take a model that has it, or strategy=fedavg"
            )
        return [name for name in arrays if name.rpartition(".")[0] in normed]
