"""FedEM: each client's data are a mixture of K distributions, and so is what it predicts by.

Marfoq, Neglia, Bellet, Kameni and Vidal 2021, "Federated Multi-Task Learning under a Mixture of
Distributions" (arXiv:2108.10015), algorithm 1. Deviations: docs/strategies/fedem.md.
"""

from fedsweep.strategies.mixtures import MixtureMembers, Mixtures
from fedsweep.strategies.settings import NumClustersSettings


class FedEMSettings(NumClustersSettings):
    """How many models there are to mix."""


class EMMembers(MixtureMembers):
    """An example is a model's by its likelihood: exp of minus its loss."""

    method = "fedem"


class FedEM(Mixtures):
    """Expectation maximisation over all clients; how much of each model is in whom, each knows.

    Parameters
    ----------
    num_clusters : int
        M in the paper, models.
    seed : int
        Root of the initial models.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = FedEMSettings
    colour = "#2F4F2F"

    clients = EMMembers
