"""Tables of predictions: sums that add up over slices, models and clients. Imports NumPy alone.

Of classes a table is flat and of whole numbers: the classes' counts, or their confusion matrix,
then the counts by confidence. Of numbers that are learnt it is of floats.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCES = 15
"""Equal parts of [0, 1] that predictions are counted in by their confidence (Guo et al. 2017)."""
CONFIDENCE_UNIT = 2.0**-32
"""What confidences are rounded to and counted in, so that their sums are exact in any order."""


def is_counts(table: NDArray[Any]) -> bool:
    """Return whether a table is of classes, and not of numbers."""
    return table.dtype.kind == "i"


def confusion_of(table: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the confusion matrix (classes, classes), true x predicted, that a table begins with.

    What follows it is (3 CONFIDENCES,).
    """
    cells = table[: len(table) - 3 * CONFIDENCES]
    classes = round(len(cells) ** 0.5)
    return cells.reshape(classes, classes)
