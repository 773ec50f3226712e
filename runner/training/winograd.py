"""Convolutions of many channels by Winograd's filtering: half the library's time on a CPU.

A tile of 4 x 4 outputs of an r x r kernel is r x r values of the kernel, mapped to n x n points,
times n x n inputs, mapped to the same points, mapped back (n = 4 + r - 1): an input and an output
channel take 36 products instead of 144 (3x3), or 64 instead of 400 (5x5). The products of a point,
over all tiles and channels, are one matrix product, and so is each map, over all points at once.
Backward passes are the transposes, and share what forward has mapped.

Source: Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray 2016,
arXiv:1509.09308.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import ceil, prod
from threading import local
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsweep.training.convolution import NARROW, WIDE, ConvLayer
from fedsweep.training.layers import Buffer, Draws, Weights, add_bias_gradient, add_gradient

SIDE = 4
"""Outputs of a tile a side."""

POINTS = {3: (0.0, 0.75, -0.75, 1.5, -1.5), 5: (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)}
"""Where polynomials are evaluated for a kernel, beside infinity.

Those for 3x3 have half the rounding of 0, 1, -1, 2, -2; those for 5x5 the least of the eleven sets
that were tried.
"""

NEAR_POINTS = 2**20
"""Floats of the points of examples that are taken at a time: 4 MiB."""

LEAST_ROWS = 32
"""Tiles that are taken at a time at least: products of fewer rows are slow, and maps of kernels
cost more than they save.
"""


def maps(kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the maps of outputs (4, n), of the kernel (n, r) and of inputs (n, n), float64.

    Outputs are ``y = A ((G w) * (B x))`` in one dimension: the product of polynomials by evaluation
    and interpolation (Toom and Cook), transposed.
    """
    points = POINTS[kernel]
    last, n = len(points), len(points) + 1
    a, g, b = np.zeros((SIDE, n)), np.zeros((n, kernel)), np.zeros((n, n))
    a[:, :last], g[:last] = (
        np.vander(points, SIDE, increasing=True).T,
        np.vander(points, kernel, increasing=True),
    )
    for i, point in enumerate(points):
        others = [other for other in points if other != point]
        g[i] /= prod(point - other for other in others)
        b[i, :last] = np.poly(others)[::-1]
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = np.poly(points)[::-1]
    return torch.from_numpy(a), torch.from_numpy(g), torch.from_numpy(b)


@cache
def _maps_of_both(kernel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the maps of both dimensions at once."""
    a, g, b = (torch.kron(one, one).to(dtype) for one in maps(kernel))
    return a, g, b


class Scratch:
    """Memory that all passes of a thread's convolutions use in turn: it stays in the cache."""

    def __init__(self) -> None:
        self.small, self.large = Buffer(), Buffer()


class Winograd:
    """The filtering of images of one size by kernels of one size, for C clients.

    Images are given and written as they come, whatever their strides: (C, channels, height, width,
    b), but those whose channels lie last in memory are copied faster.

    Parameters
    ----------
    module : nn.Conv2d
        A convolution that :func:`pays` names.
    sides : sequence of two ints
        Height and width of its inputs.
    scratch : Scratch
        What its passes may use.
    """

    def __init__(self, module: nn.Conv2d, sides: Sequence[int], scratch: Scratch) -> None:
        self._k, self._scratch = module.kernel_size[0], scratch
        self._p = int(module.padding[0]), int(module.padding[1])
        self._out = tuple(
            side + 2 * p + 1 - self._k for side, p in zip(sides, self._p, strict=True)
        )
        # None where images are smaller than a kernel: the library says so.
        self._tiles = tuple(max(0, ceil(side / SIDE)) for side in self._out)
        self._n = SIDE + self._k - 1  # points a side

    def rows(self, examples: int) -> int:
        """Return the tiles of so many examples: the rows of a point's product."""
        return prod(self._tiles) * examples

    def shape(self, x: Tensor, w: Tensor) -> tuple[int, ...]:
        """Return the shape of the outputs of images (b, channels, height, width)."""
        return len(x), len(w), *self._out

    def kernels(self, w: Tensor) -> Tensor:
        """Return kernels (C, outer, inner, r, r) at their points, (n^2 C, outer, inner)."""
        _, g, _ = _maps_of_both(self._k, w.dtype)
        return torch.mm(g, w.reshape(-1, g.shape[1]).t()).view(-1, *w.shape[1:3])

    def forward(
        self, x: Tensor, kernels: Tensor, bias: Tensor | None, out: Tensor, kept: list[Buffer]
    ) -> list[Tensor]:
        """Write the outputs of images; return what ``backward`` needs, in ``kept``'s memory."""
        n, m, (th, tw), (height, width) = self._n**2, SIDE, self._tiles, self._out
        clients, outer, _, _, examples = out.shape
        a, _, b = _maps_of_both(self._k, x.dtype)
        all_mapped = []
        for number, part in enumerate(self._parts(clients, examples, max(kernels.shape[1:]))):
            inputs = self._cut(x[..., part], self._n, self._p)
            if number == len(kept):
                kept.append(Buffer())
            mapped = torch.mm(b, inputs, out=kept[number].get(inputs.shape, x))
            mapped = mapped.view(n * clients, -1, kernels.shape[2])
            products = self._scratch.large.get((*mapped.shape[:2], outer), x)
            torch.bmm(mapped, kernels.mT, out=products)
            outputs = self._scratch.small.get((m**2, products.numel() // n), x)
            torch.mm(a, products.view(n, -1), out=outputs)
            tiles = outputs.view(m, m, clients, th, tw, -1, outer)
            if bias is not None:
                tiles += bias.view(clients, 1, 1, 1, outer)
            whole = self._scratch.large.get((clients, th, m, tw, m, tiles.shape[5], outer), x)
            whole.copy_(tiles.permute(2, 3, 0, 4, 1, 5, 6))
            images = whole.flatten(3, 4).flatten(1, 2)[:, :height, :width]
            out[..., part] = images.permute(0, 4, 1, 2, 3)
            all_mapped.append(mapped)
        return all_mapped

    def backward(
        self, g: Tensor, all_mapped: list[Tensor], kernels: Tensor, d_x: Tensor | None
    ) -> Tensor:
        """Return the kernels' gradient (C, outer, inner, r, r), and write that of the images.

        What ``forward`` returned is lost.
        """
        n, (clients, outer, _, _, examples) = self._n**2, g.shape
        inner = kernels.shape[2]
        a, to_points, b = _maps_of_both(self._k, g.dtype)
        d_kernels = torch.empty_like(kernels)
        parts = self._parts(clients, examples, max(outer, inner))
        for number, (mapped, part) in enumerate(zip(all_mapped, parts, strict=True)):
            d_outputs = self._cut(g[..., part], SIDE)
            d_products = self._scratch.large.get((*mapped.shape[:2], outer), g)
            torch.mm(a.t(), d_outputs, out=d_products.view(n, -1))
            d_kernels.baddbmm_(d_products.mT, mapped, beta=1.0 if number else 0.0)
            if d_x is None:
                continue
            d_mapped = self._scratch.small.get(mapped.shape, g)
            torch.bmm(d_products, kernels, out=d_mapped)
            d_inputs = torch.mm(b.t(), d_mapped.view(n, -1), out=mapped.view(n, -1))
            d_tiles = d_inputs.view(self._n, self._n, clients, *self._tiles, -1, inner)
            d_x[..., part] = self._put_together(d_tiles).permute(0, 4, 1, 2, 3)
        d_weights = torch.mm(to_points.t(), d_kernels.view(n, -1)).t()
        return d_weights.reshape(clients, outer, inner, self._k, self._k)

    def _parts(self, clients: int, examples: int, channels: int) -> Iterator[slice]:
        """Yield which examples are taken at a time."""
        floats = clients * self.rows(1) * self._n**2 * channels
        at_once = max(1, ceil(LEAST_ROWS / self.rows(1)), NEAR_POINTS // floats)
        size = ceil(examples / ceil(examples / at_once))
        for first in range(0, examples, size):
            yield slice(first, min(first + size, examples))

    def _cut(self, images: Tensor, size: int, before: tuple[int, ...] = (0, 0)) -> Tensor:
        """Return tiles (size^2, C x rows x columns x b x channels) of images, padded as needed."""
        images = images.permute(0, 2, 3, 4, 1)
        sides = zip(self._tiles, images.shape[1:3], before, strict=True)
        after = [SIDE * (n - 1) + size - side - p for n, side, p in sides]
        if any(before) or any(after):
            images = F.pad(images, (0, 0, 0, 0, before[1], after[1], before[0], after[0]))
        tiles = images.unfold(1, size, SIDE).unfold(2, size, SIDE).permute(5, 6, 0, 1, 2, 3, 4)
        return self._scratch.small.get(tiles.shape, images).copy_(tiles).view(size**2, -1)

    def _put_together(self, tiles: Tensor) -> Tensor:
        """Return unpadded images (C, height, width, b, channels): sums of overlapping tiles
        (n, n, C, rows, columns, b, channels).
        """
        (ph, pw), (height, width), m = self._p, self._out, SIDE
        clients, th, tw, examples, channels = tiles.shape[2:]
        shape = (clients, th + 1, m, tw + 1, m, examples, channels)
        image = self._scratch.large.get(shape, tiles).zero_()
        for i in range(2):
            for j in range(2):
                part = tiles[m * i : m * (i + 1), m * j : m * (j + 1)].permute(2, 3, 0, 4, 1, 5, 6)
                image[:, i : i + th, : part.shape[2], j : j + tw, : part.shape[4]] += part
        image = image.view(clients, (th + 1) * m, (tw + 1) * m, examples, channels)
        return image[:, ph : height + self._k - 1 - ph, pw : width + self._k - 1 - pw]


def pays(module: nn.Conv2d) -> bool:
    """Return whether a convolution has this form, and enough channels for it."""
    wide = module.in_channels * module.out_channels >= WIDE and module.out_channels > NARROW
    plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    return (
        wide
        and plain
        and module.stride == (1, 1)
        and module.kernel_size in ((3, 3), (5, 5))
        and not isinstance(module.padding, str)
        and max(module.padding) < module.kernel_size[0]
    )


class WinogradLayer(ConvLayer):
    """A convolution of 3x3 or 5x5 with stride 1; over patches where there are few tiles.

    What ``forward`` returns holds until ``backward``, which a ``forward`` allows once.
    """

    channels_last = True

    def __init__(self, module: nn.Conv2d, features: tuple[int, ...]) -> None:
        super().__init__(module, features)
        self._winograd = Winograd(module, features[1:], Scratch())
        self._kept: list[Buffer] = []
        self._outputs, self._d_inputs = Buffer(), Buffer()

    def over_patches(self, examples: int) -> bool:
        """Return whether so many examples have too few tiles."""
        return self._winograd.rows(examples) < LEAST_ROWS

    def forward(self, w: Weights, x: Tensor, draws: Draws | None) -> tuple[Tensor, Any]:
        """Map images."""
        if self.over_patches(x.shape[-1]):
            return super().forward(w, x, draws)
        clients, outer, examples = len(x), w.values[0].shape[1], x.shape[-1]
        out = self._outputs.get((clients, *self.out[1:], examples, outer), x).permute(0, 4, 1, 2, 3)
        kernels = self._winograd.kernels(w.values[0])
        bias = w.values[1] if len(w.values) == 2 else None
        return out, (self._winograd.forward(x, kernels, bias, out, self._kept), kernels, x.shape)

    def backward(
        self, w: Weights, kept: Any, g: Tensor, beta: float, needs_input: bool
    ) -> Tensor | None:
        """See :class:`fedsweep.training.layers.Layer`."""
        if self.over_patches(g.shape[-1]):
            return super().backward(w, kept, g, beta, needs_input)
        mapped, kernels, (clients, inner, *sides, examples) = kept
        add_bias_gradient(w, g.sum((2, 3, 4)), beta)
        d_x = None
        if needs_input:
            memory = self._d_inputs.get((clients, *sides, examples, inner), g)
            d_x = memory.permute(0, 4, 1, 2, 3)
        add_gradient(w.grads[0], self._winograd.backward(g, mapped, kernels, d_x), beta)
        return d_x


_here = local()


def _scratch() -> Scratch:
    """Return the scratch memory of this thread."""
    if not hasattr(_here, "scratch"):
        _here.scratch = Scratch()
    scratch: Scratch = _here.scratch
    return scratch


class _Filtered(torch.autograd.Function):
    """A convolution of images (b, channels, height, width) for autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, how: Winograd) -> Tensor:
        kernels = how.kernels(w.unsqueeze(0))
        last = torch.channels_last
        y = torch.empty(how.shape(x, w), dtype=x.dtype, memory_format=last)
        ctx.mapped = how.forward(_as_client(x), kernels, bias, _as_client(y), [])
        ctx.how, ctx.biased, ctx.kernels = how, bias is not None, kernels
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        (x,) = ctx.saved_tensors
        if ctx.mapped is None:
            raise RuntimeError("a convolution while training allows one backward pass")
        d_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        own = None if d_x is None else _as_client(d_x)
        d_w = ctx.how.backward(_as_client(g), ctx.mapped, ctx.kernels, own)[0]
        ctx.mapped = None
        return d_x, d_w, g.sum((0, 2, 3)) if ctx.biased else None, None


def _as_client(images: Tensor) -> Tensor:
    """Return images (b, channels, height, width) as those of one client, (1, ..., b)."""
    return images.permute(1, 2, 3, 0).unsqueeze(0)


class _FilteredConv2d(nn.Conv2d):
    """What a convolution is while :func:`filtered` lasts."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.ndim == 4 and input.dtype == weight.dtype:
            how = Winograd(self, input.shape[2:], _scratch())
            if how.rows(len(input)) >= LEAST_ROWS:
                filtered: Tensor = _Filtered.apply(input, weight, bias, how)
                return filtered
        y: Tensor = super()._conv_forward(input, weight, bias)
        return y


@contextmanager
def filtered(model: nn.Module) -> Iterator[None]:
    """Have a network's convolutions on a CPU work so, where it pays, while it is trained."""
    on_cpu = all(p.device.type == "cpu" for p in model.parameters())
    chosen = [m for m in model.modules() if type(m) is nn.Conv2d and on_cpu and pays(m)]
    for module in chosen:
        module.__class__ = _FilteredConv2d
    try:
        yield
    finally:
        for module in chosen:
            module.__class__ = nn.Conv2d
