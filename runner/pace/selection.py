"""Who is asked, by how fast clients are and what they are worth."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsweep.pace.clock import DeviceClock
from fedsweep.pace.cohorts import SampledThere, nodes_there
from fedsweep.pace.policies import Underway
from fedsweep.records import TaskRecord
from fedsweep.scenario.presence import Presence
from fedsweep.strategies.base import State, int_keys, string_keys

BONUS = 0.1
"""Of Oort: weight of the time since a client took part last."""


class Tiered(SampledThere):
    """Clients of one tier of speed (TiFL).

    The clients are parted into tiers of equal size by what a task takes them, as it is known after
    the first round, in which all are drawn evenly. A round draws a tier, and its clients there.

    Parameters
    ----------
    clock : DeviceClock
        Knows how fast clients are.
    tiers : int
        m.
    interval : int
        After so many rounds in which the last drawn tier got no better, tiers are drawn by their
        accuracy, the worst the most often; 0: always evenly.
    """

    def __init__(
        self, presence: Presence, clock: DeviceClock, *, tiers: int, interval: int
    ) -> None:
        super().__init__(presence)
        self._clock, self._tiers, self._interval = clock, tiers, interval
        self._tier_of: list[int] = []  # of each client, once it is known
        self._chances = [1.0] * tiers
        self._last = 0
        self._accuracies: list[list[float]] = []  # of each evaluated round, by tier
        self._evaluated: list[int] = []  # those rounds

    def choose(self, underway: Underway, nodes: Sequence[int], size: int) -> Sequence[int]:
        """Return a sample of the size of one tier, or all of it that are there."""
        if not self._tier_of and self._clock.knows:
            self._tier_of = tiers_by(self._clock.expected_s(), self._tiers)
        if not self._tier_of:
            return super().choose(underway, nodes, size)
        members: dict[int, list[int]] = {}
        for node in nodes_there(self.presence, nodes, underway.now):
            members.setdefault(self._tier_of[node - 1], []).append(node)
        if not members:
            return []
        tiers = sorted(members)
        [self._last] = random.choices(tiers, [self._chances[tier] for tier in tiers])
        chosen = members[self._last]
        return random.sample(chosen, min(size, len(chosen)))

    def told(self, number: int, tasks: Sequence[TaskRecord]) -> None:
        """Take in the tiers' accuracies on what their clients hold out."""
        if not self._interval or not self._tier_of:
            return
        found: dict[int, list[float]] = {}
        for task in tasks:
            if task.message_type == "evaluate" and task.metrics.get("num-examples"):
                tier = self._tier_of[task.node_id - 1]
                found.setdefault(tier, []).append(float(task.metrics.get("eval_acc", math.nan)))
        if not found:
            return
        before = self._accuracies[-1] if self._accuracies else [0.0] * self._tiers
        now = [
            math.fsum(found[tier]) / len(found[tier]) if tier in found else before[tier]
            for tier in range(self._tiers)
        ]
        last = self._evaluated[-1] if self._evaluated else number
        self._accuracies.append(now)
        self._evaluated.append(number)
        while len(self._evaluated) > 1 and self._evaluated[1] <= number - self._interval:
            del self._accuracies[0], self._evaluated[0]
        if number // self._interval == last // self._interval:
            return
        first = self._evaluated[0] <= number - self._interval
        if first and now[self._last] <= self._accuracies[0][self._last]:
            self._chances = chances_by(now)

    def state_dict(self) -> State:
        """Return what a checkpoint keeps."""
        return {
            "tier_of": self._tier_of,
            "chances": self._chances,
            "last": self._last,
            "accuracies": self._accuracies,
            "evaluated": self._evaluated,
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        self._tier_of, self._chances = state["tier_of"], state["chances"]
        self._last, self._accuracies = state["last"], state["accuracies"]
        self._evaluated = state["evaluated"]


def tiers_by(seconds_N: NDArray[np.float64], tiers: int) -> list[int]:
    """Return the tier of each client: 0 the fastest; sizes differ by one at most."""
    order = np.argsort(seconds_N, kind="stable")
    tier_of = np.empty(len(order), np.int64)
    for tier, clients in enumerate(np.array_split(order, tiers)):
        tier_of[clients] = tier
    found: list[int] = tier_of.tolist()
    return found


def chances_by(accuracies: Sequence[float]) -> list[float]:
    """Return the chance of each tier by the rank of its accuracy: the worst of m has m / sum."""
    worst_first = sorted(range(len(accuracies)), key=lambda tier: (accuracies[tier], tier))
    total = len(accuracies) * (len(accuracies) + 1) / 2
    chances = [0.0] * len(accuracies)
    for rank, tier in enumerate(worst_first):
        chances[tier] = (len(accuracies) - rank) / total
    return chances


class ByUtility(SampledThere):
    """Clients that are worth most, and some that were never asked (Oort).

    Parameters
    ----------
    clock : DeviceClock
        Knows how fast clients are.
    penalty : float
        alpha: a client that takes t > T seconds is worth (T / t)^alpha of what it were else.
    percentile : float
        T, of what tasks take the clients that are known.
    explore, decay, least : float
        Share of clients that were never asked: at first, its factor per round, and its least.
    cut : float
        Clients are drawn that are worth so much of the last one that would be taken, or more.
    """

    def __init__(
        self,
        presence: Presence,
        clock: DeviceClock,
        *,
        penalty: float,
        percentile: float,
        explore: float,
        decay: float,
        least: float,
        cut: float,
    ) -> None:
        super().__init__(presence)
        self._clock, self._penalty, self._percentile = clock, penalty, percentile
        self._explore, self._decay, self._least, self._cut = explore, decay, least, cut
        self._worth: dict[int, float] = {}  # node -> its statistical utility when it was last used
        self._seen: dict[int, int] = {}  # node -> the round then
        self._round = 0

    def choose(self, underway: Underway, nodes: Sequence[int], size: int) -> Sequence[int]:
        """Return so many clients: known ones by their utility, others by their speed."""
        if not self._clock.knows:
            return super().choose(underway, nodes, size)
        there = nodes_there(self.presence, nodes, underway.now)
        known = [node for node in there if node in self._worth]
        new = [node for node in there if node not in self._worth]
        size = min(size, len(there))
        share = max(self._least, self._explore * self._decay**self._round)
        exploring = min(len(new), max(int(share * size + 0.5), size - len(known)))

        seconds_N = self._clock.expected_s()
        utilities = self.utilities(known, seconds_N)
        taken = draw_by(self._worthy(utilities, size - exploring), size - exploring)
        speeds = {node: 1 / float(seconds_N[node - 1]) for node in new}
        return [*taken, *draw_by(speeds, exploring)]

    def utilities(self, nodes: Sequence[int], seconds_N: NDArray[np.float64]) -> dict[int, float]:
        """Return what clients are worth that are known."""
        if not nodes:
            return {}
        took = [float(seconds_N[node - 1]) for node in nodes]
        preferred = float(np.percentile(took, self._percentile))
        found = {}
        for node, seconds in zip(nodes, took, strict=True):
            bonus = math.sqrt(BONUS * math.log(self._round + 1) / self._seen[node])
            slow = (preferred / seconds) ** self._penalty if seconds > preferred else 1.0
            found[node] = (self._worth[node] + bonus) * slow
        return found

    def _worthy(self, utilities: Mapping[int, float], size: int) -> dict[int, float]:
        """Return the clients that are worth nearly as much as the last that would be taken."""
        if not 0 < size <= len(utilities):
            return dict(utilities)
        least = self._cut * sorted(utilities.values(), reverse=True)[size - 1]
        return {node: worth for node, worth in utilities.items() if worth >= least}

    def told(self, number: int, tasks: Sequence[TaskRecord]) -> None:
        """Take in the training losses of the clients that took part."""
        self._round = number
        for task in tasks:
            loss = float(task.metrics.get("train_loss", math.nan))
            if task.message_type == "train" and not task.error and math.isfinite(loss):
                self._worth[task.node_id] = float(task.metrics["num-examples"]) * abs(loss)
                self._seen[task.node_id] = number

    def state_dict(self) -> State:
        """Return what a checkpoint keeps."""
        tables: dict[str, Any] = {"worth": self._worth, "seen": self._seen}
        return {
            "round": self._round,
            **{name: string_keys(dict(sorted(table.items()))) for name, table in tables.items()},
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        self._round = state["round"]
        self._worth, self._seen = int_keys(state["worth"]), int_keys(state["seen"])


def draw_by(weights: Mapping[int, float], size: int) -> list[int]:
    """Return so many nodes, each drawn by its weight of those that are left.

    Source: Efraimidis and Spirakis 2006, Information Processing Letters 97: the largest of u^(1/w).
    """
    keys = {
        node: math.log(max(random.random(), 1e-300)) / max(weight, 1e-300)
        for node, weight in sorted(weights.items())
    }
    return sorted(keys, key=lambda node: (-keys[node], node))[:size]
