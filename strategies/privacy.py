"""User-level differential privacy: clipped updates, their plain mean over clients, Gaussian noise.

McMahan, Ramage, Talwar and Zhang 2018, "Learning Differentially Private Recurrent Language Models"
(arXiv:1710.06963), DP-FedAvg with flat clipping; Andrew, Thakkar, McMahan and Ramaswamy 2021,
"Differentially Private Learning with Adaptive Clipping" (arXiv:1905.03871), algorithm 1.
What is guaranteed, and Flower's own wrappers: docs/strategies/privacy.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from logging import INFO, WARNING
from math import exp, inf, sqrt
from typing import Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from fedsweep.strategies.base import State, arrays_of, metrics_of, sort_replies
from fedsweep.strategies.insides import AggregationError, log
from fedsweep.strategies.layout import is_floating
from fedsweep.strategies.state import load_strategy_state, strategy_state

NORM_KEY = "clipping-norm"
"""In the clients' config: S of the round, where they clip."""
WITHIN_KEY = "within-norm"
"""In a reply's metrics: 1 where the client's update was no longer than S, else 0."""


class Norm(Protocol):
    """The clipping norm S of the rounds, and how the noise is shared out."""

    clipping_norm: float

    def update_noise(self, asked: float) -> float:
        """Return the noise multiplier of the updates' sum in a round of so many clients."""

    def adapt(self, within: float, replied: float, asked: float) -> None:
        """Set S of the next round: so many of the updates that came were no longer than S."""


@dataclass
class FixedNorm:
    """The same S in all rounds.

    Parameters
    ----------
    noise_multiplier : float
        z: the noise of the updates' sum has deviation z S.
    clipping_norm : float
        S.
    """

    noise_multiplier: float
    clipping_norm: float

    def update_noise(self, asked: float) -> float:
        """Return z."""
        del asked
        return self.noise_multiplier

    def adapt(self, within: float, replied: float, asked: float) -> None:
        """Leave S as it is."""


@dataclass
class AdaptiveNorm:
    """S follows a quantile of the updates' lengths (Andrew et al. 2021, algorithm 1).

    Parameters
    ----------
    noise_multiplier : float
        z of the round as a whole: the updates and the count of those within S.
    clipping_norm : float
        S, at first that of round 1.
    target_clipped_quantile : float
        gamma: the share of updates that should be no longer than S.
    clip_norm_lr : float
        eta_C.
    clipped_count_stddev : float, optional
        sigma_b, the deviation of the count's noise; a twentieth of the clients asked by default.
    """

    noise_multiplier: float
    clipping_norm: float
    target_clipped_quantile: float = 0.5
    clip_norm_lr: float = 0.2
    clipped_count_stddev: float | None = None

    def count_noise(self, asked: float) -> float:
        """Return sigma_b; without any noise asked for, 0."""
        if not self.noise_multiplier:
            return 0.0
        given = self.clipped_count_stddev
        return asked / 20 if given is None else given

    def update_noise(self, asked: float) -> float:
        """Return z_Delta = (z^-2 - (2 sigma_b)^-2)^(-1/2).

        Raises
        ------
        ValueError
            If the count alone would take more noise than z leaves.
        """
        z, sigma_b = self.noise_multiplier, self.count_noise(asked)
        if not z:
            return 0.0
        if z >= 2 * sigma_b:
            raise ValueError(
                f"privacy.noise_multiplier={z:g} must be below {2 * sigma_b:g} for adaptive "
                f"clipping of {asked:g} clients a round; lower it or train more clients"
            )
        return float((z**-2 - (2 * sigma_b) ** -2) ** -0.5)

    def adapt(self, within: float, replied: float, asked: float) -> None:
        """S <- S exp(-eta_C (b - gamma)), b = (within + N(0, sigma_b^2)) / replied."""
        b = (within + np.random.normal(0, self.count_noise(asked))) / replied
        self.clipping_norm *= exp(-self.clip_norm_lr * (b - self.target_clipped_quantile))


class PrivateMean(Strategy):
    """A FedAvg that is given one reply, the noised mean model, in place of the clients'.

    The model is x + (sum_i clip(x_i - x, S) + N(0, (z S)^2)) / m over the m clients that replied;
    under a rate, m is the number that a round has on average, whoever came, and a round of nobody
    is noise alone: that nobody came must not be seen. What the wrapped strategy makes of it, as a
    server optimizer's step, is post-processing. The noise is drawn from NumPy's global generator.

    Parameters
    ----------
    strategy : FedAvg
        Samples the clients, and takes the mean model.
    norm : Norm
        S and z.
    clients_clip : bool
        S is sent to the clients, who clip and tell whether they had to. They are held to it: what
        is longer than S, by rounding or in spite of it, is clipped here.
    rate : float, optional
        With which probability each client is asked, whatever the others are; None: a round's
        clients are so many.
    """

    def __init__(
        self,
        strategy: FedAvg,
        norm: Norm,
        *,
        clients_clip: bool = False,
        rate: float | None = None,
    ) -> None:
        self.strategy, self.norm, self.clients_clip = strategy, norm, clients_clip
        self.rate = rate
        self._arrays = ArrayRecord()
        self._asked = 0.0  # in the round, or on average

    @property
    def clipping_norm(self) -> float:
        """S of the next round."""
        return self.norm.clipping_norm

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the strategy ask its clients, with S where they clip."""
        if self.clients_clip:
            config = ConfigRecord({**config, NORM_KEY: self.clipping_norm})
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._arrays = arrays
        if self.rate is None:
            self._asked = len(messages)
        else:
            self._asked = self.rate * len(list(grid.get_node_ids()))
        if self._asked:
            self.norm.update_noise(self._asked)  # a round that can't be noised is not begun
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Clip, average over those that replied, add noise, hand on, and adapt the next S.

        Raises
        ------
        AggregationError
            If clients that clip did not tell whether they had to.
        """
        valid, _ = sort_replies(self.strategy, replies, read_arrays=True)
        if not valid and self.rate is None:
            return None, None
        m = len(valid) if self.rate is None else self._asked
        sums, within = self._clipped_sum(valid)
        sums = sums or _nothing(self._arrays)
        deviation = self.norm.update_noise(self._asked) * self.clipping_norm
        model = ArrayRecord({**self._arrays})
        for key, total in sums.items():
            noised = total + np.random.normal(0, deviation, total.shape)
            start = self._arrays[key]
            moved = start.numpy().astype(np.float64) + noised / m
            model[key] = Array(np.asarray(moved, np.dtype(start.dtype)))
        log(
            INFO,
            "aggregate_train: %d of %d updates within %.4g, noise of deviation %.4g on their mean",
            within,
            len(valid),
            self.clipping_norm,
            deviation / m,
        )
        # A client moves the count by a half, as z_Delta takes for granted: who did not come counts
        # as neither. Where all of m replied that is the count itself.
        self.norm.adapt(within + (m - len(valid)) / 2, m, self._asked)
        first = valid[0] if valid else Message(_empty_reply(), 0, "train")
        new, _ = self.strategy.aggregate_train(server_round, [self._stand_in(first, model)])
        return new, metrics_of(self.strategy, valid) if valid else None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Do as the wrapped strategy does."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self,
        server_round: int,
        replies: Iterable[Message],
    ) -> MetricRecord | None:
        """Do as the wrapped strategy does."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log the settings."""
        log(INFO, "\t├──> Privacy: %s, clients clip: %s", self.norm, self.clients_clip)
        self.strategy.summary()

    def state_dict(self) -> State:
        """Return S and the wrapped strategy's state."""
        return {"strategy": strategy_state(self.strategy), "clipping_norm": self.clipping_norm}

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        load_strategy_state(self.strategy, state["strategy"])
        self.norm.clipping_norm = state["clipping_norm"]

    def _clipped_sum(self, valid: list[Message]) -> tuple[dict[str, np.ndarray], int]:
        """Return the sum of the clipped updates, float64, and how many were within S."""
        sums: dict[str, np.ndarray] = {}
        within = 0
        for reply in valid:
            update, length = clip(self._arrays, arrays_of(reply), self.clipping_norm)
            if length == inf:
                node = reply.metadata.src_node_id
                log(WARNING, "client %d's update can't be clipped, and counts as zero", node)
            for key, value in update.items():
                sums[key] = np.asarray(sums.get(key, 0.0) + value)
            within += self._is_within(reply, length)
        return sums, within

    def _is_within(self, reply: Message, length: float) -> bool:
        if not self.clients_clip:
            return length <= self.clipping_norm
        [metrics] = reply.content.metric_records.values()
        if WITHIN_KEY not in metrics:
            raise AggregationError(
                f"client {reply.metadata.src_node_id} replied without '{WITHIN_KEY}': clipping on "
                "the clients needs an app that clips; set privacy=fixed_server or adaptive_server"
            )
        return bool(metrics[WITHIN_KEY])

    def _stand_in(self, reply: Message, model: ArrayRecord) -> Message:
        """Return a reply turned into the one that the wrapped strategy sees, of weight 1."""
        content = RecordDict(dict(reply.content))
        [arrays], [metrics] = content.array_records, content.metric_records
        content[arrays] = model
        told = content.metric_records[metrics]
        content[metrics] = MetricRecord({**told, self.strategy.weighted_by_key: 1.0})
        reply.content = content
        return reply


def clip(
    start: ArrayRecord,
    model: ArrayRecord,
    norm: float,
) -> tuple[dict[str, np.ndarray], float]:
    """Return the update from start to model, scaled down to a length of ``norm`` at most.

    Parameters
    ----------
    start, model : ArrayRecord
        Arrays of the same names; those of integers are no part of the update.
    norm : float
        S.

    Returns
    -------
    dict of np.ndarray
        min(1, S / length) (model - start), float64, per array; arrays of no dimension too.
    float
        The length before: the L2 norm over all arrays as one vector. It is infinite, and the update
        zero, where the update is not finite or has other shapes.
    """
    update = {}
    for key, array in start.items():
        if is_floating(array):
            before, after = array.numpy(), model[key].numpy()
            if before.shape != after.shape:
                return _nothing(start), inf
            update[key] = np.asarray(after.astype(np.float64) - before.astype(np.float64))
    length = sqrt(sum(float(np.vdot(value, value)) for value in update.values()))
    if not length < inf:
        return _nothing(start), inf
    if length <= norm:
        return update, length
    return {key: np.asarray(value * (norm / length)) for key, value in update.items()}, length


def _empty_reply() -> RecordDict:
    return RecordDict({"arrays": ArrayRecord(), "metrics": MetricRecord()})


def _nothing(start: ArrayRecord) -> dict[str, np.ndarray]:
    return {key: np.zeros(array.shape) for key, array in start.items() if is_floating(array)}
