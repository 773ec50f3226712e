"""The Grid that an app's server sees: the engine's, which tells what passes through it."""

import threading
from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import Message

from fedsweep.app.rounds import Rounds
from fedsweep.engine.executors import Executor
from fedsweep.engine.grid import EngineGrid
from fedsweep.errors import TrialError, shown

LOOK_S = 0.5
"""How often a server that waits for replies looks whether it has been ended."""


class Ended(BaseException):
    """The trial was ended from outside: no app's ``except Exception`` may keep it."""


class AppGrid(EngineGrid):
    """An EngineGrid for a server of somebody's own, which may call it from several threads.

    Attributes
    ----------
    rounds : Rounds
        Is told what passes.
    """

    rounds: Rounds

    def __init__(self, executor: Executor, num_nodes: int, chunk_size: int | None) -> None:
        super().__init__(executor, num_nodes, chunk_size=chunk_size)
        self._turn = threading.RLock()
        self._ended = False

    def end(self) -> None:
        """Have the server end at its next call."""
        self._ended = True

    def push_messages(self, messages: Iterable[Message], **options: Any) -> list[str]:
        """Send messages off: see :meth:`EngineGrid.push_messages`."""
        with self._turn:
            self._look()
            messages = list(messages)
            self.rounds.sent(messages)
            return super().push_messages(messages, **options)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there by now."""
        with self._turn:
            replies = super().pull_messages(message_ids)
            self.rounds.replied(replies)
            return replies

    def receive(self, ids: Sequence[str], *, timeout: float | None = None) -> list[Message]:
        """Wait for the replies to pushed messages.

        Raises
        ------
        TrialError
            Each of several clients failed: what the server would go on with is nobody's work.
        """
        replies = super().receive(ids, timeout=timeout)
        failed = [reply for reply in replies if reply.has_error()]
        if failed and len(failed) == len(replies):
            first = failed[0]
            raise TrialError(
                f"all {len(failed)} clients that were asked to {first.metadata.message_type} "
                f"failed; the first: {shown(str(first.error.reason), 500)}"
            )
        self.rounds.replied(replies)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and wait for their replies; other threads wait meanwhile."""
        with self._turn:
            return super().send_and_receive(messages, timeout=timeout)

    def _collect(self, timeout: float | None) -> None:
        self._look()
        super()._collect(LOOK_S if timeout is None else min(timeout, LOOK_S))

    def _look(self) -> None:
        if self._ended:
            raise Ended
