"""FedClust: one hierarchical clustering of the clients' last layers.

Islam et al. 2024 (arXiv:2407.07124).

In one warm-up round all clients train from the initial model. Their last layers, which lean the
most towards the labels that a client holds, are compared by Euclidean distance and clustered
hierarchically.
"""

from typing import Any

from fedsweep.strategies.clustered import WarmupSettings
from fedsweep.strategies.flhc import FLHC
from fedsweep.strategies.grouping import Linkage, TreeSettings
from fedsweep.strategies.settings import inherited


class FedClustSettings(TreeSettings, WarmupSettings):
    """How the tree is made and cut."""

    linkage: Linkage = inherited(TreeSettings, "linkage", "ward")
    gate: float = inherited(TreeSettings, "gate", 0.01)


class FedClust(FLHC):
    """FL+HC on the last layer, in L2, after one round.

    A newcomer joins the cluster with the nearest mean last layer.

    Partial participation, newcomers and clients that leave: as in
    :class:`~fedsweep.strategies.clustered.ClusterTraining`.

    Parameters
    ----------
    linkage, threshold
        As in FL+HC; the threshold is an L2 distance between last layers.
    **common
        Parameters of ClusterTraining.
    """

    settings = FedClustSettings
    colour = "#5D5D25"
    partial_means = True

    def __init__(self, **common: Any) -> None:
        super().__init__(
            **{
                "representation": "last_layer",
                "distance": "euclidean",
                "warmup_rounds": 1,
                **common,
            }
        )
