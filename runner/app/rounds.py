"""From what passes through an app's Grid to round records: nobody tells where a round ends.

A round is what Flower's strategies call one: its number is in the config of their messages
(``server-round``), or, of servers of the old kind, in their group. Where messages have no number, a
round ends when a client is sent a message of a kind that it had in this round already.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message

from fedsweep.app.config import no_such_metric
from fedsweep.app.insides import scalars_of
from fedsweep.catalog import SERVER_METRIC, of_app
from fedsweep.engine.grid import Trace
from fedsweep.escape import key as as_key
from fedsweep.links import MB
from fedsweep.records import Columns, RoundRecord, TaskRecord

SHOWN_CHARACTERS = 7000
"""Of the names of metrics that go into tables, about: a tag of MLflow's holds 8,000."""

_ROUND = "server-round"
_BEFORE = "get_parameters"
"""What servers of the old kind ask a client for before their first round."""


@dataclass
class _Open:
    """A round that goes on."""

    number: int = 0
    asked: set[tuple[str, int]] = field(default_factory=set)  # kinds and nodes of messages
    replied: dict[str, list[tuple[int, dict[str, float], float]]] = field(default_factory=dict)
    aggregated: dict[str, float] = field(default_factory=dict)  # by name, as the strategy does
    trace: Trace = field(default_factory=Trace)
    notes: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)


class Rounds:
    """Cuts what an app's server does into rounds.

    Parameters
    ----------
    emit : callable
        Takes each round's record when it has ended.
    drain : callable
        Returns what the engine saw since it was asked last.
    better : mapping
        Name of a metric -> ``higher`` or ``lower``, where somebody said which is better.

    Attributes
    ----------
    arrays : ArrayRecord or None
        The global model as far as it is known: what the strategy made last, else what was sent.
    """

    def __init__(
        self,
        emit: Callable[[RoundRecord], None],
        drain: Callable[[], Trace],
        better: Mapping[str, str],
    ) -> None:
        self.arrays: ArrayRecord | None = None
        self._emit, self._drain, self._better = emit, drain, better
        self._open = _Open()
        self._central: dict[int, dict[str, float]] = {}
        self._made = False  # whether a strategy told its model: what is sent may be another thing
        self._mb_total = 0.0
        self._last: dict[str, float] = {}  # metric -> its last value
        self._said: set[str] = set()

    @property
    def number(self) -> int:
        """The round that goes on."""
        return self._open.number

    # What the Grid sees

    def sent(self, messages: Sequence[Message]) -> None:
        """Take messages that are about to be sent; the first of a round ends the one before."""
        if not messages:
            return
        kind = messages[0].metadata.message_type
        to = {(m.metadata.message_type, m.metadata.dst_node_id) for m in messages}
        told = _number(messages[0])
        again = (
            told is None and kind != _BEFORE and (not self._open.number or to & self._open.asked)
        )
        if again or (told is not None and told > self._open.number):
            self._close()
            self._open = _Open(told if told is not None else self._open.number + 1)
        self._open.asked |= to
        arrays = [*messages[0].content.array_records.values()]
        if not self._made and len(arrays) == 1:
            self.arrays = arrays[0]

    def number_of(self, messages: Sequence[Message]) -> int:
        """Return the round that messages say they are of, else the one that goes on."""
        told = _number(messages[0])
        return self.number if told is None else told

    def saw(self, trace: Trace) -> None:
        """Take what the engine saw."""
        self._open.trace += trace

    def replied(self, replies: Iterable[Message]) -> None:
        """Take replies as the server gets them, in that order."""
        for reply in replies:
            if not reply.has_content():
                continue
            kind = reply.metadata.message_type
            numbers, lists, weight = scalars_of(reply.content)
            row = reply.metadata.src_node_id, numbers, weight
            self._open.replied.setdefault(kind, []).append(row)
            for name in lists:
                self._say(f"{kind}.{name} is a list, which is in no table and no chart")

    # What the server makes of it

    def aggregated(self, message_type: str, metrics: Mapping[str, Any]) -> None:
        """Take what the strategy made of a round's metrics of the clients."""
        self._open.aggregated |= _numbers(message_type, metrics)

    def central(self, server_round: int, metrics: Mapping[str, Any]) -> None:
        """Take what the server itself measured."""
        self._central.setdefault(server_round, {}).update(_numbers(SERVER_METRIC, metrics))

    def model(self, arrays: ArrayRecord) -> None:
        """Take the global model that there is now."""
        self.arrays, self._made = arrays, True

    # What comes out

    def end(self) -> None:
        """End the last round, and say which metrics nobody had that were spoken of."""
        self._close(last=True)

    def summary(self) -> dict[str, float]:
        """Return what each metric was last, and what it took."""
        took = {"mb_total": self._mb_total, "rounds": float(self._open.number)}
        return {**self._last, **took}

    def declared(self) -> str:
        """Return what its metrics are and which is better, for the catalog."""
        return json.dumps({name: self._better.get(name, "") for name in self._shown()})

    def _shown(self) -> list[str]:
        """Return the metrics that go into tables: as many as a tag of a run holds."""
        names, room = [], SHOWN_CHARACTERS
        for name in self._last:
            room -= len(json.dumps({name: "higher"}))
            if room >= 0:
                names.append(name)
        return names

    def _close(self, last: bool = False) -> None:
        """Emit the record of the round that is open."""
        done = self._open
        done.trace += self._drain()
        numbers = {**_means(done.replied), **done.aggregated}
        numbers |= self._central.pop(done.number, {})
        self._last |= numbers
        for name in (name for name in self._better if last and name not in self._last):
            self._say(no_such_metric(name, self._better[name], self._last))
        if last and (rest := len(self._last) - len(self._shown())):
            self._say(f"{rest} metrics more are in charts, and not in tables: they are too many")
        tasks = done.trace.tasks
        failed = [task for task in tasks if task.error]
        metrics = {of_app(name).key: value for name, value in numbers.items()}
        if done.number:
            metrics |= self._took(done, tasks)
            metrics["6_load/failed_tasks"] = float(len(failed))
        lines = [
            f"client {task.node_id - 1} failed: {str(task.error).strip().splitlines()[-1]}"
            for task in failed
        ]
        self._emit(
            RoundRecord(
                round=done.number,
                metrics=metrics,
                clients=_rows(done.number, tasks, done.replied),
                load=tuple(dict.fromkeys(done.trace.samples)),
                events=(*done.trace.events, *done.notes, *lines),
                time_s=time.time(),
            )
        )

    def _took(self, done: _Open, tasks: Sequence[TaskRecord]) -> dict[str, float]:
        """Return what a round moved, and how long it and its hosts worked."""
        down, up = (sum(getattr(t, side) for t in tasks) / MB for side in ("bytes_in", "bytes_out"))
        self._mb_total += down + up
        took = {
            "3_clients/asked": float(len({node for _, node in done.asked})),
            "4_comm/mb_down": down,
            "4_comm/mb_up": up,
            "4_comm/mb_total": self._mb_total,
            "5_time/round_s": time.perf_counter() - done.began,
        }
        if "train" in done.replied:
            took["3_clients/trained"] = float(len({row[0] for row in done.replied["train"]}))
        if samples := done.trace.samples:
            took |= {
                "6_load/rss_mb_max": max(sample.host_rss_mb for sample in samples),
                "6_load/node_cpu": float(np.mean([sample.node_cpu for sample in samples])),
                "6_load/node_mem": float(np.mean([sample.node_mem for sample in samples])),
            }
        return took

    def _say(self, told: str) -> None:
        """Note something once."""
        if told not in self._said:
            self._said.add(told)
            self._open.notes.append(told)


def _number(message: Message) -> int | None:
    """Return the round that a message says it is of."""
    for record in message.content.values():
        if isinstance(record, ConfigRecord) and isinstance(record.get(_ROUND), int):
            return int(record[_ROUND])  # type: ignore[arg-type]
    group = message.metadata.group_id
    return int(group) if group.isascii() and group.isdigit() else None


def _numbers(origin: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return what is a number of these, under the names of where they come from."""
    return {
        f"{origin}.{_clean(name)}": float(value)
        for name, value in metrics.items()
        if isinstance(value, bool | int | float | np.generic)
    }


def _means(
    replied: Mapping[str, Sequence[tuple[int, Mapping[str, float], float]]],
) -> dict[str, float]:
    """Return the mean of each metric, weighted by the number of examples."""
    found = {}
    for kind, rows in replied.items():
        for name in dict.fromkeys(name for _, numbers, _ in rows for name in numbers):
            pairs = [(numbers[name], weight) for _, numbers, weight in rows if name in numbers]
            total = sum(weight for _, weight in pairs)
            if total:
                found[f"{kind}.{_clean(name)}"] = sum(
                    value * weight / total for value, weight in pairs
                )
    return found


def _rows(
    number: int,
    tasks: Sequence[TaskRecord],
    replied: Mapping[str, Sequence[tuple[int, Mapping[str, float], float]]],
) -> Columns:
    """Return the clients that took part as columns, in the order of their ids."""
    rows: dict[int, dict[str, Any]] = {}
    for task in tasks:
        row = rows.setdefault(
            task.node_id, {"host": "", "wall_s": 0.0, "bytes_in": 0, "bytes_out": 0, "failed": 0}
        )
        row["host"] = task.host
        row["wall_s"] += task.wall_s
        row["bytes_in"] += task.bytes_in
        row["bytes_out"] += task.bytes_out
        row["failed"] += bool(task.error)
    for kind, of in replied.items():
        for node, numbers, weight in of:
            row = rows.setdefault(node, {})
            row |= {f"{kind}.{_clean(name)}": value for name, value in numbers.items()}
            row[f"{kind}.examples"] = weight
    names = dict.fromkeys(name for node in sorted(rows) for name in rows[node])
    columns: dict[str, list[Any]] = {
        "round": [number] * len(rows),
        "client": [node - 1 for node in sorted(rows)],
    }
    return columns | {name: [rows[node].get(name) for node in sorted(rows)] for name in names}


def _clean(name: str) -> str:
    """Return the name of an app's metric as keys take it, where it is another: with a digest."""
    plain = re.fullmatch(r"[\w.-]+", name)
    return (
        name if plain else as_key(f"{name}*").replace("/", ".").replace(" ", "_").replace(":", "_")
    )
