"""The partitions there are: each a file, called as it is."""

from typing import Any

from fedsweep.parts.family import Kinds
from fedsweep.scenario.partition import Partition

PARTITIONS: Kinds[Partition] = Kinds(
    kind="partition",
    package=__name__,
    entries="fedsweep.partitions",
    default="iid",
    home="PARTITIONS",
    base=Partition,
    expected="Partition, with its parts()",
)


def partition_of(name: str = "iid", **values: Any) -> Partition:
    """Return a partition with its settings: see :meth:`Family.make`."""
    found: Partition = PARTITIONS.make(name, **values)
    return found
