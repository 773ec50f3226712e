"""The statistics of a report: intervals over seeds, and whether one row is better than another."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

Test = Literal["t", "wilcoxon"]
TESTS: dict[Test, str] = {"t": "paired t-test", "wilcoxon": "Wilcoxon signed-rank test"}
LEVEL = 0.05
EXACT = 1 - 1e-9
"""ARI from which on the clusters are the known groups."""


def interval(values: Sequence[float] | np.ndarray) -> float:
    """Return half the width of the 95% interval of the mean (Student's t); nan for fewer than two values."""
    from scipy.stats import t

    n = len(values)
    return float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """Return the 95% interval of a share, Wilson's: it is sound for few trials, and for none or all of them."""
    z = 1.959964
    middle = (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(hits * (n - hits) / n + z * z / 4)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def p_different(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, test: Test) -> float:
    """Return the p-value of "first and second differ" over pairs (the seeds), two-sided; 1 for fewer than two pairs."""
    from scipy.stats import ttest_rel, wilcoxon

    gains = np.asarray(first, float) - np.asarray(second, float)
    if len(gains) < 2 or not gains.any():
        return 1.0
    if test == "wilcoxon":
        return float(wilcoxon(gains).pvalue)
    if np.ptp(gains) <= 1e-12 * np.abs(gains).max():  # the same gain in each pair: t is infinite
        return 0.0
    return float(ttest_rel(first, second).pvalue)


def clear_best(rows: Sequence[dict[object, float]], test: Test) -> int | None:
    """Return the row with the highest mean, if it is better than each other one; else None.

    Parameters
    ----------
    rows : sequence of dict
        Seed -> value. Two rows are compared over the seeds that both have.
    test : str
        Each comparison must have p < 0.05. Since all of them must, no correction for their number is due (an
        intersection-union test: Berger 1982).
    """
    if len(rows) < 2 or not all(rows):
        return None
    means = [float(np.mean(list(row.values()))) for row in rows]
    best = int(np.argmax(means))
    for other, row in enumerate(rows):
        seeds = [seed for seed in rows[best] if seed in row]
        if other != best:
            ours, theirs = [rows[best][seed] for seed in seeds], [row[seed] for seed in seeds]
            if not means[best] > means[other] or p_different(ours, theirs, test) >= LEVEL:
                return None
    return best
