"""Clients that are sent K models: which fits their training examples best, one alone (IFCA) or each in part (FedSoft).

Sources: Ghosh et al. 2020 (IFCA, arXiv:2006.04088), Ruan and Joe-Wong 2022 (FedSoft, arXiv:2112.06053).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from flwr.app import ConfigRecord, MetricRecord
from torch import Tensor, nn
from torch.nn import functional as F

from runner.client.arrays import read_weights, weighted_mean
from runner.client.methods import Done, Work
from runner.client.training import predict, train


@torch.inference_mode()
def losses_NK(work: Work) -> Tensor:
    """Return the cross-entropy of each training example under each model of the message, float64 (N, K)."""
    columns = [
        F.cross_entropy(predict(work.load(arrays), work.x).double(), work.y, reduction="none")
        for arrays in work.candidates
    ]
    return torch.stack(columns, dim=1)


def mean_losses(work: Work) -> list[float]:
    """Return the client's mean training loss under each model of the message."""
    return [float(value) for value in losses_NK(work).mean(dim=0).tolist()]


def best(losses: Sequence[float]) -> int:
    """Return the number of the lowest loss, the first of equals; one that is not finite is the highest."""
    values = np.asarray(losses, np.float64)
    return int(np.where(np.isfinite(values), values, np.inf).argmin())


def choose(work: Work) -> Done:
    """Train the model with the lowest training loss; the losses are those from before the training."""
    losses = mean_losses(work)
    cluster = best(losses)
    model = work.load(work.candidates[cluster])
    result = train(model, work.x, work.y, work.hp, work.seed)
    choice = ConfigRecord({"cluster": cluster, "losses": losses})
    return Done(result, read_weights(model), records={"choice": choice})


def chosen(work: Work) -> nn.Module:
    """Return the model with the lowest training loss, to be evaluated."""
    losses = mean_losses(work)
    cluster = best(losses)
    work.told["choice"] = ConfigRecord({"cluster": cluster, "losses": losses})
    return work.load(work.candidates[cluster])


def importance(losses: Tensor, sigma: float) -> list[float]:
    """Return u (K,): the share of the examples whose loss (N, K) is lowest under each model, at least ``sigma``.

    Source: FedSoft, section 3.2 (importance weight estimation, the smoother).
    """
    winners = torch.nan_to_num(losses, nan=torch.inf).argmin(dim=1)
    share = torch.bincount(winners, minlength=losses.shape[1]).double() / len(losses)
    return [float(value) for value in share.clamp(min=sigma).tolist()]


def soft(work: Work) -> Done:
    """Train towards all models in proportion to u: local loss + lambda/2 sum_s u_s ||w - c_s||^2.

    Up to a constant, the sum of the penalties is U ||w - c||^2 with U = sum_s u_s and c = sum_s u_s c_s / U. So the
    client starts at c, and the trainer's proximal term, which pulls to the start, does the rest with mu = lambda U.
    """
    if work.config.get("estimate", True) or "soft" not in work.state:
        shares = importance(losses_NK(work), float(work.config.get("sigma", 0.0)))
        work.state["soft"] = MetricRecord({"weights": shares})
    u = _weights(work)
    centre = weighted_mean(work.candidates, u, work.layout.carried, int(np.argmax(u)))
    hp = replace(work.hp, proximal_mu=float(work.config["lambda"]) * sum(u))
    model = work.load(centre)
    result = train(model, work.x, work.y, hp, work.seed)
    choice = ConfigRecord({"cluster": int(np.argmax(u)), "weights": u})
    return Done(result, read_weights(model), records={"choice": choice})


def softly_chosen(work: Work) -> nn.Module:
    """Return the model of the largest share, to be evaluated; what training remembers stays as it is."""
    shares = importance(losses_NK(work), float(work.config.get("sigma", 0.0)))
    cluster = int(np.argmax(shares))
    work.told["choice"] = ConfigRecord({"cluster": cluster, "weights": shares})
    return work.load(work.candidates[cluster])


def _weights(work: Work) -> list[float]:
    values = work.state.metric_records["soft"]["weights"]
    assert isinstance(values, list)
    return [float(value) for value in values]
