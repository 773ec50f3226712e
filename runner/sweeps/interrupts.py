"""Ctrl-C, SIGTERM, SIGHUP: the first asks for an end after the round, the second ends at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Context in which the first signal sets ``asked`` and calls ``tell``;
    each further one raises KeyboardInterrupt.

    Outside the main thread, where Python lets nobody handle signals, it does nothing.

    Parameters
    ----------
    tell : callable
        Says to the user what happens now.
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        self.asked = False
        self._tell = tell
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if not _nohup(number):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._tell()


@contextmanager
def hang_up() -> Iterator[None]:
    """Have a terminal that disappears end a command as Ctrl-C does, but not under ``nohup``."""
    here = threading.current_thread() is threading.main_thread()
    if not here or _nohup(signal.SIGHUP):
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _nohup(number: int) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN
