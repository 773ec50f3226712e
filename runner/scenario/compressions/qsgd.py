"""Numbers rounded at random to a few levels of their bucket's norm.

Alistarh et al. 2017, "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding"
(NeurIPS, arXiv:1610.02132). Levels are packed into as few bits as their number takes, where the
paper has Elias' code.
"""

from typing import cast

import numpy as np
from pydantic import Field

from fedsweep.scenario.compression import Compressor, Parts, Vector
from fedsweep.strategies.ranges import EXAMPLES


class QSGD(Compressor):
    """|v| / ||v|| lies between two steps: the upper one by chance, so that the mean is right."""

    feedback: bool = Field(
        False, description="a client adds to its update what was lost of those before"
    )
    levels: int = Field(7, ge=1, le=127, description="steps from 0 to the bucket's norm")
    bucket: int = Field(512, ge=1, le=EXAMPLES, description="numbers that have a norm in common")

    @property
    def bits(self) -> int:
        """How many bits a number takes: one of -levels to levels."""
        return (2 * self.levels).bit_length()

    def encode(self, update_P: Vector, seed: int) -> Parts:
        """Return norms, float32 (buckets,), and levels packed, uint8."""
        norms, of_P = self._norms(update_P)
        scaled_P = np.abs(update_P.astype(np.float64)) / np.where(of_P > 0, of_P, 1) * self.levels
        floor_P = np.floor(scaled_P)
        up_P = np.random.default_rng(seed).random(len(update_P)) < scaled_P - floor_P
        levels_P = np.sign(update_P) * np.minimum(floor_P + up_P, self.levels)
        shifted_P = (levels_P + self.levels).astype(np.uint8)
        bits = np.unpackbits(shifted_P[:, None], axis=1)[:, 8 - self.bits :]
        return {"norms": norms, "levels": np.packbits(bits)}

    def decode(self, parts: Parts, size: int, seed: int) -> Vector:
        """Return each number's level of its bucket's norm."""
        del seed
        bits = np.unpackbits(parts["levels"], count=size * self.bits).reshape(size, self.bits)
        padded = np.pad(bits, ((0, 0), (8 - self.bits, 0)))
        levels_P = np.packbits(padded, axis=1)[:, 0].astype(np.float64) - self.levels
        of_P = np.repeat(parts["norms"], self.bucket)[:size]
        return cast(Vector, (levels_P / self.levels * of_P).astype(np.float32))

    def _norms(self, update_P: Vector) -> tuple[Vector, Vector]:
        """Return the norm of each bucket, and of each number's; rounded up: none is above it."""
        starts = np.arange(0, len(update_P), self.bucket)
        squares = np.add.reduceat(update_P.astype(np.float64) ** 2, starts)
        norms = np.nextafter(np.sqrt(squares).astype(np.float32), np.float32(np.inf))
        norms = np.where(squares > 0, norms, np.float32(0)).astype(np.float32)
        return norms, np.repeat(norms, self.bucket)[: len(update_P)]
