"""The partitions there are: each a file, called as it is."""

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

partition_of = PARTITIONS.make
