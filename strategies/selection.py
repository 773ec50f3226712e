"""Which member of a cluster is its server, and how good the choice was: pure functions.

On identical hosts the score mostly measures how much data a client has.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsweep.strategies.ranges import ROUNDS, SHARE, WEIGHT
from fedsweep.strategies.settings import FedAvgSettings, Settings

ElectionRule = Literal["load", "load_once", "random", "round_robin", "largest_data"]
LoadMode = Literal["measured", "simulated", "hybrid"]


class Load(NamedTuple):
    """What a client's training costs, smoothed over rounds."""

    cpu_s: float  # CPU seconds of the task
    rss_mb: float  # peak memory above the start
    node: float  # CPU + memory load of its node, per cent


class ServerRule(Settings):
    """Which member of a cluster is its server."""

    rule: ElectionRule = Field(
        "load",
        description=(
            "load: lowest score each round; load_once: chosen at the clustering round and kept"
        ),
    )
    mode: LoadMode = Field(  # fedsweep.strategies.devices
        "measured",
        description="simulated: of the examples on a drawn device; hybrid: measured, scaled by it",
    )
    cpu_weight: float = Field(
        0.5, ge=0, le=WEIGHT, description="weight of a client task's CPU seconds in the score"
    )
    mem_weight: float = Field(
        0.3, ge=0, le=WEIGHT, description="weight of a client task's peak memory in the score"
    )
    node_weight: float = Field(
        0.2, ge=0, le=WEIGHT, description="weight of the node's CPU + memory load in the score"
    )
    ewma: float = Field(
        0.5, ge=SHARE, le=1, description="weight of the newest measurement in the moving average"
    )
    hysteresis: float = Field(
        0.85, ge=SHARE, le=1, description="switch only below this share of the incumbent's score"
    )
    min_tenure: int = Field(
        3, ge=1, le=ROUNDS, description="rounds that a server keeps its role at least"
    )

    @property
    def follows_measured(self) -> bool:
        """Whether who serves may differ from run to run."""
        return self.rule in ("load", "load_once") and self.mode != "simulated"

    def check(self) -> None:
        """Refuse loads that are all the same.

        Raises
        ------
        ValueError
            No part of the load has a weight.
        """
        weights = self.cpu_weight + self.mem_weight + self.node_weight
        if self.rule in ("load", "load_once") and not weights:
            raise ValueError(
                f"strategy.server.rule={self.rule} with all weights 0: every load is the same; "
                "raise cpu_weight, mem_weight or node_weight"
            )

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: key -> the setting that is why."""
        found: dict[str, str] = {}
        if self.rule != "load":
            found |= dict.fromkeys(
                ("hysteresis", "min_tenure"), f"strategy.server.rule={self.rule}"
            )
        if self.mode == "simulated":  # a client's nominal load is the same in every round
            found["ewma"] = "strategy.server.mode=simulated"
        return found


class ServerSettings(FedAvgSettings):
    """Of a method whose clusters have servers."""

    server: ServerRule = Field(
        default_factory=ServerRule, description="which member of a cluster is its server"
    )

    def check(self) -> None:
        """Refuse what the servers' rule refuses."""
        super().check()
        self.server.check()

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: key -> the setting that is why."""
        return super().idle() | {f"server.{key}": why for key, why in self.server.idle().items()}


def smooth(old: Load | None, new: Load, weight: float) -> Load:
    """Return the moving average: ``weight`` times the newest, the rest the average before."""
    return (
        new
        if old is None
        else Load(*(weight * n + (1 - weight) * o for o, n in zip(old, new, strict=True)))
    )


def robust_scale(values_M: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return loads >= 0 in units of their 90th percentile: 0 is no load, 1 one that few exceed.

    The scale is strictly monotone, whatever the unit, the number of members and the outliers, so
    the lowest load stays the lowest; few outliers do not make the others look equal. Where the
    percentile is 0, the mean takes its place; where all loads are 0, they stay 0.
    """
    unit = float(np.percentile(values_M, 90)) or float(values_M.mean()) or 1.0
    scaled: NDArray[np.float64] = values_M / unit
    return scaled


def load_scores(
    members: Sequence[int],
    loads: Mapping[int, Load],
    rule: ServerRule,
) -> dict[int, float]:
    """Return the score >= 0 of each member of one cluster: the weighted sum of its scaled loads.

    Scores are shares of a load, so the hysteresis says by which share another member's is lower.
    A member that was never measured scores above all that were: by a load of 1 in each term.
    """
    weights = np.array([rule.cpu_weight, rule.mem_weight, rule.node_weight])
    measured = [node for node in members if node in loads]
    scores: dict[int, float] = {}
    if measured:
        table_M3 = np.array([loads[node] for node in measured], np.float64)
        scaled_M3 = np.column_stack([robust_scale(column) for column in table_M3.T])
        # Summed by hand: a BLAS product may round equal rows differently, and ties are broken by
        # id.
        scores.update(zip(measured, (scaled_M3 * weights).sum(axis=1).tolist(), strict=True))
    unknown = max(scores.values(), default=0.0) + float(weights.sum())
    return {node: scores.get(node, unknown) for node in members}


def rank(
    members: Sequence[int],
    scores: Mapping[int, float],
    examples: Mapping[int, float],
    rule: ServerRule,
    *,
    incumbent: int | None,
    tenure: int,
    turn: int,
    seed: Sequence[int],
) -> list[int]:
    """Return the members of one cluster, the best server first;
    the next ones take over if it is lost.

    Parameters
    ----------
    members : sequence of int
        Node ids.
    scores : mapping
        Load score of each member (``load``, ``load_once``).
    examples : mapping
        Training examples of each node, as far as known (``largest_data``).
    rule : ServerRule
        The rule. Under ``load`` the incumbent gives way only to a member whose score is below
        ``hysteresis`` times its own, and only after ``min_tenure`` rounds; under ``load_once`` it
        stays.
    incumbent, tenure : int or None, int
        The server of the last round, and for how many rounds it has been that.
    turn : int
        Counts the rounds (``round_robin``).
    seed : sequence of int
        Fixes the order of ``random``.
    """
    ordered = sorted(members)
    if rule.rule == "random":
        return [int(node) for node in np.random.default_rng(list(seed)).permutation(ordered)]
    if rule.rule == "round_robin":
        first = turn % len(ordered)
        return ordered[first:] + ordered[:first]
    if rule.rule == "largest_data":
        return sorted(ordered, key=lambda node: (-examples.get(node, 0.0), node))
    ranking = sorted(ordered, key=lambda node: (scores[node], node))
    if incumbent in ordered:
        better = (
            scores[ranking[0]] < rule.hysteresis * scores[incumbent] and tenure >= rule.min_tenure
        )
        if rule.rule == "load_once" or not better:
            ranking.remove(incumbent)
            ranking.insert(0, incumbent)
    return ranking


def gini(values_N: Sequence[float]) -> float:
    """Return the Gini coefficient of values >= 0: 0 if equal, (N - 1) / N if one has all, or nan.

    Source: Gini 1912; sum over i, j of |x_i - x_j| / (2 N^2 mean), computed from the sorted values.
    """
    x_N = np.sort(np.asarray(values_N, np.float64))
    total, n = x_N.sum(), len(x_N)
    if total == 0:
        return float("nan")
    return float(2 * (np.arange(1, n + 1) * x_N).sum() / (n * total) - (n + 1) / n)


def spearman(a_N: Sequence[float], b_N: Sequence[float]) -> float:
    """Return Spearman's rank correlation, ties at their mean rank; nan where either is constant."""
    from scipy.stats import spearmanr  # seconds to import, and only methods with servers need it

    if len(set(a_N)) < 2 or len(set(b_N)) < 2:
        return float("nan")
    return float(spearmanr(a_N, b_N).statistic)


def regret(server: int, members: Sequence[int], scores: Mapping[int, float]) -> float:
    """Return how far a server's load score is above its cluster's lowest: 0 is the best choice."""
    return scores[server] - min(scores[node] for node in members)
