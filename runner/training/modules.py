"""A process's one network, as new for each task. Imports torch and NumPy only.

A record holds what is in a module's ``state_dict``. What a module keeps beside it, in buffers that
are not persistent or in plain attributes, would leak from one client into the next, and results
would depend on which client ran where.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fedsweep.training.local import LocalTraining, predict, train

_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has: parameters, buffers, submodules, hooks."""


class AsBuilt:
    """What a network keeps outside its ``state_dict``, as it was when it was built.

    Parameters
    ----------
    model : nn.Module
        A network that nothing has run through yet.

    Raises
    ------
    ValueError
        An attribute can't be copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._known = [*model.modules(), *model.parameters(), *model.buffers()]
        self._kept = [
            (module, _plain(module), _loose_buffers(module)) for module in model.modules()
        ]
        for module, plain, _ in self._kept:
            for name, value in plain.items():
                plain[name] = self._copied(value, f"{type(module).__name__}.{name}")

    def restore(self) -> None:
        """Give the network back what it was built with, but for its ``state_dict``."""
        for module, plain, loose in self._kept:
            own = vars(module)
            for name in own.keys() - plain.keys() - _OF_TORCH:
                del own[name]
            for name, value in plain.items():
                own[name] = value if _is_constant(value) else self._copied(value, name)
            for name, tensor in loose.items():
                module._buffers[name] = None if tensor is None else tensor.clone()

    def _copied(self, value: object, name: str) -> object:
        if _is_constant(value):
            return value
        try:  # what the network itself holds is referred to, not copied
            return deepcopy(value, {id(known): known for known in self._known})
        except Exception as error:  # whatever an attribute of the user's own raises
            raise ValueError(
                f"the network's attribute {name} can't be copied ({type(error).__name__}: "
                f"{error}), so one client would leave it to the next; make it a buffer, "
                "or plain data"
            ) from error


def check_repeats(fresh: Callable[[], nn.Module], x: Tensor, y: Tensor, seed: int) -> None:
    """Train a network twice from the same start, and refuse it where the two differ.

    Parameters
    ----------
    fresh : callable
        Returns the network with the weights and the state that a task begins with.
    x : Tensor
        Some images as the network takes them, (N, C, H, W).
    y : Tensor
        Their labels, int64 (N,).
    seed : int
        Fixes the network's own draws.

    Raises
    ------
    ValueError
        It remembers something between tasks that can't be put back.
    """
    first, second = (_trained(fresh(), x, y, seed) for _ in range(2))
    for name, values in first.items():
        if not torch.equal(values, second[name]):
            raise ValueError(
                f"the network trains differently the second time ('{name}'): "
                "it keeps something outside its state_dict (a global, a class attribute) "
                "that one client would leave to the next; "
                "keep it in a buffer or an attribute of the module"
            )


def _trained(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> dict[str, Tensor]:
    """Return the network's state after two steps, and what it then answers."""
    train(model, x, y, LocalTraining(steps=2, batch_size=0), seed)
    state = {name: values.clone() for name, values in model.state_dict().items()}
    return {**state, "its output": predict(model, x).clone()}


def _plain(module: nn.Module) -> dict[str, object]:
    """Return a module's attributes that torch does not know of."""
    return {name: value for name, value in vars(module).items() if name not in _OF_TORCH}


def _loose_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Return copies of a module's buffers that are not in its ``state_dict``."""
    loose = module._non_persistent_buffers_set
    return {
        name: None if tensor is None else tensor.clone()
        for name, tensor in module._buffers.items()
        if name in loose or tensor is None
    }


def _is_constant(value: object) -> bool:
    """Return whether a value can't change: it needs no copy."""
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    constant = type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device
    return isinstance(value, constant)


def forward_flop(model: nn.Module, x: Tensor) -> float:
    """Return the FLOP of a forward pass over examples (n, ...), as PyTorch counts them.

    Products alone are counted, each multiplication with an addition as 2. Recurrent layers, which
    are one operation that PyTorch does not count, are counted here: a product per step and matrix.
    """
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten
    of_recurrent = {aten.mkldnn_rnn_layer: _recurrent_flop, aten._cudnn_rnn: _recurrent_flop}
    counter = FlopCounterMode(display=False, custom_mapping=of_recurrent)
    with counter:
        predict(model, x)
    return float(counter.get_total_flops())


def _recurrent_flop(x: Sequence[int], *rest: Any, out_shape: Any = None, **more: Any) -> int:
    """Return the FLOP of a recurrent layer, or of several, from the shapes that it is given.

    ``x`` is (steps, n, features); matrices come one by one on a CPU and as a list on a GPU.
    """
    del out_shape, more
    weights = rest[0] if isinstance(rest[0], list) else rest[:2]
    matrices = [shape for shape in weights if shape is not None and len(shape) == 2]
    products: int = sum(prod(shape) for shape in matrices)
    return 2 * x[0] * x[1] * products
