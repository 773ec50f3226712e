"""The compressions there are: each a file, called as it is."""

from fedsweep.parts.family import Kinds
from fedsweep.scenario.compression import Compression

COMPRESSIONS: Kinds[Compression] = Kinds(
    kind="compression",
    package=__name__,
    entries="fedsweep.compressions",
    default="none",
    home="COMPRESSIONS",
    base=Compression,
    expected="Compressor, with its encode() and decode()",
)

compression_of = COMPRESSIONS.make
