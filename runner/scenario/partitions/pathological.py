"""A fixed number of distinct classes per client.

Li et al. 2022, "Federated Learning on Non-IID Data Silos: An Experimental Study" (NIID-Bench),
ICDE.
"""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fedsweep.scenario.partition import FlowerPartition
from fedsweep.strategies.ranges import EXAMPLES

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


class Pathological(FlowerPartition):
    """Classes per client; those that no client drew are left out."""

    remedy: ClassVar[str] = "lower partition.classes_per_client or num_clients"
    by_number: ClassVar[bool] = True

    classes_per_client: int = Field(2, ge=1, le=EXAMPLES, description="distinct labels per client")

    def partitioner(self, total: int, num_clients: int, seed: int) -> "Partitioner":
        """Return ``PathologicalPartitioner`` as in NIID-Bench.

        Part i has class i mod K and others by chance, so that no class is lost where there are as
        many clients.
        """
        from flwr_datasets.partitioner import PathologicalPartitioner

        return PathologicalPartitioner(
            num_clients,
            "label",
            num_classes_per_partition=self.classes_per_client,
            class_assignment_mode="first-deterministic",
            seed=seed,
        )
