"""FedPer: the last layers are every client's own, and only those below them are averaged.

Arivazhagan, Aggarwal, Singh and Choudhary 2019, "Federated Learning with Personalization Layers"
(arXiv:1912.00818), algorithms 1 and 2. Deviations: docs/strategies/fedper.md.
"""

from fedsweep.strategies.own_part import HeadSettings, KeepPart, OwnHead


class OwnHeads(KeepPart):
    """A client trains its head together with the base that all share (algorithms 1 and 2)."""

    method = "fedper"


class FedPer(OwnHead):
    """FedAvg of the base layers: :class:`~fedsweep.strategies.own_part.OwnHead`."""

    settings = HeadSettings
    colour = "#6B3245"
    partial_means = True

    clients = OwnHeads
