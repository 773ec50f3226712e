"""The perceptron with one hidden layer of IFCA (Ghosh et al. 2020): 784-200-10 on MNIST."""

from collections import OrderedDict
from math import prod

from torch import nn


def mlp(input_shape: tuple[int, int, int], num_classes: int, hidden: int = 200) -> nn.Module:
    """Return pixels, ``hidden`` ReLU units, classes: 159,010 parameters on MNIST."""
    if hidden < 1:
        raise ValueError(f"hidden={hidden}; it must be at least 1")
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            hidden=nn.Linear(prod(input_shape), hidden),
            relu=nn.ReLU(),
            output=nn.Linear(hidden, num_classes),
        )
    )
