"""The numbers of largest size, and their places.

Stich, Cordonnier and Jaggi 2018, "Sparsified SGD with Memory" (NeurIPS, arXiv:1809.07599).
"""

import numpy as np

from fedsweep.scenario.compression import Parts, SparseCompressor, Vector


class TopK(SparseCompressor):
    """Of equal sizes the first ones."""

    def encode(self, update_P: Vector, seed: int) -> Parts:
        """Return places, int32 (k,), in their order, and values, float32 (k,)."""
        del seed
        largest = np.argsort(-np.abs(update_P), kind="stable")[: self.count(len(update_P))]
        places = np.sort(largest).astype(np.int32)
        return {"places": places, "values": update_P[places]}

    def decode(self, parts: Parts, size: int, seed: int) -> Vector:
        """Return zeros but for these."""
        del seed
        update_P = np.zeros(size, np.float32)
        update_P[parts["places"]] = parts["values"]
        return update_P
