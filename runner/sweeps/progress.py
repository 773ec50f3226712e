"""Follows the trials of a sweep while they run: rates, times left, how busy the hosts are.

A view shows it.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Self

from fedsweep.catalog import CATALOG
from fedsweep.output import amount
from fedsweep.records import RoundRecord
from fedsweep.sweeps.views import View

UNKNOWN_SHOWN = 3
"""Metrics of a Flower app in the line of a round."""


@dataclass
class _Followed:
    """A trial that runs."""

    label: str
    rounds: int
    began: float  # when it had done ``first`` rounds, in this session
    first: int = 0
    done: int = 0


class TrialProgress:
    """Follows the trials of a sweep.

    ::

        with TrialProgress(view) as progress:
            progress.remark("what is to be known of the trials, before they start")
            progress.begin("default", to_run=2, rounds=20, cluster="...", store="...")
            progress.started(key, label, rounds)
            progress.round(key, record)
            progress.ended(key, "FINISHED", summary={...})
            progress.line("anything else")

    Parameters
    ----------
    view : View
        Where it is shown.
    clock : Callable[[], float]
        Seconds.
    """

    def __init__(self, view: View, clock: Callable[[], float] = time.monotonic) -> None:
        self._view, self._clock = view, clock
        self._trials: dict[str, _Followed] = {}
        self._remarks: list[str] = []
        self._num_trials = self._ended = 0
        self._has_begun = False
        self._hosts: dict[
            str, float
        ] = {}  # CPU of each host when it was sampled last, per cent of one core
        self._began = clock()
        self._rounds_left = self._rounds_done = 0  # of all trials; done are those of this session

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._view.close()
        if isinstance(error, KeyboardInterrupt) and not self._has_begun:
            self.line("no trial had started: the same command begins again", True)

    def remark(self, text: str) -> None:
        """Show what is to be known of the trials; they need not say it again as they start."""
        self._remarks.append(text)
        self.line(text)

    def begin(self, sweep: str | None, to_run: int, rounds: int, cluster: str, store: str) -> None:
        """Show that a sweep (None: a trial on its own) begins, and what is left to run of it."""
        self._num_trials, self._rounds_left, self._began = to_run, rounds, self._clock()
        self._has_begun = True
        event = {
            "event": "begin", "sweep": sweep, "to_run": to_run, "rounds": rounds,
            "cluster": cluster, "store": store,
        }  # fmt: skip
        in_all = f", {amount(rounds, 'round')} in all" if rounds else ""
        self._view.show(event, f"{amount(to_run, 'trial')}{in_all}, on {cluster}")

    def more(self, trials: int, rounds: int) -> None:
        """Take in that there are more trials to run than there were at the beginning."""
        self._num_trials += trials
        self._rounds_left += rounds

    def started(self, key: str, label: str, rounds: int) -> None:
        """Show a trial that begins."""
        self._trials[key] = _Followed(label, rounds, self._clock())
        self._view.show({"event": "trial", "key": key, "trial": label, "rounds": rounds}, "")

    def goes_on(self, key: str, number: int) -> None:
        """Show that a trial goes on after a round that was done before this session."""
        trial = self._trials[key]
        self._rounds_left -= number - trial.done
        trial.first, trial.done, trial.began = number, number, self._clock()
        self.line(f"{trial.label}: goes on after round {number}", key=key)

    def round(self, key: str, record: RoundRecord) -> None:
        """Show a round that ended, and what happened in it."""
        trial, now = self._trials[key], self._clock()
        for event in record.events:
            if record.round == 0 and any(remark.startswith(event) for remark in self._remarks):
                continue
            self.line(f"{trial.label}: round {record.round}: {event}", key=key)
        self._hosts |= {
            sample.host: sample.host_cpu for sample in sorted(record.load, key=lambda s: s.time_s)
        }
        if record.round == 0:
            trial.began = now
        self._rounds_left -= record.round - trial.done
        self._rounds_done += record.round - trial.done
        trial.done = record.round
        seconds, done = now - trial.began, record.round - trial.first
        speed = done / seconds if done and seconds > 0 else None
        left = (trial.rounds - record.round) / speed if speed and trial.rounds else None
        note = " ".join(_live(record.metrics))
        note += f" {_rate(speed)}" if speed else ""
        shown = {
            "event": "round", "key": key, "trial": trial.label, "round": record.round,
            "rounds": trial.rounds, "time": record.time_s, "metrics": record.metrics,
            "rounds_per_s": speed, "eta_s": left, "hosts_cpu": dict(self._hosts), "_note": note,
            "_hosts": self._busy(), "_ended": self._ended,
        }  # fmt: skip
        eta = f" eta {_duration(left)}" if left is not None else ""
        of = f"/{trial.rounds}" if trial.rounds else ""
        self._view.show(
            shown,
            f"{trial.label}: round {record.round}{of} {note}{eta}" if record.round else "",
        )

    def ended(
        self, key: str, status: str, reason: str = "", summary: Mapping[str, float] | None = None
    ) -> None:
        """Show a trial that ended, whatever the view: FINISHED, early for a reason, or not."""
        trial = self._trials.pop(key)
        self._ended += 1
        self._rounds_left -= trial.rounds - trial.done
        left = self._eta()
        event = {
            "event": "end", "key": key, "trial": trial.label, "status": status, "reason": reason,
            "metrics": summary or {}, "ended": self._ended, "to_run": self._num_trials,
            "eta_s": left, "_loud": status != "FINISHED",
        }  # fmt: skip
        notes = [self._busy(), f"eta {_duration(left)}" if left else ""]
        end = (
            f"{status}: {reason}"
            if reason
            else status + "".join(f", {note}" for note in notes if note)
        )
        self._view.show(event, f"[{self._ended}/{self._num_trials}] {trial.label}: {end}")

    def line(self, text: str, loud: bool = False, key: str = "") -> None:
        """Show a line that stays; a loud one whatever the view."""
        self._view.show({"event": "line", "key": key, "text": text, "_loud": loud}, text)

    def _busy(self) -> str:
        """Return how busy the hosts are: the mean of the last sample of each."""
        return (
            f"hosts at {sum(self._hosts.values()) / len(self._hosts):.0f}% CPU"
            if self._hosts
            else ""
        )

    def _eta(self) -> float | None:
        """Return how long all rounds that are left will take, at the pace of this session's."""
        return (
            (self._clock() - self._began) / self._rounds_done * self._rounds_left
            if self._rounds_done and self._rounds_left >= 0
            else None  # of apps nobody knows how many rounds there will be
        )


def _live(metrics: Mapping[str, float]) -> Iterator[str]:
    """Yield the metrics that a round's line shows; of those that nobody declared the first ones."""
    for metric in CATALOG:
        if metric.live and metric.key in metrics:
            yield f"{metric.live} {metrics[metric.key]:.3f}"
    unknown = (key for key in metrics if key not in CATALOG or CATALOG[key].foreign)
    for key in islice(unknown, UNKNOWN_SHOWN):
        yield f"{key.partition('/')[2]} {metrics[key]:.4g}"


def _rate(per_s: float) -> str:
    return f"{per_s:.1f} rounds/s" if per_s >= 1 else f"{1 / per_s:.1f} s/round"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
