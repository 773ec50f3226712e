"""What a method's clients do, written once for the C clients of a chunk.

A method that asks more of its clients than to train what they were sent has a :class:`ClientPart`
in its own file. Whoever runs it, client by client for any network or all clients of a chunk in one
batched program, gives it a :class:`Work`; the part does not know which. It sees the clients'
TRAINING examples alone, so no choice can be made by the labels that a client is scored on.

Shapes: C clients, K models to choose from, P trained parameters, n training examples of a client.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from flwr.app import ConfigRecord
from numpy.typing import NDArray

from fedsweep.batching import Cut, steps_of
from fedsweep.strategies.arrays import ModelRows
from fedsweep.strategies.models import Mixture, Models

METHOD = "method"
"""Config key that names the client part; without it clients train what they were sent."""


Values = Mapping[str, Any]
"""What a Flower record holds by name: numbers, texts, bytes, and lists of one of these."""


class LocalSettings(Protocol):
    """How the clients train in the round: the fields that a client part may need."""

    @property
    def optimizer(self) -> str:
        """``sgd`` or ``adam``."""

    @property
    def lr(self) -> float:
        """Step size of this round."""

    @property
    def momentum(self) -> float:
        """Of SGD."""

    @property
    def weight_decay(self) -> float:
        """Added to each gradient, times the weights."""

    @property
    def proximal_mu(self) -> float:
        """Weight of the proximal term."""


@dataclass(frozen=True)
class Contrast:
    """Representations of an example are drawn to one model's and pushed from another's.

    Adds ``weight`` times -log(e^(s_1 / t) / (e^(s_1 / t) + e^(s_2 / t))) to an example's loss: s_1
    and s_2 are the cosines of what the network in training hands to its last layer with what
    ``like`` and ``unlike`` do, t the temperature.
    """

    like: Models
    unlike: Models
    weight: float
    temperature: float


@dataclass(frozen=True)
class Trained:
    """What local training gave: the models, and per client its loss, accuracy and steps."""

    models: Models
    results: Sequence[Mapping[str, float]]

    def of(self, key: str) -> list[float]:
        """Return one of the results, per client."""
        return [result[key] for result in self.results]


@dataclass(frozen=True)
class Batch:
    """The clients' next batches; a client that has none left sits out."""

    number: int  # 0 for the round's first batch
    sizes: NDArray[np.int64]  # (C,): examples of each client; 0 for one that sits out
    examples: Any  # what the trainer makes of them


@dataclass(frozen=True)
class Gradient:
    """Of the mean cross-entropy of the clients' batches; zeros for a client that sits out."""

    rows: ModelRows  # (C, P)
    losses: NDArray[np.float64]  # (C,)
    hits: NDArray[np.int64] | NDArray[np.float64]
    """(C,): examples that were classified right; nan where targets are numbers."""


class Steps(Protocol):
    """C models under training by a method's own steps, each with an optimizer of its own."""

    @property
    def rows(self) -> ModelRows:
        """The trained parameters as they are now, (C, P)."""

    @property
    def models(self) -> Models:
        """The models as they are now."""

    def gradient(self, batch: Batch, at: ModelRows | None = None) -> Gradient:
        """Return the gradient of the models, or of others ``at`` (C, P) in their place.

        The models' own running statistics take in the batch; others leave them alone.
        """

    def step(self, batch: Batch, gradient: ModelRows) -> None:
        """Have the optimizers of the clients that have a batch step along (C, P)."""


class Work(Protocol):
    """The tasks of C clients who share their configuration: what they were sent and remember."""

    @property
    def config(self) -> Values:
        """What the strategy sent beside the models."""

    @property
    def local(self) -> LocalSettings:
        """How the clients train in this round."""

    def __len__(self) -> int:
        """Return C."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Training examples of each client, (C,)."""

    def class_counts(self) -> NDArray[np.int64]:
        """Return each client's training examples of each class, (C, classes)."""

    def labels(self) -> list[NDArray[np.int64]]:
        """Return the classes of each client's training examples, (n,), in the order of losses."""

    def sent(self, name: str = "arrays") -> Models:
        """Return what each client was sent under a name, (C, P)."""

    def candidates(self) -> Models:
        """Return the K models that each client was sent, the same for all, in their order."""

    def initial(self) -> Models:
        """Return the trial's initial model, for each client."""

    def kept(self, name: str, otherwise: Models) -> Models:
        """Return what each client keeps under a name; its own of ``otherwise`` where nothing."""

    def keep(self, name: str, models: Models) -> None:
        """Have each client keep its own of C models under a name, until the trial's end."""

    def recalled(self, name: str) -> list[Values | None]:
        """Return the numbers that each client keeps under a name; None where there are none."""

    def remember(self, name: str, values: Sequence[Values]) -> None:
        """Have each client keep its own numbers under a name, until the trial's end."""

    def tell(self, name: str, values: Sequence[Values]) -> None:
        """Put a record of each client into its reply, beside what the reply has anyway."""

    def train(
        self,
        start: Models,
        *,
        anchor: Models | None = None,
        mu: float | Sequence[float] | None = None,
        correction: ModelRows | None = None,
        epochs: int = 0,
        only: Sequence[str] | None = None,
        contrast: Contrast | None = None,
        weights: Sequence[NDArray[np.float64]] | None = None,
    ) -> Trained:
        """Train a model per client, as the round's settings say.

        Parameters
        ----------
        start : Models
            C models.
        anchor : Models, optional
            Where the proximal term pulls; ``start`` by default.
        mu : float or sequence of C floats, optional
            Weight of the proximal term; that of the settings by default.
        correction : (C, P), optional
            Added to the gradient of each step.
        epochs : int
            Passes over the examples in place of the settings' epochs or steps; 0: as they say.
        only : sequence of str, optional
            The trained arrays that move; all by default. Running statistics take in the batches
            whatever moves.
        contrast : Contrast, optional
            A loss on representations, beside the examples' own.
        weights : sequence of C arrays (n,), optional
            What the loss of each of a client's examples is multiplied by, in the order of
            ``losses``; a batch's loss is still divided by its number of examples. The results
            count losses and hits so, too; running statistics take in the batches as they are.
        """

    def losses(self, models: Models) -> list[NDArray[np.float64]]:
        """Return the cross-entropy of each client's training examples under K models, (n, K)."""

    def batches(self) -> Iterator[Batch]:
        """Yield the batches that ``train`` would take."""

    def begin(self, start: Models, *, proximal: bool = True) -> Steps:
        """Return C models to be trained by steps; with the settings' proximal term, or without."""


@dataclass(frozen=True)
class Update:
    """What C clients send back after their training.

    ``metrics`` and ``arrays`` are for the strategy, which finds them in the replies; what is logged
    of the training are the ``results``.
    """

    results: Sequence[Mapping[str, float]]  # as ``Trained`` has them
    models: Models | None  # None: a model stays where it is
    metrics: Mapping[str, Sequence[float]] = field(default_factory=dict)  # by name, per client
    arrays: Mapping[str, Models] = field(default_factory=dict)  # by name, beside the models


@dataclass(frozen=True)
class Effort:
    """What a task has its client compute, in examples that pass through the network."""

    trained: float  # forward and backward
    scored: float = 0.0  # forward alone


LEAST = "least-batch"
"""Config key of how many examples a batch has at least, where a network says so."""


def training_effort(config: Values, examples: int) -> float:
    """Return how many examples one training takes in, as the config of a message says.

    Keys that were not sent have the defaults of the client's training: one pass, batches of 10.
    """
    if not examples:
        return 0.0
    passed = Cut.of(examples, *_batches(config))
    return float(passed.examples_in(training_steps(config, examples)))


def training_steps(config: Values, examples: int) -> int:
    """Return how many steps one training takes, as the config of a message says."""
    batch_size, least = _batches(config)
    steps, epochs = int(config.get("steps", 0)), int(config.get("epochs", 1))
    return steps_of(examples, batch_size, epochs, steps, least)


def _batches(config: Values) -> tuple[int, int]:
    """Return how many examples a batch has, and how many at least."""
    return int(config.get("batch-size", 10)), int(config.get(LEAST, 1))


class ClientPart:
    """FedAvg's clients: they train what they were sent, send it back, and keep nothing.

    A method's own part overrides ``fit``, ``model`` or both, and names itself in ``method``, which
    its strategy puts into the config of its messages.
    """

    method = ""

    def fit(self, work: Work) -> Update:
        """Train, and return what the clients send back."""
        trained = work.train(work.sent())
        return Update(trained.results, trained.models)

    def model(self, work: Work) -> Models | Mixture:
        """Return what each client uses, a model or several mixed, scored on what it holds out."""
        return work.sent()

    def effort(self, config: Values, examples: int, models: int) -> Effort:
        """Return what ``fit`` has a client compute: the virtual clock asks.

        Parameters
        ----------
        config : mapping
            What the strategy sent beside the models.
        examples : int
            Training examples of the client.
        models : int
            How many models it was sent.
        """
        del models
        return Effort(training_effort(config, examples))


def with_method(config: ConfigRecord, method: str, **values: Any) -> ConfigRecord:
    """Return a copy of a config that names a client part and its settings.

    A setting's name is written with dashes: ``personal_epochs`` is ``personal-epochs``.
    """
    named = {key.replace("_", "-"): value for key, value in values.items()}
    return ConfigRecord({**config, METHOD: method, **named})
