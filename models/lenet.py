"""LeNet-5 (LeCun et al. 1998) as federated papers use it: ReLU, max pooling, all maps joined."""

from collections import OrderedDict

from torch import nn


def lenet(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Return two 5x5 convolutions (6, 16), three linear layers (120, 84, classes): 44,426 on MNIST.

    The convolutions shrink the image (28 -> 24 -> 12 -> 8 -> 4). Images under 28 pixels would lose
    most of their area to that, so theirs are padded to keep the size (8 -> 8 -> 4 -> 4 -> 2); at
    least 4x4 pixels are needed.
    """
    channels, height, width = input_shape
    if min(height, width) < 4:
        raise ValueError(
            f"images of {height}x{width} pixels are too small; lenet needs at least 4x4"
        )
    padding = 2 if min(height, width) < 28 else 0

    def shrunk(size: int) -> int:
        for _ in range(2):
            size = (size - 4 + 2 * padding) // 2
        return size

    return nn.Sequential(
        # Pooling before ReLU gives the same numbers as after it, on a quarter of the elements.
        OrderedDict(
            conv1=nn.Conv2d(channels, 6, 5, padding=padding),
            pool1=nn.MaxPool2d(2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(6, 16, 5, padding=padding),
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * shrunk(height) * shrunk(width), 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            output=nn.Linear(84, num_classes),
        )
    )
