"""Of n clients, dealt out by the seed, the i-th gets a share proportional to i."""

from typing import TYPE_CHECKING, ClassVar

from fedsweep.scenario.partition import FlowerPartition

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


class Linear(FlowerPartition):
    """Sizes alone differ."""

    by_number: ClassVar[bool] = True

    def partitioner(self, total: int, num_clients: int, seed: int) -> "Partitioner":
        """Return ``LinearPartitioner``."""
        from flwr_datasets.partitioner import LinearPartitioner

        return LinearPartitioner(num_clients)
