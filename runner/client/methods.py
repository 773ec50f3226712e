"""What a client does for methods that need more than one model or a memory: by the name in the config's ``method``.

A training method gets a :class:`Work` and returns a :class:`Done`. Before an evaluation, the same method's entry in
``PREPARE`` leaves in the process's model what the client would use; the app then scores it on the held-out examples.
A method sees the client's TRAINING examples alone, so no choice can be made by the labels that it is scored on.

=============  ==========================================================  =============================================
``method``     message                                                     reply, beside ``arrays`` and ``metrics``
=============  ==========================================================  =============================================
``choose``     ``model-0`` to ``model-<K-1>``                              ``choice``: cluster, losses (K)
``soft``       as ``choose``; config: estimate, sigma, lambda              ``choice``: cluster, weights (K)
``scaffold``   ``arrays``, ``control``                                     ``control``: the change of the client's own
``ditto``      ``arrays``; config: lambda, personal-epochs                 metrics: personal_loss
``apfl``       ``arrays``; config: alpha, adaptive                         metrics: personal_loss, alpha
``fedper``     ``arrays`` without the head; config: head (names)           ``arrays`` without the head
``finetune``   evaluation only; config: finetune-epochs, and training's    none
=============  ==========================================================  =============================================

Evaluated, ``choose`` and ``soft`` choose again, by the training examples alone, and say so in the same ``choice``.
What a method remembers is in ``Context.state`` under the method's name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor, nn

from runner.client.training import LocalTraining
from strategies.layout import Layout


@dataclass(frozen=True)
class Work:
    """One client's task: what it was sent, what it remembers, and its training examples."""

    model: nn.Module  # the process's model; whatever weights it holds are somebody else's
    x: Tensor  # training images, normalised float (N, C, H, W)
    y: Tensor  # training labels, int64 (N,)
    hp: LocalTraining
    seed: int
    config: Mapping[str, Any]
    arrays: Mapping[str, ArrayRecord]  # the message's, by name
    state: RecordDict  # Context.state: changed in place
    initial: Callable[[], ArrayRecord]  # the trial's initial model
    load: Callable[[ArrayRecord], nn.Module]  # returns the process's model, as new, with these weights
    layout: Layout  # of the model's arrays
    told: RecordDict = field(default_factory=RecordDict)
    """What an evaluation says beside its metrics: filled in place."""

    @property
    def candidates(self) -> list[ArrayRecord]:
        """The K models of the message, in their order."""
        return list(self.arrays.values())


@dataclass(frozen=True)
class Done:
    """What a training method sends back."""

    result: Mapping[str, float]  # as training.train returns it
    arrays: ArrayRecord
    metrics: Mapping[str, float] = field(default_factory=dict)
    records: Mapping[str, ArrayRecord | ConfigRecord] = field(default_factory=dict)


def method_of(config: Mapping[str, Any], table: Mapping[str, Callable[[Work], Any]]) -> Callable[[Work], Any]:
    """Return the method that a config names.

    Raises
    ------
    ValueError
        This client does not know it.
    """
    name = str(config["method"])
    if name not in table:
        raise ValueError(f"unknown method '{name}'. Valid: {', '.join(sorted(table))}.")
    return table[name]
