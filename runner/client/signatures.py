"""What a client tells about data or update where it is clustered by that: never single examples.

Pixels are scaled to [0, 1]. Shapes: N examples, P pixels (all channels) or features, K classes.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np


def signature(x: np.ndarray, y: np.ndarray, num_classes: int) -> np.ndarray:
    """Return E[onehot(label) x image], float32 (K, P): each class's share times its mean image.

    Parameters
    ----------
    x : (N, C, H, W) uint8, or (N, ...) float
        Images, or features.
    y : (N,) int
        Labels.
    num_classes : int
        K.
    """
    onehot_NK = np.eye(num_classes)[y]
    means: np.ndarray = (onehot_NK.T @ _pixels(x) / len(y)).astype(np.float32)
    return means


def subspace(x: np.ndarray, y: np.ndarray, vectors: int) -> np.ndarray:
    """Return an orthonormal basis, float32 (P, R), of all classes' main directions (PACFL).

    Of each class the ``vectors`` top left singular vectors of its matrix of images (P, N),
    uncentred as in the paper; fewer where the class has fewer independent images. Bases of classes
    overlap, so R may be less than their sum.
    """
    images = _pixels(x)
    directions = []
    for label in np.unique(y):
        u, sizes, _ = np.linalg.svd(images[y == label].T, full_matrices=False)
        directions.append(u[:, :vectors][:, sizes[:vectors] > 1e-6 * sizes[0]])
    basis, sizes, _ = np.linalg.svd(np.concatenate(directions, axis=1), full_matrices=False)
    spanned: np.ndarray = basis[:, sizes > 1e-6].astype(np.float32)
    return spanned


def sketch(layers: Sequence[np.ndarray], size: int, seed: int) -> np.ndarray:
    """Return sums of an update's numbers, each in one with a random sign, float64 (size,).

    A count sketch, or feature hashing (Weinberger et al. 2009, arXiv:0902.2206): inner products, so
    distances and angles, are those of the updates on average, and off by the order of 1 /
    sqrt(size) of the lengths. It takes one pass and no matrix.

    Parameters
    ----------
    layers : sequence of arrays
        The update.
    size : int
        Numbers in the sketch.
    seed : int
        Of the buckets and signs; sketches of one seed can be compared.
    """
    flat = np.concatenate([layer.ravel() for layer in layers]).astype(np.float64)
    buckets, signs = _hashes(len(flat), size, seed)
    return np.bincount(buckets, weights=signs * flat, minlength=size)


@lru_cache(maxsize=4)
def _hashes(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, size, count), rng.choice((-1.0, 1.0), count)


def _pixels(x: np.ndarray) -> np.ndarray:
    flat = x.reshape(len(x), -1)
    return flat / 255.0 if x.dtype == np.uint8 else flat.astype(np.float64)
