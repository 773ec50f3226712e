"""Networks for many clients at once, each with weights of its own. Imports torch only.

Vectors are (clients C, examples b, features F): a linear layer is one batched matrix product. Images have their
examples **last**, (C, channels, height, width, b): all positions of a convolution form one wide product per client, and
its patches are copied in long runs.

Backward passes are written out, without autograd, since most of a small step is bookkeeping: a gradient is added by the
product that makes it straight into the momentum buffer, and all parameters lie in one (C, P) tensor, so that a step of
the optimizer is two or three operations whatever the depth. Measured in ``docs/performance-training.md``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CACHE_FLOATS = 2**23
"""Floats that the widest layer of a block may have on a CPU: what stays in the cache is several times faster."""

DEVICE_SHARE = 64
"""The same on a GPU: this part of its memory, since a backward pass needs all layers and their patches."""

WEIGHT_FLOATS = 2**20
"""Floats of the weights of a block on a CPU."""

MAX_BLOCK = 64
"""Clients in a block at most on a CPU: by then the cost of calling an operation is nothing."""


WIDE = 1024
"""Channels in times channels out from which a convolution is better left to the library, on a CPU: copying its patches
costs more than calling it for each client. 32 to 64 channels: 1.5 to 1.8 times; 6 to 16 (LeNet): half as much."""


class UnsupportedError(ValueError):
    """A model or a setting that has no batched program; the message says what and why."""


@dataclass(frozen=True)
class Weights:
    """Views of one layer's values in the flat parameters, and of its gradients in the flat gradient."""

    values: tuple[Tensor, ...]  # each (C, *shape)
    grads: tuple[Tensor, ...]


class _Buffer:
    """Memory that is used again: fresh pages cost a system as much as the arithmetic on them."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def get(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return a tensor of this shape; what the last one held is lost."""
        old, size = self._memory, prod(shape)
        if old is None or old.numel() < size or old.dtype != like.dtype or old.device != like.device:
            self._memory = old = like.new_empty(size)
        return old[:size].view(*shape)


class Layer(Protocol):
    """A layer for many clients at once. ``forward`` returns its output and what ``backward`` needs of it."""

    shapes: tuple[tuple[int, ...], ...]
    width: int  # floats of its largest tensor, per example

    def forward(self, w: Weights, x: Tensor) -> tuple[Tensor, Any]:
        """Map vectors (C, b, F) or images (C, channels, height, width, b)."""

    def backward(self, w: Weights, kept: Any, g: Tensor, beta: float, needs_input: bool) -> Tensor | None:
        """Set grads = beta grads + this batch's gradient; return the gradient of the input where it is needed."""


class _Linear:
    def __init__(self, module: nn.Linear, features: tuple[int, ...]) -> None:
        self.shapes: tuple[tuple[int, ...], ...] = ((module.out_features, module.in_features),)
        if module.bias is not None:
            self.shapes += ((module.out_features,),)
        if features != (module.in_features,):
            raise UnsupportedError(f"Linear({module.in_features}, ...) on inputs of shape {features}")
        self.width = max(module.in_features, module.out_features)
        self.out = (module.out_features,)

    def forward(self, w: Weights, x: Tensor) -> tuple[Tensor, Any]:
        matrix = w.values[0].transpose(1, 2)
        return (torch.baddbmm(w.values[1].unsqueeze(1), x, matrix) if len(w.values) == 2 else torch.bmm(x, matrix)), x

    def backward(self, w: Weights, kept: Any, g: Tensor, beta: float, needs_input: bool) -> Tensor | None:
        _add_gradients(w, w.grads[0], g.transpose(1, 2), kept, beta)
        return torch.bmm(g, w.values[0]) if needs_input else None


class _Conv2d:
    def __init__(self, module: nn.Conv2d, features: tuple[int, ...]) -> None:
        if module.groups != 1 or module.dilation != (1, 1) or module.padding_mode != "zeros":
            raise UnsupportedError("Conv2d with groups, dilation or a padding mode")
        if isinstance(module.padding, str):
            raise UnsupportedError(f"Conv2d with padding='{module.padding}'")
        self.shapes: tuple[tuple[int, ...], ...] = (tuple(module.weight.shape),)
        if module.bias is not None:
            self.shapes += ((module.out_channels,),)
        self.k, self.s, self.p = module.kernel_size, module.stride, module.padding
        sides = zip(features[1:], self.p, self.k, self.s, strict=True)
        height, width = ((n + 2 * p - k) // s + 1 for n, p, k, s in sides)
        self.out = (module.out_channels, height, width)
        self.width = height * width * max(prod(module.weight.shape[1:]), module.out_channels)
        self._columns, self._d_columns, self._d_x = _Buffer(), _Buffer(), _Buffer()

    def forward(self, w: Weights, x: Tensor) -> tuple[Tensor, Any]:
        (ph, pw), (kh, kw), (sh, sw) = self.p, self.k, self.s
        if ph or pw:
            x = F.pad(x, (0, 0, pw, pw, ph, ph))
        patches = x.unfold(2, kh, sh).unfold(3, kw, sw).permute(0, 1, 5, 6, 2, 3, 4)
        columns = self._columns.get(patches.shape, x).copy_(patches).view(len(x), prod(self.shapes[0][1:]), -1)
        matrix = w.values[0].flatten(2)
        out = (
            torch.baddbmm(w.values[1].unsqueeze(2), matrix, columns)
            if len(w.values) == 2
            else torch.bmm(matrix, columns)
        )
        return out.view(len(x), -1, *self.out[1:], x.shape[-1]), (columns, x.shape)

    def backward(self, w: Weights, kept: Any, g: Tensor, beta: float, needs_input: bool) -> Tensor | None:
        columns, shape = kept
        g = g.reshape(len(g), self.out[0], -1)
        _add_gradients(w, w.grads[0].flatten(2), g, columns.transpose(1, 2), beta)
        if not needs_input:
            return None
        (ph, pw), (kh, kw), (sh, sw), (_, height, width) = self.p, self.k, self.s, self.out
        d_columns = self._d_columns.get(columns.shape, g)
        torch.bmm(w.values[0].flatten(2).transpose(1, 2), g, out=d_columns)
        d_columns = d_columns.view(len(g), shape[1], kh, kw, height, width, -1)
        d_x = self._d_x.get(shape, g).zero_()
        for i in range(kh):
            for j in range(kw):
                d_x[:, :, i : i + sh * height : sh, j : j + sw * width : sw] += d_columns[:, :, i, j]
        return d_x[:, :, ph : shape[2] - ph, pw : shape[3] - pw]


class _MaxPool2d:
    """2x2 pooling, first along rows, then along columns: of equal values the first has the gradient, as in torch."""

    shapes = ()

    def __init__(self, module: nn.MaxPool2d, features: tuple[int, ...]) -> None:
        if (_pair(module.kernel_size), _pair(module.stride)) != ((2, 2), (2, 2)):
            raise UnsupportedError("MaxPool2d other than 2x2 with stride 2")
        if _pair(module.padding) != (0, 0) or _pair(module.dilation) != (1, 1) or module.ceil_mode:
            raise UnsupportedError("MaxPool2d with padding, dilation or ceil_mode")
        self.out = (features[0], features[1] // 2, features[2] // 2)
        self.width = prod(features)

    def forward(self, w: Weights, x: Tensor) -> tuple[Tensor, Any]:
        _, height, width = self.out
        left, right = x[:, :, : 2 * height, 0 : 2 * width : 2], x[:, :, : 2 * height, 1 : 2 * width : 2]
        rows = torch.maximum(left, right)
        top, bottom = rows[:, :, 0::2], rows[:, :, 1::2]
        return torch.maximum(top, bottom), (x.shape, right - left, bottom - top)

    def backward(self, w: Weights, kept: Any, g: Tensor, beta: float, needs_input: bool) -> Tensor | None:
        shape, to_right, to_bottom = kept
        _, height, width = self.out
        d_rows = g.new_empty(to_right.shape)
        _where_positive(g, to_bottom, d_rows[:, :, 1::2])
        torch.sub(g, d_rows[:, :, 1::2], out=d_rows[:, :, 0::2])
        exact = shape[2:4] == (2 * height, 2 * width)
        d_x = g.new_empty(shape) if exact else g.new_zeros(shape)
        left, right = d_x[:, :, : 2 * height, 0 : 2 * width : 2], d_x[:, :, : 2 * height, 1 : 2 * width : 2]
        _where_positive(d_rows, to_right, right)
        torch.sub(d_rows, right, out=left)
        return d_x


class _ReLU:
    shapes = ()

    def __init__(self, module: nn.ReLU, features: tuple[int, ...]) -> None:
        self.out, self.width = features, prod(features)

    def forward(self, w: Weights, x: Tensor) -> tuple[Tensor, Any]:
        out = x.clamp_min(0)
        return out, out

    def backward(self, w: Weights, kept: Any, g: Tensor, beta: float, needs_input: bool) -> Tensor | None:
        return _where_positive(g, kept)


class _Images:
    """What turns the rows of a data set into images."""

    shapes = ()

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.out, self.width = shape, prod(shape)

    def forward(self, w: Weights, x: Tensor) -> tuple[Tensor, Any]:
        return x.transpose(1, 2).reshape(len(x), *self.out, x.shape[1]), None

    def backward(self, w: Weights, kept: Any, g: Tensor, beta: float, needs_input: bool) -> Tensor | None:
        return g.flatten(1, -2).transpose(1, 2)


class _Flatten:
    shapes = ()

    def __init__(self, module: nn.Flatten, features: tuple[int, ...]) -> None:
        if (module.start_dim, module.end_dim) != (1, -1):
            raise UnsupportedError("Flatten of some dimensions only")
        self.features, self.out, self.width = features, (prod(features),), prod(features)

    def forward(self, w: Weights, x: Tensor) -> tuple[Tensor, Any]:
        return x.flatten(1, -2).transpose(1, 2).contiguous(), None

    def backward(self, w: Weights, kept: Any, g: Tensor, beta: float, needs_input: bool) -> Tensor | None:
        return g.transpose(1, 2).reshape(len(g), *self.features, g.shape[1])


def _add_gradients(w: Weights, into: Tensor, g: Tensor, x: Tensor, beta: float) -> None:
    """Set grads = beta grads + the gradient of matrix and bias, from g (C, out, b) and x (C, b, in)."""
    into.baddbmm_(g, x, beta=beta)
    if len(w.grads) == 2:
        bias = w.grads[1]
        torch.add(g.sum(2), bias if beta else 0.0, alpha=beta, out=bias)


def _where_positive(g: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """Return g where x > 0, else 0: what ReLU's backward pass does, five times as fast as a product with booleans."""
    backward = torch.ops.aten.threshold_backward
    result: Tensor = backward(g, x, 0) if out is None else backward(g, x, 0, grad_input=out)
    return result


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


_LAYERS: dict[type[nn.Module], Callable[[Any, tuple[int, ...]], Any]] = {
    nn.Linear: _Linear,
    nn.Conv2d: _Conv2d,
    nn.MaxPool2d: _MaxPool2d,
    nn.ReLU: _ReLU,
    nn.Flatten: _Flatten,
}


class Program:
    """A network as batched layers over flat parameters (C, P), in the order of the module's ``state_dict``.

    Parameters
    ----------
    model : nn.Module
        An ``nn.Sequential`` (nested ones too) of Linear, Conv2d, MaxPool2d(2), ReLU, Flatten and Identity.
    input_shape : tuple of int
        Channels, height and width of an image.

    Raises
    ------
    UnsupportedError
        The model is anything else: one line names the layer.
    """

    def __init__(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        self.layers: list[Any] = []
        features = tuple(input_shape)
        modules = list(_flat(model))
        if modules and type(modules[0]) is nn.Flatten:  # rows are flat already
            modules, features = modules[1:], (prod(features),)
        else:
            self.layers.append(_Images(features))
        for module in modules:
            make = _LAYERS.get(type(module))
            if make is None:
                raise UnsupportedError(f"{type(module).__name__} has no batched form")
            layer = make(module, features)
            self.layers.append(layer)
            features = layer.out
        if any(not p.requires_grad for p in model.parameters()):
            raise UnsupportedError("some parameters are frozen")
        self.shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        if len(list(model.parameters())) != len(self.shapes):  # a parameter is listed once, but has two names
            raise UnsupportedError("layers that share parameters")
        self.num_params = sum(prod(shape) for shape in self.shapes.values())
        self.width = max(layer.width for layer in self.layers)
        self._buffers: dict[str, _Buffer] = {}

    def buffer(self, use: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return memory of the program's own for one of its uses."""
        return self._buffers.setdefault(use, _Buffer()).get(shape, like)

    @cached_property
    def _first(self) -> int:
        """Index of the first layer with parameters: no gradient is needed below it."""
        return next((i for i, layer in enumerate(self.layers) if layer.shapes), len(self.layers))

    def views(self, values: Tensor, grads: Tensor, first: int = 0) -> list[Weights]:
        """Return the views of flat values and gradients, both (C, rest of P), of each layer from the first one on."""
        per_layer, start = [], 0
        for layer in self.layers[first:]:
            cuts = []
            for shape in layer.shapes:
                cuts.append((start, start + prod(shape), shape))
                start = cuts[-1][1]
            per_layer.append(Weights(*(tuple(t[:, a:b].view(-1, *s) for a, b, s in cuts) for t in (values, grads))))
        return per_layer

    def forward(self, weights: list[Weights], x: Tensor, first: int = 0) -> tuple[Tensor, list[Any]]:
        """Return logits (C, b, classes), and what :meth:`backward` needs, from the input of layer ``first`` on.

        Layer 0 takes rows (C, b, pixels); ``weights`` are those of the layers used.
        """
        kept = []
        for layer, w in zip(self.layers[first:], weights, strict=True):
            x, saved = layer.forward(w, x)
            kept.append(saved)
        return x, kept

    def backward(
        self, weights: list[Weights], kept: list[Any], g: Tensor, beta: float, first: int | None = None
    ) -> Tensor:
        """Set every layer's gradient to beta times itself plus that of logits' gradient g (C, b, classes).

        Returns
        -------
        Tensor
            The gradient of the input of layer ``first``; without one there is none to speak of.
        """
        skipped = len(self.layers) - len(weights)
        for i in reversed(range(self._first if first is None else first, len(self.layers))):
            needs_input = i > (self._first if first is None else first - 1)
            g = self.layers[i].backward(weights[i - skipped], kept[i - skipped], g, beta, needs_input)
        return g

    def logits_of_each(self, values: Tensor, x: Tensor) -> Tensor:
        """Return the logits (K, b, classes) that K models, values (K, P), give the same rows x (b, pixels).

        The first layer with parameters is one product for all models.
        """
        weights, x = self.views(values, values), x.unsqueeze(0)
        for i, (layer, w) in enumerate(zip(self.layers, weights, strict=True)):
            if i != self._first:
                x, _ = layer.forward(w, x)
                continue
            joined = Weights(tuple(value.flatten(0, 1).unsqueeze(0) for value in w.values), ())
            x, _ = layer.forward(joined, x)  # outputs, or channels, of all models side by side
            if len(layer.out) == 1:
                x = x.view(-1, len(values), *layer.out).transpose(0, 1)
            else:
                x = x.view(len(values), *layer.out, -1)
        return x if self._first < len(self.layers) else x.expand(len(values), -1, -1)

    @cached_property
    def first_linear(self) -> tuple[int, int] | None:
        """Outputs and inputs of the first layer where it is linear, so that it has a dual form."""
        layer = self.layers[0]
        if not isinstance(layer, _Linear):
            return None
        outputs, inputs = layer.shapes[0]
        return outputs, inputs

    @property
    def wide_convolution(self) -> tuple[int, int] | None:
        """Channels in and out of a convolution that a CPU runs faster by itself than as products over patches."""
        shapes = [layer.shapes[0] for layer in self.layers if isinstance(layer, _Conv2d)]
        return next(((shape[1], shape[0]) for shape in shapes if shape[0] * shape[1] >= WIDE), None)

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
