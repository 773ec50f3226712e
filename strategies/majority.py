"""Clustering as a defence: of two clusters of updates the larger one counts.

Sattler, Müller, Wiegand and Samek 2020, "On the Byzantine Robustness of Clustered Federated
Learning" (ICASSP). Deviations: docs/strategies/robust.md.
"""

from typing import Any

import numpy as np
from pydantic import Field

from fedsweep.strategies.settings import FedAvgSettings
from fedsweep.strategies.updates import OfUpdates, Rows


class MajoritySettings(FedAvgSettings):
    """When the clients are taken for two kinds."""

    gap: float = Field(
        0.0,
        ge=0,
        le=2,
        description="cosine distance between the two below which all count; 0: never all",
    )


class Majority(OfUpdates):
    """The mean of the larger of two clusters, by complete linkage on cosine distances.

    Parameters
    ----------
    gap : float
        Where no two updates are farther apart than that, all count.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = MajoritySettings
    title = "Majority cluster"
    colour = "#19C219"
    accuses = True

    def __init__(self, *, gap: float = 0.0, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.gap = gap

    def combine(self, rows_CP: Rows) -> tuple[Rows, list[int]]:
        """Return the larger cluster's mean, and the rows of the other one."""
        left_out = smaller_cluster(rows_CP, self.gap)
        return np.delete(rows_CP, left_out, axis=0).mean(axis=0), left_out


def smaller_cluster(rows_CP: Rows, gap: float = 0.0) -> list[int]:
    """Return the rows of the smaller of two clusters; of equal ones that without the first row.

    Complete linkage, cut where the last two clusters are joined; nothing where these are nearer to
    each other than ``gap``. The zero update has no direction, and is at right angles to all.
    """
    from scipy.cluster.hierarchy import fcluster, linkage  # here: it takes 0.1 s to import
    from scipy.spatial.distance import squareform

    if len(rows_CP) < 3:
        return []
    lengths_C1 = np.linalg.norm(rows_CP, axis=1, keepdims=True)
    unit_CP = rows_CP / np.where(lengths_C1 > 0, lengths_C1, 1)
    apart_CC = np.clip(1 - unit_CP @ unit_CP.T, 0, 2)
    np.fill_diagonal(apart_CC, 0)
    tree = linkage(squareform((apart_CC + apart_CC.T) / 2, checks=False), "complete")
    if tree[-1, 2] <= gap:
        return []
    labels_C = fcluster(tree, 2, "maxclust")
    first, second = (np.flatnonzero(labels_C == label) for label in (1, 2))
    if not len(second):
        return []
    smaller = min((first, second), key=lambda rows: (len(rows), rows[0] == 0))
    return [int(row) for row in smaller]
