"""A network for many clients at once, each with weights of its own.

Imports torch and ``fedsweep.models._dropout`` only.

All parameters lie in one (C, P) tensor, so that a step of the optimizer is two or three operations
whatever the depth. What a layer does is in ``layers`` and ``convolution``; what it costs is
measured in ``docs/performance-training.md``.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedsweep.models._dropout import Dropout
from fedsweep.training.convolution import WIDE, ConvLayer, FlattenLayer, ImagesLayer
from fedsweep.training.layers import (
    Buffer,
    Draws,
    DropoutLayer,
    Layer,
    LinearLayer,
    MaxPoolLayer,
    ReLULayer,
    UnsupportedError,
    Weights,
)
from fedsweep.training.winograd import WinogradLayer, pays

CACHE_FLOATS = 2**23
"""Floats of a block's widest layer at most, on a CPU: several times faster within the cache."""

DEVICE_SHARE = 64
"""The same on a GPU: this part of its memory, as a backward pass needs all layers and patches."""

WEIGHT_FLOATS = 2**20
"""Floats of the weights of a block on a CPU."""

MAX_BLOCK = 64
"""Clients in a block at most on a CPU: by then the cost of calling an operation is nothing."""

_CPU = torch.device("cpu")

KeptByLayer = list[Any]
"""What each layer needs of a forward pass for the backward pass, as that layer alone knows it."""

_Make = Callable[[Any, tuple[int, ...]], Layer[Any]]
_LAYERS: dict[type[nn.Module], _Make] = {
    nn.Linear: LinearLayer,
    nn.Conv2d: ConvLayer,
    nn.MaxPool2d: MaxPoolLayer,
    nn.ReLU: ReLULayer,
    nn.Flatten: FlattenLayer,
    Dropout: DropoutLayer,
}


class Program:
    """A network as batched layers over parameters (C, P), in the order of the ``state_dict``.

    Parameters
    ----------
    model : nn.Module
        An ``nn.Sequential`` (nested ones too) of Linear, Conv2d, MaxPool2d(2), ReLU, Flatten,
        Identity and ``fedsweep.models._dropout.Dropout``.
    input_shape : tuple of int
        Channels, height and width of an image; or features.
    device : torch.device
        Where it runs: on a CPU wide convolutions have a form of their own, or none.

    Raises
    ------
    UnsupportedError
        The model is anything else, or faster one by one: one line names the layer.
    """

    def __init__(
        self, model: nn.Module, input_shape: Sequence[int], device: torch.device = _CPU
    ) -> None:
        # Its layers, from the image on.
        modules = list(_flat(model))
        self.layers: list[Layer[Any]] = []
        features = tuple(input_shape)
        if modules and type(modules[0]) is nn.Flatten:  # rows are flat already
            modules, features = modules[1:], (prod(features),)
        elif len(features) == 2:
            raise UnsupportedError("series and symbols have no batched form but flat")
        elif len(features) == 3:
            self.layers.append(ImagesLayer(features))
        for module in modules:
            make: _Make | None = _LAYERS.get(type(module))
            if make is None:
                raise UnsupportedError(f"{type(module).__name__} has no batched form")
            if isinstance(module, nn.Conv2d) and device.type == "cpu" and pays(module):
                make = cast(_Make, WinogradLayer)
            layer = make(module, features)
            self.layers.append(layer)
            features = layer.out

        # A direct convolution before a Winograd one writes as that one reads.
        for i, layer in enumerate(self.layers):
            if isinstance(layer, ConvLayer):
                layer.on_cpu = device.type == "cpu"
                layer.channels_last = any(
                    isinstance(later, WinogradLayer) for later in self.layers[i:]
                )

        # A pooling layer takes the blocks of the convolution before it.
        for i, layer in enumerate(self.layers):
            after = [later for later in self.layers[i + 1 :] if not isinstance(later, ReLULayer)]
            if isinstance(layer, ConvLayer) and after and isinstance(after[0], MaxPoolLayer):
                layer.blocks = after[0].blocks = layer.in_blocks

        # What has no batched form, or a slower one.
        if any(not p.requires_grad for p in model.parameters()):
            raise UnsupportedError("some parameters are frozen")
        self.shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        if len(list(model.parameters())) != len(
            self.shapes
        ):  # a parameter is listed once, but has two names
            raise UnsupportedError("layers that share parameters")
        for layer in self.layers if device.type == "cpu" else []:
            if type(layer) is ConvLayer and prod(layer.shapes[0][:2]) >= WIDE:
                outer, inner = layer.shapes[0][:2]
                raise UnsupportedError(
                    f"convolutions of {inner} to {outer} channels are faster one by one on a CPU"
                )

        # What it has in all.
        self.num_params = sum(prod(shape) for shape in self.shapes.values())
        self.width = max(layer.width for layer in self.layers)
        self.draws = any(isinstance(layer, DropoutLayer) for layer in self.layers)
        self._buffers: dict[str, Buffer] = {}

    def buffer(self, use: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return memory of the program's own for one of its uses."""
        return self._buffers.setdefault(use, Buffer()).get(shape, like)

    @cached_property
    def _first(self) -> int:
        """Index of the first layer with parameters: no gradient is needed below it."""
        return next(i for i, layer in enumerate(self.layers) if layer.shapes)

    def views(self, values: Tensor, grads: Tensor, first: int = 0) -> list[Weights]:
        """Return views of values and gradients, each (C, rest of P), from layer ``first`` on."""
        per_layer, start = [], 0
        for layer in self.layers[first:]:
            cuts = []
            for shape in layer.shapes:
                cuts.append((start, start + prod(shape), shape))
                start = cuts[-1][1]
            per_layer.append(
                Weights(
                    *(tuple(t[:, a:b].view(-1, *s) for a, b, s in cuts) for t in (values, grads))
                )
            )
        return per_layer

    def forward(
        self, weights: list[Weights], x: Tensor, first: int = 0, draws: Draws | None = None
    ) -> tuple[Tensor, KeptByLayer]:
        """Return logits (C, b, classes) from layer ``first`` on, and what :meth:`backward` needs.

        Layer 0 takes rows (C, b, pixels); ``weights`` are those of the layers used;
        ``draws`` while training.
        """
        kept = []
        for layer, w in zip(self.layers[first:], weights, strict=True):
            x, saved = layer.forward(w, x, draws)
            kept.append(saved)
        return x, kept

    def backward(
        self,
        weights: list[Weights],
        kept: KeptByLayer,
        g: Tensor,
        beta: float,
        first: int | None = None,
    ) -> Tensor:
        """Set all layers' gradients to beta times themselves plus those of g (C, b, classes).

        Returns
        -------
        Tensor
            The gradient of the input of layer ``first``; without one there is none to speak of.
        """
        skipped = len(self.layers) - len(weights)
        for i in reversed(range(self._first if first is None else first, len(self.layers))):
            needs_input = i > (self._first if first is None else first - 1)
            below = self.layers[i].backward(
                weights[i - skipped], kept[i - skipped], g, beta, needs_input
            )
            g = g if below is None else below
        return g

    def logits_of_each(self, values: Tensor, x: Tensor) -> Tensor:
        """Return the logits (K, b, classes) of K models, values (K, P), for the same b rows.

        The first layer with parameters is one product for all models.
        """
        weights, x = self.views(values, values), x.unsqueeze(0)
        for i, (layer, w) in enumerate(zip(self.layers, weights, strict=True)):
            if i != self._first:
                x, _ = layer.forward(w, x, None)
                continue
            joined = Weights(tuple(value.flatten(0, 1).unsqueeze(0) for value in w.values), ())
            x, _ = layer.forward(
                joined, x, None
            )  # outputs, or channels, of all models side by side
            if len(layer.out) == 1:
                x = x.view(-1, len(values), *layer.out).transpose(0, 1)
            else:
                x = x.view(len(values), -1, *x.shape[2:])
        return x

    @cached_property
    def first_linear(self) -> tuple[int, int] | None:
        """Outputs and inputs of the first layer where it is linear, so that it has a dual form."""
        layer = self.layers[0]
        if not isinstance(layer, LinearLayer):
            return None
        outputs, inputs = layer.shapes[0]
        return outputs, inputs

    @cached_property
    def wide_on_one(self) -> bool:
        """Whether a wide convolution has too few tiles in one image, and so goes over patches."""
        wide = [layer for layer in self.layers if isinstance(layer, WinogradLayer)]
        return any(layer.over_patches(1) for layer in wide)

    def columns(self, device: torch.device) -> int:
        """Return how many examples of all models together are taken at once.

        A GPU's whole memory counts, not what is free at the moment: equal cards give equal bits.
        """
        floats = CACHE_FLOATS
        if device.type != "cpu":
            floats = int(torch.cuda.get_device_properties(device).total_memory) // 4 // DEVICE_SHARE
        return max(1, floats // int(self.width))

    def block(self, batch: int, device: torch.device) -> tuple[int, int]:
        """Return how many clients go together, and how many examples of a batch."""
        cpu, columns = device.type == "cpu", self.columns(device)
        clients = min(MAX_BLOCK, max(1, WEIGHT_FLOATS // self.num_params)) if cpu else columns
        clients = max(1, min(clients, columns // min(batch, columns)))
        return clients, max(1, min(batch, columns // clients))


def _flat(model: nn.Module) -> Iterator[nn.Module]:
    if type(model) is not nn.Sequential:
        if type(model) is not nn.Identity:
            yield model
        return
    for module in model:
        yield from _flat(module)
