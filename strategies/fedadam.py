"""Flower's FedAdam, whose model keeps its dtype.

Reddi et al. 2021, "Adaptive Federated Optimization" (arXiv:2003.00295), algorithm 2. Flower's step
is a float64 scalar, which makes every array float64 from round 1 on: twice the bytes are sent.
"""

from collections.abc import Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp import strategy as flower

from fedsweep.strategies.optimizers import MomentsSettings


class FedAdam(flower.FedAdam):
    """Flower's FedAdam with arrays of the dtype that was sent."""

    settings = MomentsSettings
    colour = "#56B4E9"
    partial_means = True
    private_mean = True
    any_version = True

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Do as Flower's does, and give each array its dtype back."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is not None and self.current_arrays is not None:
            sent = self.current_arrays
            kept = {key: np.asarray(a.numpy(), sent[key].dtype) for key, a in arrays.items()}
            arrays = ArrayRecord({key: Array(value) for key, value in kept.items()})
        return arrays, metrics
