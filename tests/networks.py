"""A network of a user's own, as ``model.name=tests.networks.Small`` names it."""

from torch import Tensor, nn


class Small(nn.Module):
    """One linear layer on the flattened image."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.flatten(1))
