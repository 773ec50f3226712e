"""The CNN of FedAvg (McMahan et al. 2017, arXiv:1602.05629, section 3)."""

from collections import OrderedDict

from torch import nn


def cnn(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Return two padded 5x5 convolutions (32, 64) with 2x2 max pooling and 512 dense units.

    1,663,370 parameters on MNIST, as in the paper. Images need at least 4x4 pixels.
    """
    channels, height, width = input_shape
    if min(height, width) < 4:
        raise ValueError(f"images of {height}x{width} pixels are too small; cnn needs at least 4x4")
    return nn.Sequential(
        # Pooling before ReLU gives the same numbers as after it, on a quarter of the elements.
        OrderedDict(
            conv1=nn.Conv2d(channels, 32, 5, padding=2),
            pool1=nn.MaxPool2d(2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 5, padding=2),
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc=nn.Linear(64 * (height // 4) * (width // 4), 512),
            relu3=nn.ReLU(),
            output=nn.Linear(512, num_classes),
        )
    )
