"""The compressions there are: each a file, called as it is."""

from typing import Any

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


def compression_of(name: str = "none", **values: Any) -> Compression:
    """Return a compression with its settings: see :meth:`Family.make`."""
    found: Compression = COMPRESSIONS.make(name, **values)
    return found
