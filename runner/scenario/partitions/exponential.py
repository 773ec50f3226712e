"""Of n clients, in the seed's order, the i-th gets a share like exp(i): for about ten clients."""

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
