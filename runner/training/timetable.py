"""Which examples every client of a block takes in each step, as tensors.

Imports torch and NumPy only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from fedsweep.training.layers import UnsupportedError
from fedsweep.training.local import LocalTraining, distortions, passes
from fedsweep.training.pool import Examples, Place


@dataclass(frozen=True)
class Passes:
    """A client's passes over its examples, and the batches it cuts them into."""

    first: int  # row of its first example
    count: int
    batch: int
    orders: list[np.ndarray]  # pass after pass, row numbers among its own
    distortions: list[np.ndarray]  # pass after pass, (count, 3); none without augmentation
    weights: np.ndarray | None = None  # (count,), what an example's loss is multiplied by

    @classmethod
    def of(
        cls,
        place: Place,
        hp: LocalTraining,
        seed: int,
        side: int,
        weights: np.ndarray | None = None,
    ) -> "Passes":
        """Return the passes of a client whose examples, images of so many columns, lie there."""
        first, count = place
        orders = [order.numpy() for order in passes(count, hp, seed)]
        batch = min(hp.batch_size or count, count)
        if batch == count:  # a full batch has no order
            orders = [np.arange(count)] * len(orders)
        drawn = 0 if hp.augment == "none" else len(orders)
        draws = [how.numpy() for how in islice(distortions(count, hp, seed, side), drawn)]
        return cls(first, count, batch, orders, draws, weights)

    @property
    def steps(self) -> int:
        """Return the number of batches."""
        return sum(-(-len(order) // self.batch) for order in self.orders)

    @property
    def seen(self) -> int:
        """Return the number of examples in all batches together."""
        return sum(len(order) for order in self.orders)


def passes_of(
    examples: Examples,
    places: Sequence[Place],
    hp: LocalTraining,
    seeds: Sequence[int],
    weights: Sequence[np.ndarray] | None = None,
) -> list[Passes]:
    """Return the clients' passes; ``weights`` are those of each client's examples, (n,).

    Raises
    ------
    UnsupportedError
        Batched programs have no such training.
    """
    if hp.precision == "bf16":
        raise UnsupportedError("training.precision=bf16 has no batched form")
    side = examples.x.shape[-1]
    none: list[np.ndarray | None] = [None] * len(places)
    return [
        Passes.of(place, hp, seed, side, own)
        for place, seed, own in zip(
            places, seeds, none if weights is None else weights, strict=True
        )
    ]


def longest_first(passes: Sequence[Passes]) -> list[int]:
    """Return the clients in the order of a block: those that still train are always the first."""
    return sorted(range(len(passes)), key=lambda c: (-passes[c].steps, -passes[c].count, c))


@dataclass(frozen=True)
class Timetable:
    """The batches of a block of C clients; a weight of 0 fills up a short batch."""

    rows: Tensor  # (steps, C, batch)
    weights: Tensor  # 1 / (examples in the batch)
    how: Tensor | None  # (steps, C, batch, 3): what becomes of each image
    sizes: list[list[int]]  # (steps, C): examples in each batch
    counts_as: Tensor | None = None  # (steps, C, batch): each example's own weight; 1 without

    @classmethod
    def make(cls, passes: Sequence[Passes], like: Tensor) -> "Timetable":
        """Return the timetable of clients of which the first takes the most steps."""
        rows = np.zeros(
            (passes[0].steps, len(passes), max(each.batch for each in passes)), np.int64
        )
        sizes = np.zeros(rows.shape[:2], np.int64)
        how = np.zeros((*rows.shape, 3), np.int64) if passes[0].distortions else None
        for c, each in enumerate(passes):
            rows[:, c] = each.first
            step = 0
            for number, order in enumerate(each.orders):
                begin = step
                full, rest = divmod(len(order), each.batch)
                rows[step : step + full, c, : each.batch] = (
                    order[: len(order) - rest].reshape(full, -1) + each.first
                )
                sizes[step : step + full, c] = each.batch
                step += full
                if rest:
                    rows[step, c, :rest] = order[full * each.batch :] + each.first
                    sizes[step, c] = rest
                    step += 1
                if how is not None:
                    how[begin:step, c] = each.distortions[number][rows[begin:step, c] - each.first]
        counts_as = [
            each.weights[rows[:, c] - each.first]
            for c, each in enumerate(passes)
            if each.weights is not None
        ]
        filled = np.arange(rows.shape[2]) < sizes[:, :, None]
        weights = filled / np.maximum(sizes, 1)[:, :, None]
        return cls(
            torch.from_numpy(rows).to(like.device),
            torch.from_numpy(weights).to(like),
            None if how is None else torch.from_numpy(how).to(like.device),
            sizes.tolist(),
            torch.from_numpy(np.stack(counts_as, axis=1)).to(like) if counts_as else None,
        )

    @cached_property
    def shares(self) -> Tensor:
        """What each example's loss is multiplied by in that of its batch, (steps, C, batch)."""
        return self.weights if self.counts_as is None else self.weights * self.counts_as

    @cached_property
    def longest(self) -> list[int]:
        """Examples in the longest batch of each step."""
        return [max(own) for own in self.sizes]

    @cached_property
    def active(self) -> list[int]:
        """Clients that still train in each step: always the first ones."""
        return [sum(size > 0 for size in own) for own in self.sizes]

    def counts(self, step: int) -> list[int]:
        """Return the examples of each client that still trains in a step."""
        return self.sizes[step][: self.active[step]]

    def images(self, examples: Examples, step: int, part: slice) -> Tensor:
        """Return what clients that still train take in a part of a step, (active, b, pixels)."""
        rows, how = self.rows[step, : self.active[step], part], self.how
        if how is not None:
            how = how[step, : len(rows), part].flatten(0, 1)
        return examples.images(rows.flatten(), how).view(*rows.shape, -1)

    def in_order_of_use(self, passes: Sequence[Passes]) -> tuple[Tensor, list[slice | Tensor]]:
        """Return the rows each client uses, (C, n), by first use, and each step's places there.

        A shorter set is filled up by beginning anew. In the first pass a step is a slice, the same
        for all clients; else its places are numbers (active, longest) into (C n,), where C n itself
        fills up a short batch.
        """
        used = [
            each.orders[0] for each in passes
        ]  # a first pass that was cut short is the only one
        n = max(map(len, used))
        all_rows = np.stack(
            [each.first + np.resize(own, n) for each, own in zip(passes, used, strict=True)]
        )
        rows, filled = self.rows.cpu().numpy(), self.weights.cpu().numpy() > 0
        at = np.empty_like(rows)
        for c, (each, own) in enumerate(zip(passes, used, strict=True)):
            place = np.zeros(each.count, np.int64)
            place[own] = np.arange(len(own))
            at[:, c] = place[rows[:, c] - each.first]
        begins = at[:, 0, 0]
        in_a_row = ((at == begins[:, None, None] + np.arange(at.shape[2])) | ~filled).all((1, 2))
        flat = np.where(filled, at + n * np.arange(len(passes))[:, None], len(passes) * n)
        numbers = torch.from_numpy(flat).to(self.rows.device)
        places: list[slice | Tensor] = [
            slice(int(begin), int(begin) + longest) if sliced else numbers[step, :active, :longest]
            for step, (begin, sliced, active, longest) in enumerate(
                zip(begins, in_a_row, self.active, self.longest, strict=True)
            )
        ]
        return torch.from_numpy(all_rows).to(self.rows.device), places
