"""Layers for many clients at once, each with weights of its own;
convolutions have a file of their own.

Vectors are (clients C, examples b, features F): a linear layer is one batched matrix product.
Images are (C, channels, height, width, b), and lie so in memory, for which ``convolution`` gives
the reason, or channels last around ``winograd``: a layer takes either and keeps to it.

Backward passes are written out, without autograd, since most of a small step is bookkeeping: a
gradient is added by the product that makes it straight into the momentum buffer, or without
momentum into the weights themselves. So a layer's gradients may be its weights, and what it still
needs of the weights it reads before it writes the gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from fedsweep.models._dropout import Dropout, fill_mask

NEAR_FLOATS = 2**18
"""Floats of a client's weights that are used together: 1 MiB, what a core has for itself."""


class UnsupportedError(ValueError):
    """A model or a setting that has no batched program; the message says what and why."""


@dataclass(frozen=True)
class Weights:
    """Views of one layer's values and gradients in the flat parameters and the flat gradient."""

    values: tuple[Tensor, ...]  # each (C, *shape)
    grads: tuple[Tensor, ...]


@dataclass(frozen=True)
class Draws:
    """What the clients draw from in a step of training."""

    generators: Sequence[torch.Generator]
    counts: Sequence[int]  # examples in each client's batch; what fills it up draws nothing


class Buffer:
    """Memory that is used again: fresh pages cost a system as much as the arithmetic on them."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def get(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return a tensor of this shape; what the last one held is lost."""
        old, size = self._memory, prod(shape)
        if (
            old is None
            or old.numel() < size
            or old.dtype != like.dtype
            or old.device != like.device
        ):
            self._memory = old = like.new_empty(size)
        return old[:size].view(*shape)

    def get_like(self, x: Tensor) -> Tensor:
        """Return a tensor of x's shape, in memory in the order of x's dimensions."""
        order = sorted(range(x.ndim), key=x.stride, reverse=True)
        return self.get([x.shape[d] for d in order], x).permute(
            [order.index(d) for d in range(x.ndim)]
        )


Kept = TypeVar("Kept")


class Layer(Protocol[Kept]):
    """A layer for many clients. ``forward`` returns its output and what ``backward`` needs.

    Both may be given, and may return, memory that is used again: they may change what they are
    given.
    """

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of its parameters."""

    @property
    def out(self) -> tuple[int, ...]:
        """Features of its output: (F,), or channels, height and width."""

    @property
    def width(self) -> int:
        """Floats of its largest tensor, per example."""

    def forward(self, w: Weights, x: Tensor, draws: Draws | None) -> tuple[Tensor, Kept]:
        """Map vectors or images; ``draws`` while training."""

    def backward(
        self, w: Weights, kept: Kept, g: Tensor, beta: float, needs_input: bool
    ) -> Tensor | None:
        """Set grads = beta grads + this batch's gradient;
        return the gradient of the input where it is needed.
        """


class LinearLayer:
    """A dense layer."""

    def __init__(self, module: nn.Linear, features: tuple[int, ...]) -> None:
        self.shapes: tuple[tuple[int, ...], ...] = ((module.out_features, module.in_features),)
        if module.bias is not None:
            self.shapes += ((module.out_features,),)
        if features != (module.in_features,):
            raise UnsupportedError(
                f"Linear({module.in_features}, ...) on inputs of shape {features}"
            )
        self.width = max(module.in_features, module.out_features)
        self.out = (module.out_features,)

    def forward(self, w: Weights, x: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor]:
        """Map vectors."""
        matrix = w.values[0].transpose(1, 2)
        return (
            torch.baddbmm(w.values[1].unsqueeze(1), x, matrix)
            if len(w.values) == 2
            else torch.bmm(x, matrix)
        ), x

    def backward(
        self, w: Weights, kept: Tensor, g: Tensor, beta: float, needs_input: bool
    ) -> Tensor | None:
        """See :class:`Layer`."""
        (matrix, grads), d_x = (w.values[0], w.grads[0]), None
        rows = max(1, NEAR_FLOATS // matrix.shape[2])
        for first in range(
            0, matrix.shape[1], rows
        ):  # what is read is still near when it is written
            part = slice(first, first + rows)
            own = g[:, :, part]
            if needs_input:
                d_x = (
                    torch.bmm(own, matrix[:, part])
                    if d_x is None
                    else d_x.baddbmm_(own, matrix[:, part])
                )
            grads[:, part].baddbmm_(own.transpose(1, 2), kept, beta=beta)
        add_bias_gradient(w, g.sum(1), beta)
        return d_x


class MaxPoolLayer:
    """2x2 pooling, by rows, then columns: the first of equals has the gradient, as in torch."""

    shapes = ()
    blocks = False
    """Whether it is given blocks, as :func:`as_blocks` returns them."""

    def __init__(self, module: nn.MaxPool2d, features: tuple[int, ...]) -> None:
        if (_pair(module.kernel_size), _pair(module.stride)) != ((2, 2), (2, 2)):
            raise UnsupportedError("MaxPool2d other than 2x2 with stride 2")
        if _pair(module.padding) != (0, 0) or _pair(module.dilation) != (1, 1) or module.ceil_mode:
            raise UnsupportedError("MaxPool2d with padding, dilation or ceil_mode")
        self.out = (features[0], features[1] // 2, features[2] // 2)
        self.width, self._d_x = prod(features), Buffer()

    def forward(
        self, w: Weights, x: Tensor, draws: Draws | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Map images, or their blocks."""
        blocks = self._blocks(x)
        left, right = blocks[:, :, :, 0], blocks[:, :, :, 1]
        rows = torch.maximum(left, right)
        top, bottom = rows[:, :, 0], rows[:, :, 1]
        return torch.maximum(top, bottom), (x, right - left, bottom - top)

    def backward(
        self,
        w: Weights,
        kept: tuple[Tensor, Tensor, Tensor],
        g: Tensor,
        beta: float,
        needs_input: bool,
    ) -> Tensor | None:
        """See :class:`Layer`."""
        x, to_right, to_bottom = kept
        d_rows = torch.empty_like(to_right)
        _share(g, to_bottom, d_rows[:, :, 0], d_rows[:, :, 1])
        d_x = self._d_x.get_like(x)
        if not self.blocks:  # what no block holds
            _, height, width = self.out
            d_x[:, :, 2 * height :], d_x[:, :, :, 2 * width :] = 0, 0
        blocks = self._blocks(d_x)
        _share(d_rows, to_right, blocks[:, :, :, 0], blocks[:, :, :, 1])
        return d_x

    def _blocks(self, x: Tensor) -> Tensor:
        _, height, width = self.out
        return x if self.blocks else as_blocks(x[:, :, : 2 * height, : 2 * width])


class ReLULayer:
    """Rectified values, in place: no layer needs what it returned."""

    shapes = ()

    def __init__(self, module: nn.ReLU, features: tuple[int, ...]) -> None:
        self.out, self.width = features, prod(features)

    def forward(self, w: Weights, x: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor]:
        """Map anything."""
        return x.clamp_min_(0), x

    def backward(
        self, w: Weights, kept: Tensor, g: Tensor, beta: float, needs_input: bool
    ) -> Tensor | None:
        """See :class:`Layer`."""
        return _where_positive(g, kept, g)


class DropoutLayer:
    """``fedsweep.models._dropout.Dropout``, with the draws that each client has alone."""

    shapes = ()

    def __init__(self, module: Dropout, features: tuple[int, ...]) -> None:
        self.out, self.width, self._p, self._mask = features, prod(features), module.p, Buffer()
        self._drawn = (
            *features[1:],
            features[0],
        )  # the order of the draws: (F,) or (height, width, channels)

    def forward(self, w: Weights, x: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor | None]:
        """Map anything."""
        if draws is None:
            return x, None
        longest = max(draws.counts)
        mask = self._mask.get((len(x), longest, *self._drawn), x)
        for own, generator, count in zip(mask, draws.generators, draws.counts, strict=False):
            fill_mask(self._p, own[:count], generator)
            own[count:] = 0
        if len(self.out) == 3:
            mask = mask.permute(0, 4, 2, 3, 1)
        return x * mask, mask

    def backward(
        self, w: Weights, kept: Tensor | None, g: Tensor, beta: float, needs_input: bool
    ) -> Tensor | None:
        """See :class:`Layer`."""
        return g if kept is None else g * kept


def add_gradient(grads: Tensor, gradient: Tensor, beta: float) -> None:
    """Set a gradient to beta times itself plus this one;
    without beta whatever it was, be it no number.
    """
    torch.add(gradient, grads if beta else 0.0, alpha=beta, out=grads)


def add_bias_gradient(w: Weights, gradient: Tensor, beta: float) -> None:
    """Do that to the bias's gradient (C, out), where there is a bias."""
    if len(w.grads) == 2:
        add_gradient(w.grads[1], gradient, beta)


def as_blocks(images: Tensor) -> Tensor:
    """Return images (C, channels, 2 h, 2 w, b) as blocks (C, channels, 2, 2, h, w, b)."""
    clients, channels, height, width, examples = images.shape
    cut = images.view(clients, channels, height // 2, 2, width // 2, 2, examples)
    return cut.permute(0, 1, 3, 5, 2, 4, 6)


def of_blocks(blocks: Tensor) -> Tensor:
    """Return the images of blocks."""
    return blocks.permute(0, 1, 4, 2, 5, 3, 6).flatten(4, 5).flatten(2, 3)


def _where_positive(g: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """Return g where x > 0, else 0: ReLU's backward, five times as fast as by booleans."""
    backward = torch.ops.aten.threshold_backward
    result: Tensor = backward(g, x, 0) if out is None else backward(g, x, 0, grad_input=out)
    return result


def _share(g: Tensor, x: Tensor, first: Tensor, second: Tensor) -> None:
    """Give g to the second where x > 0, else to the first."""
    to_second = _where_positive(g, x)  # straight into every other column takes eight times as long
    second.copy_(to_second)
    torch.sub(g, to_second, out=first)


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
