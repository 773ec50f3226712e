"""Convolutions for many clients at once, as products over copied patches.

Images have their examples **last**, (C, channels, height, width, b): all positions of a convolution
form one wide product per client, and its patches are copied in long runs. Around ``winograd`` their
channels lie last in memory.
"""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsweep.training.layers import Buffer, Draws, UnsupportedError, Weights, add_bias_gradient

WIDE = 1024
"""Channels in times channels out from which copying a convolution's patches, on a CPU, costs more
than calling the library for each client. 32 to 64 channels: 1.5 to 1.8 times; 6 to 16 (LeNet): half
as much.
"""


class Convolution:
    """What a convolution maps, however it does it; shapes as :class:`Layer` has them."""

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


class ConvLayer(Convolution):
    """One product over all positions and examples per client.

    ``channels_last`` says how its images lie in memory; what it returns is the same.
    """

    channels_last = False

    def __init__(self, module: nn.Conv2d, features: tuple[int, ...]) -> None:
        super().__init__(module, features)
        self._patches, self._d_patches = Buffer(), Buffer()
        self._d_x, self._out = Buffer(), Buffer()

    def forward(
        self, w: Weights, x: Tensor, draws: Draws | None
    ) -> tuple[Tensor, tuple[Tensor, torch.Size]]:
        """Map images."""
        (ph, pw), (kh, kw), (sh, sw) = self.p, self.k, self.s
        if ph or pw:
            x = F.pad(x, (0, 0, pw, pw, ph, ph))
        patches = x.unfold(2, kh, sh).unfold(3, kw, sw).permute(0, 1, 5, 6, 2, 3, 4)
        columns = (
            self._patches.get(patches.shape, x)
            .copy_(patches)
            .view(len(x), prod(self.shapes[0][1:]), -1)
        )
        left, right = w.values[0].flatten(2), columns
        if self.channels_last:
            left, right = right.transpose(1, 2), left.transpose(1, 2)
        out = self._out.get((len(x), left.shape[1], right.shape[2]), x)
        if len(w.values) == 2:
            torch.baddbmm(
                w.values[1].unsqueeze(1 if self.channels_last else 2), left, right, out=out
            )
        else:
            torch.bmm(left, right, out=out)
        if self.channels_last:
            out = out.transpose(1, 2)
        return out.view(len(x), -1, *self.out[1:], x.shape[-1]), (columns, x.shape)

    def backward(
        self, w: Weights, kept: tuple[Tensor, torch.Size], g: Tensor, beta: float, needs_input: bool
    ) -> Tensor | None:
        """See :class:`fedsweep.training.layers.Layer`."""
        columns, shape = kept
        g = g.reshape(len(g), self.out[0], -1)
        d_x = self._input_gradient(w, g, columns.shape, shape) if needs_input else None
        w.grads[0].flatten(2).baddbmm_(g, columns.transpose(1, 2), beta=beta)
        add_bias_gradient(w, g.sum(2), beta)
        return d_x

    def _input_gradient(
        self, w: Weights, g: Tensor, columns: torch.Size, shape: torch.Size
    ) -> Tensor:
        """Return the input's gradient from g (C, out, positions), columns' and input's shapes."""
        (ph, pw), (kh, kw), (sh, sw), (_, height, width) = self.p, self.k, self.s, self.out
        d_columns = self._d_patches.get(columns, g)
        torch.bmm(w.values[0].flatten(2).transpose(1, 2), g, out=d_columns)
        d_columns = d_columns.view(len(g), shape[1], kh, kw, height, width, -1)
        d_x = self._d_x.get(shape, g).zero_()
        for i in range(kh):
            for j in range(kw):
                d_x[:, :, i : i + sh * height : sh, j : j + sw * width : sw] += d_columns[
                    :, :, i, j
                ]
        return d_x[:, :, ph : shape[2] - ph, pw : shape[3] - pw]


class ImagesLayer:
    """What turns the rows of a data set into images."""

    shapes = ()

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.out, self.width = shape, prod(shape)

    def forward(self, w: Weights, x: Tensor, draws: Draws | None) -> tuple[Tensor, None]:
        """Map rows (C, b, pixels)."""
        return x.transpose(1, 2).reshape(len(x), *self.out, x.shape[1]), None

    def backward(
        self, w: Weights, kept: None, g: Tensor, beta: float, needs_input: bool
    ) -> Tensor | None:
        """See :class:`fedsweep.training.layers.Layer`."""
        return g.flatten(1, -2).transpose(1, 2)


class FlattenLayer:
    """Images as vectors (C, b, F)."""

    shapes = ()

    def __init__(self, module: nn.Flatten, features: tuple[int, ...]) -> None:
        if (module.start_dim, module.end_dim) != (1, -1):
            raise UnsupportedError("Flatten of some dimensions only")
        self.out, self.width, self._d_x = (prod(features),), prod(features), Buffer()

    def forward(self, w: Weights, x: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor]:
        """Map images."""
        return x.flatten(1, -2).transpose(1, 2).clone(memory_format=torch.contiguous_format), x

    def backward(
        self, w: Weights, kept: Tensor, g: Tensor, beta: float, needs_input: bool
    ) -> Tensor | None:
        """See :class:`fedsweep.training.layers.Layer`."""
        return self._d_x.get_like(kept).copy_(g.transpose(1, 2).reshape(kept.shape))
