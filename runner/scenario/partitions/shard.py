"""Label-sorted shards dealt out by chance.

McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS, section 3.
"""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fedsweep.scenario.partition import FlowerPartition
from fedsweep.strategies.ranges import EXAMPLES

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


class Shard(FlowerPartition):
    """Shards per client; what does not fill a shard is left out."""

    remedy: ClassVar[str] = "lower partition.shards_per_client or num_clients"

    shards_per_client: int = Field(
        2, ge=1, le=EXAMPLES, description="label-sorted shards per client (McMahan 2017)"
    )

    def partitioner(self, total: int, num_clients: int, seed: int) -> "Partitioner":
        """Return ``ShardPartitioner``."""
        from flwr_datasets.partitioner import ShardPartitioner

        shards = self.shards_per_client
        return ShardPartitioner(num_clients, "label", num_shards_per_partition=shards, seed=seed)
