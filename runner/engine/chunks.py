"""How a round's tasks are grouped: by the round's clients alone, never by hosts or clocks (contract 2)."""

from collections.abc import Hashable, Sequence

TARGET_CHUNKS = 64
"""Chunks of a large round: enough that 16 hosts end together, few enough that their calls cost nothing."""

MEANS_BYTES = 200 * 2**20
"""Bytes of a round's partial means at most, where that leaves MIN_CHUNKS: the server reads them all."""

MIN_CHUNKS = 8

TOGETHER = 8
"""Clients that one batched program should have: eight give most of what sixty give (docs/performance-training.md)."""


def make_chunks(
    groups: Sequence[Hashable],
    costs: Sequence[float],
    chunk_size: int | None = None,
    together: int = 1,
    target: int = TARGET_CHUNKS,
) -> list[list[int]]:
    """Group tasks into chunks of about equal cost; tasks of different groups never share a chunk.

    Parameters
    ----------
    groups : sequence of length n
        Tasks that take the same arrays have equal entries.
    costs : sequence of length n
        Expected cost of each task, in any unit; equal runs must give equal costs.
    chunk_size : int, optional
        Exactly so many tasks a chunk (the last of a group may have fewer), whatever they cost.
    together : int
        Tasks of about so many mean costs a chunk at least, as long as that leaves two chunks.
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
    budget = sum(costs) / wanted
    chunks: list[list[int]] = []
    for indices in members.values():
        if chunk_size is not None:
            chunks += [indices[i : i + chunk_size] for i in range(0, len(indices), chunk_size)]
            continue
        filled: list[int] = []
        cost = 0.0
        for index in sorted(indices, key=lambda i: (-costs[i], i)):
            if filled and cost + costs[index] > budget:
                chunks.append(sorted(filled))
                filled, cost = [], 0.0
            filled.append(index)
            cost += costs[index]
        chunks.append(sorted(filled))
    return chunks
