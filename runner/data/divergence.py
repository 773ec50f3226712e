"""How far clients' labels are from the global label distribution: the label skew in numbers.

Sources: Lin 1991 (Jensen-Shannon divergence); Zhao et al. 2018 (arXiv:1806.00582) for the earth
mover's distance.
"""

import numpy as np


def js_divergence(counts: np.ndarray) -> np.ndarray:
    """Return each client's Jensen-Shannon divergence, in bits: 0 (as all) to 1 (disjoint).

    Parameters
    ----------
    counts : (clients, classes)
        Training examples; a client without any has nan.
    """
    from scipy.spatial.distance import jensenshannon

    p, q = _distributions(counts)
    distance: np.ndarray = jensenshannon(p, q[np.newaxis], base=2, axis=1)
    return distance**2


def earth_movers(counts: np.ndarray) -> np.ndarray:
    """Return each client's earth mover's distance, 0 to 1: the share of examples to be changed.

    Classes have no order, so all are equally far apart, and the distance is half the L1 distance of
    the distributions (Zhao et al. report all of it, twice this).
    """
    p, q = _distributions(counts)
    distance: np.ndarray = np.abs(p - q).sum(axis=1) / 2
    return distance


def divergence_metrics(counts: np.ndarray) -> dict[str, float]:
    """Return mean and maximum of both over the clients, by the keys that they are logged under."""
    js, emd = js_divergence(counts), earth_movers(counts)
    return {
        "7_data/js_mean": float(np.nanmean(js)),
        "7_data/js_max": float(np.nanmax(js)),
        "7_data/emd_mean": float(np.nanmean(emd)),
        "7_data/emd_max": float(np.nanmax(emd)),
    }


def _distributions(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the clients' distributions (clients, classes), and that of all examples (classes,)."""
    sizes = counts.sum(axis=1, keepdims=True).astype(float)
    p = np.divide(counts, sizes, out=np.full(counts.shape, np.nan), where=sizes > 0)
    return p, counts.sum(axis=0) / counts.sum()
