"""Successive halving: rungs by hand, then a small sweep that is interrupted and goes on."""

import pytest

from fedsweep.config import HalvingConfig, TrialConfig
from fedsweep.errors import ConfigError, RunnerError
from fedsweep.records import RoundRecord
from fedsweep.sweeps.compose import compose, expand
from fedsweep.sweeps.halving import Halving, promotable

NINE = {f"t{i}": i / 10 for i in range(9)}


@pytest.mark.parametrize(
    ("rungs", "waiting", "expected"),
    [
        ([{"a": 0.5, "b": 0.4}, {}], {"a": 0, "b": 0}, None),  # 2 // 3 = 0 go on
        ([{"a": 0.5, "b": 0.4, "c": 0.6}, {}], {"a": 0, "b": 0, "c": 0}, "c"),  # 3 // 3 = 1
        ([{"a": 0.5, "b": 0.4, "c": 0.6}, {}], {"a": 0, "b": 0}, None),  # c went on already
        (
            [{"a": 0.5, "b": 0.5, "c": 0.1}, {}],
            {"a": 0, "b": 0, "c": 0},
            "a",
        ),  # of equals, the first
        ([NINE, {}], dict.fromkeys(NINE, 0), "t8"),
        (
            [NINE, {"t8": 0.9, "t7": 0.8}],
            dict.fromkeys([*NINE][:7], 0),
            "t6",
        ),  # 9 // 3 = 3: t8, t7, t6
        (
            [NINE, {"t8": 0.7, "t7": 0.8, "t6": 0.6}],
            {"t5": 0, "t8": 1, "t7": 1, "t6": 1},
            "t7",
        ),  # highest rung first
        ([NINE, {"t8": 0.7, "t7": 0.8, "t6": 0.6}], {"t5": 0, "t8": 1, "t6": 1}, None),
    ],
)
def test_who_goes_on(
    rungs: list[dict[str, float]], waiting: dict[str, int], expected: str | None
) -> None:
    assert promotable(rungs, waiting, 3) == expected


def test_where_all_wait_the_best_goes_on() -> None:
    assert promotable([{"a": 0.4, "b": 0.5}, {}], {"a": 0, "b": 0}, 3, least=1) == "b"
    assert promotable([{"a": 0.4, "b": 0.5}, {"b": 0.1}], {"a": 0, "b": 1}, 3, least=1) == "b"
    assert promotable([{"a": 0.4, "b": 0.5}, {"b": 0.1}], {"a": 0}, 3, least=1) is None


def test_the_rungs_of_a_trial() -> None:
    config = HalvingConfig(axis="training.lr", min_rounds=2, factor=3)
    assert config.rungs(20) == (2, 6, 18)
    assert config.rungs(18) == (2, 6)  # all rounds of a trial are no rung


HALVED = ["seed=0", "shift=none", "partition=iid", "strategy=fedavg", "num_clients=2", "rounds=4"]
RUNGS = ["halving.axis=training.lr", "halving.factor=2", "halving.min_rounds=1"]


def test_a_bracket_from_start_to_end() -> None:
    """Rungs at rounds 1 and 2 of 4, one in two goes on: 4 trials, then 2, then 1."""
    _, trials = expand("default", [*HALVED, *RUNGS, "training.lr=.1,.2,.3,.4"])
    a, b, c, d = keys = [trial.config.key for trial in trials]
    halving = Halving(trials[0].config.halving, trials, keys, {})
    assert halving.rungs(a) == (1, 2)

    def reach(key: str, number: int, value: float) -> None:
        halving.record(key, RoundRecord(number, {"3_clients/acc": value}))
        halving.wait(key, number)

    reach(a, 1, 0.1)
    assert halving.promote() is None
    reach(b, 1, 0.3)
    assert halving.promote() == (b, (2,))
    reach(c, 1, float("nan"))
    reach(d, 1, 0.4)
    assert halving.promote() == (d, (2,))
    assert halving.promote() is None
    assert halving.stop() is None  # b and d are under way
    reach(d, 2, 0.5)
    reach(b, 2, 0.6)
    assert halving.promote() == (b, ())
    halving.end(b, failed=True)
    assert halving.promote() == (d, ())  # the next best in its place
    halving.end(d)
    assert halving.stop() == (
        a, 1,
        "halving over training.lr: 3_clients/acc=0.1 after round 1 is not among the best 1 of 3",
    )  # fmt: skip
    assert [halving.stop()[0], halving.stop()] == [c, None]  # type: ignore[index]


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("strategy.server.ewma", ".1,.2,.3"),
        ("strategy.num_clusters", "1,2"),
        ("training", "sgd,adam"),
    ],
)
def test_each_axis_makes_brackets(axis: str, values: str) -> None:
    """All values of an axis compete, at each place of the other axes for itself."""
    words = [
        *HALVED,
        "strategy=kmeans",
        "seed=0,1",
        "training.epochs=1,2",
        "strategy.server.hysteresis=.5,.6",
    ]
    words += [
        "strategy.num_clusters=1,2",
        f"{axis}={values}",
        f"halving.axis={axis}",
        "halving.factor=2",
    ]
    _, trials = expand("default", words)
    halving = Halving(trials[0].config.halving, trials, {trial.config.key for trial in trials}, {})
    assert all(halving.rungs(trial.config.key) for trial in trials)
    for trial in trials:  # all trials of a bracket wait; the best of each goes on, and it alone
        halving.record(
            trial.config.key, RoundRecord(1, {"3_clients/acc": float(trial.config.seed)})
        )
        halving.wait(trial.config.key, 1)
    went_on = []
    while chosen := halving.promote():
        went_on.append(chosen[0])
        halving.end(chosen[0])
    assert len(went_on) == len(trials) / len(values.split(","))
    assert len(went_on) == (8 if axis == "strategy.num_clusters" else 16)


def test_what_diverged_is_the_worst_and_said_to_be() -> None:
    for mode in ("max", "min"):
        _, trials = expand(
            "default", [*HALVED, *RUNGS, "training.lr=.1,.2", f"halving.mode={mode}"]
        )
        a, b = keys = [trial.config.key for trial in trials]
        halving = Halving(trials[0].config.halving, trials, keys, {})
        for key, value in ((a, float("nan")), (b, 0.1)):
            halving.record(key, RoundRecord(1, {"3_clients/acc": value}))
            halving.wait(key, 1)
        assert halving.promote() == (b, (2,))
        halving.end(b)
        lost = halving.stop()
        assert lost is not None
        assert lost[0] == a
        assert (
            "3_clients/acc is missing or not finite after round 1 is not among the best 1 of 2"
            in lost[2]
        )


def test_trials_compete_within_a_bracket_and_with_earlier_sessions() -> None:
    words = [*HALVED, *RUNGS, "seed=0,1", "training.lr=.1,.2"]
    _, trials = expand("default", words)
    key = {(t.config.seed, t.config.training.lr): t.config.key for t in trials}
    done, left = key[0, 0.1], key[0, 0.2]
    halving = Halving(
        trials[0].config.halving, trials, {left, key[1, 0.1]}, {done: {1: 0.9, 2: 0.9, 3: 0.9}}
    )
    halving.record(left, RoundRecord(1, {"3_clients/acc": 0.5}))
    halving.wait(left, 1)
    assert halving.promote() is None
    # The other seed, still under way, has no say.
    assert halving.stop()[0] == left  # type: ignore[index]


def test_halving_is_part_of_the_key_only_where_it_is_set() -> None:
    assert TrialConfig(halving=HalvingConfig(factor=2)).key == TrialConfig().key


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["halving.axis=training.momentum"], "unknown axis 'training.momentum'"),
        (
            ["halving.axis=training.lr", "halving.min_rounds=4"],
            "halving.min_rounds=4 is not less than rounds=4",
        ),
        (
            ["halving.axis=training.lr", "evaluate_every=2"],
            "halving.min_rounds=1 is no multiple of evaluate_every=2",
        ),
        (
            ["halving.axis=training.lr", "halving.metric=3_clients/ac"],
            "Did you mean '3_clients/acc'",
        ),
        (
            ["halving.axis=training.lr", "halving.factor=2,3"],
            "'halving.factor=2,3' has several values",
        ),
    ],
)
def test_bad_input(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand("default", [*HALVED, "training.lr=.1,.2", *words])
    assert sentence in str(caught.value)


def test_one_trial_has_nobody_to_compete_with() -> None:
    from fedsweep.cli import main

    assert main(["run", *RUNGS]) == 2
    with pytest.raises(
        RunnerError, match=r"halving\.axis=training\.lr compares the trials of a sweep"
    ):
        compose(RUNGS)
