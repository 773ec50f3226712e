"""Models are sent whole."""

from fedsweep.scenario.compression import Compression


class NoCompression(Compression):
    """Nothing is compressed."""
