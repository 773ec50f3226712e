"""FeSEM: K centres, each client with the nearest (Xie et al. 2020, arXiv:2005.01026).

Expectation-maximisation on the distance of local solutions to centres. Each round a client starts
from its centre and trains; E-step: it joins the centre nearest to its solution in L2; M-step: a
centre is the plain mean of its solutions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedsweep.strategies.clustered import ClusterTraining, Plan, WarmupSettings
from fedsweep.strategies.clustering import kmeans_split, nearest, points_of, view_of
from fedsweep.strategies.grouping import Found, GroupSettings, find_groups
from fedsweep.strategies.settings import inherited


class FeSEMSettings(GroupSettings, WarmupSettings):
    """How many centres, and when they are seeded."""

    gate: float = inherited(GroupSettings, "gate", 0.01)


class FeSEM(ClusterTraining):
    """Federated stochastic expectation maximisation.

    The centres are seeded by K-means (with K-means++) on the solutions of one common round: random
    centres collapse. A centre that no client joins keeps its model.

    Partial participation: the sampled clients choose their centres anew, the others keep theirs. A
    newcomer trains once from the global model and joins the centre nearest to its solution; that
    solution is not averaged. Clients that leave: as in
    :class:`~fedsweep.strategies.clustered.ClusterTraining`.

    Parameters
    ----------
    **common
        Parameters of ClusterTraining.
    """

    settings = FeSEMSettings
    colour = "#7A3905"
    partial_means = True

    plain_mean = True

    def __init__(self, **common: Any) -> None:
        super().__init__(
            **{"representation": "weights", "distance": "euclidean", "warmup_rounds": 1, **common}
        )

    def plan(self, server_round: int) -> Plan:
        """Seed in a common round; then read each solution."""
        return Plan.READ if self.assignment else super().plan(server_round)

    def find(self, rows_CP: NDArray[np.float32]) -> Found:
        """Seed the centres, and run E- and M-steps on the first solutions until they are stable."""
        split, view = kmeans_split(self.seed), view_of(self.distance)
        return find_groups(points_of(rows_CP, self.distance), split, self.how, self.seed, view)

    def group(self, server_round: int, models: Mapping[int, ArrayRecord]) -> None:
        """E-step: each client that replied joins the nearest centre."""
        if self._plan is Plan.TOGETHER:
            super().group(server_round, models)
            self.anchor = self.means_KP = (
                None  # newcomers start from the global model of their round
            )
            return
        centres = sorted(self.cluster_arrays)
        layout = self.laid_out(self.cluster_arrays[centres[0]])
        rows_CP = layout.rows(list(models.values()))
        means_KP = layout.rows([self.cluster_arrays[c] for c in centres])
        joined = {
            node: centres[label]
            for node, label, row in zip(
                models, nearest(rows_CP, means_KP, "euclidean"), rows_CP, strict=True
            )
            if np.isfinite(row).all()
        }
        self.assignment.update(joined)

    def welcome(self, nodes: Sequence[int]) -> None:
        """Let newcomers train from the global model first."""
