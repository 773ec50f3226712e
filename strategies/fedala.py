"""FedALA: a client mixes the global model into its own, element by element, by learnt weights.

Zhang, Hua, Wang, Song, Xue, Ma and Guan 2023, "FedALA: Adaptive Local Aggregation for Personalized
Federated Learning" (arXiv:2212.01197), algorithm 1. Deviations: docs/strategies/fedala.md.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsweep.strategies.arrays import ModelRows
from fedsweep.strategies.clients import (
    Batch,
    ClientPart,
    Effort,
    Update,
    Values,
    Work,
    training_effort,
)
from fedsweep.strategies.layout import of_last_layers
from fedsweep.strategies.models import Models
from fedsweep.strategies.ranges import SHARE
from fedsweep.strategies.settings import FedAvgSettings
from fedsweep.strategies.told import Told


class FedALASettings(FedAvgSettings):
    """FedAvg's, and how the weights of the mixture are learnt."""

    ala_layers: int = Field(
        1, ge=1, le=10**4, description="modules at the end of the model that are mixed"
    )
    ala_share: float = Field(
        0.8, ge=SHARE, le=1, description="s, share of a client's examples that weights learn from"
    )
    ala_lr: float = Field(1.0, gt=0, le=1000, description="eta, step size of the weights")
    ala_start: int = Field(
        10, ge=1, le=1000, description="passes when the weights are learnt for the first time"
    )


class Mixed(ClientPart):
    """A client starts from v + (w - v) A: its own model v, the one that was sent, and weights A."""

    method = "fedala"
    _weights, _learnt = "fedala-weights", "fedala-learnt"

    def fit(self, work: Work) -> Update:
        """Learn A, train the mixture, and keep what comes out as v.

        A <- clip(A - eta grad f(mixture) (w - v), 0, 1) for the last layers; below them A is 1. A
        client that trains for the first time has no v: it trains w.
        """
        w = work.sent()
        v = work.kept(self.method, otherwise=w)
        weights_CP = self._learn(work, w, v)

        trained = work.train(w.with_rows(_mixed(w.rows, v.rows, weights_CP)))
        work.keep(self.method, trained.models)
        work.keep(self._weights, w.with_rows(weights_CP))
        return Update(trained.results, trained.models)

    def model(self, work: Work) -> Models:
        """Return the mixture by the weights as they were learnt last; w for who never trained."""
        w = work.sent()
        v = work.kept(self.method, otherwise=w)
        return w.with_rows(_mixed(w.rows, v.rows, self._kept_weights(work)))

    def effort(self, config: Values, examples: int, models: int) -> Effort:
        """Return what learning the weights once, and the training, have a client compute."""
        del models
        learning = math.ceil(float(config["ala-share"]) * examples)
        return Effort(training_effort(config, examples) + learning)

    def _kept_weights(self, work: Work) -> ModelRows:
        w = work.sent()
        return work.kept(self._weights, otherwise=w.with_rows(np.ones_like(w.rows))).rows

    def _learn(self, work: Work, w: Models, v: Models) -> ModelRows:
        """Return the weights after passes over a share of each client's examples."""
        weights_CP = self._kept_weights(work)
        upper_P = w.where(of_last_layers(w.trained, int(work.config["ala-layers"])))
        apart_CP = (w.rows - v.rows) * upper_P
        eta = np.asarray(float(work.config["ala-lr"]), w.rows.dtype)
        passes_C = self._passes(work, (w.rows != v.rows).any(axis=1))
        at = work.begin(w, proximal=False)

        for number in range(int(passes_C.max())):
            for batch, learns_C in _first_of(work, float(work.config["ala-share"])):
                slope_CP = at.gradient(batch, at=_mixed(w.rows, v.rows, weights_CP)).rows
                learnt_CP = np.clip(weights_CP - eta * slope_CP * apart_CP, 0, 1)
                moves_C = learns_C & (number < passes_C)
                weights_CP = np.where(moves_C[:, None], learnt_CP, weights_CP)
        return weights_CP

    def _passes(self, work: Work, apart_C: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return how often each client goes over its examples: often at first, once later.

        A client that has no model of its own yet learns nothing, and begins the next time.
        """
        kept = work.recalled(self._learnt)
        before_C = np.array([own is not None and own["learnt"] for own in kept], bool)
        work.remember(self._learnt, [{"learnt": int(done)} for done in before_C | apart_C])
        return np.where(before_C, 1, int(work.config["ala-start"])) * apart_C


class FedALA(Told):
    """FedAvg; what its clients start from is a mixture of the global model and their own.

    Parameters
    ----------
    ala_layers : int
        Modules at the end of the model whose weights are learnt; those below are the global ones.
    ala_share : float
        s: share of a client's examples that the weights learn from.
    ala_lr : float
        eta: their step size.
    ala_start : int
        Passes when they are learnt for the first time; one later.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = FedALASettings
    colour = "#7F9C3B"
    partial_means = True

    clients = Mixed
    personal_models = True

    def __init__(
        self,
        *,
        ala_layers: int = 1,
        ala_share: float = 0.8,
        ala_lr: float = 1.0,
        ala_start: int = 10,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        self.ala_layers, self.ala_share = ala_layers, ala_share
        self.ala_lr, self.ala_start = ala_lr, ala_start

    def told(self) -> dict[str, Any]:
        """Tell the clients how the weights are learnt."""
        return {
            "ala_layers": self.ala_layers,
            "ala_share": self.ala_share,
            "ala_lr": self.ala_lr,
            "ala_start": self.ala_start,
        }


def _first_of(work: Work, share: float) -> Iterator[tuple[Batch, NDArray[np.bool_]]]:
    """Yield batches until every client has seen a share of its examples, and who still learns."""
    wanted_C = np.ceil(share * work.sizes * (1 - 1e-12))
    seen_C = np.zeros(len(work))
    for batch in work.batches():
        learns_C = (batch.sizes > 0) & (seen_C < wanted_C)
        if not learns_C.any():
            return
        yield batch, learns_C
        seen_C += batch.sizes


def _mixed(w_CP: ModelRows, v_CP: ModelRows, weights_CP: ModelRows) -> ModelRows:
    """Return v + (w - v) A, (C, P); where A is 1 it is w to the bit."""
    return np.asarray(w_CP + (v_CP - w_CP) * (1 - weights_CP))
