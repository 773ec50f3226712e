"""Secure aggregation's arithmetic: a server learns the sum of updates, and none of them.

Bell, Bonawitz, Gascon, Lepoint and Raykova 2020, "Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead" (CCS, SecAgg+), which is Flower's ``secaggplus_mod`` and
``SecAggPlusWorkflow``. A client rounds what it sends to integers, and adds a mask of its own and
one that it shares with each of its neighbours on a circle of the round's clients; of two
neighbours one adds the mask that the other subtracts, so that they cancel in the sum. Shares of
what a client's masks come of lie with its neighbours: from enough of them the server learns the own
masks of those that replied, and those that who did not reply shares with others.

That is done here as it is there, but for one thing: masks follow from the trial's seed, where the
protocol agrees on keys (ECDH), and shares (Shamir) are counted and not sent. So a trial repeats to
the bit, and shows what a server sees, what rounding costs and when a round fails; whoever knows the
seed knows the masks. Shapes: K models that a client may have trained one of, P numbers of a model.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from fedsweep.seeding import derive_seed
from fedsweep.strategies.layout import Layout, is_floating

ASKED = "secagg"
"""Record of a training message that tells a client with whom it was asked."""

MASKED = "masked"
"""The array of a reply that holds the integers."""

Vector = NDArray[np.float64]
Masked = NDArray[np.uint32]
"""What a client sends: integers modulo 2^32, which a server can't tell from drawn ones."""

MODULUS = 2**32


class NoSumError(ValueError):
    """What a server gets must not be opened, or can't be."""


@dataclass(frozen=True)
class Sums:
    """What a server learns of the clients that replied.

    Parameters
    ----------
    means_KP : (K, P)
        The weighted mean of the updates of each model; zeros of one that nobody trained.
    weights_K : (K,)
        What these weigh, in the unit of the clients' weights.
    error : float
        Deviation of a number of the mean over all from what it is without rounding, of the same
        unit. It is what the clients' rounding adds up to, each of which is unbiased and drawn on
        its own: sqrt(sum_i |e_i|^2 / P) over the sum of their shares of the heaviest weight.
    clipped : float
        Share of the clients' numbers that lay outside the range.
    missing : int
        Clients that were asked and are not in it.
    """

    means_KP: Vector
    weights_K: Vector
    error: float
    clipped: float
    missing: int


@dataclass(frozen=True)
class Masking:
    """How updates become integers, and who masks them with whom.

    Parameters
    ----------
    bits : int
        Numbers have 2^bits + 1 values.
    clipping_range : float
        C: numbers lie within -C and C.
    neighbours : int
        Clients on either side of a client, in a circle drawn for each round, that share masks with
        it.
    threshold : float
        Share of a client and its neighbours that has to reply, so that its masks can be removed.
    heaviest : float
        The most that a client may weigh.
    seed : int
        The trial's.
    """

    bits: int
    clipping_range: float
    neighbours: int
    threshold: float
    heaviest: float
    seed: int

    @property
    def levels(self) -> int:
        """L: numbers are integers from 0 to it."""
        return int(2**self.bits)

    @property
    def step(self) -> float:
        """What one more stands for."""
        return 2 * self.clipping_range / self.levels

    def numbers(
        self, update_P: Vector, weight: float, model: int, models: int, node: int, number: int
    ) -> Masked:
        """Return what a client adds to the sums, unmasked.

        These are the weight of each model, the share of numbers that had to be clipped, the squared
        rounding error in squared steps and, for each model, the weighted update: all from 0 to L,
        so that so many clients as 2^32 / L can be summed.

        Parameters
        ----------
        update_P : (P,)
            What the client moved.
        weight : float
            Of the client.
        model, models : int
            Which of so many models it moved.
        node, number : int
            The client and the round, which decide what is drawn.

        Raises
        ------
        ValueError
            The update is not finite, or the weight above the most.
        """
        if not np.isfinite(update_P).all():
            raise ValueError("an update that is not finite can't be masked: nobody would notice it")
        if weight > self.heaviest:
            raise ValueError(f"a weight of {weight:g} is above the most, {self.heaviest:g}")
        share = max(round(weight / self.heaviest * self.levels), 1)  # nobody weighs nothing
        scaled_P = update_P * (share / self.levels)
        inside_P = np.clip(scaled_P, -self.clipping_range, self.clipping_range)
        exact_P = (inside_P + self.clipping_range) / self.step
        floor_P = np.floor(exact_P)
        drawn = np.random.default_rng(derive_seed(self.seed, "rounding", number, node))
        rounded_P = floor_P + (drawn.random(len(exact_P)) < exact_P - floor_P)

        clipped = ceil(np.mean(inside_P != scaled_P) * self.levels)
        error = ceil(np.mean((rounded_P - exact_P) ** 2) * self.levels)
        weights = np.zeros(models, np.uint32)
        weights[model] = share
        blocks_KP = np.full((models, len(update_P)), self.levels // 2, np.uint32)  # no update
        blocks_KP[model] = rounded_P.astype(np.uint32)
        head = np.array([clipped, error], np.uint32)
        return np.concatenate([weights, head, blocks_KP.ravel()])

    def masked(self, numbers: Masked, node: int, nodes: Sequence[int], number: int) -> Masked:
        """Return numbers under the masks of a client, of the nodes that a round asked."""
        found = numbers + self._own(node, number, len(numbers))
        for other in self.circle(nodes, number)[node]:
            found = found + self._shared(node, other, number, len(numbers))
        return cast(Masked, found)

    def opened(
        self, masked: Mapping[int, Masked], nodes: Sequence[int], models: int, number: int
    ) -> Sums:
        """Return the sums of those that replied.

        Parameters
        ----------
        masked : mapping
            Node -> what it sent.
        nodes : sequence of int
            All that were asked: who did not reply is among them.
        models : int
            K.
        number : int
            The round.

        Raises
        ------
        NoSumError
            It would be the update of one client, or too few shares of a client's masks are left.
        """
        circle = self.circle(nodes, number)
        self._check_shares(masked.keys(), circle)
        size = len(next(iter(masked.values())))
        total = np.zeros(size, np.uint32)
        for node, sent in sorted(masked.items()):
            total = total + sent - self._own(node, number, size)
            for other in circle[node]:
                if other not in masked:  # nobody's reply has the mask that cancels this one
                    total = total - self._shared(node, other, number, size)
        return self._sums(total.astype(np.float64), len(masked), models, len(nodes) - len(masked))

    def _check_shares(self, replied: Collection[int], circle: "Circle") -> None:
        """Refuse to open what is of one client, or what too few can help to open."""
        if len(replied) < 2:
            raise NoSumError(
                f"secure aggregation: {len(replied)} of {len(circle)} clients replied, and a sum "
                "of one would be its update"
            )
        for node, others in circle.items():
            holders = {node, *others}
            if node not in replied and not set(others).intersection(replied):
                continue  # none of its masks is in the sum
            needed = ceil(self.threshold * len(holders) - 1e-9)
            if len(there := holders.intersection(replied)) < needed:
                raise NoSumError(
                    f"secure aggregation: {len(replied)} of {len(circle)} clients replied, and of "
                    f"the {len(holders)} shares of client {node - 1}'s masks {len(there)} are "
                    f"left, fewer than {needed} (secagg.threshold={self.threshold:g})"
                )

    def _sums(self, total: Vector, replied: int, models: int, missing: int) -> Sums:
        """Return the sums that integers stand for."""
        shares_K = total[:models] / self.levels
        clipped, error = total[models : models + 2] / self.levels
        moved_KP = total[models + 2 :].reshape(models, -1) * self.step
        moved_KP = moved_KP - replied * self.clipping_range
        weighed = np.where(shares_K > 0, shares_K, 1.0)
        return Sums(
            moved_KP / weighed[:, None],
            shares_K * self.heaviest,
            float(np.sqrt(error) * self.step / max(shares_K.sum(), 1 / self.levels)),
            float(clipped / replied),
            missing,
        )

    def circle(self, nodes: Sequence[int], number: int) -> "Circle":
        """Return each node's neighbours in a round; all others where there are no more."""
        order = np.random.default_rng(derive_seed(self.seed, "circle", number))
        ring = [int(node) for node in order.permutation(sorted(nodes))]
        most = min(self.neighbours, len(ring))
        reach = range(-most, most + 1)
        return {
            node: sorted({ring[(place + d) % len(ring)] for d in reach} - {node})
            for place, node in enumerate(ring)
        }

    def _own(self, node: int, number: int, size: int) -> Masked:
        return _drawn(derive_seed(self.seed, "mask", number, node), size)

    def _shared(self, node: int, other: int, number: int, size: int) -> Masked:
        """Return what a client adds for a neighbour: the negative of what that one adds for it."""
        low, high = sorted((node, other))
        mask = _drawn(derive_seed(self.seed, "mask", number, low, high), size)
        return mask if node == low else cast(Masked, np.negative(mask))


def summed_names(layout: Layout, start: ArrayRecord) -> Sequence[str]:
    """Return the arrays that are summed: those of floats, but for what is frozen.

    What is frozen is the same for all; counters stay as they were sent.
    """
    carried = set(layout.carried)
    return [name for name, array in start.items() if is_floating(array) and name not in carried]


def asked_with(nodes: Sequence[int], content: RecordDict) -> RecordDict:
    """Return what clients are sent, who are told that they are asked with each other."""
    return RecordDict({**content, ASKED: ConfigRecord({"nodes": list(nodes)})})


def asked_of(content: RecordDict, node: int) -> tuple[tuple[int, ...], int]:
    """Return with whom a client was asked, and in which round; it is alone where nobody says it."""
    told, config = (content.config_records.get(key, ConfigRecord()) for key in (ASKED, "config"))
    nodes = cast(list[int], told.get("nodes", [node]))
    return tuple(map(int, nodes)), int(cast(int, config.get("server-round", 0)))


Circle = Mapping[int, Sequence[int]]
"""Node -> its neighbours."""


def _drawn(seed: int, size: int) -> Masked:
    return np.random.default_rng(seed).integers(0, MODULUS, size, np.uint32)
