"""The signs, one bit each, times the mean size.

Karimireddy et al. 2019, "Error Feedback Fixes SignSGD and other Gradient Compression Schemes"
(ICML, arXiv:1901.09847).
"""

import numpy as np

from fedsweep.scenario.compression import Compressor, Parts, Vector


class SignSGD(Compressor):
    """C(v) = ||v||_1 / P sign(v); the sign of 0 is +."""

    def encode(self, update_P: Vector, seed: int) -> Parts:
        """Return signs packed, uint8 (P / 8,), and the mean size, float32 (1,)."""
        del seed
        mean = np.abs(update_P.astype(np.float64)).mean(keepdims=True)
        return {"signs": np.packbits(update_P >= 0), "size": mean.astype(np.float32)}

    def decode(self, parts: Parts, size: int, seed: int) -> Vector:
        """Return plus or minus the mean size."""
        del seed
        signs_P = np.unpackbits(parts["signs"], count=size).astype(np.float32) * 2 - 1
        return np.asarray(signs_P * parts["size"][0], np.float32)
