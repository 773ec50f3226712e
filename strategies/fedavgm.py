"""FedAvg with momentum on the server (Hsu et al. 2019, arXiv:1909.06335)."""

from flwr.serverapp import strategy as flower
from pydantic import Field

from fedsweep.strategies.optimizers import StepSettings


class FedAvgMSettings(StepSettings):
    """FedAvg's, the server's step and its momentum."""

    server_momentum: float = Field(0.9, ge=0, lt=1, description="server's momentum")


class FedAvgM(flower.FedAvgM):
    """Flower's FedAvgM."""

    settings = FedAvgMSettings
    colour = "#CC79A7"
    partial_means = True
    private_mean = True
    any_version = True
