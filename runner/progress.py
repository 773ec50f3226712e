"""What the terminal shows while trials run: bars where there is a terminal, plain lines where there is none."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from runner.records import RoundRecord


class TrialProgress:
    """Follows the trials of a sweep.

    Parameters
    ----------
    console : Console
        Where to write.
    num_trials : int
        Trials in all.
    """

    def __init__(self, console: Console, num_trials: int) -> None:
        self._console = console
        self._num_trials = num_trials
        self._done = 0
        self._rounds: dict[str, tuple[int, float]] = {}
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        if console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
            self._tasks[""] = self._bars.add_task("[bold]trials", total=self._num_trials, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def started(self, label: str, rounds: int) -> None:
        """Show a trial that begins."""
        self._rounds[label] = rounds, time.monotonic()
        if self._bars:
            self._tasks[label] = self._bars.add_task(label, total=rounds, note="")

    def round(self, label: str, record: RoundRecord) -> None:
        """Show a round that ended, and what happened in it."""
        for event in record.events:
            self.line(f"{label}: round {record.round}: {event}")
        note = _note(record)
        if self._bars:
            self._bars.update(self._tasks[label], completed=record.round, note=note)
        elif record.round:
            rounds, started = self._rounds[label]
            left = (time.monotonic() - started) / record.round * (rounds - record.round)
            self.line(f"{label}: round {record.round}/{rounds} {note} eta {left:.0f} s")

    def finished(self, label: str, status: str) -> None:
        """Show a trial that ended."""
        self._done += 1
        if self._bars:
            if label in self._tasks:
                self._bars.remove_task(self._tasks.pop(label))
            self._bars.update(self._tasks[""], completed=self._done)
        if not self._bars or status != "FINISHED":
            self.line(f"[{self._done}/{self._num_trials}] {label}: {status}")

    def line(self, text: str) -> None:
        """Show a line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _note(record: RoundRecord) -> str:
    shown = {"loss": "1_global/loss", "acc": "1_global/acc", "clients": "3_clients/acc", "ari": "2_clusters/ari"}
    return " ".join(f"{name} {record.metrics[key]:.3f}" for name, key in shown.items() if key in record.metrics)
