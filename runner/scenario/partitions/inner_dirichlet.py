"""Equal sizes; each client draws its class mix from a Dirichlet distribution.

Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", arXiv:1909.06335.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedsweep.scenario.partition import FlowerPartition

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


class InnerDirichlet(FlowerPartition):
    """A class mix per client; sizes are given."""

    remedy: ClassVar[str] = "raise partition.alpha or lower num_clients"

    alpha: float = Field(0.5, ge=1e-6, le=1e6, description="concentration; smaller is more skewed")
    sizes: Literal["equal", "linear", "square"] = Field(
        "equal",
        description="examples per client: equal, or shares as 1, 2, 3, ... (squared), dealt out by "
        "seed",
    )

    @property
    def by_number(self) -> bool:  # type: ignore[override]
        """Sizes follow from a part's number unless they are equal."""
        return self.sizes != "equal"

    def partitioner(self, total: int, num_clients: int, seed: int) -> "Partitioner":
        """Return ``InnerDirichletPartitioner``, which expects classes 0 to K - 1 without a gap."""
        from flwr_datasets.partitioner import InnerDirichletPartitioner

        sizes = client_sizes(self.sizes, total, num_clients)
        return InnerDirichletPartitioner(sizes, "label", alpha=self.alpha, seed=seed)


def client_sizes(rule: str, total: int, num_clients: int) -> list[int]:
    """Return how many of ``total`` examples each part has: in proportion to 1, i or i squared.

    Parts are numbered i = 1, 2, ...
    """
    power = {"equal": 0, "linear": 1, "square": 2}[rule]
    weights = np.arange(1, num_clients + 1, dtype=float) ** power
    bounds = np.rint(np.cumsum(weights) / weights.sum() * total).astype(int)
    sizes = np.diff(bounds, prepend=0).tolist()
    return sorted(sizes, reverse=True) if rule == "equal" else sizes
