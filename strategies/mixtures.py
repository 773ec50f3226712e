"""Methods that train K models for all, of which each client mixes its own (FedEM, FedRC).

A client's examples are taken for draws from K distributions, of which a model each is learnt; how
much of each there is in a client's data are its shares. Both are found by expectation
maximisation, a step a round. Shapes: C clients, K models, n training examples of a client.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedsweep.strategies.base import heaviest, mean_of_clusters, metrics_of, sort_replies, weight_of
from fedsweep.strategies.candidates import CANDIDATE
from fedsweep.strategies.clients import (
    ClientPart,
    Effort,
    Trained,
    Update,
    Values,
    Work,
    training_effort,
)
from fedsweep.strategies.models import Mixture, Models
from fedsweep.strategies.soft import SoftClusters, tell_shares

Losses = Sequence[NDArray[np.float64]]
"""Of each client's training examples under K models, (n, K)."""


class MixtureMembers(ClientPart):
    """A client trains each model on all its examples, as far as they are that model's."""

    def fit(self, work: Work) -> Update:
        """Take an EM step: whose is each example, how much there is of each, and what each learns.

        E: q_ik in proportion to pi_k exp(-loss of example i under model k), by the models as they
        were sent. M: pi_k is the mean of q_ik, and model k is trained by the losses times q_ik.
        """
        models = work.candidates()
        shares_CK, of_examples = self._estimated(work, models)
        trained = [
            work.train(models.take([k] * len(work)), weights=[q_NK[:, k] for q_NK in of_examples])
            for k in range(len(models))
        ]
        work.remember(self.method, [{"weights": own.tolist()} for own in shares_CK])
        tell_shares(work, shares_CK.tolist(), **self.told(work, of_examples))
        replied = {CANDIDATE.format(k): each.models for k, each in enumerate(trained)}
        return Update(_summed(trained), None, arrays=replied)

    def model(self, work: Work) -> Mixture:
        """Return the models as they were sent, mixed by the shares as a client estimated them last.

        A client that never trained estimates them by a step of EM, and does not keep them.
        """
        models = work.candidates()
        kept = work.recalled(self.method)
        shares_CK = _read(kept, len(models))
        if any(own is None for own in kept):
            new = np.array([own is None for own in kept])
            shares_CK = np.where(new[:, None], self._estimated(work, models)[0], shares_CK)
        tell_shares(work, shares_CK.tolist())
        return Mixture(models, shares_CK)

    def effort(self, config: Values, examples: int, models: int) -> Effort:
        """Return what a client computes that scores and trains all models."""
        return Effort(models * training_effort(config, examples), float(examples * models))

    def adjusted(self, work: Work, losses: Losses) -> Losses:
        """Return minus the logarithm of how well each example fits each model, (n, K)."""
        del work
        return losses

    def told(self, work: Work, of_examples: Losses) -> Mapping[str, Sequence[Any]]:
        """Return what clients tell beside their shares: name -> a value of each."""
        del work, of_examples
        return {}

    def _estimated(
        self, work: Work, models: Models
    ) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
        """Return the clients' new shares (C, K), and of each whose its examples are, (n, K)."""
        before_CK = _read(work.recalled(self.method), len(models))
        losses = self.adjusted(work, work.losses(models))
        of_examples = [
            responsibilities(own, shares) for own, shares in zip(losses, before_CK, strict=True)
        ]
        return np.stack([q_NK.mean(axis=0) for q_NK in of_examples]), of_examples


class Mixtures(SoftClusters):
    """K models, each averaged over all clients; what a client predicts by is a mixture of its own.

    Newcomers begin with equal shares, when they first train. In ``assignment`` a client belongs to
    the model that it has the largest share of.

    Parameters
    ----------
    num_clusters : int
        K, models.
    seed : int
        Root of the initial models.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    personal_models = True

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average each model over the clients, by their examples."""
        valid, _ = sort_replies(self, replies, read_arrays=False)
        if not valid:
            return None, None
        self.read_shares(valid)
        weights = [weight_of(reply, self.weighted_by_key) for reply in valid]
        of_most = heaviest(valid, self.weighted_by_key)
        for k in self.cluster_arrays:
            trained = [reply.content.array_records[CANDIDATE.format(k)] for reply in valid]
            self.cluster_arrays[k] = self.laid_out(trained[0]).mean(trained, weights, of_most)
        layout = self.laid_out(self.cluster_arrays[0])
        mean = mean_of_clusters(self.cluster_arrays, self.assignment, self.examples, layout)
        return mean, metrics_of(self, valid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each sampled client all models; it is evaluated by its own mixture of them."""
        messages = super().configure_evaluate(server_round, arrays, config, grid)
        return self.with_all(messages, config, **self.sent_beside(server_round))


def responsibilities(
    losses_NK: NDArray[np.float64], shares_K: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return q (n, K): how much of each example is each model's, by Bayes' rule.

    A loss that is not finite is that of a model which the example can't be of. An example that no
    model fits is shared out as the client's others were.
    """
    with np.errstate(divide="ignore"):  # a share of 0 stays 0
        fits_NK = np.log(shares_K) - np.where(np.isfinite(losses_NK), losses_NK, np.inf)
    best_N = fits_NK.max(axis=1)
    lost_N = np.isneginf(best_N)
    likely_NK = np.exp(fits_NK - np.where(lost_N, 0.0, best_N)[:, None])
    likely_NK[lost_N] = shares_K
    return np.asarray(likely_NK / likely_NK.sum(axis=1, keepdims=True))


def _read(kept: Sequence[Values | None], models: int) -> NDArray[np.float64]:
    """Return the clients' shares (C, K) as they keep them; equal ones of who keeps none."""
    equal = np.full(models, 1 / models)
    return np.array([equal if own is None else own["weights"] for own in kept], np.float64)


def _summed(trained: Sequence[Trained]) -> list[dict[str, float]]:
    """Return the clients' results over all models: each example counts once, in shares."""
    names = ("loss", "accuracy", "steps")
    sums = {name: np.sum([each.of(name) for each in trained], axis=0) for name in names}
    clients = range(len(trained[0].results))
    return [{name: float(values[c]) for name, values in sums.items()} for c in clients]
