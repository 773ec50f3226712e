"""When clients are there to be asked: always, by day, or in intervals that a trace tells.

Time is virtual, in seconds since the trial began. Shapes: N clients.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from operator import itemgetter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Presence(Protocol):
    """Who is there when."""

    @property
    def always(self) -> bool:
        """Whether everybody is there at all times."""

    def there(self, client: int, now: float) -> bool:
        """Return whether a client is there."""

    def all_there(self, now: float) -> NDArray[np.bool_]:
        """Return who is there, (N,)."""

    def until(self, client: int, now: float) -> float:
        """Return when a client that is there leaves; inf: never."""

    def next_coming(self, now: float) -> float:
        """Return when the next one comes that is not there now; inf: nobody will."""


@dataclass(frozen=True)
class Always:
    """Everybody is there at all times."""

    clients: int

    @property
    def always(self) -> bool:
        """True."""
        return True

    def there(self, client: int, now: float) -> bool:
        """Return True."""
        del client, now
        return True

    def all_there(self, now: float) -> NDArray[np.bool_]:
        """Return that all are."""
        del now
        return np.ones(self.clients, bool)

    def until(self, client: int, now: float) -> float:
        """Return inf."""
        del client, now
        return inf

    def next_coming(self, now: float) -> float:
        """Return inf."""
        del now
        return inf


@dataclass(frozen=True, eq=False)
class Periodic:
    """Each client is there for the first ``on_s`` of every ``day_s``, by a clock of its own.

    Parameters
    ----------
    phases_N : (N,) float
        What each client's clock shows when the trial begins, 0 <= phase < ``day_s``.
    """

    phases_N: NDArray[np.float64]
    day_s: float
    on_s: float

    @property
    def always(self) -> bool:
        """False."""
        return False

    def there(self, client: int, now: float) -> bool:
        """Return whether it is the client's day."""
        return self.until(client, now) > now

    def all_there(self, now: float) -> NDArray[np.bool_]:
        """Return whose day it is."""
        began_N, _ = self._days(now)
        return began_N + self.on_s > now

    def until(self, client: int, now: float) -> float:
        """Return when the client's day is over, or ``now`` where it is night."""
        began, _ = self._days(now, client)
        return max(float(began) + self.on_s, now)

    def next_coming(self, now: float) -> float:
        """Return when the next day of one begins that sleeps."""
        began_N, next_N = self._days(now)
        away_N = began_N + self.on_s <= now
        return float(next_N[away_N].min()) if away_N.any() else inf

    def _days(
        self, now: float, client: int | slice = slice(None)
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return when the present and the next days of clients begin.

        Both are multiples of the day less the phase, so that a time that this returned is found in
        the day that begins with it, whatever is rounded.
        """
        phases = np.asarray(self.phases_N[client])
        number = np.floor((now + phases) / self.day_s)
        number += (number + 1) * self.day_s - phases <= now
        number -= number * self.day_s - phases > now
        return number * self.day_s - phases, (number + 1) * self.day_s - phases


@dataclass(frozen=True, eq=False)
class Intervals:
    """What a trace tells: intervals of each client, again and again where it has a period.

    Parameters
    ----------
    on : N sequences of (begin, end)
        Seconds, in order, apart from each other, and below the period.
    periods : N numbers
        Seconds after which each client's intervals come again; inf: never.
    """

    on: Sequence[Sequence[tuple[float, float]]]
    periods: Sequence[float]

    @property
    def always(self) -> bool:
        """False."""
        return False

    def there(self, client: int, now: float) -> bool:
        """Return whether it is in one of the client's intervals."""
        return self.until(client, now) > now

    def all_there(self, now: float) -> NDArray[np.bool_]:
        """Return who is in an interval."""
        return np.array([self.there(client, now) for client in range(len(self.on))], bool)

    def until(self, client: int, now: float) -> float:
        """Return when the client's interval ends, or ``now`` where it is in none."""
        intervals = self.on[client]
        base = self._lap(client, now)
        place = bisect_right(intervals, now - base, key=itemgetter(0))
        for begin, end in intervals[max(place - 1, 0) : place + 1]:
            if base + begin <= now < base + end:
                return self._leaves(client, base, end)
        return now

    def next_coming(self, now: float) -> float:
        """Return when the next interval of one begins that is away."""
        waiting = [c for c in range(len(self.on)) if self.on[c] and not self.there(c, now)]
        return min((self._next(client, now) for client in waiting), default=inf)

    def _leaves(self, client: int, base: float, end: float) -> float:
        """Return when an interval ends; one that the next period begins with goes on in that."""
        (begin, first_end), period = self.on[client][0], self.periods[client]
        if end < period or begin > 0:
            return base + end
        return inf if first_end == period else base + period + first_end

    def _next(self, client: int, now: float) -> float:
        base = self._lap(client, now)
        begins = [begin for begin, _ in self.on[client]]
        coming = (base + begin for begin in begins if base + begin > now)
        return next(coming, base + self.periods[client] + begins[0])

    def _lap(self, client: int, now: float) -> float:
        """Return when the client's present period began."""
        period = self.periods[client]
        if period == inf:
            return 0.0
        laps = np.floor(now / period)
        laps += (laps + 1) * period <= now
        laps -= laps * period > now
        return float(laps * period)
