"""What a process holds for a trial's clients: network, device, examples, and what a client is."""

from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from flwr.app import ArrayRecord
from torch import nn

from fedsweep.client.messages import TestSums
from fedsweep.data.federated import FederatedData
from fedsweep.models import build_model
from fedsweep.scenario.compression import Compressor
from fedsweep.seeding import derive_seed
from fedsweep.strategies.clients import Values
from fedsweep.strategies.layout import Layout
from fedsweep.training.arrays import layout_of, load_weights, read_weights
from fedsweep.training.modules import AsBuilt
from fedsweep.training.pool import ExamplePool, Place, Read
from fedsweep.training.trainers import OneByOne


class ModelSpec(Protocol):
    """What names a network: ``ModelConfig`` or anything like it."""

    @property
    def name(self) -> str:
        """As ``models.build_model`` takes it."""

    @property
    def kwargs(self) -> dict[str, Any]:
        """Options of the network."""


class ClientProcess:
    """A process that works for a trial's clients; each of them is the number of its partition."""

    def __init__(
        self,
        data: FederatedData,
        model: ModelSpec,
        seed: int,
        device: Literal["cpu", "auto"],
        threads: int,
        compressor: Compressor | None = None,
        *,
        filtered: bool = False,
    ) -> None:
        self.compressor, self._filtered = compressor, filtered
        self._data, self.spec, self._seed, self.threads = data, model, seed, threads
        self._wanted_device = device

    @cached_property
    def one_by_one(self) -> OneByOne:
        """What trains this process's network client by client."""
        return OneByOne(self.load, filtered=self._filtered)

    def initial(self) -> ArrayRecord:
        """Return the trial's initial model."""
        return self._initial

    # What a process holds: device, model, examples.

    @cached_property
    def _initial(self) -> ArrayRecord:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, "model"))
            return read_weights(self._build())

    @cached_property
    def device(self) -> torch.device:
        """Where this process trains."""
        if self._wanted_device == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        # The same bits for the same config: cuBLAS needs the variable as well (the engine sets it
        # before CUDA starts).
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        return torch.device("cuda", torch.cuda.current_device())

    @cached_property
    def model(self) -> nn.Module:
        """The process's network; every task loads its weights anew."""
        with torch.random.fork_rng(
            devices=[]
        ):  # its weights are overwritten; the process's generator stays as it was
            # Channels last: convolutions of 3 and more channels are up to 1.4 times as fast on a
            # CPU, none is slower.
            model = self._build().to(memory_format=torch.channels_last).to(self.device)
        self._as_built = AsBuilt(model)
        return model

    @cached_property
    def layout(self) -> Layout:
        """What the arrays of the network's record are."""
        return layout_of(self.model)

    def _build(self) -> nn.Module:
        data = self._data.images
        return build_model(
            self.spec.name,
            self.input_shape,
            data.num_outputs,
            data.num_symbols,
            **self.spec.kwargs,
        )

    @property
    def num_classes(self) -> int:
        """Classes of the data set, whoever has examples of them."""
        return self._data.images.num_classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of an example: channels, height and width of an image."""
        return self._data.images.shape

    @property
    def learns_numbers(self) -> bool:
        """Whether targets are real numbers, and not classes."""
        return self._data.images.is_real

    @property
    def target_unit(self) -> float:
        """What 1 of a target is in the unit of the data."""
        return self._data.target_unit

    def load(self, arrays: ArrayRecord) -> nn.Module:
        """Return the network with these weights."""
        torch.set_num_threads(
            self.threads
        )  # per task: trials with other settings share the process
        model = self.model
        self._as_built.restore()
        load_weights(model, arrays)
        return model

    @cached_property
    def pool(self) -> ExamplePool:
        """The examples that this process has staged."""
        return ExamplePool(self._data.images.mean, self._data.images.std, self.device)

    def places(self, sets: Sequence[tuple[Hashable, Read]]) -> list[Place]:
        """Return where sets of examples lie in the pool; it holds until more are asked for."""
        reads = dict(sets)
        found = dict(zip(reads, self.pool.places(reads), strict=True))
        return [found[key] for key, _ in sets]

    # What a client is: its seed and its examples.

    def seed(self, purpose: str, config: Values, client: int) -> int:
        """Return what fixes a client's batches in a round for a purpose: ``train``, ``prepare``."""
        return derive_seed(self._seed, purpose, int(config.get("server-round", 1)), client)

    def train_set(self, config: Values, client: int) -> tuple[Hashable, Read]:
        """Return a client's training examples in a round as the pool takes them.

        With ``root`` in the config they are so many of the server's own instead.
        """
        if root := int(config.get("root", 0)):
            return ("root", root), lambda: self._data.root(root, self._seed)
        phase = self._phase(config)
        return ("train", client, phase), lambda: self._data.client(client, "train", phase)

    def evaluation_set(self, config: Values, client: int) -> tuple[Hashable, Read]:
        """Return what a client is evaluated on, as the pool takes it.

        It is empty for a client that holds out nothing: one example, or
        ``partition.eval_fraction=0``.
        """
        phase = self._phase(config)
        return ("eval", client, phase), lambda: self._data.client(client, "eval", phase)

    def test_sets(
        self, config: Values, client: int, *, goal: bool = False
    ) -> list[tuple[Hashable, Read]]:
        """Return the test set as a client's group sees it, in slices of ``test-own`` rows.

        With ``goal`` it is what attackers want of it.
        """
        group, size = (
            int(self._data.groups_in(self._phase(config))[client]),
            int(config["test-own"]),
        )
        count = len(self._data.images.test_y)
        starts = range(0, count, size)
        return [self.test_set(group, i, min(i + size, count), goal=goal) for i in starts]

    def test_sums(self) -> TestSums:
        """Return sums that begin at zero."""
        data = self._data.images
        return TestSums(data.num_outputs, real=data.is_real, unit=self.target_unit)

    def test_set(
        self, group: int, start: int, stop: int, *, goal: bool = False
    ) -> tuple[Hashable, Read]:
        """Return a slice of the central test set, as a group sees it, as the pool takes it.

        With ``goal`` it is what attackers want of it.
        """
        key = ("goal" if goal else "test", group, start, stop)
        return key, lambda: self._data.test(group, start, stop, goal=goal)

    def _phase(self, config: Values) -> int:
        """Return which of the drifting data's phases a round is in."""
        return self._data.phase(int(config.get("server-round", 1)))
