"""Training by a method's own steps: what its results are, and who takes a step."""

import numpy as np
from numpy.typing import NDArray

from fedsweep.strategies.arrays import ModelRows
from fedsweep.strategies.clients import Batch, Gradient


class Seen:
    """Losses and hits of C clients on the batches that they have seen.

    Parameters
    ----------
    clients : int
        C.
    """

    def __init__(self, clients: int) -> None:
        self._examples, self._losses, self._hits = np.zeros((3, clients))
        self._steps = np.zeros(clients, np.int64)

    def add(self, batch: Batch, found: Gradient) -> None:
        """Count what the models made of a batch."""
        self._examples += batch.sizes
        self._steps += batch.sizes > 0
        self._losses += batch.sizes * found.losses
        self._hits += found.hits

    @property
    def losses(self) -> NDArray[np.float64]:
        """The mean loss of each client's examples, (C,)."""
        return np.asarray(self._losses / self._examples)

    def results(self) -> list[dict[str, float]]:
        """Return what an :class:`~fedsweep.strategies.clients.Update` says of the training."""
        return [
            {"loss": float(loss), "accuracy": float(hits / n), "steps": int(steps)}
            for loss, hits, n, steps in zip(
                self.losses, self._hits, self._examples, self._steps, strict=True
            )
        ]


def stepped(rows_CP: ModelRows, step_CP: NDArray[np.floating], batch: Batch) -> ModelRows:
    """Return rows - step in their own type; a client that sits out stays where it is."""
    moved = (rows_CP - step_CP).astype(rows_CP.dtype)
    return np.where((batch.sizes > 0)[:, None], moved, rows_CP)
