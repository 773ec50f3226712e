"""Numbers at random places; the places follow from a seed and are not sent.

Stich, Cordonnier and Jaggi 2018, "Sparsified SGD with Memory" (NeurIPS, arXiv:1809.07599).
"""

import numpy as np

from fedsweep.scenario.compression import Parts, SparseCompressor, Vector


class RandomK(SparseCompressor):
    """Without error feedback they are scaled by P / k: then the mean of what is sent is right."""

    def encode(self, update_P: Vector, seed: int) -> Parts:
        """Return the values at the drawn places, float32 (k,)."""
        return {"values": update_P[self._places(len(update_P), seed)]}

    def decode(self, parts: Parts, size: int, seed: int) -> Vector:
        """Return zeros but for these."""
        update_P = np.zeros(size, np.float32)
        scale = 1.0 if self.feedback else size / self.count(size)
        update_P[self._places(size, seed)] = parts["values"] * np.float32(scale)
        return update_P

    def _places(self, size: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return np.sort(rng.choice(size, self.count(size), replace=False))
