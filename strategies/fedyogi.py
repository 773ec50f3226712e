"""Yogi on the server (Reddi et al. 2021, arXiv:2003.00295)."""

from flwr.serverapp import strategy as flower

from fedsweep.strategies.optimizers import MomentsSettings


class FedYogi(flower.FedYogi):
    """Flower's FedYogi."""

    settings = MomentsSettings
    colour = "#999933"
    partial_means = True
    private_mean = True
    any_version = True
