"""The coordinate-wise median (Yin et al. 2018, arXiv:1803.01498)."""

from flwr.serverapp import strategy as flower

from fedsweep.strategies.settings import FedAvgSettings


class FedMedian(flower.FedMedian):
    """Flower's FedMedian."""

    settings = FedAvgSettings
    colour = "#332288"
