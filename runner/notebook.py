"""How a sweep is followed in a notebook: one line that changes, and lines that stay."""

import time
from typing import Any

from fedsweep.escape import line
from fedsweep.sweeps.views import Event, View, new_console, view_of

_EVERY_S = 0.25
"""Seconds between two changes of the line at least: a page that is left open keeps them all."""


def is_notebook() -> bool:
    """Return whether this is the kernel of a notebook, whose output is no terminal."""
    try:
        from IPython import get_ipython  # there where a notebook is, and needed nowhere else
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None


def view_here(mode: Any) -> View:
    """Return the view for a mode, where Python is used: ``auto`` is a notebook's in a notebook."""
    if mode == "auto" and is_notebook():
        return NotebookView()
    return view_of(mode, new_console())


class NotebookView:
    """A line of the trials that run, brought up to date in its place."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown = 0.0
        self._ended, self._to_run = 0, 0
        self._running: dict[str, str] = {}

    def show(self, event: Event, text: str) -> None:
        """Print what is to stay; change the line."""
        kind, key = event["event"], event.get("key", "")
        if kind == "begin":
            self._to_run = event["to_run"]
        elif kind == "round":
            self._running[key] = text
        elif kind == "end":
            self._running.pop(key, None)
            self._ended = event["ended"]
        if text and (kind in ("begin", "line") or event.get("reason")):
            print(line(text), flush=True)
        self._update(at_once=kind in ("begin", "end"))

    def close(self) -> None:
        """Leave the line as it is in the end."""
        self._running.clear()
        self._update(at_once=True)

    def _update(self, at_once: bool) -> None:
        now = time.monotonic()
        if not self._to_run or (not at_once and now - self._shown < _EVERY_S):
            return
        from IPython.display import Pretty, display

        self._shown = now
        told = [f"{self._ended} of {self._to_run} trials", *filter(None, self._running.values())]
        shown = Pretty("\n".join(map(line, told)))
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)
