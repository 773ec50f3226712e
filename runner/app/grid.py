"""The Grid that an app's server sees: the engine's, which tells what passes through it."""

import threading
from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import Error, Message

from fedsweep.app.journal import Exchange, Journal, digest_of
from fedsweep.app.rounds import Rounds
from fedsweep.engine.chunks import MIN_CHUNKS, TARGET_CHUNKS
from fedsweep.engine.executors import Executor
from fedsweep.engine.flower import set_message_id
from fedsweep.engine.grid import EngineGrid, Trace
from fedsweep.errors import TrialError, shown

LOOK_S = 0.5
"""How often a server that waits for replies looks whether it has been ended."""

CHUNK_S = 0.05
"""A chunk of short tasks should take so long: to send it and to take it back costs 3 ms."""


class Ended(BaseException):
    """The trial was ended from outside: no app's ``except Exception`` may keep it."""


class AppGrid(EngineGrid):
    """An EngineGrid for a server of somebody's own, which may call it from several threads.

    Attributes
    ----------
    rounds : Rounds
        Is told what passes.

    Parameters
    ----------
    executor, num_nodes, chunk_size
        As an EngineGrid's.
    journal : Journal, optional
        Where exchanges are kept, and those are found that there were before.
    """

    rounds: Rounds

    def __init__(
        self,
        executor: Executor,
        num_nodes: int,
        chunk_size: int | None,
        journal: Journal | None = None,
    ) -> None:
        super().__init__(executor, num_nodes, chunk_size=chunk_size)
        self._turn = threading.RLock()
        self._ended = self._exchanging = False
        self._journal = journal

    def end(self) -> None:
        """Have the server end at its next call."""
        self._ended = True

    def push_messages(self, messages: Iterable[Message], **options: Any) -> list[str]:
        """Send messages off: see :meth:`EngineGrid.push_messages`."""
        with self._turn:
            self._look()
            messages = list(messages)
            self.rounds.sent(messages)
            if messages and self._journal is not None and not self._exchanging:
                self._journal.stop()  # what comes back when is up to the machine
            return super().push_messages(messages, **options)

    def target(self, messages: Sequence[Message]) -> int:
        """Make few chunks of tasks that are known to be short.

        That may go by the clock, which a round's chunks must not: each client's task is seeded by
        its message, and its reply stays its own, whoever is in a chunk with it.
        """
        told = [message.metadata for message in messages]
        seconds = [self._learned.expect(to.dst_node_id, to.message_type) for to in told]
        if not all(seconds):
            return TARGET_CHUNKS
        return min(TARGET_CHUNKS, max(MIN_CHUNKS, round(sum(seconds) / CHUNK_S)))

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
            messages = list(messages)
            if self._journal is None or not messages:
                return super().send_and_receive(messages, timeout=timeout)
            known = self._journal.recall(messages, self.rounds.number_of(messages))
            if known is not None:
                return self._replay(messages, known)
            self._exchanging = True
            try:
                replies = super().send_and_receive(messages, timeout=timeout)
            finally:
                self._exchanging = False
            self._keep(messages, replies, self._journal)
            return replies

    def _keep(
        self, messages: Sequence[Message], replies: Sequence[Message], journal: Journal
    ) -> None:
        """Write down what messages were answered."""
        trace = self.drain()
        self.rounds.saw(trace)
        places = {message.metadata.message_id: i for i, message in enumerate(messages)}
        answers = [
            (
                places[reply.metadata.reply_to_message_id],
                reply.content if reply.has_content() else None,
                (0, "") if reply.has_content() else (reply.error.code, str(reply.error.reason)),
            )
            for reply in replies
        ]
        nodes = {message.metadata.dst_node_id for message in messages}
        states = {node: self._executor.get(s) for node, s in self._states.items() if node in nodes}
        exchange = Exchange(digest_of(messages), answers, states, trace)
        if told := journal.keep(exchange, self.rounds.number):
            self.rounds.saw(Trace(events=[told]))

    def _replay(self, messages: Sequence[Message], known: Exchange) -> list[Message]:
        """Return the replies that messages had before, and have clients be as they were then."""
        self._look()
        self.rounds.sent(messages)
        for message in messages:
            self._check(message)
            set_message_id(message, self._next_id())
            self._states.pop(message.metadata.dst_node_id, None)
        self._states.update(known.states)
        replies = []
        for place, content, (code, reason) in known.replies:
            answer = Error(code, reason) if content is None else content
            reply = Message(answer, reply_to=messages[place])
            set_message_id(reply, self._reply_id())
            replies.append(reply)
        self.rounds.saw(known.trace)
        self.rounds.replied(replies)
        return replies

    def _collect(self, timeout: float | None) -> None:
        self._look()
        super()._collect(LOOK_S if timeout is None else min(timeout, LOOK_S))

    def _look(self) -> None:
        if self._ended:
            raise Ended
