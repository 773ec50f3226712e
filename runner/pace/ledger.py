"""What virtual time was spent on: metrics of a round, and the tasks that ended in it.

Everything here follows from the simulation, so it repeats to the bit.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import nan

import numpy as np

from fedsweep.pace.clock import DeviceClock, Parts
from fedsweep.pace.policies import Aggregation, Flight
from fedsweep.records import Columns
from fedsweep.strategies.base import State, int_keys, string_keys

TASK_COLUMNS = (
    "round", "client", "version", "asked_s", "down_s", "compute_s", "up_s", "ended_s", "model_s",
    "fate",
)  # fmt: skip
"""Of a task: the model that it ended in, who did it, from which model; when it was asked (virtual
seconds), what its parts take, when it ended (or was lost, or nobody waited for it any more), when
the model was made, and what became of it: ``used``, ``dropped`` or ``lost``."""


@dataclass(frozen=True)
class Settled:
    """What a round's aggregation meant in virtual time."""

    metrics: Mapping[str, float]
    tasks: Columns


class TimeLedger:
    """Running totals of a trial in virtual time.

    Parameters
    ----------
    clock : DeviceClock
        Knows what tasks take.
    stale : bool
        Whether replies may be to older models.
    """

    def __init__(self, clock: DeviceClock, *, stale: bool = False) -> None:
        self._clock, self._stale = clock, stale
        self._examples = self._wasted = self._joules = 0.0
        self._before = 0.0
        self._times_used: dict[int, int] = {}  # node -> models that it has a part in
        self._having = Counter({0: len(clock.table)})  # so many models -> nodes with a part in them

    def settle(self, number: int, due: Aggregation, made_s: float) -> Settled:
        """Take in what made the model of a round, and what was dropped.

        Parameters
        ----------
        number : int
            The round.
        due : Aggregation
            What its model is made of.
        made_s : float
            Virtual seconds at which it is there: after ``due.at`` where clusters' servers have to
            make it.
        """
        columns: dict[str, list[object]] = {name: [] for name in TASK_COLUMNS}
        flights = sorted((*due.taken, *due.dropped), key=lambda flight: flight.place)
        used = {flight.place for flight in due.taken}
        for flight in flights:
            parts = self._clock.parts(flight.message)
            ended_s = min(flight.ends, due.at)
            share = _share_computed(flight, parts, ended_s)
            examples = share * self._clock.trained(flight.message)
            self._examples += examples
            self._wasted += 0.0 if flight.place in used else examples
            watt = float(self._clock.table.watt_N[flight.node - 1])
            self._joules += watt * share * parts.compute_s
            fate = "used" if flight.place in used else "dropped" if flight.arrives else "lost"
            row = (
                number, flight.node - 1, flight.version, flight.began, parts.down_s,
                parts.compute_s, parts.up_s, ended_s, made_s, fate,
            )  # fmt: skip
            for name, value in zip(TASK_COLUMNS, row, strict=True):
                columns[name].append(value)
        for flight in due.taken:
            times = self._times_used.get(flight.node, 0)
            self._times_used[flight.node] = times + 1
            self._having[times] -= 1
            self._having[times + 1] += 1
        metrics = self._metrics(number, due, made_s)
        self._before = made_s
        return Settled(metrics, columns)

    def _metrics(self, number: int, due: Aggregation, made_s: float) -> dict[str, float]:
        lost = sum(not flight.arrives for flight in due.dropped)
        metrics = {
            "5_time/virtual_s": made_s,
            "5_time/virtual_round_s": made_s - self._before,
            "3_clients/dropped": float(len(due.dropped) - lost),
            "3_clients/lost": float(lost),
            "3_clients/wasted": self._wasted / self._examples if self._examples else 0.0,
        }
        gini = gini_of_counts(self._having)
        if np.isfinite(gini):
            metrics["3_clients/participation_gini"] = gini
        if self._stale and due.taken:
            late = [number - 1 - flight.version for flight in due.taken]
            metrics["3_clients/staleness"] = float(np.mean(late))
            metrics["3_clients/staleness_p90"] = float(np.quantile(late, 0.9))
        if self._clock.table.tells_power:
            metrics["5_time/joules"] = self._joules
        return metrics

    def state_dict(self) -> State:
        """Return what a checkpoint keeps."""
        return {
            "totals": [self._examples, self._wasted, self._joules, self._before],
            "times_used": string_keys(self._times_used),
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        self._examples, self._wasted, self._joules, self._before = state["totals"]
        self._times_used = int_keys(state["times_used"])
        self._having = Counter(self._times_used.values())
        self._having[0] = len(self._clock.table) - len(self._times_used)


def _share_computed(flight: Flight, parts: Parts, ended_s: float) -> float:
    """Return which share of a task's computing was done when it ended."""
    computed = ended_s - flight.began - parts.down_s
    return min(max(computed / parts.compute_s, 0.0), 1.0) if parts.compute_s else 1.0


def gini_of_counts(having: Mapping[int, int]) -> float:
    """Return the Gini coefficient of how often clients took part; nan where nobody did.

    It is that of ``strategies.selection.gini``, from how many clients took part how often: a
    million clients have few different counts.
    """
    clients = sum(having.values())
    total = sum(count * number for count, number in having.items())
    if not total:
        return nan
    below, weighted = 0, 0.0
    for count, number in sorted(having.items()):
        ranks = number * below + number * (number + 1) / 2  # of the clients that have this count
        weighted += count * ranks
        below += number
    return 2 * weighted / (clients * total) - (clients + 1) / clients
