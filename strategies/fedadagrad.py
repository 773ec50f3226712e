"""Adagrad on the server (Reddi et al. 2021, arXiv:2003.00295)."""

from flwr.serverapp import strategy as flower

from fedsweep.strategies.optimizers import AdaptiveSettings


class FedAdagrad(flower.FedAdagrad):
    """Flower's FedAdagrad."""

    settings = AdaptiveSettings
    colour = "#F0E442"
    partial_means = True
    private_mean = True
    any_version = True
