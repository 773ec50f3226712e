"""ResNet-18 (He et al. 2016) with group normalisation, as for non-IID clients (Hsieh et al. 2020).

Batch statistics of skewed clients do not average; those of a group of channels in one image need no
averaging.
"""

from torch import nn


def resnet18(input_shape: tuple[int, int, int], num_classes: int, groups: int = 2) -> nn.Module:
    """Return torchvision's ResNet-18 with ``groups`` channel groups in each normalisation.

    Images under 64 pixels get the stem of He et al. for CIFAR-10, a 3x3 convolution of stride 1 and
    no pooling. The stem for ImageNet would leave 8 of 32 pixels.
    """
    from torchvision.models import (
        resnet18 as build,
    )  # four seconds to import, so only who asks for it pays

    channels, height, width = input_shape
    model: nn.Module = build(
        num_classes=num_classes, norm_layer=lambda features: nn.GroupNorm(groups, features)
    )
    small = min(height, width) < 64
    kernel, stride = (3, 1) if small else (7, 2)
    model.conv1 = nn.Conv2d(channels, 64, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(
        model.conv1.weight, mode="fan_out", nonlinearity="relu"
    )  # as torchvision does
    if small:
        model.maxpool = nn.Identity()
    return model
