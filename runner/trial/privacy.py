"""What a trial has spent of privacy, from what its rounds record; and what has to be said of it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedsweep.accounting import Release, batches_of
from fedsweep.catalog import EPSILON, EPSILON_AHEAD, EPSILON_MAX, EPSILON_MEAN
from fedsweep.config import TrialConfig
from fedsweep.errors import ConfigError
from fedsweep.records import RoundRecord
from fedsweep.strategies import Layout
from fedsweep.strategies.layout import is_floating


class Spends(Protocol):
    """What is spent of privacy so far."""

    def go_on(self, records: Iterable[RoundRecord]) -> None:
        """Take in rounds that were recorded before."""

    def settled(self, record: RoundRecord) -> RoundRecord:
        """Return a round's record with what is spent by then."""


def spending_of(config: TrialConfig, examples_N: NDArray[np.int64], z: float) -> Spends:
    """Return what keeps a trial's account, whose clients have so many training examples each.

    z is the noise multiplier: see :func:`noise_of`.
    """
    own = config.privacy.in_clients and config.privacy.noises
    return ClientsSpending(config, examples_N, z) if own else Spending(config)


def noise_of(config: TrialConfig, examples_N: NDArray[np.int64]) -> float:
    """Return a trial's noise multiplier, whose clients have so many training examples each.

    One that is found for a target of clients is the same for all of them: the least one under which
    none spends more if all rounds ask it.
    """
    epsilon = config.privacy.target_epsilon
    if not config.privacy.solves_by_data or epsilon is None:
        return config.privacy.noise_multiplier
    account = config.account.of_clients(int(examples_N.sum()))
    kinds = sorted({_batches(config, int(examples)) for examples in examples_N})

    def releases(kind: tuple[float, int], z: float) -> dict[Release, int]:
        rate, steps = kind
        return {Release(z, rate=rate): steps * config.rounds}

    worst = kinds[-1]  # who has few examples; another one may spend more
    while True:
        z = account.multiplier(partial(releases, worst), epsilon)
        spent = {kind: account.epsilon(releases(kind, z)) for kind in kinds}
        worst = max(spent, key=lambda kind: spent[kind])
        if spent[worst] <= epsilon:
            return z


def _batches(config: TrialConfig, examples: int) -> tuple[float, int]:
    """Return the rate and the number of a client's batches in a round."""
    training = config.training
    return batches_of(examples, training.batch_size, training.epochs, training.steps or 0)


class ClientsSpending:
    """Epsilon of each client under ``privacy=local_sgd``: what its models say of an example.

    A client has spent what its own steps cost in the rounds that asked it, whether it replied or
    not. It follows from the rounds' records.

    Parameters
    ----------
    config : TrialConfig
        The trial.
    examples_N : (N,) int
        Training examples of each client.
    z : float
        The noise multiplier.
    """

    def __init__(self, config: TrialConfig, examples_N: NDArray[np.int64], z: float) -> None:
        self._account = config.account.of_clients(int(examples_N.sum()))
        self._steps: list[tuple[Release, int]] = []  # of each client: one of them, and how many
        for examples in map(int, examples_N):
            rate, steps = _batches(config, examples)
            self._steps.append((Release(z, rate=rate), steps))
        self._rounds = np.zeros(len(examples_N), np.int64)  # that asked each client
        self._known: dict[tuple[Release, int], float] = {}

    def go_on(self, records: Iterable[RoundRecord]) -> None:
        """Take in rounds that were recorded before."""
        for record in records:
            self._charge(record)

    def settled(self, record: RoundRecord) -> RoundRecord:
        """Return a round's record with what clients spent by then: their mean, and the most."""
        self._charge(record)
        spent_N = np.array([self._epsilon(client) for client in range(len(self._steps))])
        found = {EPSILON_MEAN: float(spent_N.mean()), EPSILON_MAX: float(spent_N.max())}
        own = [float(spent_N[client]) for client in record.clients["client"]]
        return replace(
            record,
            metrics={**record.metrics, **found},
            clients={**record.clients, "epsilon": own},
        )

    def _charge(self, record: RoundRecord) -> None:
        rows = record.clients
        for client, host in zip(rows.get("client", ()), rows.get("host", ()), strict=True):
            self._rounds[client] += bool(host)  # others were evaluated alone

    def _epsilon(self, client: int) -> float:
        release, steps = self._steps[client]
        key = release, steps * int(self._rounds[client])
        if key not in self._known:
            self._known[key] = self._account.epsilon({release: key[1]})
        return self._known[key]


class Spending:
    """Epsilon so far: it follows from the records of the rounds, so a resumed trial has the same.

    Parameters
    ----------
    config : TrialConfig
        The trial.
    """

    def __init__(self, config: TrialConfig) -> None:
        self._config, self._plan = config, config.account.plan
        self._spent: Counter[Release] = Counter()

    def go_on(self, records: Iterable[RoundRecord]) -> None:
        """Take in rounds that were recorded before."""
        for record in records:
            self._charge(record)

    def settled(self, record: RoundRecord) -> RoundRecord:
        """Return a round's record with what is spent by then, and why if that is more than planned.

        Where a rule watches it, also with what will be spent by the next round that the trial may
        end in.
        """
        if self._plan is None:
            return record
        release = self._charge(record)
        epsilon = self._plan.account.epsilon(self._spent)
        found = {EPSILON: epsilon}
        if self._config.stop.epsilon is not None and record.round < self._config.rounds:
            found[EPSILON_AHEAD] = self._ahead(record.round)
        events = record.events
        planned = self._plan.planned(record.round)
        if release is not None and planned.is_amplified and not release.is_amplified:
            asked, replied = _asked(record)
            events += (
                f"{asked - replied} of {asked} clients gave no reply: the round is charged as if "
                "everybody knew who was asked",
            )
        return replace(record, metrics={**record.metrics, **found}, events=events)

    def _charge(self, record: RoundRecord) -> Release | None:
        if self._plan is None or not record.round:
            return None
        release = self._plan.charged(record.round, *_asked(record))
        if release is not None:
            self._spent[release] += 1
        return release

    def _ahead(self, done: int) -> float:
        """Return what is spent by the next evaluated round if all reply until then."""
        assert self._plan is not None
        config = self._config
        after = min((done // config.evaluate_every + 1) * config.evaluate_every, config.rounds)
        ahead = self._spent.copy()
        ahead.update(self._plan.planned(number) for number in range(done + 1, after + 1))
        return self._plan.account.epsilon(ahead)


def _asked(record: RoundRecord) -> tuple[int, int]:
    """Return how many clients a round asked, and of how many the replies were used."""
    return int(record.metrics["3_clients/asked"]), int(record.metrics["3_clients/trained"])


def uncovered_state(layout: Layout, arrays: ArrayRecord) -> list[str]:
    """Return the arrays that clients change and no noise covers: running statistics, counters.

    Frozen parameters are the same for all, and say nothing.
    """
    counters = [name for name in layout.carried if not is_floating(arrays[name])]
    return [*layout.averaged, *counters]


def check_state(config: TrialConfig, layout: Layout, arrays: ArrayRecord) -> None:
    """Refuse a network of which a strict account does not cover all.

    Raises
    ------
    ConfigError
        It keeps statistics of its examples.
    """
    state = uncovered_state(layout, arrays)
    if config.privacy.noises and config.privacy.strict and state:
        raise ConfigError(
            f"privacy={config.privacy.name}: epsilon does not cover what model={config.model.name} "
            f"keeps of its examples ({_few(state)}); take another model, or set "
            "privacy.strict=false, which names it in the run"
        )


def said_of_privacy(config: TrialConfig, layout: Layout, z: float) -> tuple[str, ...]:
    """Return what the reader of the results has to know, one line each; z as of `noise_of`."""
    if config.privacy.name == "none":
        return ()
    told = [config.account.said]
    if config.privacy.solves_by_data:
        told.append(
            f"privacy.target_epsilon={config.privacy.target_epsilon:g}: noise multiplier {z:g}, "
            f"for the client that spends most if each of {config.rounds} rounds asks it"
        )
    if layout.averaged:
        told.append(
            f"privacy={config.privacy.name}: the model's running statistics "
            f"({_few(layout.averaged)}) are averaged without clipping or noise: no guarantee "
            "covers them"
        )
    return tuple(told)


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
