"""Updates as rows, and what robust means of them share: something is made of the rows.

No client has a weight: the examples are what an attacker says they are. All is computed in float64.
Shapes: C clients, P trained parameters.
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray

from fedsweep.strategies.base import arrays_of, mean_of_states, metrics_of, sort_replies
from fedsweep.strategies.layout import WithLayout, joined
from fedsweep.strategies.told import Noting

Rows = NDArray[np.float64]


def update_rows(models: Sequence[ArrayRecord], start: ArrayRecord, names: Sequence[str]) -> Rows:
    """Return how far the named arrays of models moved from where they began, (C, P)."""
    began = [_flat(start[name]) for name in names]
    rows = [
        np.concatenate(
            [_flat(model[name]) - first for name, first in zip(names, began, strict=True)]
        )
        for model in models
    ]
    return np.array(rows)


def moved(start: ArrayRecord, update_P: Rows, names: Sequence[str]) -> dict[str, Array]:
    """Return the named arrays of a model, moved by an update (P,), in their dtypes."""
    arrays, place = {}, 0
    for name in names:
        shape, size = start[name].shape, prod(start[name].shape)
        values = _flat(start[name]) + update_P[place : place + size]
        arrays[name] = Array(np.asarray(values.reshape(shape), np.dtype(start[name].dtype)))
        place += size
    return arrays


def squared_distances(rows_CP: Rows) -> Rows:
    """Return ||x_i - x_j||^2 between all rows, (C, C)."""
    from scipy.spatial.distance import pdist, squareform  # here: it takes 0.1 s to import

    return np.asarray(squareform(pdist(rows_CP, "sqeuclidean")))


def clipped(rows_CP: Rows, norm: float) -> Rows:
    """Return rows of the same direction that are ``norm`` long at most."""
    lengths_C = np.linalg.norm(rows_CP, axis=1)
    factors_C = np.minimum(1.0, norm / np.maximum(lengths_C, np.finfo(float).tiny))
    return np.asarray(rows_CP * factors_C[:, None])


def _flat(array: Array) -> Rows:
    return array.numpy().astype(np.float64).ravel()


class OfUpdates(WithLayout, Noting):
    """A mean of the clients' updates that withstands attackers.

    An update that is not finite is left out. What of a model is not trained is averaged by
    examples, as under any method: :func:`~fedsweep.strategies.base.mean_of_states`.

    Parameters
    ----------
    **fedavg
        Parameters of Flower's FedAvg.
    """

    accuses = False

    def __init__(self, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.accused: frozenset[int] | None = None  # nodes that were left out in the last round

    def combine(self, rows_CP: Rows) -> tuple[Rows, Sequence[int]]:
        """Return the round's update (P,), and the rows that have no part in it."""
        raise NotImplementedError

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Move the model by what is made of the updates; metrics are of all that replied."""
        valid = sort_replies(self, replies, read_arrays=True)[0]
        if not valid:
            return None, None
        nodes = [reply.metadata.src_node_id for reply in valid]
        models = [arrays_of(reply) for reply in valid]
        layout = self.laid_out(self.sent)
        rows_CP = update_rows(models, self.sent, layout.trained)
        finite = np.flatnonzero(np.isfinite(rows_CP).all(axis=1))
        update_P, left_out = self.combine(rows_CP[finite]) if len(finite) else (None, [])
        if self.accuses:
            counted = {nodes[row] for row in np.delete(finite, np.asarray(left_out, int))}
            self.accused = frozenset(nodes) - counted
        if update_P is None:
            return None, None
        states = [layout.state_of(model) for model in models]
        state = mean_of_states(valid, states, self.weighted_by_key, layout)
        trained = moved(self.sent, update_P, layout.trained)
        return joined(self.sent, state, trained), metrics_of(self, valid)
