"""The statistics of a report: intervals over seeds, and whether one row is better than another."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

Test = Literal["t", "wilcoxon"]
TESTS: dict[Test, str] = {"t": "paired t-test", "wilcoxon": "Wilcoxon signed-rank test"}
LEVEL = 0.05
LEAST = 3
"""Values that have an interval, and pairs that are tested; two may be alike by chance."""

_EXACT_PAIRS = 13  # 2^13 ways to set the signs of as many differences are tried one by one
EXACT = 1 - 1e-9
"""ARI from which on the clusters are the known groups."""


def interval(values: Sequence[float] | np.ndarray) -> float:
    """Return half the width of the mean's 95% interval (Student's t); nan below three values."""
    from scipy.stats import t

    n = len(values)
    return (
        float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
        if n >= LEAST
        else float("nan")
    )


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share: sound for few trials, for none and for all."""
    from scipy.stats import binomtest

    low, high = binomtest(hits, n).proportion_ci(method="wilson")
    return float(low), float(high)


def p_different(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, test: Test
) -> float:
    """Return the p-value of "first and second differ" over pairs (the seeds), two-sided.

    It is 1 for fewer than three pairs, and never 0. Differences that are all the same tell nothing
    of their spread, so t has no meaning there: the exact sign test takes its place, whose p is
    2 / 2^n over n pairs. It does too where a value is nan, which is worse than any number.
    Wilcoxon's test is exact up to 13 pairs, ties or not.
    """
    from scipy.stats import PermutationMethod, binomtest, ttest_rel, wilcoxon

    ours, theirs = np.asarray(first, float), np.asarray(second, float)
    if len(ours) < LEAST:
        return 1.0
    gains = np.where(np.isnan(ours), np.where(np.isnan(theirs), 0.0, -np.inf), ours - theirs)
    gains[np.isnan(gains)] = np.inf
    rounding = 1e-12 * np.nanmax(np.abs([ours, theirs, np.zeros_like(ours)]))
    gains[np.abs(gains) <= rounding] = 0.0
    if np.isfinite(gains).all() and np.ptp(gains) > max(rounding, 1e-9 * np.abs(gains).max()):
        if test == "t":
            return float(ttest_rel(ours, theirs).pvalue)
        tied = len(np.unique(np.abs(gains))) < len(gains) or not gains.all()
        every = PermutationMethod(n_resamples=2**_EXACT_PAIRS, rng=0)
        return float(
            wilcoxon(gains, method=every if tied and len(gains) <= _EXACT_PAIRS else "auto").pvalue
        )
    wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def corrected(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's procedure (1979), in their order.

    SciPy has none, and statsmodels, which has, would be installed for these lines alone.
    """
    found, largest = [1.0] * len(p_values), 0.0
    for i, place in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        largest = max(largest, min(1.0, (len(p_values) - i) * p_values[place]))
        found[place] = largest
    return found


def rejected(p_values: Sequence[float]) -> list[bool]:
    """Return which of these hypotheses Holm's procedure rejects at ``LEVEL``."""
    return [p <= LEVEL for p in corrected(p_values)]


def holds_all(p_values: Sequence[float]) -> bool:
    """Return whether Holm's procedure rejects every one of these hypotheses."""
    return all(rejected(p_values))


def mean_ranks(scores: np.ndarray) -> np.ndarray:
    """Return the mean rank of each column over the rows, 1 the highest; ties share theirs.

    ``scores`` is (conditions, ways), the result (ways,).
    """
    from scipy.stats import rankdata

    return np.asarray(rankdata(-scores, axis=1).mean(axis=0))


def friedman(scores: np.ndarray) -> float:
    """Return the p-value of "the columns differ" over the rows by Friedman's test of their ranks.

    ``scores`` is (conditions, ways), three ways at least.
    """
    from scipy.stats import friedmanchisquare

    if np.ptp(scores, axis=1).max() == 0:  # ties alone: its statistic would be 0 / 0
        return 1.0
    return float(friedmanchisquare(*scores.T).pvalue)


def critical_difference(ways: int, conditions: int) -> float:
    """Return how far mean ranks have to be apart for two ways to differ, at ``LEVEL`` (Nemenyi).

    Source: Demsar 2006, JMLR 7:1-30, q_a sqrt(k (k + 1) / (6 N)).
    """
    from scipy.stats import studentized_range

    q = studentized_range.ppf(1 - LEVEL, ways, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(ways * (ways + 1) / (6 * conditions)))


def clear_best(rows: Sequence[Mapping[object, float]], test: Test) -> int | None:
    """Return the row with the highest mean, if it is better than each other one; else None.

    Parameters
    ----------
    rows : sequence of mapping
        Seed -> value, nan where the trial diverged: such a row is never the best.
    test : str
        The best row is compared with each other one over the seeds that both have, which must be
        three or more; the p-values are corrected for their number (Holm).
    """
    means = [float(np.mean(list(row.values()))) if row else float("nan") for row in rows]
    if len(rows) < 2 or np.isnan(means).all():
        return None
    best = int(np.nanargmax(means))
    p_values = []
    for row in (row for i, row in enumerate(rows) if i != best):
        seeds = [seed for seed in rows[best] if seed in row]
        ours, theirs = [rows[best][seed] for seed in seeds], [row[seed] for seed in seeds]
        if not seeds or np.mean(ours) <= np.mean(theirs):
            return None
        p_values.append(p_different(ours, theirs, test))
    return best if holds_all(p_values) else None
