"""Who is asked and when, of the clients that are there."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from fedsweep.pace.policies import Cohort, Sampled, Underway
from fedsweep.scenario.presence import Presence

_TRIES = 20
"""Draws of somebody who is idle and there, before all that are are listed."""


@dataclass
class SampledThere(Cohort):
    """The strategy's own sample of those that are there, drawn evenly, once for each model.

    Where fewer are there than the strategy wants, all of them are asked; where nobody is, time
    passes until somebody comes.
    """

    presence: Presence

    def opens(self, underway: Underway) -> bool:
        """Return whether nobody is at a task."""
        return not underway.busy

    def choose(self, underway: Underway, nodes: Sequence[int], size: int) -> Sequence[int]:
        """Return a sample of the size, as Flower draws it where all are there."""
        there = nodes_there(self.presence, nodes, underway.now)
        return random.sample(there, min(size, len(there)))

    def more_at(self, underway: Underway) -> float:
        """Return when the next client comes."""
        return self.presence.next_coming(underway.now)


@dataclass(frozen=True)
class PoissonSampled(Sampled):
    """Each client with the same probability, whatever the others: there may be none in a round.

    Parameters
    ----------
    rate : float
        The probability. How many the strategy wants is not asked.
    """

    rate: float

    def choose(self, underway: Underway, nodes: Sequence[int], size: int) -> Sequence[int]:
        """Return as many as a binomial draw says, drawn evenly: the same as one by one."""
        del underway, size
        return random.sample(nodes, int(np.random.binomial(len(nodes), self.rate)))


class OverSampled(SampledThere):
    """More of those that are there than the strategy wants.

    Parameters
    ----------
    over : float
        How many more, as a share of those wanted.

    Attributes
    ----------
    wanted : int or None
        How many the strategy wants in this round; None: it asked without a sample.
    """

    def __init__(self, presence: Presence, over: float) -> None:
        super().__init__(presence)
        self.over = over
        self.wanted: int | None = None

    def opens(self, underway: Underway) -> bool:
        """Return whether nobody is at a task."""
        opens = super().opens(underway)
        self.wanted = None if opens else self.wanted
        return opens

    def choose(self, underway: Underway, nodes: Sequence[int], size: int) -> Sequence[int]:
        """Return a sample of the larger size."""
        self.wanted = size
        return super().choose(underway, nodes, ceil((1 + self.over) * size - 1e-9))


@dataclass(frozen=True)
class AlwaysAtWork(Cohort):
    """So many clients are always at a task: when some arrive or are lost, others are asked.

    Those that arrive at one moment have all arrived before anybody is asked then.

    Parameters
    ----------
    size : int
        M, clients at work.
    """

    presence: Presence
    size: int

    def opens(self, underway: Underway) -> bool:
        """Return whether fewer are at work."""
        return underway.working < self.size and underway.next_arrival > underway.now

    def choose(self, underway: Underway, nodes: Sequence[int], size: int) -> Sequence[int]:
        """Return as many as are missing, drawn evenly of those that are idle and there."""
        del size
        missing = self.size - underway.working
        return draw_idle(self.presence, nodes, underway.busy, underway.now, missing)

    def more_at(self, underway: Underway) -> float:
        """Return when the next client comes."""
        return self.presence.next_coming(underway.now)


def nodes_there(presence: Presence, nodes: Sequence[int], now: float) -> Sequence[int]:
    """Return those of the nodes that are there, in their order; node n is client n - 1."""
    if presence.always:
        return nodes
    there_N = presence.all_there(now)
    found: list[int] = (np.flatnonzero(there_N[np.asarray(nodes) - 1])).tolist()
    return [nodes[place] for place in found]


def draw_idle(
    presence: Presence, nodes: Sequence[int], busy: Collection[int], now: float, size: int
) -> list[int]:
    """Return so many nodes that are idle and there, or all of these, drawn evenly.

    It draws until it meets one, since a million nodes take long to look at and few are busy; where
    it meets none, it lists those that are left.
    """
    if presence.always and not busy:
        return random.sample(nodes, min(size, len(nodes)))  # as a synchronous round draws
    chosen: dict[int, None] = {}

    def fits(node: int) -> bool:
        idle = node not in busy and node not in chosen
        return idle and presence.there(node - 1, now)

    while len(chosen) < size:
        drawn = (nodes[random.randrange(len(nodes))] for _ in range(_TRIES))
        found = next((node for node in drawn if fits(node)), None)
        if found is None:
            left = [node for node in nodes if fits(node)]
            return [*chosen, *random.sample(left, min(size - len(chosen), len(left)))]
        chosen[found] = None
    return list(chosen)
