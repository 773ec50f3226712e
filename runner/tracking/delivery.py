"""Who gets what: operations go to the store run by run, and what is wrong costs its run alone.

What has waited may have been overtaken: its trial was finished or gone on with by another session,
its run deleted. So each run of which something has waited is looked up before the first operation
is sent.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedsweep.errors import one_line
from fedsweep.tracking import ops, past
from fedsweep.tracking.ops import Op
from fedsweep.tracking.outbox import Outbox, left_behind, of_others
from fedsweep.tracking.store import Store
from fedsweep.tracking.waiting import Damaged

if TYPE_CHECKING:
    from mlflow.entities import Run


class LeftOut(Exception):
    """An operation is not sent, or was refused;
    the message says why, ``news`` whether that is the run's first.
    """

    def __init__(self, reason: str, news: bool = False) -> None:
        super().__init__(reason)
        self.news = news


class Sender:
    """Gives operations to the store, in each run's order, up to the first that can't be written.

    A run of which something could not be written ends as KILLED, so that the next session goes on
    with it from its checkpoint; other runs do not notice.

    Parameters
    ----------
    send : Callable[[Op], None]
        Does one operation; raises what :func:`fedsweep.tracking.ops.passing` judges.
    overtaken : Callable[[Op], str]
        Says why the run of an operation that has waited is not ours to write any more, or nothing.
    """

    def __init__(
        self, send: Callable[[Op], None], overtaken: Callable[[Op], str] = lambda op: ""
    ) -> None:
        self._send, self._overtaken = send, overtaken
        self.lost: dict[str, str] = {}
        """Token -> why what is missing of its run could not be written."""
        self._gone: set[str] = set()  # tokens of runs that are not to be touched
        self._sure: set[str] = set()  # tokens of runs that were ours when the store answered last

    def send(self, op: Op, waited: bool = False) -> None:
        """Do an operation.

        Raises
        ------
        LeftOut
            It is not sent; nor is anything else of its run but its end.
        Exception
            What is worth another try.
        """
        if waited and op.run not in self._sure and op.run not in self._gone:
            if reason := self._overtaken(op):
                self._gone.add(op.run)
                raise LeftOut(reason, self.lose(op.run, reason))
            self._sure.add(op.run)
        if reason := self.lost.get(op.run, ""):
            if op.kind != "end" or op.run in self._gone:
                raise LeftOut(reason)
            status = op.data["status"]
            op = ops.end(
                op.run, "KILLED" if status == "FINISHED" else status, op.data["end_ms"], reason
            )
        try:
            self._send(op)
        except Exception as error:
            if ops.passing(error):
                raise
            reason = one_line(error)
            if op.kind in ("create", "reopen"):
                self._gone.add(op.run)
            raise LeftOut(reason, self.lose(op.run, reason)) from error

    def lose(self, token: str, reason: str) -> bool:
        """Have nothing more of a run be written but its end; return whether that is news."""
        news = token not in self.lost
        self.lost.setdefault(token, reason)
        return news

    def doubt(self) -> None:
        """Look runs up again before what waited is sent: the store did not answer for long."""
        self._sure.clear()


def overtaken(op: Op, store: Store, runs: dict[str, str]) -> str:
    """Return why the run of an operation that has waited is not ours to write any more, or nothing.

    ``runs`` (token -> MLflow's id) gains the runs that are found, and that of a later session in
    the place of ours: trials that only we have are nested in it.
    """
    if op.kind == "create":
        if past.by_token(store, op.run):
            return ""
        other = past.same_identity(store, op.data["tags"], op.data["start_ms"])
        if other is None:
            return ""
        runs[op.run] = other.info.run_id
        return f"another session has it in {_told(other)}"
    ours = {op.run}
    if op.kind == "reopen":
        runs[op.run] = op.data["run_id"]
        ours.add(op.data["was"])
    elif op.run not in runs:
        found = past.by_token(store, op.run)
        if found is None:
            return (
                "its run is not in the store: it was not made, "
                "or another session has gone on with it"
            )
        runs[op.run] = found.info.run_id
    run = past.find_run(store, runs[op.run])
    if run is None or run.info.lifecycle_stage == "deleted":
        return f"its run {runs[op.run][:8]} was deleted in the store"
    if run.data.tags.get(past.TOKEN, "") not in ours:
        return f"another session has gone on with it in {_told(run)}"
    return ""


def _told(run: "Run") -> str:
    return f"run {run.info.run_id[:8]} ('{run.info.run_name}'), which is {run.info.status} now"


@dataclass(frozen=True)
class Flushed:
    """What became of operations that waited on disk."""

    sent: int = 0
    aside: int = 0  # put aside: damaged, refused, or overtaken
    damaged: bool = False  # some of them for another reason than that they were overtaken


def send_spilled(store: Store, spill: Path, tell: Callable[[str], None]) -> Flushed:
    """Send what earlier processes left on disk for this store.

    What is damaged, what the store refuses, and what another session has overtaken is put aside and
    told of, run by run; the rest is sent. Raises what the store raises when it does not answer.
    """
    total = Flushed()
    for folder in of_others(store, spill):
        what = "is a link" if folder.is_symlink() else "waits for another store"
        tell(f"{folder} {what} and was left alone")
    for outbox in left_behind(store, spill):
        try:
            one = _send_all(outbox, store, tell)
        finally:
            outbox.unlock()
        total = Flushed(
            total.sent + one.sent, total.aside + one.aside, total.damaged or one.damaged
        )
    return total


def _send_all(outbox: Outbox, store: Store, tell: Callable[[str], None]) -> Flushed:
    """Send what is in one outbox."""
    runs, sent = outbox.runs(), 0
    looked_up: set[str] = set()

    def look_up(op: Op) -> str:
        reason = overtaken(op, store, runs)
        if reason:
            looked_up.add(op.run)
        return reason

    # What is known to be wrong before anything is sent.
    delivery = Sender(lambda op: ops.apply(op, store, runs), look_up)
    aside: Counter[tuple[str, str]] = Counter()  # by token and reason
    if outbox.strangers:
        aside["", f"{', '.join(outbox.strangers[:3])}: no operation of this version"] = len(
            outbox.strangers
        )
        outbox.put_strangers_aside()
    if outbox.gap:
        for token in outbox.tokens:
            delivery.lose(token, "an event that waited on disk has vanished")
        tell(f"an event of {outbox.folder} has vanished: none of its runs is known to be whole")

    # One operation after the other; what can't be sent is put aside.
    try:
        while outbox:
            token = outbox.token()
            try:
                op = outbox.first()
                delivery.send(op, waited=True)
            except Damaged as error:
                delivery.lose(token, f"an event that waited on disk is damaged: {error}")
                aside[token, delivery.lost[token]] += 1
                outbox.put_aside(str(error))
            except LeftOut as left:
                aside[token, str(left)] += 1
                outbox.put_aside(str(left))
            else:
                outbox.done(runs, op.kind == "create")
                sent += 1
    finally:
        for (token, reason), count in aside.items():
            run = f"run {runs[token][:8]}" if token in runs else "a run"
            what = f"of {run} " if token else ""
            tell(f"{count} events {what}were put aside, in {outbox.aside}: {reason}")
    damaged = any(token not in looked_up for token, _ in aside)
    return Flushed(sent, sum(aside.values()), damaged)
