"""How a client's examples are cut into batches: for whoever trains, counts or prices them.

It imports nothing: strategies, trainers and the virtual clock all go by it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cut:
    """How a pass over a client's examples is cut: all batches have a size, but for the last."""

    count: int
    size: int
    last: int

    @classmethod
    def of(cls, examples: int, batch_size: int, least: int = 1) -> "Cut":
        """Return the batches of a pass over so many examples, one at least.

        What is left joins the batch before it where it is less than ``least``: no batch can be
        normalised by one example. A batch of 0 is all examples.
        """
        size = min(batch_size or examples, examples)
        full, rest = divmod(examples, size)
        if rest and rest >= least:
            return cls(full + 1, size, rest)
        return cls(full, size, size + rest)

    @property
    def sizes(self) -> list[int]:
        """Examples of each batch."""
        return [self.size] * (self.count - 1) + [self.last]

    def examples_in(self, steps: int) -> int:
        """Return how many examples so many batches have, of pass after pass."""
        passes, more = divmod(steps, self.count)
        return passes * (self.size * (self.count - 1) + self.last) + more * self.size


def steps_of(examples: int, batch_size: int, epochs: int, steps: int, least: int = 1) -> int:
    """Return how many steps a training takes: so many, or all batches of so many passes."""
    if steps or not examples:
        return steps
    return epochs * Cut.of(examples, batch_size, least).count
