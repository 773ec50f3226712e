"""How what happens is shown: bars on a terminal, else lines, JSON for machines, failures alone.

A view is given each event twice: as plain data, and as the sentence that says the same to a person
("" where the bars say it all). The events stand in docs/sweeps.md.
"""

import json
import sys
import time
from collections.abc import Mapping
from math import isfinite
from typing import Any, Literal, Protocol

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
from rich.text import Text

from fedsweep.escape import line
from fedsweep.output import say

Event = Mapping[str, Any]
"""``event`` is its kind: begin, trial, round, end, line or result.

Keys that begin with _ are for views alone.
"""

ViewMode = Literal["auto", "quiet", "json"]


class View(Protocol):
    """Where events go."""

    def show(self, event: Event, text: str) -> None:
        """Show an event."""

    def close(self) -> None:
        """Leave the terminal as it was; lines may still be shown."""


def view_of(mode: ViewMode, console: Console) -> View:
    """Return the view for a mode: ``auto`` takes bars where the console is a terminal."""
    if mode == "json":
        return JsonView(console)
    if mode == "quiet":
        return QuietView()
    return BarView(console) if console.is_terminal else LineView(console)


def new_console(**options: Any) -> Console:
    """Return a console that shows text as it is: rich would read ``[red]`` in a name."""
    return Console(markup=False, emoji=False, highlight=False, **options)


class LineView:
    """Plain lines."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, event: Event, text: str) -> None:
        """Print what a person reads."""
        if text:
            self._console.print(Text(line(text)), soft_wrap=True)
            self._console.file.flush()  # who reads it from a file sees it when it happens

    def close(self) -> None:
        """Nothing is to be done."""


class QuietView:
    """Failures and interruptions alone, on standard error."""

    def show(self, event: Event, text: str) -> None:
        """Print what a person must know."""
        if event.get("_loud"):
            say(text, sys.stderr)

    def close(self) -> None:
        """Nothing is to be done."""


class JsonView:
    """An object a line, with the Unix time; what is no finite number is null."""

    def __init__(self, console: Console) -> None:
        self._file = console.file

    def show(self, event: Event, text: str) -> None:
        """Print the data."""
        told = {key: value for key, value in event.items() if not key.startswith("_")}
        print(as_json({"time": round(time.time(), 3), **told}), file=self._file, flush=True)

    def close(self) -> None:
        """Nothing is to be done."""


class BarView:
    """A bar for the sweep and one for each trial that runs; lines that stay above them."""

    def __init__(self, console: Console) -> None:
        self._lines = LineView(console)
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )

    def show(self, event: Event, text: str) -> None:
        """Move the bars; print what is to stay."""
        kind, key = event["event"], event.get("key", "")
        if kind == "begin":
            self._bars.start()
            self._tasks[""] = self._bars.add_task("trials", total=event["to_run"], note="")
        elif kind == "trial":
            self._tasks[key] = self._bars.add_task(
                line(event["trial"]), total=event["rounds"] or None, note=""
            )
        elif kind == "round" and key in self._tasks:
            self._bars.update(self._tasks[key], completed=event["round"], note=event["_note"])
            self._bars.update(self._tasks[""], completed=event["_ended"], note=event["_hosts"])
        elif kind == "end":
            if key in self._tasks:
                self._bars.remove_task(self._tasks.pop(key))
            self._bars.update(self._tasks[""], completed=event["ended"])
        if kind in ("begin", "line") or event.get("reason"):
            self._lines.show(event, text)

    def close(self) -> None:
        """Take the bars away."""
        self._bars.stop()


def as_json(value: object) -> str:
    """Return one line of JSON; NaN and infinity, which JSON has not, are null."""

    def plain(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {str(key): plain(part) for key, part in item.items()}
        if isinstance(item, list | tuple):
            return [plain(part) for part in item]
        if hasattr(item, "item"):  # one of NumPy's numbers
            item = item.item()
        return None if isinstance(item, float) and not isfinite(item) else item

    return json.dumps(plain(value), allow_nan=False)
