"""FedSoft: each client belongs to all clusters in part, and trains a model near all centres.

Ruan and Joe-Wong 2022, "FedSoft: Soft Clustered Federated Learning with Proximal Local Updating"
(arXiv:2112.06053), algorithm 1. Deviations: docs/strategies/fedsoft.md.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray
from pydantic import Field

from fedsweep.strategies.base import arrays_of, mean_of_clusters, metrics_of, sort_replies
from fedsweep.strategies.clients import (
    ClientPart,
    Effort,
    Update,
    Values,
    Work,
    training_effort,
)
from fedsweep.strategies.models import Models
from fedsweep.strategies.ranges import ROUNDS, WEIGHT
from fedsweep.strategies.settings import NumClustersSettings, Setting
from fedsweep.strategies.soft import SoftClusters, tell_shares


class FedSoftSettings(NumClustersSettings):
    """How many centres there are, and how near to them a client trains."""

    pull = "soft_lambda"

    estimate_every: int = Field(
        2, ge=1, le=ROUNDS, description="rounds between two estimations of the clients' shares"
    )
    soft_lambda: float = Field(
        0.1, ge=0, le=WEIGHT, description="pull of a client's model to the clusters' centres"
    )
    smoother: float = Field(1e-4, ge=0, le=1, description="least share of a client in a cluster")

    def check_in(self, setting: Setting) -> None:
        """Refuse estimations that no round is left for."""
        super().check_in(setting)
        if setting.rounds is not None and self.estimate_every > max(setting.rounds, 2):
            raise ValueError(
                f"strategy.estimate_every={self.estimate_every} is more than "
                f"rounds={setting.rounds}: the shares are estimated once; lower it to rounds at "
                "most"
            )


class SoftMembers(ClientPart):
    """A client belongs to each cluster with a share u_s, and trains one model near all centres."""

    method = "soft"

    def fit(self, work: Work) -> Update:
        """Train towards all centres: local loss + lambda/2 sum_s u_s ||w - c_s||^2.

        Up to a constant, the sum of the penalties is U ||w - c||^2 with U = sum_s u_s and
        c = sum_s u_s c_s / U. So the client starts at c, and the proximal term, which pulls to the
        start, does the rest with mu = lambda U.
        """
        centres = work.candidates()
        shares = self._remembered(work, centres)
        pulls = [float(work.config["lambda"]) * sum(u) for u in shares]
        trained = work.train(centres.means(shares), mu=pulls)
        work.remember(self.method, [{"weights": u} for u in shares])
        tell_shares(work, shares)
        return Update(trained.results, trained.models)

    def model(self, work: Work) -> Models:
        """Return the centre of the largest share now; what training remembers stays as it is."""
        centres = work.candidates()
        shares = _shares(work, centres)
        tell_shares(work, shares)
        return centres.take([int(np.argmax(u)) for u in shares])

    def effort(self, config: Values, examples: int, models: int) -> Effort:
        """Return what a client computes that trains one model, and where that is due scores all."""
        scored = examples * models if config.get("estimate", True) else 0
        return Effort(training_effort(config, examples), float(scored))

    def _remembered(self, work: Work, centres: Models) -> list[list[float]]:
        """Return the clients' shares, estimated anew where that is due or never happened."""
        due, before = bool(work.config.get("estimate", True)), work.recalled(self.method)
        anew = [due or own is None for own in before]
        estimated: Sequence[list[float]] = _shares(work, centres) if any(anew) else [[]] * len(work)
        return [
            now if new or own is None else [float(u) for u in own["weights"]]
            for now, new, own in zip(estimated, anew, before, strict=True)
        ]


def importance(losses_NK: NDArray[np.float64], sigma: float) -> list[float]:
    """Return u (K,): the share of the examples whose loss is lowest under each model.

    It is ``sigma`` at least. Source: section 3.2, importance weight estimation and the smoother.
    """
    winners = np.where(np.isnan(losses_NK), np.inf, losses_NK).argmin(axis=1)
    share = np.bincount(winners, minlength=losses_NK.shape[1]) / len(losses_NK)
    return [float(u) for u in np.maximum(share, sigma)]


def _shares(work: Work, centres: Models) -> list[list[float]]:
    sigma = float(work.config.get("sigma", 0.0))
    return [importance(own, sigma) for own in work.losses(centres)]


class FedSoft(SoftClusters):
    """Soft clusters. In ``assignment`` a client belongs to the cluster of its largest share.

    A centre that no reply has a share of keeps its weights. Newcomers estimate their shares when
    they first train. A client that is evaluated estimates them again, under the centres of that
    round, for the evaluation alone.

    Parameters
    ----------
    num_clusters : int
        S in the paper, centres.
    estimate_every : int
        tau: rounds between two estimations of the shares.
    soft_lambda : float
        lambda: pull to the centres.
    smoother : float
        sigma: the least share.
    seed : int
        Root of the initial centres.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = FedSoftSettings
    sends_whole_model = False
    colour = "#261D55"

    clients = SoftMembers

    def __init__(
        self,
        *,
        num_clusters: int = 4,
        estimate_every: int = 2,
        soft_lambda: float = 0.1,
        smoother: float = 1e-4,
        seed: int = 0,
        **fedavg: Any,
    ) -> None:
        super().__init__(num_clusters=num_clusters, seed=seed, **fedavg)
        self.estimate_every = estimate_every
        self.soft_lambda = soft_lambda
        self.smoother = smoother

    def sent_beside(self, server_round: int) -> dict[str, Any]:
        """Tell the clients whether to estimate their shares, and what they are pulled by."""
        due = (server_round - 1) % self.estimate_every == 0
        return {"estimate": due, "sigma": self.smoother, "lambda": self.soft_lambda}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the replies once per centre: c_s = sum_k u_ks n_k w_k / sum_k u_ks n_k."""
        valid, _ = sort_replies(self, replies, read_arrays=False)
        if not valid:
            return None, None
        self.read_shares(valid)
        nodes = [reply.metadata.src_node_id for reply in valid]
        layout = self.laid_out(arrays_of(valid[0]))
        for s in self.cluster_arrays:
            weights = [self.shares[node][s] * self.examples[node] for node in nodes]
            kept = [
                (arrays_of(reply), weight)
                for reply, weight in zip(valid, weights, strict=True)
                if weight > 0
            ]
            if kept:
                models, kept_weights = zip(*kept, strict=True)
                self.cluster_arrays[s] = layout.mean(models, kept_weights)
        metrics = metrics_of(self, valid)
        return mean_of_clusters(
            self.cluster_arrays, self.assignment, self.examples, layout
        ), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each sampled client all centres; it is evaluated under its largest share's now."""
        messages = super().configure_evaluate(server_round, arrays, config, grid)
        return self.with_all(messages, config, sigma=self.smoother)
