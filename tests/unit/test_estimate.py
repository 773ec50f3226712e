"""What a dry run says: how much there is to do, and about how long it takes."""

from pathlib import Path

import pytest

from fedsweep.config import TrackingConfig
from fedsweep.errors import TrackingError
from fedsweep.sweeps import estimate
from fedsweep.sweeps.compose import expand


def past(strategy: str, seconds: float, rounds: int = 10, clients: int = 20):
    params = {
        "dataset.name": "digits", "model.name": "logreg", "strategy.name": strategy,
        "num_clients": str(clients),
    }  # fmt: skip
    return params, {"0_final/wall_s": seconds, "0_final/rounds": rounds}


@pytest.fixture
def trials():
    """Two methods, 8 clients, 5 rounds each."""
    words = ["strategy=fedavg,ifca", "model=logreg", "num_clients=8", "rounds=5"]
    return expand("", words)[1]


def test_the_size_counts_rounds_and_trainings(trials) -> None:
    assert estimate.size(trials, "mine") == (
        "2 trials of sweep 'mine': 10 rounds, in which clients train 80 times"
    )


def test_the_time_is_that_of_such_trials(
    trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = TrackingConfig(output=str(tmp_path))
    assert estimate.duration(trials, tracking) == ""  # there is no store
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr(estimate, "open_store", lambda *_, **__: None)

    # .5 s a training of fedavg (the median), 2 s of ifca: 40 of each
    runs = [past("fedavg", 100), past("fedavg", 60), past("fedavg", 900), past("ifca", 400)]
    monkeypatch.setattr(estimate, "finished_trials", lambda _: runs)
    assert "about 100 s, as such trials did before" in estimate.duration(trials, tracking)
    monkeypatch.setattr(estimate, "finished_trials", lambda _: [*runs[:3], ({}, {})])
    told = estimate.duration(trials, tracking)
    assert "about 20 s" in told
    assert told.endswith("without 1 of them: none such was run yet")
    monkeypatch.setattr(estimate, "finished_trials", lambda _: [past("ditto", 60)])
    assert estimate.duration(trials, tracking) == ""

    def refuses(_):
        raise TrackingError("it is locked")

    monkeypatch.setattr(estimate, "finished_trials", refuses)
    assert estimate.duration(trials, tracking).endswith("it is locked")
