"""The CNN of pfl-research's and TensorFlow Federated's CIFAR-10 benchmarks.

Reddi et al. 2021 (arXiv:2003.00295).
"""

from collections import OrderedDict

from torch import nn

from fedsweep.models._dropout import Dropout


def simple_cnn(
    input_shape: tuple[int, int, int], num_classes: int, dropout: bool = True
) -> nn.Module:
    """Return two 3x3 convolutions (32, 64), a 2x2 max pooling, 128 dense units, Glorot-initialised.

    1,626,442 parameters on CIFAR-10. Images need at least 6x6 pixels. ``dropout`` drops 25% of the
    pooled values and 50% of the dense units while training.
    """
    channels, height, width = input_shape
    if min(height, width) < 6:
        raise ValueError(
            f"images of {height}x{width} pixels are too small; simple_cnn needs at least 6x6"
        )
    model = nn.Sequential(
        # Pooling before ReLU gives the same numbers as after it, on a quarter of the elements.
        OrderedDict(
            conv1=nn.Conv2d(channels, 32, 3),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3),
            pool=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            drop1=Dropout(0.25) if dropout else nn.Identity(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128),
            relu3=nn.ReLU(),
            drop2=Dropout(0.5) if dropout else nn.Identity(),
            output=nn.Linear(128, num_classes),
        )
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    return model
