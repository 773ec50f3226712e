"""Features at mean 0 and deviation 1, by what the training clients can sum; real targets likewise.

A federation has no table to look at: each client sends, of its training examples, a count, a sum
and a sum of squares per feature, and the server adds them up. What clients hold out, the central
test set and clients that join later are in none of these sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsweep.data.sources import ImageData


@dataclass(frozen=True, eq=False)
class Scaling:
    """What is subtracted and divided by: of features or channels (F,), and of a real target."""

    mean: np.ndarray  # float64 (F,); 0 where a feature is left as it is
    std: np.ndarray  # 1 likewise, and where a feature is constant
    filled: np.ndarray  # float64 (F,), what a missing value counts as
    target_mean: float = 0.0
    target_std: float = 1.0

    @classmethod
    def of_clients(cls, data: ImageData, rows: Sequence[np.ndarray]) -> "Scaling | None":
        """Return the scaling by clients' training rows; None where examples are no features."""
        x, y = data.train_x, data.train_y
        if x.dtype.kind != "f" and not data.is_real:
            return None
        width = x.shape[-1] if x.dtype.kind == "f" else 0
        sums, targets = np.zeros((3, width)), np.zeros(3)
        for own in rows:
            if width:
                sums += _sums(x[own].reshape(-1, width).astype(np.float64))
            if data.is_real:
                targets += _sums(y[own].astype(np.float64)[:, None])[:, 0]
        mean, std = _moments(sums)
        kept = np.asarray(data.scaled or (False,) * width, bool)
        of_target = _moments(targets[:, None]) if data.is_real else (np.zeros(1), np.ones(1))
        return cls(
            np.where(kept, mean, 0.0),
            np.where(kept, std, 1.0),
            mean,
            float(of_target[0][0]),
            float(of_target[1][0]),
        )

    def examples(self, x: np.ndarray) -> np.ndarray:
        """Return features float32 (n, ..., F) as networks take them."""
        if x.dtype.kind != "f":
            return x
        filled = np.where(np.isnan(x), self.filled, x)
        scaled: np.ndarray = ((filled - self.mean) / self.std).astype(np.float32)
        return scaled

    def targets(self, y: np.ndarray) -> np.ndarray:
        """Return real targets float32 (n,) as networks learn them; classes as they are."""
        if y.dtype.kind != "f":
            return y
        scaled: np.ndarray = ((y - self.target_mean) / self.target_std).astype(np.float32)
        return scaled


def _sums(x: np.ndarray) -> np.ndarray:
    """Return what a client sends: counts, sums and sums of squares of (n, F), without missing."""
    there = ~np.isnan(x)
    known = np.where(there, x, 0.0)
    return np.stack([there.sum(0), known.sum(0), (known**2).sum(0)])


def _moments(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation (F,) of sums (3, F); 0 and 1 where nothing varies."""
    count = np.maximum(sums[0], 1)
    mean = sums[1] / count
    variance = np.maximum(sums[2] / count - mean**2, 0)
    # What is left of equal numbers is rounding, not variance.
    varies = variance > 1e-12 * np.maximum(mean**2, 1e-30)
    return mean, np.sqrt(np.where(varies, variance, 1.0))
