"""Secure aggregation: its settings, and whether a trial can do with sums."""

from collections.abc import Iterator
from typing import Protocol

from pydantic import Field

from fedsweep.config.section import Section
from fedsweep.config.sections import Sections
from fedsweep.errors import ConfigError
from fedsweep.scenario.masking import MODULUS, Masking
from fedsweep.strategies.base import ModelTraits, models_of
from fedsweep.strategies.ranges import CLIENTS, METRIC
from fedsweep.strategies.registry import STRATEGIES


class SecAggConfig(Section):
    """How clients mask what they send under ``secure_aggregation=true`` (SecAgg+)."""

    bits: int = Field(22, ge=2, le=31, description="a number is sent as one of 2^bits + 1 values")
    clipping_range: float = Field(
        8.0, gt=0, le=METRIC, description="numbers of a weighted update beyond it are cut off"
    )
    neighbours: int = Field(
        5,
        ge=1,
        le=CLIENTS,
        description="clients on either side, in a circle drawn each round, that share masks",
    )
    threshold: float = Field(
        0.6,
        gt=0,
        le=1,
        description="share of a client and its neighbours without whose replies a sum is lost",
    )

    def masking(self, heaviest: float, seed: int) -> Masking:
        """Return how a trial's clients mask, the heaviest of which weighs so much."""
        return Masking(
            self.bits, self.clipping_range, self.neighbours, self.threshold, heaviest, seed
        )

    def check_in(self, fewest: int, most: int) -> None:
        """Refuse rounds of so few, or so many, clients.

        Raises
        ------
        ValueError
            In one line: what was given, and what to change.
        """
        if fewest < 2:
            raise ValueError(
                f"secure_aggregation=true with {fewest} training client a round: the sum would be "
                "its update; train more clients or set secure_aggregation=false"
            )
        if most << self.bits >= MODULUS:
            room = ((MODULUS - 1) // most).bit_length() - 1
            raise ValueError(
                f"secagg.bits={self.bits} with {most} training clients a round: their sum would "
                f"be over 2^32; lower it to {room}, or train fewer clients"
            )


class SecureSections(Sections, Protocol):
    """The same, with secure aggregation's."""

    @property
    def secure_aggregation(self) -> bool: ...  # noqa: D102
    @property
    def secagg(self) -> SecAggConfig: ...  # noqa: D102


def check_sums(config: SecureSections) -> None:
    """Refuse what needs more of the clients' updates than their sums.

    Raises
    ------
    ConfigError
        In one line: what was given, and what to change.
    """
    name, given = config.strategy.name, "secure_aggregation=true"
    if name not in (fit := STRATEGIES.of_sums()):
        raise ConfigError(
            f"{given} leaves the server sums of what clients send, and strategy={name} needs more; "
            f"set strategy={', '.join(fit)}, or secure_aggregation=false"
        )
    if why := next(_needs_each(config), ""):
        raise ConfigError(f"{given} with {why}, or secure_aggregation=false")
    most = config.online(config.rounds)
    if config.sampling == "fixed":
        most = config.strategy.trained(most)
    try:
        config.secagg.check_in(config.strategy.trained(config.online(1)), most)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _needs_each(config: SecureSections) -> Iterator[str]:
    """Say what looks at single updates, and what to set."""
    attack, defence, compression = config.attack, config.defence, config.compression
    if attack.at_replies:
        yield (
            f"attack={attack.name}, whose attackers know the updates that masks hide; set an "
            "attack at the data such as attack=label_flip"
        )
    if defence.defends:
        yield f"defence={defence.name}, which compares what masks hide; set defence=none"
    if compression.compresses:
        yield (
            f"compression={compression.name}, whose parts are no numbers that add up; set "
            "compression=none"
        )
    if config.privacy.sums:
        yield (
            f"privacy={config.privacy.name}, under which the server clips each update; set "
            "privacy=local_sgd or privacy=none"
        )
    if config.schedule.stale:
        yield (
            f"schedule={config.schedule.name}, whose replies began with different models; set "
            "schedule=sync"
        )


def sums_said(config: SecureSections) -> str:
    """Return what a server learns under secure aggregation, in a line."""
    has: ModelTraits = models_of(STRATEGIES[config.strategy.name])
    of = "the sum of a round's updates"
    if has.clusters_clients:
        of = "a sum of updates per cluster, and who is in which"
    if has.assigns_in_evaluation:
        of = "a sum of updates per model, and who chose which, as clients tell it"
    return (
        f"secure_aggregation=true: the server learns {of}; losses and numbers of examples are told "
        "unmasked; masks follow from the seed, and hide nothing from who knows it"
    )
