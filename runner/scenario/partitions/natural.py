"""Clients as they are: a column of the data set says whose an example is.

As flwr-datasets' NaturalIdPartitioner and GroupedNaturalIdPartitioner, with clients that have too
few examples left out, and a most that a client may have.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from fedsweep.errors import DataError
from fedsweep.scenario.partition import Partition
from fedsweep.seeding import derive_seed
from fedsweep.strategies.ranges import CLIENTS, EXAMPLES


class Natural(Partition):
    """A value of a column is a client, or some values together are one."""

    by_column: ClassVar[bool] = True

    column: str = Field(
        "", description="says whose an example is; empty: the data set's own (docs/tasks.md)"
    )
    values: int = Field(
        1,
        ge=1,
        le=CLIENTS,
        description="values of it that make a client, dealt by the seed",
    )
    min_size: int = Field(
        2, ge=1, le=EXAMPLES, description="values with fewer examples are left out"
    )
    max_size: int | None = Field(
        None, ge=2, le=EXAMPLES, description="most examples of a client, drawn by the seed"
    )
    some: bool = Field(
        False, description="draw num_clients by the seed where there are more; else they must fit"
    )

    @property
    def goes_by(self) -> str:
        """The column that says whose an example is; the data set's own one if empty."""
        return self.column

    @property
    def keeps_values(self) -> bool:
        """Whether each client is one value of the column."""
        return self.values == 1

    def parts(self, labels: np.ndarray, num_clients: int, seed: int) -> Sequence[np.ndarray]:
        """Return the places of each client's examples; ``labels`` are the column's codes."""
        sizes = np.bincount(labels)
        kept = np.flatnonzero(sizes >= self.min_size)
        if self.values > 1:
            kept = np.random.default_rng(derive_seed(seed, "dealt")).permutation(kept)
        owners = [kept[i : i + self.values] for i in range(0, len(kept), self.values)]
        by = f"partition.column={self.column}" if self.column else "partition=natural"
        told = f"{by} has {len(sizes):,} values, {len(kept):,} of them with min_size examples"
        if len(owners) < num_clients:
            raise DataError(
                f"{told}: {len(owners):,} clients, fewer than num_clients={num_clients}; set "
                f"num_clients={len(owners)}, or lower partition.min_size or partition.values"
            )
        if len(owners) > num_clients:
            if not self.some:
                raise DataError(
                    f"{told}: {len(owners):,} clients, more than num_clients={num_clients}; set "
                    f"num_clients={len(owners)}, or partition.some=true to draw some by the seed"
                )
            drawn = np.random.default_rng(derive_seed(seed, "some")).permutation(len(owners))
            owners = [owners[i] for i in np.sort(drawn[:num_clients])]
        places = [np.flatnonzero(np.isin(labels, own)) for own in owners]
        # Rows are shuffled by the seed before: the first ones are a draw.
        return [own[: self.max_size] for own in places]
