"""Rules that end a trial before its last round.

They read round records only, so a resumed trial decides alike.
"""

from collections.abc import Mapping
from math import inf, isfinite

from fedsweep.catalog import CATALOG, EPSILON, EPSILON_AHEAD
from fedsweep.config import StopConfig
from fedsweep.records import RoundRecord


class StopRules:
    """The rules of a trial; any of them ends it.

    ::

        rules = StopRules(config.stop)
        for each round: reason = rules.update(record)  # "" while the trial goes on

    Parameters
    ----------
    config : StopConfig
        Which rules are set.
    """

    def __init__(self, config: StopConfig) -> None:
        self._config = config
        self._best = -inf
        self._waited = 0
        self.seconds = 0.0
        """Seconds of all rounds so far."""
        self.reason = ""

    def update(self, record: RoundRecord, evaluated: bool = True) -> str:
        """Take in a round; return why the trial ends here, or nothing.

        Parameters
        ----------
        record : RoundRecord
            The next round. Round 0, the initial model, ends nothing.
        evaluated : bool
            Whether the round was evaluated: a trial ends only in rounds that were.
        """
        self.seconds += record.metrics.get("5_time/round_s", 0.0)
        if record.round and evaluated and not self.reason:
            self.reason = self._verdict(record.metrics)
        return self.reason

    def _verdict(self, metrics: Mapping[str, float]) -> str:
        config = self._config
        if config.divergence and (diverged := _diverged(metrics)):
            return diverged
        if config.wall_s is not None and self.seconds >= config.wall_s:
            return f"{self.seconds:.1f} s of rounds, stop.wall_s={config.wall_s:g}"
        moved = metrics.get("4_comm/mb_total", 0.0)
        if config.mb is not None and moved >= config.mb:
            return f"{moved:.2f} MiB moved, stop.mb={config.mb:g}"
        ahead = metrics.get(EPSILON_AHEAD, 0.0)
        if config.epsilon is not None and ahead > config.epsilon:
            return (
                f"epsilon={metrics[EPSILON]:.4g}, and {ahead:.4g} by the next evaluation, "
                f"stop.epsilon={config.epsilon:g}"
            )
        return self._judged(metrics[config.metric]) if config.metric in metrics else ""

    def _judged(self, value: float) -> str:
        """Return why the value of the metric that is watched ends the trial."""
        config, sign = self._config, self._config.sign
        if config.target is not None and sign * value >= sign * config.target:
            return f"{config.metric}={value:.4g} reached stop.target={config.target:g}"
        if config.patience is not None:
            improved = sign * value > self._best + (
                config.min_delta if isfinite(self._best) else 0.0
            )
            self._waited = 0 if improved else self._waited + 1
            self._best = sign * value if improved else self._best
            if self._waited >= config.patience:
                return (
                    f"{config.metric} did not improve for {self._waited} evaluations, "
                    f"stop.patience={config.patience}"
                )
        return ""


def _diverged(metrics: Mapping[str, float]) -> str:
    """Return the first loss that is not finite, in words; "" where all are."""
    losses = [name for name in metrics if name.endswith("loss")]
    for name in sorted(losses, key=CATALOG.place):
        if not isfinite(metrics[name]):
            return f"diverged: {name} is {metrics[name]}"
    lost = metrics.get("3_clients/nonfinite", 0.0)
    return f"diverged: 3_clients/nonfinite is {lost:.0f}" if lost else ""
