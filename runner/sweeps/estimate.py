"""What a sweep will be: how many trials, rounds and trainings of clients, and about how long."""

from collections.abc import Mapping, Sequence
from statistics import median

from fedsweep.catalog import FINAL
from fedsweep.config import RunConfig, TrackingConfig
from fedsweep.errors import TrackingError
from fedsweep.output import amount
from fedsweep.sweeps.compose import Trial
from fedsweep.tracking.database import database_of
from fedsweep.tracking.past import finished_trials
from fedsweep.tracking.store import open_store, tracking_uri

_Kind = tuple[str, ...]
"""What trials have to share for the one to tell how long the other takes."""


def size(trials: Sequence[Trial], sweep: str) -> str:
    """Say how much there is to do, at most: rules may end a trial early."""
    rounds = sum(trial.config.rounds for trial in trials)
    clients = sum(
        trial.config.rounds * trial.config.strategy.trained(trial.config.num_clients)
        for trial in trials
    )
    return (
        f"{amount(len(trials), 'trial')} of sweep '{sweep}': {amount(rounds, 'round')}, in which "
        f"clients train {amount(clients, 'time')}"
    )


def duration(trials: Sequence[Trial], tracking: TrackingConfig) -> str:
    """Say about how long it takes, by what such trials took in the local store; else nothing.

    Such trials are those of the same data set, network and method: the median of their seconds for
    each training of a client. What runs beside each other is in those seconds.
    """
    database = database_of(tracking_uri(tracking))
    if database is None or not database.exists():
        return ""
    took: dict[_Kind, list[float]] = {}
    try:
        past = finished_trials(open_store(tracking, write=False))
    except TrackingError as error:  # nothing runs yet: it need not be mended now
        return f"how long it takes can't be told: {error}"
    for params, final in past:
        seconds, kind = _seconds(params, final), _kind_of(params)
        if seconds is not None:
            took.setdefault(kind, []).append(seconds)
    each = [took.get(_kind(trial.config)) for trial in trials]
    work = [
        trial.config.rounds * trial.config.strategy.trained(trial.config.num_clients)
        for trial in trials
    ]
    known = [median(of) * n for of, n in zip(each, work, strict=True) if of]
    if not known:
        return ""
    lacking = len(trials) - len(known)
    but = f", without {lacking} of them: none such was run yet" if lacking else ""
    return (
        f"one after the other they would take about {_told(sum(known))}, as such trials did "
        f"before{but}"
    )


def _kind(config: RunConfig) -> _Kind:
    return config.dataset.name, config.model.name, config.strategy.name


def _kind_of(params: Mapping[str, str]) -> _Kind:
    return tuple(params.get(f"{part}.name", "") for part in ("dataset", "model", "strategy"))


def _seconds(params: Mapping[str, str], final: Mapping[str, float]) -> float | None:
    """Return a trial's seconds for each training of a client, about: by its share of clients."""
    try:
        share = float(params.get("strategy.fraction_train", "1"))
        trained = max(1.0, int(params["num_clients"]) * share) * final[f"{FINAL}rounds"]
        return final[f"{FINAL}wall_s"] / trained if trained else None
    except (KeyError, ValueError):
        return None


def _told(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
