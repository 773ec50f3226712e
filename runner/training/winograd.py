"""Convolutions of many channels by Winograd's filtering: 2/3 of the library's time on a CPU.

A tile of m x m outputs of an r x r kernel is r x r values of the kernel, mapped to 6 x 6 points,
times 6 x 6 inputs, mapped to the same points, mapped back (m + r - 1 = 6): 36 products an input and
output channel instead of 144 (3x3, m = 4) or 100 (5x5, m = 2). The products of a point, over all
tiles and channels, are one matrix product, and so is each map, over all points at once. Backward
passes are the transposes, and share what forward has mapped.

Source: Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray 2016,
arXiv:1509.09308.
"""

from math import ceil, prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsweep.training.convolution import WIDE, Convolution
from fedsweep.training.layers import Buffer, Draws, Weights, add_bias_gradient, add_gradient

TILE = 6
"""Points a side."""

POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
"""Where polynomials are evaluated, beside infinity: half the rounding of 0, 1, -1, 2, -2."""


def maps(kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the maps of outputs (m, 6), of the kernel (6, r) and of inputs (6, 6), float64.

    Outputs are ``y = A ((G w) * (B x))`` in one dimension: the product of polynomials by evaluation
    and interpolation (Toom and Cook), transposed.
    """
    m, last = TILE + 1 - kernel, len(POINTS)
    a, g, b = np.zeros((m, TILE)), np.zeros((TILE, kernel)), np.zeros((TILE, TILE))
    a[:, :last], g[:last] = (
        np.vander(POINTS, m, increasing=True).T,
        np.vander(POINTS, kernel, increasing=True),
    )
    for i, point in enumerate(POINTS):
        others = [other for other in POINTS if other != point]
        g[i] /= prod(point - other for other in others)
        b[i, :last] = np.poly(others)[::-1]
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = np.poly(POINTS)[::-1]
    return torch.from_numpy(a), torch.from_numpy(g), torch.from_numpy(b)


class WinogradLayer(Convolution):
    """A convolution of 3x3 or 5x5 with stride 1.

    Its passes share two pieces of memory, since what is not in the cache costs more than the
    arithmetic: what ``forward`` returns holds until ``backward``, which a ``forward`` allows once.
    """

    def __init__(self, module: nn.Conv2d, features: tuple[int, ...]) -> None:
        super().__init__(module, features)
        self._m = TILE + 1 - self.k[0]
        self._tiles = ceil(self.out[1] / self._m), ceil(self.out[2] / self._m)
        self.width = prod(self._tiles) * TILE**2 * max(self.shapes[0][:2])
        self._maps = [torch.kron(one, one) for one in maps(self.k[0])]  # of both dimensions at once
        self._mapped, self._small, self._large = Buffer(), Buffer(), Buffer()

    @staticmethod
    def pays(module: nn.Conv2d) -> bool:
        """Return whether a convolution has this form, and enough channels for it."""
        wide = module.in_channels * module.out_channels >= WIDE
        return wide and module.kernel_size in ((3, 3), (5, 5)) and module.stride == (1, 1)

    def forward(
        self, w: Weights, x: Tensor, draws: Draws | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, list[Tensor]]]:
        """Map images."""
        (_, height, width), (th, tw), m = self.out, self._tiles, self._m
        (clients, outer, inner), examples = w.values[0].shape[:3], x.shape[-1]
        a, g, b = used = [one.to(x) for one in self._maps]
        inputs = self._cut(x, TILE, self.p)
        mapped = torch.mm(b, inputs, out=self._mapped.get(inputs.shape, x)).view(
            TILE**2 * clients, -1, inner
        )
        kernels = torch.mm(g, w.values[0].reshape(-1, g.shape[1]).t()).view(-1, outer, inner)
        products = self._large.get((*mapped.shape[:2], outer), x)
        torch.bmm(mapped, kernels.transpose(1, 2), out=products)
        outputs = self._small.get((m**2, products.numel() // TILE**2), x)
        tiles = torch.mm(a, products.view(TILE**2, -1), out=outputs).view(
            m, m, clients, th, tw, examples, outer
        )
        if len(w.values) == 2:
            tiles += w.values[1].view(clients, 1, 1, 1, outer)
        out = self._large.get((clients, th, m, tw, m, examples, outer), x).copy_(
            tiles.permute(2, 3, 0, 4, 1, 5, 6)
        )
        whole = out.view(clients, th * m, tw * m, examples, outer)
        return whole[:, :height, :width].permute(0, 4, 1, 2, 3), (mapped, kernels, used)

    def backward(
        self,
        w: Weights,
        kept: tuple[Tensor, Tensor, list[Tensor]],
        g: Tensor,
        beta: float,
        needs_input: bool,
    ) -> Tensor | None:
        """See :class:`fedsweep.training.layers.Layer`."""
        (mapped, kernels, used), m = kept, self._m
        clients, outer, _, _, examples = g.shape
        add_bias_gradient(w, g.sum((2, 3, 4)), beta)
        d_outputs = self._cut(g, m)
        d_products = self._large.get((*mapped.shape[:2], outer), g)
        torch.mm(used[0].t(), d_outputs, out=d_products.view(TILE**2, -1))
        d_kernels = torch.bmm(d_products.transpose(1, 2), mapped)
        d_weights = torch.mm(used[1].t(), d_kernels.view(TILE**2, -1)).t()
        add_gradient(w.grads[0], d_weights.view(w.grads[0].shape), beta)
        if not needs_input:
            return None
        d_mapped = torch.bmm(d_products, kernels, out=self._small.get(mapped.shape, g)).view(
            TILE**2, -1
        )
        d_inputs = torch.mm(
            used[2].t(), d_mapped, out=mapped.view(TILE**2, -1)
        )  # which nobody needs any more
        return self._put_together(d_inputs.view(TILE, TILE, clients, *self._tiles, examples, -1))

    def _cut(self, images: Tensor, size: int, before: tuple[int, ...] = (0, 0)) -> Tensor:
        """Return tiles (size^2, C x rows x columns x b x channels) of images, padded as needed."""
        images, m = images.permute(0, 2, 3, 4, 1), self._m
        sides = zip(self._tiles, images.shape[1:3], before, strict=True)
        after = [m * (n - 1) + size - side - p for n, side, p in sides]
        if any(before) or any(after):
            images = F.pad(images, (0, 0, 0, 0, before[1], after[1], before[0], after[0]))
        tiles = images.unfold(1, size, m).unfold(2, size, m).permute(5, 6, 0, 1, 2, 3, 4)
        return self._small.get(tiles.shape, images).copy_(tiles).view(size**2, -1)

    def _put_together(self, tiles: Tensor) -> Tensor:
        """Return unpadded images: sums of overlapping tiles (6, 6, C, rows, cols, b, channels)."""
        (ph, pw), (kh, kw), (_, height, width), m = self.p, self.k, self.out, self._m
        clients, th, tw, examples, channels = tiles.shape[2:]
        more = ceil(TILE / m) - 1
        shape = (clients, th + more, m, tw + more, m, examples, channels)
        image = self._large.get(shape, tiles).zero_()
        for i in range(more + 1):
            for j in range(more + 1):
                part = tiles[m * i : m * (i + 1), m * j : m * (j + 1)].permute(2, 3, 0, 4, 1, 5, 6)
                image[:, i : i + th, : part.shape[2], j : j + tw, : part.shape[4]] += part
        image = image.view(clients, (th + more) * m, (tw + more) * m, examples, channels)
        image = image[:, ph : height + kh - 1 - ph, pw : width + kw - 1 - pw]
        return self._small.get(image.shape, image).copy_(image).permute(0, 4, 1, 2, 3)
