"""Of n clients, dealt out by the seed, the i-th gets a share proportional to the square of i."""

from typing import TYPE_CHECKING, ClassVar

from fedsweep.scenario.partition import FlowerPartition

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


class Square(FlowerPartition):
    """Sizes alone differ."""

    by_number: ClassVar[bool] = True

    def partitioner(self, total: int, num_clients: int, seed: int) -> "Partitioner":
        """Return ``SquarePartitioner``."""
        from flwr_datasets.partitioner import SquarePartitioner

        return SquarePartitioner(num_clients)
