"""FedAvg with a proximal term on the clients (Li et al. 2018, arXiv:1812.06127)."""

from flwr.serverapp import strategy as flower
from pydantic import Field

from fedsweep.strategies.ranges import WEIGHT
from fedsweep.strategies.settings import FedAvgSettings


class FedProxSettings(FedAvgSettings):
    """FedAvg's, and the pull of the clients' models to the one that was sent."""

    pull = "proximal_mu"

    proximal_mu: float = Field(0.1, ge=0, le=WEIGHT, description="weight of the proximal term")


class FedProx(flower.FedProx):
    """Flower's FedProx."""

    settings = FedProxSettings
    colour = "#E69F00"
    partial_means = True
    private_mean = True
    any_version = True
