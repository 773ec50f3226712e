"""What a compression is: how an update is sent in fewer bytes, and its settings.

A client sends C(u + e) in place of its update u, and keeps e' = u + e - C(u + e), its error so far,
for the next time (error feedback: Seide et al. 2014, Interspeech; Karimireddy et al. 2019, ICML,
arXiv:1901.09847). Shapes: P trained parameters.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsweep.parts.code import check_shape
from fedsweep.strategies.settings import Settings

Vector = NDArray[np.float32]
Parts = Mapping[str, NDArray]
"""What is sent: arrays by name."""


class Compression(Settings):
    """How the clients' updates are sent; as it stands, as models, whole."""

    compresses: ClassVar[bool] = False
    """Whether anything is done."""

    name: str = Field("none", description="how updates are compressed")


class Compressor(Compression):
    """A compression of an update (P,).

    One of one's own is a class derived from this one, in a file: its fields are its settings.
    """

    compresses: ClassVar[bool] = True

    feedback: bool = Field(
        True, description="a client adds to its update what was lost of those before"
    )
    down: bool = Field(False, description="models on their way to the clients are compressed too")

    def canonical(self) -> dict[str, Any]:
        """Return what defines it; ``down`` is younger than keys of trials."""
        values = super().canonical()
        return values if self.down else {k: v for k, v in values.items() if k != "down"}

    @abstractmethod
    def encode(self, update_P: Vector, seed: int) -> Parts:
        """Return what is sent.

        Parameters
        ----------
        update_P : (P,) float32
            Of one client.
        seed : int
            Of what is drawn: other in each round and for each client.
        """

    @abstractmethod
    def decode(self, parts: Parts, size: int, seed: int) -> Vector:
        """Return the update (P,) float32 that parts stand for, P being ``size``."""


def decoded(compressor: Compressor, parts: Parts, size: int, seed: int) -> Vector:
    """Return the update (P,) that parts stand for, whoever wrote the compression.

    Raises
    ------
    ValueError
        It gives something else.
    """
    update_P = np.asarray(compressor.decode(parts, size, seed))
    check_shape(compressor.decode, update_P.shape, (size,), f"an update of {size} numbers")
    return update_P


class SparseCompressor(Compressor):
    """One that sends some of the numbers."""

    share: float = Field(
        0.01, gt=0, le=1, description="share of the numbers that are sent, one at least"
    )

    def count(self, size: int) -> int:
        """Return how many of P numbers are sent."""
        return max(1, round(self.share * size))
