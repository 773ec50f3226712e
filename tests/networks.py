"""Networks of a user's own, as ``model.name=tests.networks.Small`` names them."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Small(nn.Module):
    """One linear layer on the flattened image."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.flatten(1))


class NormedMLP(nn.Sequential):
    """One hidden layer that is normalised by its batch."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        channels, height, width = input_shape
        super().__init__(
            nn.Flatten(),
            nn.Linear(channels * height * width, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Linear(16, num_classes),
        )


class Spare(nn.Module):
    """It has a layer that nothing goes through."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)
        self.out = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.flatten(1))


class Dropping(Small):
    """It draws from the process's generator."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.dropout(x.flatten(1), training=self.training))


class Plain(nn.Module):
    """Two linear layers: nothing but trained arrays."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 8)
        self.out = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x.flatten(1)).relu())


class Laden(Plain):
    """The same function of the same trained arrays, with all that a model may hold beside them."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            self.frozen = nn.Linear(3, 2).requires_grad_(False)
            self.norm = nn.BatchNorm1d(64, affine=False)  # large numbers, large counters
        self.register_buffer("fixed", torch.full((5,), 1e6))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("grows", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.norm(100 * x.flatten(1))
            self.seen += len(x)
            self.grows.mul_(1.5)
        return super().forward(x)


class Normed(nn.Module):
    """BatchNorm, a frozen layer, an integer buffer and a trained number, all of them used."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(64, 32).requires_grad_(False)
        self.body = nn.Linear(32, 8)
        self.norm = nn.BatchNorm1d(8)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("shift", torch.tensor([1], dtype=torch.int64))
        self.out = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.body(self.frozen(x.flatten(1)).relu())) + self.shift
        return self.scale * self.out(hidden)


class Leaky(nn.Module):
    """It keeps what its ``state_dict`` does not show: each batch trained on turns its answers."""

    def __init__(self, where: str = "buffer") -> None:
        super().__init__()
        self.where = where
        self.out = nn.Linear(64, 10)
        self.register_buffer("turned", torch.zeros(()), persistent=False)
        self.counter = 0
        self.log: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        turned = {
            "buffer": self.turned,
            "attribute": self.counter,
            "list": len(self.log),
            "late": getattr(self, "late", 0),
            "class": Leaky.of_all,
        }[self.where]
        if self.training:
            self.turned += 1
            self.counter += 1
            self.log.append(len(x))
            self.late = getattr(self, "late", 0) + 1
            Leaky.of_all += 1
        return self.out(x.flatten(1) * (1 + 0.5 * turned))

    of_all = 0


class Shared(nn.Module):
    """Two names for one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64, bias=False)
        self.second = nn.Linear(64, 64, bias=False)
        self.second.weight = self.first.weight
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(x.flatten(1)).relu()))
