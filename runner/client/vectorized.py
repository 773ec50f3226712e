"""All clients of a chunk trained in one batched program. Imports torch and NumPy only.

:func:`train_many` gives every client what :func:`runner.client.training.train` gives it, up to rounding: the same
batches in the same order, each client with weights and optimizer state of its own. Vectors are (clients C, examples b,
features F): a linear layer is one batched matrix product. Images have their examples **last**, (C, channels, height,
width, b): all positions of a convolution form one wide product per client, and its patches are copied in long runs.

The program is written out layer by layer, without autograd, since most of a small step is bookkeeping: a gradient is
added by the product that makes it straight into the momentum buffer, and all parameters lie in one (C, P) tensor, so
that an optimizer step is two or three operations whatever the depth. ``docs/performance-training.md`` has the measurements.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.client.training import LocalTraining, passes

CACHE_FLOATS = 2**20
"""Floats that the widest layer of a block may have on a CPU: what stays in the cache is several times faster."""

DEVICE_FLOATS = 2**28
"""The same on a GPU: a GiB."""

WEIGHT_FLOATS = 2**21
"""Floats of the weights of a block on a CPU."""

MAX_BLOCK = 64
"""Clients in a block at most on a CPU: by then the cost of calling an operation is nothing."""


class UnsupportedError(ValueError):
    """A model or a setting that has no batched program; the message says what and why."""


@dataclass(frozen=True)
class Weights:
    """Views of one layer's values in the flat parameters, and of its gradients in the flat gradient."""

    values: tuple[Tensor, ...]  # each (C, *shape)
    grads: tuple[Tensor, ...]


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
        self.shapes = ((module.out_features, module.in_features),)
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
        self.shapes = (tuple(module.weight.shape),)
        if module.bias is not None:
            self.shapes += ((module.out_channels,),)
        self.k, self.s, self.p = module.kernel_size, module.stride, module.padding
        height, width = ((n + 2 * p - k) // s + 1 for n, p, k, s in zip(features[1:], self.p, self.k, self.s, strict=True))
        self.out = (module.out_channels, height, width)
        self.width = height * width * max(prod(module.weight.shape[1:]), module.out_channels)

    def forward(self, w: Weights, x: Tensor) -> tuple[Tensor, Any]:
        (ph, pw), (kh, kw), (sh, sw) = self.p, self.k, self.s
        if ph or pw:
            x = F.pad(x, (0, 0, pw, pw, ph, ph))
        patches = x.unfold(2, kh, sh).unfold(3, kw, sw).permute(0, 1, 5, 6, 2, 3, 4)
        columns = patches.reshape(len(x), prod(self.shapes[0][1:]), -1)
        matrix = w.values[0].flatten(2)
        out = (
            torch.baddbmm(w.values[1].unsqueeze(2), matrix, columns)
            if len(w.values) == 2
            else torch.bmm(matrix, columns)
        )
        return out.view(len(x), *self.out, x.shape[-1]), (columns, x.shape)

    def backward(self, w: Weights, kept: Any, g: Tensor, beta: float, needs_input: bool) -> Tensor | None:
        columns, shape = kept
        g = g.reshape(len(g), self.out[0], -1)
        _add_gradients(w, w.grads[0].flatten(2), g, columns.transpose(1, 2), beta)
        if not needs_input:
            return None
        (ph, pw), (kh, kw), (sh, sw), (_, height, width) = self.p, self.k, self.s, self.out
        d_columns = torch.bmm(w.values[0].flatten(2).transpose(1, 2), g)
        d_columns = d_columns.view(len(g), shape[1], kh, kw, height, width, -1)
        d_x = g.new_zeros(shape)
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
        return torch.maximum(top, bottom), (x.shape, right > left, bottom > top)

    def backward(self, w: Weights, kept: Any, g: Tensor, beta: float, needs_input: bool) -> Tensor | None:
        shape, is_right, is_bottom = kept
        _, height, width = self.out
        d_rows = g.new_empty(is_right.shape)
        torch.mul(g, is_bottom, out=d_rows[:, :, 1::2])
        torch.sub(g, d_rows[:, :, 1::2], out=d_rows[:, :, 0::2])
        exact = shape[2:4] == (2 * height, 2 * width)
        d_x = g.new_empty(shape) if exact else g.new_zeros(shape)
        left, right = d_x[:, :, : 2 * height, 0 : 2 * width : 2], d_x[:, :, : 2 * height, 1 : 2 * width : 2]
        torch.mul(d_rows, is_right, out=right)
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
        return torch.ops.aten.threshold_backward(g, kept, 0)


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
        w.grads[1].mul_(beta).add_(g.sum(2))


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
        if list(self.shapes.values()) != [shape for layer in self.layers for shape in layer.shapes]:
            raise UnsupportedError("layers that share parameters")
        self.num_params = sum(prod(shape) for shape in self.shapes.values())
        self.width = max(layer.width for layer in self.layers)

    @cached_property
    def _first(self) -> int:
        """Index of the first layer with parameters: no gradient is needed below it."""
        return next((i for i, layer in enumerate(self.layers) if layer.shapes), len(self.layers))

    def views(self, values: Tensor, grads: Tensor) -> list[Weights]:
        """Return each layer's views of flat values and gradients, both (C, P)."""
        per_layer, start = [], 0
        for layer in self.layers:
            cuts = []
            for shape in layer.shapes:
                cuts.append((start, start + prod(shape), shape))
                start = cuts[-1][1]
            per_layer.append(Weights(*(tuple(t[:, a:b].view(-1, *s) for a, b, s in cuts) for t in (values, grads))))
        return per_layer

    def forward(self, weights: list[Weights], x: Tensor, keep: bool = True) -> tuple[Tensor, list[Any]]:
        """Return logits (C, b, classes) of rows (C, b, pixels), and what :meth:`backward` needs."""
        kept = []
        for layer, w in zip(self.layers, weights, strict=True):
            x, saved = layer.forward(w, x)
            kept.append(saved if keep else None)
        return x, kept

    def backward(self, weights: list[Weights], kept: list[Any], g: Tensor | None, beta: float) -> None:
        """Set every layer's gradient to beta times itself plus that of logits' gradient g (C, b, classes)."""
        for i in reversed(range(self._first, len(self.layers))):
            g = self.layers[i].backward(weights[i], kept[i], g, beta, i > self._first)

    def block(self, batch: int, device: torch.device) -> tuple[int, int]:
        """Return how many clients go together, and how many examples of a batch."""
        cpu = device.type == "cpu"
        columns = max(1, (CACHE_FLOATS if cpu else DEVICE_FLOATS) // self.width)
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


@dataclass(frozen=True)
class _Schedule:
    """Which rows each client of a block takes in each step: (steps, C, batch); a weight of 0 fills up a short batch."""

    rows: Tensor
    weights: Tensor  # 1 / (examples in the batch)
    longest: list[int]  # examples in the longest batch of each step
    active: list[int]  # clients that still train in each step: always the first ones

    @classmethod
    def make(cls, orders: list[list[np.ndarray]], offsets: list[int], batch: int, like: Tensor) -> "_Schedule":
        counts = [sum(-(-len(order) // batch) for order in own) for own in orders]
        rows = np.zeros((counts[0], len(orders), batch), np.int64)
        sizes = np.zeros((counts[0], len(orders)), np.int64)
        for c, own in enumerate(orders):
            rows[:, c] = offsets[c]
            step = 0
            for order in own:
                full, rest = divmod(len(order), batch)
                rows[step : step + full, c] = order[: full * batch].reshape(full, batch) + offsets[c]
                sizes[step : step + full, c] = batch
                step += full
                if rest:
                    rows[step, c, :rest] = order[full * batch :] + offsets[c]
                    sizes[step, c] = rest
                    step += 1
        filled = np.arange(batch) < sizes[:, :, None]
        weights = filled / np.maximum(sizes, 1)[:, :, None]
        return cls(
            torch.from_numpy(rows).to(like.device),
            torch.from_numpy(weights).to(like),
            sizes.max(1).tolist(),
            (sizes > 0).sum(1).tolist(),
        )


def train_many(
    program: Program,
    start: Tensor,
    x: Tensor,
    y: Tensor,
    sizes: Sequence[int],
    hp: LocalTraining,
    seeds: Sequence[int],
    correction: Tensor | None = None,
) -> tuple[list[Tensor], list[dict[str, float]]]:
    """Train every client of a chunk.

    Parameters
    ----------
    program : Program
        The network.
    start : Tensor
        Weights of the round's start, (P,) for all clients or (C, P).
    x, y : Tensor
        All clients' examples, one client after the other: (sum of sizes, C, H, W) and int64 (sum of sizes,).
    sizes : sequence of int
        Examples of each client.
    hp : LocalTraining
        Hyperparameters.
    seeds : sequence of int
        One per client, as ``train`` takes it.
    correction : Tensor, optional
        (C, P), added to each step's gradient: SCAFFOLD's c - c_i.

    Returns
    -------
    list of Tensor
        Each client's weights (P,). Clipping a client's update is an operation on them minus ``start``.
    list of dict
        What ``train`` returns, per client.
    """
    batch = max(min(hp.batch_size or size, size) for size in sizes)
    order = [[p.numpy() for p in passes(size, hp, seed)] for size, seed in zip(sizes, seeds, strict=True)]
    steps = [sum(-(-len(p) // min(hp.batch_size or n, n)) for p in own) for own, n in zip(order, sizes, strict=True)]
    offsets = np.cumsum([0, *sizes[:-1]]).tolist()
    by_steps = sorted(range(len(sizes)), key=lambda c: (-steps[c], -sizes[c], c))
    clients, columns = program.block(batch, x.device)
    x = x.flatten(1)
    out = start.expand(len(sizes), -1).contiguous() if start.ndim == 1 else start[by_steps]
    results: list[dict[str, float]] = [{}] * len(sizes)
    for i in range(0, len(sizes), clients):
        own = by_steps[i : i + clients]
        in_block = max(min(hp.batch_size or sizes[c], sizes[c]) for c in own)
        schedule = _Schedule.make([order[c] for c in own], [offsets[c] for c in own], in_block, start)
        loss_sum, correct = _train_block(
            program, out[i : i + clients], x, y, schedule, columns, hp, None if correction is None else correction[own]
        )
        for c, loss, hits in zip(own, loss_sum, correct, strict=True):
            seen = sum(len(p) for p in order[c])
            results[c] = {"loss": loss / seen, "accuracy": hits / seen, "steps": steps[c]}
    rows = {c: row for row, c in enumerate(by_steps)}
    return [out[rows[c]] for c in range(len(sizes))], results


def _train_block(
    program: Program,
    values: Tensor,
    x: Tensor,
    y: Tensor,
    schedule: _Schedule,
    columns: int,
    hp: LocalTraining,
    correction: Tensor | None,
) -> tuple[list[float], list[int]]:
    """Train the clients of a block, (C, P) in place; return each one's summed loss and hits."""
    grads = torch.zeros_like(values)
    start = values.clone() if hp.proximal_mu else None
    moments = (torch.zeros_like(values), torch.zeros_like(values)) if hp.optimizer == "adam" else None
    momentum = 0.0 if moments else hp.momentum
    loss_sum = values.new_zeros(len(values), dtype=torch.float64)
    correct = torch.zeros(len(values), dtype=torch.int64, device=values.device)
    minus_one = values.new_full((1, 1, 1), -1.0)
    weights, last = program.views(values, grads), len(values)
    for step, (active, longest) in enumerate(zip(schedule.active, schedule.longest, strict=True)):
        if active < last:
            weights, last = program.views(values[:active], grads[:active]), active
        w, g = values[:active], grads[:active]
        beta = momentum if step else 0.0
        if hp.weight_decay or start is not None or correction is not None:
            # g = momentum g + weight_decay w + mu (w - w_0) + correction; the batch's own gradient is added to it.
            g.mul_(beta).add_(w, alpha=hp.weight_decay + hp.proximal_mu)
            if start is not None:
                g.sub_(start[:active], alpha=hp.proximal_mu)
            if correction is not None:
                g.add_(correction[:active])
            beta = 1.0
        for begin in range(0, longest, columns):
            part = slice(begin, min(begin + columns, longest))
            rows, weight = schedule.rows[step, :active, part], schedule.weights[step, :active, part]
            x_b = x.index_select(0, rows.flatten()).view(active, rows.shape[1], -1)
            y_b = y.take(rows).unsqueeze(2)
            logits, kept = program.forward(weights, x_b)
            log_p = logits.log_softmax(2)
            used = weight > 0
            loss_sum[:active] -= (log_p.gather(2, y_b).squeeze(2).double() * used).sum(1)
            correct[:active] += ((logits.argmax(2) == y_b.squeeze(2)) & used).sum(1)
            d_logits = log_p.exp_().scatter_add_(2, y_b, minus_one.expand(y_b.shape))
            program.backward(weights, kept, d_logits.mul_(weight.unsqueeze(2)), beta)
            beta = 1.0
        if moments:
            _adam(w, g, moments[0][:active], moments[1][:active], hp.lr, step + 1)
        else:
            w.add_(g, alpha=-hp.lr)
    return loss_sum.tolist(), correct.tolist()


def _adam(w: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: float, step: int) -> None:
    """Take torch.optim.Adam's step, with its default betas and eps."""
    m.lerp_(g, 0.1)
    v.mul_(0.999).addcmul_(g, g, value=0.001)
    denominator = v.sqrt().div_((1 - 0.999**step) ** 0.5).add_(1e-8)
    w.addcdiv_(m, denominator, value=-lr / (1 - 0.9**step))


@torch.inference_mode()
def predict_many(program: Program, values: Tensor, x: Tensor, columns: int | None = None) -> Tensor:
    """Return the logits (C, N, classes) of every model on the same images: values (C, P), x (N, channels, H, W)."""
    weights = program.views(values, values)
    columns = columns or max(1, program.block(len(x), x.device)[1])
    parts = []
    for x_b in x.split(columns):
        logits, _ = program.forward(weights, x_b.flatten(1).expand(len(values), len(x_b), -1), keep=False)
        parts.append(logits)
    return torch.cat(parts, 1)
