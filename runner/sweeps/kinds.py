"""Kinds of trials: what a sweep asks of them, and those of this project.

Another kind is a Flower app of somebody's own (``runner/app/sweep.py``).
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from fedsweep.engine.executors import Host
from fedsweep.sweeps.compose import Trial, remarks
from fedsweep.sweeps.prepare import Prepared, check_models, prepare, prepare_inline
from fedsweep.trial.trial import CLIENT_APP, TrialEvent, run_trial

if TYPE_CHECKING:
    import ray


class Ready(Protocol):
    """What a trial is run on, once it is there and was checked."""

    @property
    def told(self) -> str:
        """What was read and what was left out, in a line."""

    @property
    def values(self) -> "tuple[ray.ObjectRef[Any] | Any, ...]":
        """References to it; values, for the inline engine."""


class Kind(Protocol):
    """How the trials of a sweep are made ready and run."""

    @property
    def client_app(self) -> str:
        """The module that hosts import while they come up."""

    @property
    def run(self) -> Callable[..., Generator[TrialEvent, None, None]]:
        """What runs a trial: as :func:`fedsweep.trial.trial.run_trial`, given what it runs on."""

    def remarks(self, trials: Sequence[Trial]) -> list[str]:
        """Return what is to be said of a grid before anything starts, in sentences."""

    def recalled(self, told: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return how the metrics of trials that were run before are shown now.

        Parameters
        ----------
        told : sequence of str
            How they were declared, a text per trial: see :meth:`fedsweep.catalog.Catalog.declare`.

        Returns
        -------
        list of str
            The same, as this session has it.
        list of str
            What is to be said of that, in lines.
        """

    def prepare(self, trials: Sequence[Trial], inline: bool) -> Mapping[str, Ready]:
        """Return what each trial is run on, by trial key: in this process, or on Ray's nodes.

        Raises
        ------
        RunnerError
            Something is wrong with it.
        """

    def parameters(
        self, trials: Sequence[Trial], prepared: Mapping[str, Any], hosts: list[Host] | None
    ) -> Mapping[str, int]:
        """Return the number of parameters of each trial's network, as far as they are known."""

    def longest_first(
        self, trials: Sequence[Trial], prepared: Mapping[str, Any], parameters: Mapping[str, int]
    ) -> list[Trial]:
        """Return the trials in the order in which they are begun."""


class OwnTrials:
    """The trials of this project."""

    client_app = CLIENT_APP

    @property
    def run(self) -> Callable[..., Generator[TrialEvent, None, None]]:
        """What runs a trial."""
        return run_trial

    def remarks(self, trials: Sequence[Trial]) -> list[str]:
        """Return what does not hold for all trials of a grid."""
        return remarks(trials)

    def recalled(self, told: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return what was told: the catalog has these metrics."""
        return [*told], []

    def prepare(self, trials: Sequence[Trial], inline: bool) -> dict[str, Prepared]:
        """Return each trial's data and split."""
        return prepare_inline(trials) if inline else prepare(trials)

    def parameters(
        self, trials: Sequence[Trial], prepared: Mapping[str, Any], hosts: list[Host] | None
    ) -> dict[str, int]:
        """Build each network once."""
        return check_models(trials, dict(prepared), hosts)

    def longest_first(
        self, trials: Sequence[Trial], prepared: Mapping[str, Any], parameters: Mapping[str, int]
    ) -> list[Trial]:
        """Return the trials, longest expected first."""
        return longest_first(trials, dict(prepared), parameters)


OURS = OwnTrials()


def longest_first(
    trials: Sequence[Trial], prepared: dict[str, Prepared], parameters: Mapping[str, int]
) -> list[Trial]:
    """Return the trials, longest expected first: no long one is left to run alone at the end.

    The length is the examples that all rounds of a trial pass over, times the bytes of an example
    and of the network's parameters (by trial key, of 4 bytes each); equals keep their order.
    """

    def length(trial: Trial) -> float:
        config, data = trial.config, prepared[trial.config.key]
        examples = data.num_train * config.strategy.fraction_train
        passes: float = config.training.epochs
        if config.training.steps is not None:
            batch = config.training.batch_size
            passes = config.training.steps * (
                batch * config.num_clients / data.num_train if batch else 1.0
            )
        return (
            config.rounds
            * examples
            * passes
            * (data.train_bytes / data.num_train + 4 * parameters[config.key])
        )

    return sorted(trials, key=length, reverse=True)
