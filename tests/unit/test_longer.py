"""More rounds of a trial that ended begin there, and give what they give from the start."""

import json
from pathlib import Path

import pytest

import fedsweep
from fedsweep.client import app  # noqa: F401  torch is there before a trial begins
from fedsweep.config import RunConfig
from fedsweep.errors import CheckpointError
from fedsweep.strategies.registry import STRATEGIES
from fedsweep.sweeps.prepare import make_split
from fedsweep.trial.checkpoint import CheckpointStore
from fedsweep.trial.trial import run_trial
from tests.trials import digits, events_of, network_of, outcome, small

BEGUN, ALL = 2, 3


def run(config: RunConfig, checkpoints: CheckpointStore) -> list:
    return list(run_trial(config, digits(), make_split(digits(), config), checkpoints=checkpoints))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_longer_trial_has_the_bits_of_one_from_the_start(name: str, tmp_path: Path) -> None:
    network = f"model.name={network_of(name, 'mlp')}"
    words = [f"strategy={name}", network, "shift=rotation", "shift.groups=2"]
    shorter, longer = (small(*words, f"rounds={rounds}") for rounds in (BEGUN, ALL))
    assert shorter.key != longer.key
    assert shorter.course_key == longer.course_key
    begun = CheckpointStore(str(tmp_path / "a"), shorter.key)
    run(shorter, begun)
    begun.keep_last()
    assert len([*(tmp_path / "a").iterdir()]) == 2

    own = CheckpointStore(str(tmp_path / "b"), longer.key, begun)
    events = run(longer, own)
    weights, rounds = outcome(events)
    expected_weights, expected = outcome(events_of(longer))
    assert events[0].first_round == BEGUN + 1
    assert weights == expected_weights
    assert len(rounds) == len(expected) == ALL + 1
    for number, (found, wanted) in enumerate(zip(rounds, expected, strict=True)):
        also = found.keys() - wanted.keys()
        assert not also or number == BEGUN, "the last round of the shorter one alone has more"
        assert {key: found[key] for key in wanted} == wanted

    assert own.load().round == ALL, "it goes on from its own, whatever becomes of the other"


def test_halving_has_no_course() -> None:
    config = small("rounds=4")
    halving = config.halving.model_copy(update={"axis": "training.lr", "min_rounds": 1})
    assert config.model_copy(update={"halving": halving}).course_key == ""


def test_what_is_kept_is_whole(tmp_path: Path) -> None:
    config = small("num_clients=4", "rounds=3")
    store = CheckpointStore(str(tmp_path), config.key)
    run(config, store)
    before = store.load()
    (tmp_path / "000009.json").write_text("{")  # cut off
    store.keep_last()
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "000003.json",
        "000003.safetensors",
    ]
    after = CheckpointStore(str(tmp_path), config.key).load()
    assert [record.round for record in after.records] == [0, 1, 2, 3]
    assert json.dumps(after.records[3].metrics) == json.dumps(before.records[3].metrics)
    with pytest.raises(CheckpointError, match="of trial"):
        CheckpointStore(str(tmp_path), "another").check()


SMALL = {
    "dataset": "digits",
    "model": "logreg",
    "num_clients": 4,
    "resources": "inline",
    "tracking.figures": "none",
    "tracking.log_models": False,
}


def test_a_sweep_with_more_rounds_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sweep(output: str, rounds: int, **settings: object) -> fedsweep.Results:
        return fedsweep.sweep(
            settings={**SMALL, "rounds": rounds, "tracking.output": tmp_path / output, **settings},
            axes={"seed": [0, 1]},
            name="study",
        )

    sweep("a", 2)
    capsys.readouterr()
    results = sweep("a", 5)
    out = capsys.readouterr().out
    assert "begun before: 2 of 2 trials go on from where the same with rounds=2 ended" in out
    assert out.count("goes on after round 2") == 2
    assert "round 1/5" not in out

    fresh = sweep("b", 5)
    learned = ["seed", "round", "1_global/acc", "3_clients/acc"]
    assert results.rounds()[learned].equals(fresh.rounds()[learned])
    final = ["acc", "client_acc", "client_test_acc"]
    assert results.trials()[final].equals(fresh.trials()[final])

    capsys.readouterr()
    sweep("b", 6, **{"training.lr": 0.5})
    assert "begun before" not in capsys.readouterr().out, "it is another course"
    sweep("c", 2, **{"checkpoint.keep": False})
    sweep("c", 3)
    assert "begun before" not in capsys.readouterr().out, "nothing was kept"
