"""Each class shared out by a Dirichlet draw over the clients: skewed labels and sizes.

Yurochkin et al. 2019, "Bayesian Nonparametric Federated Learning of Neural Networks", ICML.
"""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fedsweep.scenario.partition import FlowerPartition
from fedsweep.strategies.ranges import EXAMPLES

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


class Dirichlet(FlowerPartition):
    """Shares of each class, drawn anew until each client has enough examples."""

    remedy: ClassVar[str] = "raise partition.alpha, or lower partition.min_size or num_clients"

    alpha: float = Field(0.5, ge=1e-6, le=1e6, description="concentration; smaller is more skewed")
    min_size: int = Field(
        10, ge=1, le=EXAMPLES, description="fewest examples that a client may get"
    )

    def partitioner(self, total: int, num_clients: int, seed: int) -> "Partitioner":
        """Return ``DirichletPartitioner``."""
        from flwr_datasets.partitioner import DirichletPartitioner

        return DirichletPartitioner(
            num_clients, "label", alpha=self.alpha, min_partition_size=self.min_size, seed=seed
        )
