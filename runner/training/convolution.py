"""Convolutions for many clients at once, as products over copied patches.

Images have their examples **last**, (C, channels, height, width, b): all positions of a convolution
form one wide product per client, and its patches are copied in long runs. Around ``winograd`` their
channels lie last in memory.
"""

from math import ceil, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsweep.training.layers import (
    Buffer,
    Draws,
    UnsupportedError,
    Weights,
    add_bias_gradient,
    add_gradient,
    as_blocks,
    of_blocks,
)

WIDE = 1024
"""Channels in times channels out from which copying a convolution's patches, on a CPU, costs more
than calling the library for each client. 32 to 64 channels: 1.5 to 1.8 times; 6 to 16 (LeNet): half
as much.
"""

NEAR_PATCHES = 2**20
"""Floats of the patches that are copied, and used, at a time on a CPU: 4 MiB."""

NARROW = 8
"""Channels out up to which a product has too few rows: it then gives 2x2 outputs at once."""


class ConvLayer:
    """Products over patches: of all positions and examples, or of some rows of a client's images.

    Patches are kept for the backward pass where they are few, else copied again: what has left the
    cache costs more. A convolution to few channels gives 2x2 outputs a patch, by kernels that are
    shifted in frames of zeros: more arithmetic, in products that are twice as fast, over a third of
    the copies. A pooling layer takes such outputs as they are. Both are for CPUs.
    """

    on_cpu = True

    channels_last = False
    """How its images lie in memory; what it returns is the same."""

    blocks = False
    """Whether what comes next takes 2x2 outputs (C, channels, 2, 2, height / 2, width / 2, b)."""

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
        self._images = max(prod(features), prod(self.out))
        self._patches, self._d_patches = Buffer(), Buffer()
        self._d_x, self._out, self._framed, self._d_framed = (Buffer() for _ in range(4))

    @property
    def width(self) -> int:
        """Floats of its largest tensor, per example: all patches on a GPU, else images."""
        outer, height, width = self.out
        patches = height * width * max(prod(self.shapes[0][1:]), outer)
        return self._images if self.on_cpu else patches

    @property
    def in_blocks(self) -> bool:
        """Whether it gives 2x2 outputs at once."""
        outer, height, width = self.out
        few = outer <= NARROW and self.on_cpu and not self.channels_last
        return few and self.s == (1, 1) and height % 2 == width % 2 == 0

    @property
    def _t(self) -> int:
        return 2 if self.in_blocks else 1

    @property
    def _frame(self) -> tuple[int, int]:
        """Rows and columns of a patch."""
        return self.k[0] + self._t - 1, self.k[1] + self._t - 1

    def forward(
        self, w: Weights, x: Tensor, draws: Draws | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
        """Map images."""
        (ph, pw), (_, height, width), t = self.p, self.out, self._t
        if ph or pw:
            x = F.pad(x, (0, 0, pw, pw, ph, ph))
        clients, outer, across = len(x), w.values[0].shape[1], width // t * x.shape[-1]
        matrices = self._matrices(w.values[0])
        shape = [clients, matrices.shape[1], height // t * across]
        if self.channels_last:
            shape[1:] = reversed(shape[1:])
        out = self._out.get(shape, x)
        out = out.transpose(1, 2) if self.channels_last else out
        pieces = self._pieces(x)
        columns = x
        for some, rows in pieces:
            columns = self._columns(x, some, rows)
            part = out[some, :, rows.start * across : rows.stop * across]
            if self.channels_last:
                torch.bmm(columns.mT, matrices[some].mT, out=part.mT)
            else:
                torch.bmm(matrices[some], columns, out=part)
        if len(w.values) == 2:
            out.view(clients, outer, -1).add_(w.values[1].unsqueeze(2))
        kept = x, columns if len(pieces) == 1 else None
        if t == 1:
            return out.view(clients, outer, height, width, -1), kept
        whole = out.view(clients, outer, t, t, height // t, width // t, -1)
        return (whole if self.blocks else of_blocks(whole)), kept

    def backward(
        self,
        w: Weights,
        kept: tuple[Tensor, Tensor | None],
        g: Tensor,
        beta: float,
        needs_input: bool,
    ) -> Tensor | None:
        """See :class:`fedsweep.training.layers.Layer`."""
        (x, all_columns), t = kept, self._t
        g = as_blocks(g) if t > 1 and not self.blocks else g
        add_bias_gradient(w, g.flatten(2).sum(2), beta)
        g = g.reshape(len(x), self.out[0] * t * t, -1)
        d_x = self._d_x.get(x.shape, g).zero_() if needs_input else None
        matrices = self._matrices(w.values[0])
        grads = w.grads[0].flatten(2)
        if t > 1:
            grads = self._d_framed.get(matrices.shape, g)
        across = self.out[2] // t * x.shape[-1]
        pieces = [
            (some, rows, g[some, :, rows.start * across : rows.stop * across])
            for some, rows in self._pieces(x)
        ]
        # Of all pieces before any gradient is written: that may be the weights themselves.
        if d_x is not None:
            for some, rows, own in pieces:
                self._add_input_gradient(d_x[some], matrices[some], own, rows)
        for some, rows, own in pieces:
            columns = self._columns(x, some, rows) if all_columns is None else all_columns
            before = 1.0 if rows.start else beta if t == 1 else 0.0
            grads[some].baddbmm_(own, columns.mT, beta=before)
        if t > 1:
            add_gradient(w.grads[0], self._of_frames(grads), beta)
        (ph, pw), (height, width) = self.p, x.shape[2:4]
        return None if d_x is None else d_x[:, :, ph : height - ph, pw : width - pw]

    def _pieces(self, x: Tensor) -> list[tuple[slice, slice]]:
        """Return clients, and rows of their (blocks of) outputs, whose patches are taken at once;
        all on a GPU.
        """
        clients, height, width = len(x), self.out[1] // self._t, self.out[2] // self._t
        if not self.on_cpu:
            return [(slice(0, clients), slice(0, height))]
        row = x.shape[1] * prod(self._frame) * width * x.shape[-1]
        together = max(1, NEAR_PATCHES // (row * height))
        parts = ceil(height / max(1, min(height, NEAR_PATCHES // row)))
        rows = ceil(height / parts)
        return [
            (slice(c, min(c + together, clients)), slice(r, min(r + rows, height)))
            for c in range(0, clients, together)
            for r in range(0, height, rows)
        ]

    def _columns(self, x: Tensor, clients: slice, rows: slice) -> Tensor:
        """Return the patches of some clients' rows of outputs, (c, inputs of one, positions)."""
        (kh, kw), (sh, sw) = self._frame, (self._t * self.s[0], self._t * self.s[1])
        some = x[clients, :, sh * rows.start : sh * (rows.stop - 1) + kh]
        patches = some.unfold(2, kh, sh).unfold(3, kw, sw).permute(0, 1, 5, 6, 2, 3, 4)
        columns = self._patches.get(patches.shape, x).copy_(patches)
        return columns.view(len(some), x.shape[1] * kh * kw, -1)

    def _add_input_gradient(self, d_x: Tensor, matrices: Tensor, g: Tensor, rows: slice) -> None:
        """Add to the input's gradient (c, channels, height, width, b) that of rows of outputs."""
        (kh, kw), (sh, sw) = self._frame, (self._t * self.s[0], self._t * self.s[1])
        d_columns = self._d_patches.get((len(g), matrices.shape[2], g.shape[2]), g)
        torch.bmm(matrices.mT, g, out=d_columns)
        across = self.out[2] // self._t
        d_patches = d_columns.view(
            len(g), -1, kh, kw, rows.stop - rows.start, across, d_x.shape[-1]
        )
        for i in range(kh):
            lines = d_x[:, :, sh * rows.start + i : sh * (rows.stop - 1) + i + 1 : sh]
            for j in range(kw):
                lines[:, :, :, j : j + sw * across : sw] += d_patches[:, :, i, j]

    def _matrices(self, kernels: Tensor) -> Tensor:
        """Return what turns patches into outputs, (C, outputs, inputs), of kernels (C, ...)."""
        if self._t == 1:
            return kernels.flatten(2)
        clients, outer, inner = kernels.shape[:3]
        framed = self._framed.get((clients, outer, self._t**2, inner, *self._frame), kernels)
        framed.zero_()
        for a, b, (rows, columns) in self._shifts():
            framed[:, :, self._t * a + b, :, rows, columns] = kernels
        return framed.flatten(3).flatten(1, 2)

    def _of_frames(self, d_matrices: Tensor) -> Tensor:
        """Return the kernels' gradient of the matrices' one."""
        (outer, inner, *_), clients = self.shapes[0], len(d_matrices)
        framed = d_matrices.view(clients, outer, self._t**2, inner, *self._frame)
        parts = [
            framed[:, :, self._t * a + b, :, rows, columns]
            for a, b, (rows, columns) in self._shifts()
        ]
        return torch.stack(parts).sum(0)

    def _shifts(self) -> list[tuple[int, int, tuple[slice, slice]]]:
        """Return where in its frame the kernel of each output of a block lies."""
        (kh, kw), t = self.k, range(self._t)
        return [(a, b, (slice(a, a + kh), slice(b, b + kw))) for a in t for b in t]


class ImagesLayer:
    """What turns the rows of a data set into images."""

    shapes = ()

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.out, self.width, self._images = shape, prod(shape), Buffer()

    def forward(self, w: Weights, x: Tensor, draws: Draws | None) -> tuple[Tensor, None]:
        """Map rows (C, b, pixels)."""
        # Turned here: 25 patches of a pixel would each be gathered from where rows have it.
        turned = x.transpose(1, 2)
        images = self._images.get(turned.shape, x).copy_(turned)
        return images.view(len(x), *self.out, x.shape[1]), None

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
