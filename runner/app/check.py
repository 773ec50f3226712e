"""Whether an app repeats itself: the same trial on one host and on several, compared to the bit."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from flwr.app import ArrayRecord, Message

from fedsweep.app.config import AppConfig
from fedsweep.app.grid import AppGrid
from fedsweep.app.modules import AppCode
from fedsweep.app.trial import Server
from fedsweep.config import HostGroup, ResourcesConfig
from fedsweep.engine.executors import Host
from fedsweep.engine.flower import quiet
from fedsweep.engine.pool import HostPool, ray_session

SHARE = 0.5
"""Cores that each of the two hosts reserves: they find room on any machine."""


@dataclass(frozen=True)
class Sight:
    """One thing that passed through the Grid.

    Parameters
    ----------
    where : str
        Round, message, client and array, in words.
    digest : str
        What it was.
    """

    where: str
    digest: str


class Sights:
    """All that a trial sends and gets, in order: what its bits depend on, and its bits."""

    def __init__(self, grid: AppGrid) -> None:
        self.seen: list[Sight] = []
        self._rounds = rounds = grid.rounds
        sent, replied = rounds.sent, rounds.replied

        def see_sent(messages: Sequence[Message]) -> None:
            sent(messages)
            self._see("sent to", messages)

        def see_replied(replies: Iterable[Message]) -> None:
            replies = list(replies)
            replied(replies)
            self._see("replied by", replies)

        rounds.sent, rounds.replied = see_sent, see_replied  # type: ignore[method-assign]

    def _see(self, way: str, messages: Iterable[Message]) -> None:
        for message in messages:
            told = message.metadata
            node = told.dst_node_id if way == "sent to" else told.src_node_id
            where = f"round {self._rounds.number}, {told.message_type} {way} client {node - 1}"
            if message.has_error():
                self.seen.append(Sight(f"{where}: error", str(message.error.code)))
                continue
            for name, record in message.content.items():
                for key, value in record.items():
                    self.seen.append(Sight(f"{where}: {name}['{key}']", _digest(record, value)))


def _digest(record: object, value: Any) -> str:
    told = value.data if isinstance(record, ArrayRecord) else repr(value).encode()
    return hashlib.sha256(told).hexdigest()


def first_difference(one: Sequence[Sight], other: Sequence[Sight]) -> str:
    """Return where two trials differ first, in words; nothing where they do not."""
    for ours, theirs in zip(one, other, strict=False):
        if ours.where != theirs.where:
            return f"{ours.where} on one host, {theirs.where} on two"
        if ours.digest != theirs.digest:
            return ours.where
    if len(one) != len(other):
        longer = one if len(one) > len(other) else other
        return f"{longer[min(len(one), len(other))].where}, which the other trial has not"
    return ""


def _sights(config: AppConfig, code: AppCode, hosts: list[Host], code_ref: Any) -> list[Sight]:
    """Run a trial and return what passed."""
    server = Server(config, code, hosts, code_ref, trial=f"{config.key}-{len(hosts)}")
    sights = Sights(server.grid)
    try:
        for _ in server.rounds():
            pass
    finally:
        server.close()
    return sights.seen


def check(config: AppConfig, code: AppCode) -> tuple[bool, str]:
    """Run a trial on one host and on two; return whether all bits are the same, and tell of it."""
    quiet()
    two = {"cpu": HostGroup(count=2, num_cpus=SHARE)}
    with ray_session(config.resources.address):
        pool = HostPool(ResourcesConfig(address=config.resources.address, hosts=two))
        try:
            pool.wait()
            difference, count = compare(config, code, pool.hosts)
        finally:
            pool.close()
    if difference:
        return False, (
            f"{config.app} does not repeat itself; it differs first in {difference}. What the "
            "trial's seed does not cover is drawn, measured or kept there: a clock, a generator of "
            "its own without a seed, a set's order, what a module remembers of other clients"
        )
    return True, f"{config.app} repeats itself: {count:,} values are equal on one host and on two"


def compare(config: AppConfig, code: AppCode, hosts: list[Host]) -> tuple[str, int]:
    """Run a trial on the first of some hosts, and on all.

    Returns
    -------
    str
        Where the two differ first, in words; nothing where they do not.
    int
        Values that passed through the Grid.
    """
    code_ref = ray.put(code)
    one, all_ = (_sights(config, code, chosen, code_ref) for chosen in (hosts[:1], hosts))
    return first_difference(one, all_), len(one)
