"""Stopping rules on rounds whose verdict can be read off."""

from math import nan
from typing import Any

import pytest

from fedsweep.config import StopConfig, TrialConfig
from fedsweep.errors import ConfigError
from fedsweep.records import RoundRecord
from fedsweep.sweeps.compose import compose
from fedsweep.sweeps.prepare import make_split
from fedsweep.trial.checkpoint import CheckpointStore
from fedsweep.trial.stop import StopRules
from fedsweep.trial.trial import run_trial
from tests.trials import digits, events_of, outcome, small


def stops_at(
    config: StopConfig, values: list[float], name: str = "3_clients/acc"
) -> tuple[int | None, str]:
    """Return the round in which the rules end a trial whose rounds take 2 s and move 3 MiB each."""
    rules = StopRules(config)
    for number, value in enumerate(values):
        metrics = {
            name: value,
            "5_time/round_s": 2.0 if number else 0.0,
            "4_comm/mb_total": 3.0 * number,
        }
        if reason := rules.update(RoundRecord(number, metrics)):
            return number, reason
    return None, ""


@pytest.mark.parametrize(
    ("rules", "values", "expected"),
    [
        ({}, [0.0, 1.0, 1.0], None),
        ({"target": 0.5}, [0.9, 0.4, 0.5, 0.6], 2),  # round 0 ends nothing
        ({"target": 0.5, "mode": "min"}, [0.0, 0.6, 0.5], 2),
        ({"patience": 2}, [0.0, 0.5, 0.4, 0.6, 0.6, 0.5], 5),
        ({"patience": 2, "min_delta": 0.1}, [0.0, 0.5, 0.55, 0.58], 3),
        ({"patience": 1, "mode": "min"}, [0.0, 3.0, 2.0, 2.5], 3),
        ({"wall_s": 3.9}, [0.0] * 5, 2),
        ({"mb": 9.0}, [0.0] * 5, 3),
        ({"target": 2.0, "mb": 6.0, "wall_s": 100.0}, [0.0] * 5, 2),  # whichever comes first
        ({"divergence": True}, [0.0, 1.0, 1.0], None),
    ],
)
def test_rules(rules: dict, values: list[float], expected: int | None) -> None:
    assert stops_at(StopConfig(**rules), values)[0] == expected


def test_divergence() -> None:
    at, reason = stops_at(StopConfig(divergence=True), [1.0, 1.0, nan], "3_clients/train_loss")
    assert (at, reason) == (2, "diverged: 3_clients/train_loss is nan")


def test_only_rules_that_are_set_are_part_of_the_key() -> None:
    def key(**rules: Any) -> str:
        return TrialConfig(stop=StopConfig(**rules)).key

    assert key(mode="min", min_delta=0.1, metric="1_global/loss") == key()
    assert key(target=0.9) != key()
    assert key(target=0.9, min_delta=0.1) == key(target=0.9)
    assert StopConfig(mb=3).canonical() == {"mb": 3.0}


def test_a_metric_that_nobody_logs_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="unknown metric '3_clients/ac'. Did you mean '3_clients/acc'"
    ):
        compose(["stop.metric=3_clients/ac"])


def test_a_trial_stops_alike_when_it_was_interrupted(tmp_path) -> None:
    config = small(
        "rounds=9",
        "stop.metric=1_global/loss",
        "stop.mode=min",
        "stop.min_delta=0.3",
        "stop.patience=1",
    )
    whole = events_of(config)
    last = whole[-2]
    assert 1 < last.round < 9
    assert whole[-1].stopped.startswith("1_global/loss did not improve for 1 evaluations")
    assert last.events == (f"stopped: {whole[-1].stopped}",)
    assert whole[-1].summary["rounds"] == last.round

    def events():
        store = CheckpointStore(str(tmp_path), config.key)
        return run_trial(config, digits(), make_split(digits(), config), checkpoints=store)

    for stop_after in (1, last.round):
        for event in events():
            if isinstance(event, RoundRecord) and event.round == stop_after:
                break
        assert outcome(list(events())) == outcome(whole)
