"""The partitions there are: each a file, called as it is."""

from typing import Any

from fedsweep.parts.family import Family
from fedsweep.scenario.partition import Partition


class Partitions(Family[type[Partition]]):
    """Partitions by name; one is its own settings."""

    def __init__(self) -> None:
        entries = "fedsweep.partitions"
        super().__init__("partition", str(__package__), "PARTITIONS", entries, "iid")

    def is_part(self, value: Any) -> bool:
        """Return whether it is a class of partitions that says who has what."""
        is_kind = isinstance(value, type) and issubclass(value, Partition)
        return is_kind and not value.__abstractmethods__

    def expected(self) -> str:
        """Say what a partition is."""
        return "a class derived from fedsweep.scenario.partition.Partition, with its parts()"

    def settings(self, name: str) -> type[Partition]:
        """Return the class itself."""
        return self[name]


PARTITIONS = Partitions()


def partition_of(name: str = "iid", **values: Any) -> Partition:
    """Return a partition with its settings: see :meth:`Family.make`."""
    found: Partition = PARTITIONS.make(name, **values)
    return found
