"""Of n clients, dealt out by the seed, the i-th gets a share proportional to exp(i): for about ten clients at most."""

from typing import TYPE_CHECKING, ClassVar

from fedsweep.scenario.partition import FlowerPartition

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


class Exponential(FlowerPartition):
    """Sizes alone differ."""

    by_number: ClassVar[bool] = True

    def partitioner(self, total: int, num_clients: int, seed: int) -> "Partitioner":
        """Return ``ExponentialPartitioner``."""
        from flwr_datasets.partitioner import ExponentialPartitioner

        return ExponentialPartitioner(num_clients)
