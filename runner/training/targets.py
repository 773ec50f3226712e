"""What a network's outputs are held against: classes, or a real number. Imports torch and NumPy.

The type of the targets says which: whole numbers are classes, whose outputs are logits (n,
classes), floats are numbers, whose outputs are (n, 1). The loss is the cross-entropy, or the
squared error of targets at mean 0 and deviation 1.
"""

from math import nan

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedsweep.predictions import CONFIDENCE_UNIT, CONFIDENCES, is_counts


def is_real(y: Tensor) -> bool:
    """Return whether targets are numbers, and not classes."""
    return y.is_floating_point()


def loss_of(outputs: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """Return the loss of outputs (n, outputs): its mean, sum, or each example's (``none``)."""
    if is_real(y):
        return F.mse_loss(outputs[:, 0], y.to(outputs.dtype), reduction=reduction)
    return F.cross_entropy(outputs, y, reduction=reduction)


def slopes_of(outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient at outputs (..., n, outputs) of losses weighted by (..., n)."""
    share = weights.unsqueeze(-1)
    if is_real(y):
        return (outputs - y.unsqueeze(-1)).mul_(2 * share)
    slopes = outputs.softmax(-1).mul_(share)
    return slopes.scatter_add_(-1, y.unsqueeze(-1), -share)


def losses_at(outputs: Tensor, y: Tensor) -> Tensor:
    """Return each example's loss (..., n) of outputs (..., n, outputs)."""
    if is_real(y):
        return (outputs.squeeze(-1) - y) ** 2
    return -outputs.log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)


def hits_at(outputs: Tensor, y: Tensor) -> Tensor:
    """Return which of outputs (..., n, outputs) name the right class, bool (..., n).

    No real number is one.
    """
    return torch.zeros_like(y, dtype=torch.bool) if is_real(y) else outputs.argmax(-1) == y


def counted_hits(hits: float, y: Tensor) -> float:
    """Return hits; nan where targets are numbers, which have none."""
    return nan if is_real(y) else hits


def mixed(outputs: Tensor, weights: Tensor, *, real: bool) -> Tensor:
    """Return what K models say together, outputs (K, n, outputs) weighted by (K,): (n, outputs).

    Of classes the logarithms of the mean of their probabilities, of numbers their mean; in float64.
    """
    weights, outputs = weights.double().view(-1, 1, 1), outputs.double()
    if real:
        return (weights * outputs).sum(0)
    return (weights.log() + outputs.log_softmax(-1)).logsumexp(0)


def table_of(outputs: Tensor, y: Tensor) -> np.ndarray:
    """Return what metrics need of predictions, as sums that add up over slices and clients.

    Of classes int64 (3 classes + 3 CONFIDENCES,): the rows of
    :class:`fedsweep.catalog.ClassCounts`, one after the other. Of numbers float64 (5,): how many,
    the squared and absolute errors, targets, their squares.
    """
    if is_real(y):
        return real_sums(outputs, y)
    predicted = outputs.argmax(1)
    parts = (y, predicted, y[predicted == y])
    counts = [torch.bincount(part, minlength=outputs.shape[1]) for part in parts]
    return torch.cat([*counts, *_by_confidence(outputs, predicted == y)]).cpu().numpy()


def full_table_of(outputs: Tensor, y: Tensor) -> np.ndarray:
    """Return the same with classes against each other in place of the first three rows.

    Of classes int64 (classes x classes + 3 CONFIDENCES,), true x predicted. Of numbers it is
    :func:`table_of`.
    """
    if is_real(y):
        return real_sums(outputs, y)
    classes, predicted = outputs.shape[1], outputs.argmax(1)
    cells = torch.bincount(y * classes + predicted, minlength=classes * classes)
    return torch.cat([cells, *_by_confidence(outputs, predicted == y)]).cpu().numpy()


def _by_confidence(outputs: Tensor, hits: Tensor) -> list[Tensor]:
    """Return the rows of ``ClassCounts.confidences``, each int64 (CONFIDENCES,).

    What is not finite has no confidence, and is counted with the least.
    """
    confidence = outputs.double().softmax(1).amax(1).nan_to_num(0.0)
    units = (confidence / CONFIDENCE_UNIT).round().long()
    place = ((confidence * CONFIDENCES).ceil().long() - 1).clamp(0, CONFIDENCES - 1)
    rows = (torch.ones_like(units), hits.long(), units)
    return [units.new_zeros(CONFIDENCES).index_add_(0, place, row) for row in rows]


def real_sums(outputs: Tensor, y: Tensor) -> np.ndarray:
    """Return count, squared errors, absolute errors, targets and their squares, float64 (5,)."""
    own, errors = y.double(), outputs[:, 0].double() - y.double()
    sums = [errors.square().sum(), errors.abs().sum(), own.sum(), own.square().sum()]
    return np.array([len(y), *(float(value) for value in sums)])


def in_unit(table: np.ndarray, unit: float) -> np.ndarray:
    """Return the sums of scaled targets in the unit of the data; counts of classes as they are."""
    return table if is_counts(table) else table * np.array([1, unit**2, unit, unit, unit**2])


def empty_table(outputs: int, *, real: bool) -> np.ndarray:
    """Return :func:`full_table_of` nothing."""
    return np.zeros(5) if real else np.zeros(outputs**2 + 3 * CONFIDENCES, np.int64)
