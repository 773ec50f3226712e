"""FLTrust: updates are trusted as far as they point where the server's own does.

Cao, Fang, Liu and Gong 2021, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping"
(NDSS, arXiv:2012.13995), algorithm 2. Deviations: docs/strategies/robust.md.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from pydantic import Field

from fedsweep.strategies.base import ask
from fedsweep.strategies.ranges import EXAMPLES
from fedsweep.strategies.settings import FedAvgSettings
from fedsweep.strategies.updates import OfUpdates, Rows, update_rows

QUERY = "query.root"
"""Asks for the model that training on examples of the server's own gives."""


class FLTrustSettings(FedAvgSettings):
    """What the server has."""

    root_examples: int = Field(
        100, ge=1, le=EXAMPLES, description="examples of the server's own, drawn from the data set"
    )


class FLTrust(OfUpdates):
    """Updates of the server's length, weighted by ReLU of their cosine to it.

    The server trains as the clients do, on a few clean examples, in each round. A server without a
    GPU or torch has it done: any host can.

    Parameters
    ----------
    root_examples : int
        How many examples it has.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = FLTrustSettings
    colour = "#DDCC77"
    accuses = True

    def __init__(self, *, root_examples: int = 100, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.root_examples = root_examples
        self._trusted_P: Rows = np.empty(0)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask clients as FedAvg does, and have the server's own examples trained on.

        Raises
        ------
        RuntimeError
            Nobody can.
        """
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if messages:
            more = {"server-round": server_round, "root": self.root_examples}
            told = ConfigRecord({**config, **more})
            content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: told})
            node = min(grid.get_node_ids())
            [answer] = ask(grid, QUERY, {node: content}, needed_by="fltrust").values()
            [model] = answer.array_records.values()
            names = self.laid_out(arrays).trained
            self._trusted_P = update_rows([model], arrays, names)[0]
        return messages

    def combine(self, rows_CP: Rows) -> tuple[Rows, list[int]]:
        """Return the weighted mean, and the rows that are not trusted at all."""
        trust_C = trust(rows_CP, self._trusted_P)
        left_out = [int(row) for row in np.flatnonzero(trust_C == 0)]
        if not trust_C.any():
            return np.zeros(rows_CP.shape[1]), left_out
        lengths_C = np.linalg.norm(rows_CP, axis=1)
        scale_C = trust_C * np.linalg.norm(self._trusted_P) / np.where(lengths_C > 0, lengths_C, 1)
        return scale_C @ rows_CP / trust_C.sum(), left_out


def trust(rows_CP: Rows, trusted_P: Rows) -> Rows:
    """Return ReLU of each row's cosine to the server's update, (C,); 0 of what has no length."""
    lengths_C = np.linalg.norm(rows_CP, axis=1) * np.linalg.norm(trusted_P)
    cosines_C = rows_CP @ trusted_P / np.where(lengths_C > 0, lengths_C, 1)
    return np.asarray(np.maximum(cosines_C, 0.0))
