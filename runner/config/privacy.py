"""Privacy around a strategy: its settings, and what is accounted of a trial's rounds."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from fedsweep.accounting import Account, Accountant, Release
from fedsweep.config.section import Section, only
from fedsweep.strategies.ranges import METRIC, WEIGHT

_FIXED, _ADAPTIVE = "fixed_server fixed_client", "adaptive_server adaptive_client"
_SUMMED = f"{_FIXED} {_ADAPTIVE}"
"""The noise is on the sum of the clients' updates; else each client's own training bears it."""
_NOISED = f"{_SUMMED} local_sgd"

_LATER = ("target_epsilon", "delta", "accountant", "client_metrics")
"""Keys that are younger than keys of trials: at their defaults they leave these alone."""


class PrivacyConfig(Section):
    """Clipping and noise: around the strategy for clients, in their training for examples."""

    name: Literal[
        "none", "fixed_server", "fixed_client", "adaptive_server", "adaptive_client", "local_sgd"
    ] = Field(
        "none",
        description=(
            "where updates are clipped, and whether the clipping norm adapts; local_sgd: each "
            "client clips and noises its gradients (DP-SGD)"
        ),
    )
    noise_multiplier: float = only(
        _NOISED,
        1.0,
        "noise deviation over clipping norm",
        ge=0,
        le=WEIGHT,
    )
    target_epsilon: float | None = only(
        _NOISED,
        None,
        "epsilon after all rounds, for which the least noise_multiplier is found (local_sgd: of "
        "the client that spends most)",
        ge=1e-3,
        le=1e4,
    )
    delta: float | None = only(
        _NOISED,
        None,
        "probability with which epsilon may fail; null: 1 / n^1.1 of n clients, or examples",
        gt=0,
        lt=1,
    )
    accountant: Accountant = only(
        _NOISED,
        "rdp",
        "who computes epsilon; pld is tighter and slower, and knows no samples of a fixed size",
    )
    strict: bool = only(
        _NOISED,
        True,
        "refuse what epsilon does not cover; false: it is named in the run. Changes no result",
    )
    client_metrics: bool = only(
        _NOISED,
        True,
        "clients tell losses, accuracies and numbers of examples; false: their updates alone",
    )
    clipping_norm: float = only(
        f"{_FIXED} local_sgd",
        1.0,
        "largest L2 norm of an update (local_sgd: of an example's gradient)",
        gt=0,
        le=METRIC,
    )
    initial_clipping_norm: float = only(_ADAPTIVE, 0.1, "clipping norm of round 1", gt=0, le=METRIC)
    target_clipped_quantile: float = only(_ADAPTIVE, 0.5, "share left unclipped", gt=0, lt=1)
    clip_norm_lr: float = only(_ADAPTIVE, 0.2, "step size of the norm's adaptation", gt=0, le=1000)

    @property
    def noises(self) -> bool:
        """Whether there is noise, of which something can be said."""
        return self.name != "none" and (
            self.noise_multiplier > 0 or self.target_epsilon is not None
        )

    @property
    def sums(self) -> bool:
        """Whether the noise is on the sum of the clients' updates."""
        return self.name in _SUMMED.split()

    @property
    def in_clients(self) -> bool:
        """Whether each client's own training bears the noise."""
        return self.name == "local_sgd"

    @property
    def solves_by_data(self) -> bool:
        """Whether its noise depends on how many examples clients have."""
        return self.in_clients and self.target_epsilon is not None

    @property
    def adapts(self) -> bool:
        """Whether the clipping norm does."""
        return self.name in _ADAPTIVE.split()

    @property
    def tells(self) -> bool:
        """Whether clients tell more than their updates."""
        return self.name == "none" or self.client_metrics

    def canonical(self) -> dict[str, Any]:
        """Return what defines it: ``strict`` refuses, or speaks, and changes nothing."""
        fields = type(self).model_fields
        unsaid = {"strict", *(["noise_multiplier"] if self.solves_by_data else [])}
        return {
            key: value
            for key, value in super().canonical().items()
            if key not in unsaid and (key not in _LATER or value != fields[key].default)
        }


@dataclass(frozen=True)
class Plan:
    """What a trial's rounds release, as far as it is known before the first one.

    Parameters
    ----------
    account : Account
        What is computed of it.
    noise_multiplier : float
        z.
    planned : callable
        Round -> what it releases if each client that it asks replies.
    changes : tuple of int
        Rounds from which on that is something else.
    said : str
        How clients are drawn, in words.
    """

    account: Account
    noise_multiplier: float
    planned: Callable[[int], Release]
    changes: tuple[int, ...]
    said: str

    def releases(self, rounds: int) -> Counter[Release]:
        """Return what the first rounds release."""
        ends = [number - 1 for number in self.changes if number <= rounds] + [rounds]
        found: Counter[Release] = Counter()
        before = 0
        for end in ends:
            found[self.planned(end)] += end - before
            before = end
        return found

    def epsilon(self, rounds: int) -> float:
        """Return epsilon after so many rounds in which all reply."""
        return self.account.epsilon(self.releases(rounds))

    def charged(self, number: int, asked: int, replied: int) -> Release | None:
        """Return what a round released, given how many were asked and how many replied.

        Poisson samples are summed over a number that does not depend on who came: who fails counts
        as zero. Else the sum is divided by the replies that there are, so that who failed tells who
        was asked: such a round is charged as if everybody knew who took part. Without any reply
        nothing is released.
        """
        planned = self.planned(number)
        if planned.rate:
            return planned
        if not replied:
            return None
        if not planned.is_amplified or replied < asked:
            return Release(planned.noise_multiplier)
        return Release(planned.noise_multiplier, asked, planned.of)
