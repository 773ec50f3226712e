"""Searches without a trial: spaces, proposals, rungs and races, by hand and by their one property.

The property: a search is a function of its words, its seed and the values of what it asked for. It
is held here against answers in any order, and against kills at every step.
"""

import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import pytest
from pydantic import ValidationError

from fedsweep.errors import ConfigError
from fedsweep.search.course import Ask, Course, Heard, Tried, undecided
from fedsweep.search.proposer import Proposal, Proposer, grid_of, importances
from fedsweep.search.settings import SearchConfig
from fedsweep.search.space import Choice, Numbers, Range, parse, suggested
from fedsweep.strategies.ditto import DittoSettings
from fedsweep.strategies.fedadam import FedAdam

LR = "training.lr"
SPACE: dict[str, Range] = {LR: Numbers(1e-3, 1.0, log=True), "strategy.m": Numbers(0.0, 1.0)}
SAMPLERS = ("tpe", "random", "grid", "cmaes")


def config(**given: Any) -> SearchConfig:
    return SearchConfig(**{"space": {LR: "loguniform:1e-3:1"}, "budget": 1000.0, **given})


def course(cfg: SearchConfig, rounds: int = 8, space: Mapping[str, Range] = SPACE) -> Course:
    default = {LR: 0.02, "strategy.m": 0.9}
    return Course(cfg, space, rounds, trained=2, default=default, path=("fedavg",))


def peak(values: Mapping[str, Any], ask: Ask) -> Heard:
    """Be best at a rate of 0.1 and m = 0.5; a seed moves all alike, and each a little by itself."""
    noise = Random(repr((ask.seed, sorted(values.items())))).gauss(0, 0.002)
    lost = (math.log10(values[LR]) + 1) ** 2 + (values["strategy.m"] - 0.5) ** 2
    seeds = 0.02 * Random(ask.seed).random()
    return Heard(1 - 0.1 * lost / ask.rounds + seeds + noise, cost=3.0 * ask.rounds)


Known = dict[tuple[tuple[tuple[str, Any], ...], Ask], Heard]


def run(
    of: Course,
    answer: Callable[[Mapping[str, Any], Ask], Heard] = peak,
    known: Known | None = None,
    most: int = 10**9,
    order: Random | None = None,
) -> list[list[Ask]]:
    """Answer what a search asks for, or so many new runs of it; return all that it asked for."""
    steps, asked = of.steps(), []
    known = {} if known is None else known
    try:
        asks = next(steps)
        while True:
            asked.append(asks)
            for ask in order.sample(asks, len(asks)) if order else asks:
                place = tuple(of.values(ask.proposal).items()), ask
                if place not in known:
                    if not most:
                        return asked
                    most -= 1
                    known[place] = answer(of.values(ask.proposal), ask)
            heard = {ask: known[tuple(of.values(ask.proposal).items()), ask] for ask in asks}
            asks = steps.send(dict(sorted(heard.items(), key=lambda _: Random(1).random())))
    except StopIteration:
        return asked


# Spaces.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("loguniform(1e-3,1)", Numbers(1e-3, 1.0, log=True)),
        ("loguniform:1e-3:1", Numbers(1e-3, 1.0, log=True)),
        ("uniform(0, 0.5)", Numbers(0.0, 0.5)),
        ("int(1,8)", Numbers(1, 8, whole=True)),
        ("logint:1:64", Numbers(1, 64, log=True, whole=True)),
        ("choice(sgd,adam)", Choice(("sgd", "adam"))),
        ("10,20,32", Choice((10, 20, 32))),
        ([0.1, True, "x"], Choice((0.1, True, "x"))),
    ],
)
def test_a_range_is_read_as_it_is_meant(given: object, expected: Range) -> None:
    found = parse(LR, given)
    assert found == expected
    assert parse(LR, str(found)) == expected  # and is told as it can be given again


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("normal(0,1)", "is no range to search; give uniform(a,b), loguniform(a,b)"),
        ("0.1", "is no range to search"),
        ("loguniform(0,1)", "a logarithm has to be above 0; raise 0"),
        ("uniform(1,0.5)", "1 is not below 0.5; turn them round"),
        ("uniform(0,inf)", "takes two finite numbers, as uniform(a,b)"),
        ("int(1,2.5)", "takes whole numbers"),
        ("choice(a)", "needs two values at least, none of them twice"),
        ("a,b,a", "needs two values at least, none of them twice"),
        ("choice([1],[2])", "'[1]' is neither a number nor a name"),
    ],
)
def test_what_is_no_range_is_refused(given: str, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(LR, given)
    assert why in str(refused.value)
    assert str(refused.value).startswith(f"search.space.training.lr={given}")


def test_a_proposed_number_has_few_digits_and_stays_inside() -> None:
    of = Numbers(0.00123444, 0.0456789, log=True)
    assert of.read(0.0198765432) == 0.01988
    assert of.read(0.00123444) == 0.00123444  # 0.001234 would be below
    assert of.read(0.0456789) == 0.0456789  # 0.04568 would be above


def test_the_points_of_a_grid() -> None:
    assert Numbers(1e-3, 1.0, log=True).grid(4) == [0.001, 0.01, 0.1, 1.0]
    assert Numbers(1, 3, whole=True).grid(5) == [1, 2, 3]
    both = grid_of({"a": Numbers(0.0, 1.0), "b": Choice(("x", "y"))}, 3)
    assert len(both) == 6
    assert both[1] == {"a": 0.0, "b": "y"}


def test_the_settings_suggest_what_to_search() -> None:
    fields = FedAdam.settings.model_fields
    assert suggested(fields["eta"], 0.01) == Numbers(0.0003333, 0.3, log=True)
    assert suggested(fields["beta_1"], 0.9) == Numbers(0.05, 0.95)
    assert suggested(fields["beta_2"], 0.99) == Numbers(0.05, 0.99)  # as far as the default
    assert suggested(fields["name"], "fedadam") is None
    ditto = DittoSettings.model_fields
    assert suggested(ditto["ditto_lambda"], 0.1) == Numbers(0.003333, 3.0, log=True)
    assert suggested(ditto["ditto_lambda"], 0.0) is None  # it is off


# What a search is told.


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"metric": "acc"}, "and nothing else; take one of client_acc"),
        ({"metric": "client_test_acc"}, "hold out, and nothing else"),
        ({"metric": "1_global/acc"}, "hold out, and nothing else"),
        ({"metric": "client_ac"}, "Did you mean 'client_acc'?"),
        ({"budget": 0.0}, "greater than 0"),
        ({"space": {}}, "there is nothing to search"),
        ({"replicates": 3, "most_replicates": 2}, "search.most_replicates=2 is less than"),
    ],
)
def test_what_a_search_can_not_be_told(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError) as refused:
        config(**given)
    assert why in str(refused.value)


def test_a_metric_may_be_given_as_it_is_logged() -> None:
    assert config(metric="3_clients/acc_p10").metric == "client_acc_p10"


def test_rungs_and_seeds() -> None:
    assert config(min_rounds=2, factor=3).rungs(20) == (2, 6, 18, 20)
    assert config(min_rounds=2, factor=3).rungs(18) == (2, 6, 18)
    assert config().rungs(20) == (20,)
    assert config(most_replicates=3).seeds(1) == (1003, 1004, 1005)


# Proposals.


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_calls_give_the_same_proposals(sampler: str) -> None:
    def proposals(score: float) -> list[Proposal]:
        proposer, found = Proposer(SPACE, sampler, 7, 3), []
        for _ in range(8):
            asked = proposer.ask(3)
            found += asked
            for one in asked:
                value = score * -abs(math.log10(one.values[LR]) + 1)
                proposer.tell(one, [(1, value)], complete=one.number != 4)
        return found

    assert proposals(1.0) == proposals(1.0)
    learns = sampler in ("tpe", "cmaes")
    assert (proposals(1.0) != proposals(-1.0)) == learns
    assert proposals(1.0)[:3] == proposals(-1.0)[:3]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random"])
def test_the_default_is_proposed_first_and_failures_do_no_harm(sampler: str) -> None:
    proposer = Proposer(SPACE, sampler, 0, 2, first={LR: 0.02, "strategy.m": 0.9})
    first, *_ = asked = proposer.ask(2)
    assert first.values == {LR: 0.02, "strategy.m": 0.9}
    for _ in range(6):
        for one in asked:
            proposer.tell(one, [(1, -math.inf)], complete=one.number % 2 == 0)
        asked = proposer.ask(2)
        assert all(SPACE[key].has(value) for one in asked for key, value in one.values.items())


def test_a_default_of_many_digits_is_proposed_as_it_is() -> None:
    """Rounded it would be another trial, and its gain over itself not nought."""
    default = {LR: 0.0123456, "strategy.m": 0.9}
    first, second = Proposer(SPACE, "random", 0, 2, first=default).ask(2)
    assert first.values == default
    assert second.values[LR] == float(f"{second.values[LR]:.4g}")


def test_a_grid_ends_and_is_whole() -> None:
    proposer = Proposer({"a": Choice((1, 2, 3)), "b": Choice(("x", "y"))}, "grid", 0, 4)
    found = [one.values for one in [*proposer.ask(4), *proposer.ask(4), *proposer.ask(4)]]
    assert len(found) == 6
    assert {(v["a"], v["b"]) for v in found} == {(a, b) for a in (1, 2, 3) for b in "xy"}


def test_importance_is_that_of_what_matters() -> None:
    random = Random(0)
    values = [{LR: 10 ** random.uniform(-3, 0), "strategy.m": random.random()} for _ in range(40)]
    found = importances(SPACE, [(v, math.log10(v[LR])) for v in values])
    assert found[LR] > 0.9
    assert sum(found.values()) == pytest.approx(1)
    assert importances(SPACE, [(v, 1.0) for v in values]) == {}


# The course.


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_is_killed_anywhere_asks_for_the_same(sampler: str) -> None:
    """It is begun again after every few runs, with what was run before, in any order."""
    cfg = config(sampler=sampler, budget=600.0, generation=4, min_rounds=2, factor=2)
    whole = course(cfg)
    expected = run(whole)
    assert whole.winner is not None
    known: Known = {}
    for again in range(200):
        killed = course(cfg)
        asked = run(killed, known=known, most=7, order=Random(again))
        assert asked == expected[: len(asked)]
        if killed.winner:
            break
    assert killed.winner == whole.winner
    assert (killed.spent, killed.tried) == (whole.spent, whole.tried)
    assert len(known) == sum(map(len, expected))  # nothing was run twice


def test_the_budget_is_kept_and_is_what_was_asked_for() -> None:
    for budget in (50.0, 170.0, 600.0, 2000.0):
        of = course(config(budget=budget, min_rounds=2, generation=5))
        asked = run(of)
        spent = sum(2 * (ask.rounds - ask.before) for asks in asked for ask in asks)
        assert spent == of.spent <= budget
        explored = [ask for asks in asked for ask in asks if ask.seed < 1002]
        assert sum(2 * (ask.rounds - ask.before) for ask in explored) <= 0.75 * budget


def test_more_budget_goes_on_where_less_ended() -> None:
    """Whole generations of a larger search are those of the smaller one."""
    less, more = (course(config(budget=b, generation=4, race=0.0)) for b in (256.0, 512.0))
    run(less)
    run(more)
    assert [len(less.tried), len(more.tried)] == [8, 16]
    assert [one.proposal for one in less.tried] == [one.proposal for one in more.tried[:8]]


def test_losers_stop_at_a_rung_by_means_over_the_seeds() -> None:
    """Of four, two go on from round 2, one from round 4: 1 has the best mean, 0 a lucky seed."""
    scores = {0: (0.9, 0.1), 1: (0.6, 0.6), 2: (0.55, 0.6), 3: (0.7, float("-inf"))}

    def answer(values: Mapping[str, Any], ask: Ask) -> Heard:
        del values
        return Heard(scores[ask.proposal][ask.seed - 1000], 0.0)

    of = course(config(budget=64.0, race=0.0, generation=4, min_rounds=2, factor=2))
    first, second, third = run(of, answer)
    assert [(ask.proposal, ask.seed, ask.rounds, ask.before) for ask in first] == [
        (number, seed, 2, 0) for number in range(4) for seed in (1000, 1001)
    ]
    assert [(ask.proposal, ask.rounds, ask.before) for ask in second] == [
        (1, 4, 2), (1, 4, 2), (2, 4, 2), (2, 4, 2),
    ]  # fmt: skip
    assert [(ask.proposal, ask.rounds, ask.before) for ask in third] == [(1, 8, 4)] * 2
    assert [one.complete for one in of.tried] == [False, True, False, False]
    assert of.winner is of.tried[1]
    assert of.spent == 2 * (8 * 2 + 4 * 2 + 2 * 4)


def test_where_all_diverge_the_default_stands() -> None:
    of = course(config(budget=200.0, min_rounds=2, generation=3))
    run(of, lambda values, ask: Heard(-math.inf, 0.0))
    assert of.winner is None
    assert of.told == "its budget is used, and none of its proposals ended with a finite score"


def tried(number: int, *scores: float) -> Tried:
    seeds = dict(enumerate(scores, 1000))
    return Tried(Proposal(number, {}), 0, {8: seeds}, complete=True)


def test_who_can_be_told_from_the_best() -> None:
    best = tried(0, 0.90, 0.92, 0.91)
    worse = tried(1, 0.80, 0.825, 0.81)  # differences .1, .095, .1: t = 59, p = .0003
    alike = tried(2, 0.91, 0.90, 0.905)  # -.01, .02, .005: p = .6
    seeds = (1000, 1001, 1002)
    assert undecided([worse, best, alike], 8, seeds) == [best, alike]
    assert undecided([worse, best], 8, seeds[:2]) == [best, worse]  # two pairs tell nothing


def test_replicates_are_added_only_while_finalists_are_alike() -> None:
    def gap(by: float) -> tuple[int, Course]:
        """Have the best proposal be better by so much, whatever the seed; noise is about .01."""

        def answer(values: Mapping[str, Any], ask: Ask) -> Heard:
            noise = Random(repr((ask.seed, ask.proposal))).gauss(0, 0.01)
            return Heard(by * (ask.proposal == 2) + noise, 0.0)

        of = course(config(budget=2000.0, generation=3, most_replicates=6, sampler="random"))
        of.config = cfg = of.config.model_copy(update={"budget": 200.0, "race": 0.5})
        asked = run(of, answer)
        assert of.spent <= cfg.budget
        return sum(ask.seed >= 1002 for asks in asked for ask in asks), of

    clear, of = gap(1.0)
    assert of.winner is of.tried[2]
    assert clear == 3  # one more seed for each of three proposals: three pairs are enough
    alike, _ = gap(0.0)
    assert alike > clear


def test_a_budget_in_another_unit_is_what_runs_say_that_they_cost() -> None:
    """Each round costs 3: what a rung cost already is not counted twice."""
    of = course(config(unit="virtual_s", budget=600.0, generation=4, min_rounds=2, factor=2))
    asked = run(of)
    assert [ask.proposal for ask in asked[0]] == [0, 0]  # the first one tells what one costs
    spent = sum(3.0 * (ask.rounds - ask.before) for asks in asked for ask in asks)
    assert of.spent == spent <= 600
    free = course(config(unit="mb_total", budget=600.0))
    run(free, lambda values, ask: Heard(0.5, 0.0))
    assert len(free.tried) == 1  # nothing says what a proposal costs


def test_tpe_learns_where_the_best_is() -> None:
    """What it proposes in its last generations loses less than half of what it began with."""
    of = course(config(budget=2400.0, min_rounds=2))
    run(of)
    lost = [1 - peak(one.proposal.values, Ask(one.number, 0, 1)).score for one in of.tried]
    quarter = len(lost) // 4
    assert sum(lost[-quarter:]) < 0.5 * sum(lost[:quarter])


def test_repeats_are_other_searches() -> None:
    first, second = (
        Course(config(), SPACE, 8, 2, {LR: 0.02, "strategy.m": 0.9}, ("fedavg",), repeat)
        for repeat in (0, 1)
    )
    asked = [run(of) for of in (first, second)]
    assert first.tried[1].proposal.values != second.tried[1].proposal.values
    seeds = [{ask.seed for asks in of for ask in asks} for of in asked]
    assert not seeds[0] & seeds[1]
