"""Federated averaging: the models' mean, by examples (McMahan et al. 2017, arXiv:1602.05629)."""

from flwr.serverapp import strategy as flower

from fedsweep.strategies.settings import FedAvgSettings


class FedAvg(flower.FedAvg):
    """Flower's FedAvg."""

    settings = FedAvgSettings
    colour = "#0072B2"
    partial_means = True
    private_mean = True
    any_version = True
