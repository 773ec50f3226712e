"""How a round's tasks are grouped: by the round's clients alone, never by hosts or clocks."""

from collections.abc import Hashable, Sequence

TARGET_CHUNKS = 64
"""Chunks of a large round: enough that 16 hosts end together, few enough that calls cost none."""

MEANS_BYTES = 200 * 2**20
"""Bytes of a round's partial means at most, beyond MIN_CHUNKS: the server reads them all."""

MIN_CHUNKS = 8

END_PARTS = 3
"""Parts of the cost that is left, at a round's end, in which small tasks go one by one.

So hosts end together.
"""

OVERFULL = 1.1
"""Even shares that a chunk of several tasks costs at most: a bit over one leaves no small rest."""

TOGETHER = 8
"""Clients that a batched program should have: eight give most of what sixty give.

docs/performance-training.md has the measurements.
"""


def make_chunks(
    groups: Sequence[Hashable],
    costs: Sequence[float],
    chunk_size: int | None = None,
    together: int = 1,
    target: int = TARGET_CHUNKS,
) -> list[list[int]]:
    """Group tasks into chunks; tasks of different groups never share a chunk.

    Chunks cost about the same, but for the last ones, where those are of many tasks that cost less
    than the mean: each of them has a third of the cost that is left, or ``together`` tasks where
    these cost more.

    Parameters
    ----------
    groups : sequence of length n
        Tasks that take the same arrays have equal entries.
    costs : sequence of length n
        Expected cost of each task, in any unit; equal runs must give equal costs.
    chunk_size : int, optional
        Exactly so many tasks a chunk (the last of a group may have fewer), whatever they cost.
    together : int
        Tasks of about so many mean costs a chunk at least, as long as that leaves two chunks;
        and so many small tasks.
    target : int
        Chunks to aim at, without ``chunk_size``.

    Returns
    -------
    list of lists of task indices
        Each index once; inside a chunk in ascending order, so that sums have one order.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    wanted = target if together == 1 else min(target, max(2, len(costs) // together))
    left = sum(costs)
    budget, mean = left / wanted, left / max(1, len(costs))
    chunks: list[list[int]] = []
    for indices in members.values():
        if chunk_size is not None:
            chunks += [indices[i : i + chunk_size] for i in range(0, len(indices), chunk_size)]
            continue
        filled: list[int] = []
        cost = 0.0
        order = sorted(indices, key=lambda i: (-costs[i], i))
        for position, index in enumerate(order):
            share = left / max(1, round(left / budget))
            full = cost + costs[index] > min(share + costs[index] / 2, OVERFULL * share)
            small = costs[index] < mean and 1 < together <= min(len(filled), len(order) - position)
            if filled and (full or (small and cost + costs[index] > left / END_PARTS)):
                chunks.append(sorted(filled))
                left -= cost
                filled, cost = [], 0.0
            filled.append(index)
            cost += costs[index]
        chunks.append(sorted(filled))
        left -= cost
    return chunks
