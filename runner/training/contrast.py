"""A loss on what a network hands to its last layer, beside that of its examples' labels.

Imports torch only.
"""

from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


class Contrasting:
    """Draws a network's representations to one model's, and pushes them from another's.

    Within ``with`` a call returns the loss of a batch that the network has just seen: the mean of
    -log(e^(s_1 / t) / (e^(s_1 / t) + e^(s_2 / t))), where s_1 and s_2 are the cosines of its
    representations with the two models' (Li, He and Song 2021, arXiv:2103.16257, equation 3).

    Parameters
    ----------
    network : nn.Module
        The network in training.
    layer : str
        Name of its last layer: what goes in there is a representation.
    like, unlike : mappings
        The two models by name of their arrays, as the ``state_dict`` has them. They are asked as in
        evaluation: by their running statistics, without dropout.
    weight, temperature : float
        Of the loss, and t.
    """

    def __init__(
        self,
        network: nn.Module,
        layer: str,
        like: Mapping[str, Tensor],
        unlike: Mapping[str, Tensor],
        weight: float,
        temperature: float,
    ) -> None:
        self._network, self._layer = network, network.get_submodule(layer)
        self._models = (dict(like), dict(unlike))
        self._weight, self._temperature = weight, temperature
        self._seen = torch.empty(0)

    def __enter__(self) -> "Contrasting":
        self._hook = self._layer.register_forward_pre_hook(self._take)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hook.remove()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the loss, times its weight, of a batch (b, ...) that was just seen.

        Raises
        ------
        ValueError
            Nothing below the last layer is trained: the loss would change nothing.
        """
        seen = self._seen
        if self._weight and not seen.requires_grad:
            raise ValueError(
                "a loss on representations needs trained layers below the last one, and the "
                "network has none; take another model"
            )
        cosines = [F.cosine_similarity(seen, other) for other in self._others(x)]
        logits = torch.stack(cosines, dim=1) / self._temperature
        return self._weight * F.cross_entropy(logits, logits.new_zeros(len(x), dtype=torch.long))

    def _others(self, x: Tensor) -> list[Tensor]:
        self._network.eval()
        others = []
        with torch.no_grad():
            for model in self._models:
                functional_call(self._network, model, (x,))
                others.append(self._seen)
        self._network.train()
        return others

    def _take(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen = inputs[0].flatten(1)
