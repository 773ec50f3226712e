"""The perceptrons of IFCA, 784-200-10 on MNIST, and of FedAvg, the 2NN.

Ghosh et al. 2020 (arXiv:2006.04088), McMahan et al. 2017 (arXiv:1602.05629).
"""

from collections import OrderedDict
from math import prod

from torch import nn


def mlp(
    input_shape: tuple[int, ...], num_classes: int, hidden: int = 200, layers: int = 1
) -> nn.Module:
    """Return pixels or features, ``layers`` times ``hidden`` ReLU units, classes.

    On MNIST 159,010 parameters, and 199,210 the 2NN.
    """
    for name, value in (("hidden", hidden), ("layers", layers)):
        if value < 1:
            raise ValueError(f"{name}={value}; it must be at least 1")
    modules: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width = prod(input_shape)
    for number in ("", *range(2, layers + 1)):
        modules[f"hidden{number}"] = nn.Linear(width, hidden)
        modules[f"relu{number}"] = nn.ReLU()
        width = hidden
    modules["output"] = nn.Linear(width, num_classes)
    return nn.Sequential(modules)
