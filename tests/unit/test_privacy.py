"""What trials spend of privacy, and what is refused because no account covers it."""

import shutil
from collections import Counter
from functools import partial
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import Context, Message
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from fedsweep.accounting import Account, Relation, Release
from fedsweep.catalog import EPSILON, EPSILON_AHEAD, EPSILON_MAX, EPSILON_MEAN
from fedsweep.cli import main
from fedsweep.client.app import BuiltinClient
from fedsweep.client.messages import partition_id
from fedsweep.config import PrivacyConfig, RunConfig, TrialConfig
from fedsweep.errors import ConfigError
from fedsweep.records import RoundRecord
from fedsweep.report.choice import Choice
from fedsweep.report.report import report
from fedsweep.strategies import STRATEGIES
from fedsweep.sweeps.compose import compose, expand_grids, load_sweep, planned, remarks
from fedsweep.sweeps.prepare import check_models, make_split, prepare_inline
from fedsweep.sweeps.resume import Restart
from fedsweep.sweeps.sweep import SweepPlan, run_sweep
from fedsweep.sweeps.views import LineView, new_console
from fedsweep.tracking.read import read_sweep
from fedsweep.training.local import LocalTraining
from fedsweep.training.private import clipped_sums, train_privately
from fedsweep.training.targets import loss_of
from fedsweep.trial.checkpoint import CheckpointStore
from fedsweep.trial.privacy import ClientsSpending, noise_of
from fedsweep.trial.trial import run_trial
from tests.trials import digits, events_of, outcome, small

KINDS = [kind for kind in get_args(PrivacyConfig.model_fields["name"].annotation) if kind != "none"]
SGD = ["privacy=local_sgd", "privacy.client_metrics=false", "model=logreg"]
SILENT = ["privacy=fixed_server", "privacy.client_metrics=false"]
QUICK = [*SILENT, "model=logreg", "privacy.clipping_norm=0.1"]
HALF = "strategy.fraction_train=0.5"


def epsilons(events: list[Any]) -> list[float]:
    return [record.metrics[EPSILON] for record in events[2:-1]]


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as error:
        compose(list(words))
    return str(error.value)


# What a trial's clients are drawn as is what is accounted


@pytest.mark.parametrize(
    ("words", "relation", "releases"),
    [
        ([], Relation.ZERO_OUT, {Release(1.0): 3}),
        ([HALF], Relation.REPLACE, {Release(1.0, 4, 8): 3}),
        (["strategy.fraction_train=0.2", "strategy.min_train_nodes=3"], Relation.REPLACE,
         {Release(1.0, 3, 8): 3}),
        ([HALF, "sampling=poisson"], Relation.ADD_OR_REMOVE, {Release(1.0, rate=0.5): 3}),
        ([HALF, "shift=rotation", "shift.newcomers=0.5", "shift.join_round=2"], Relation.REPLACE,
         {Release(1.0, 2, 4): 1, Release(1.0, 4, 8): 2}),
        (["strategy.min_train_nodes=4", HALF, "shift=rotation", "shift.newcomers=0.5",
          "shift.join_round=3"], Relation.REPLACE, {Release(1.0): 2, Release(1.0, 4, 8): 1}),
        ([HALF, "devices=lognormal"], Relation.ZERO_OUT, {Release(1.0): 3}),
        ([HALF, "devices=lognormal", "schedule=over_selection"], Relation.ZERO_OUT,
         {Release(1.0): 3}),
    ],
)  # fmt: skip
def test_the_plan_is_what_the_trial_does(
    words: list[str], relation: Relation, releases: dict[Release, int]
) -> None:
    config = small(*QUICK, *words)
    plan = config.account.plan
    assert plan is not None
    assert plan.account == Account(relation, 8**-1.1)
    assert plan.releases(3) == Counter(releases)
    found = epsilons(events_of(config))
    assert found == [plan.epsilon(number) for number in (1, 2, 3)]
    assert found == sorted(found)


def test_nobody_may_be_drawn_and_that_costs_as_much() -> None:
    """Of 8 clients at a rate of 1 / 8 a third of the rounds draw nobody: there is noise too."""
    words = ["sampling=poisson", "strategy.fraction_train=0.125", "rounds=8"]
    config = small(*QUICK, *words)
    events = events_of(config)
    asked = [int(record.metrics["3_clients/asked"]) for record in events[2:-1]]
    assert 0 in asked
    assert len(set(asked)) > 2
    losses = [record.metrics["1_global/loss"] for record in events[1:-1]]
    assert len(set(losses)) == 9  # each round makes another model
    assert config.account.plan is not None
    assert epsilons(events)[-1] == config.account.plan.epsilon(8)
    *_, public = events_of(small("model=logreg", *words))
    assert public.summary["rounds"] == 8


@pytest.mark.parametrize("name", STRATEGIES.saying("private_mean"))
def test_poisson_rounds_without_anybody_are_rounds(name: str) -> None:
    words = ["sampling=poisson", "strategy.fraction_train=0.125", "rounds=8", f"strategy={name}"]
    for privacy in ([], QUICK):
        _, *rounds, result = events_of(small("model=logreg", *words, *privacy))
        assert min(record.metrics["3_clients/asked"] for record in rounds[1:]) == 0
        assert all(np.isfinite(values).all() for values in result.models["global"].values())


def test_poisson_draws_each_client_at_its_rate() -> None:
    events = events_of(small("model=logreg", "sampling=poisson", HALF, "rounds=60"))
    counts = Counter(client for record in events[2:-1] for client in record.clients["client"]
                     if record.clients["train_examples"])  # fmt: skip
    asked = [record.metrics["3_clients/asked"] for record in events[2:-1]]
    assert np.mean(asked) == pytest.approx(4, abs=3 * (2 / 60) ** 0.5)
    assert np.var(asked) == pytest.approx(2, rel=0.6)
    assert set(counts) == set(range(8))


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Client 3 never replies."""
    trains = BuiltinClient.train

    def fails(self: BuiltinClient, message: Message, context: Context) -> Message:
        if partition_id(context) == 3:
            raise RuntimeError("never")
        return trains(self, message, context)

    monkeypatch.setattr(BuiltinClient, "train", fails)


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize("sampling", ["fixed", "poisson", "all"])
def test_a_client_that_fails(sampling: str) -> None:
    """It tells who was drawn, where the sum is divided by the replies: such rounds cost more."""
    drawn = [] if sampling == "all" else [HALF, f"sampling={sampling}"]
    config = small(*QUICK, *drawn, "training.engine=sequential", "rounds=4")
    _, _, *rounds, _ = events_of(config)
    missing = [r.metrics["3_clients/asked"] - r.metrics["3_clients/trained"] for r in rounds]
    assert 1 in missing
    plan = config.account.plan
    assert plan is not None
    expected = Counter(
        plan.planned(number) if not lost or sampling != "fixed" else Release(1.0)
        for number, lost in enumerate(missing, 1)
    )
    assert rounds[-1].metrics[EPSILON] == plan.account.epsilon(expected)
    told = "1 of 4 clients gave no reply: the round is charged as if everybody knew who was asked"
    for lost, record in zip(missing, rounds, strict=True):
        assert (told in record.events) is bool(lost and sampling == "fixed")


def test_a_round_without_any_reply_releases_nothing() -> None:
    plan = small(*QUICK, HALF).account.plan
    assert plan is not None
    assert plan.charged(1, 4, 0) is None
    assert plan.charged(1, 4, 3) == Release(1.0)
    assert plan.charged(1, 4, 4) == Release(1.0, 4, 8)
    assert plan.charged(1, 3, 3) == Release(1.0, 3, 8)  # as it was really drawn


# The noise in the aggregate is what the account assumes


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["partition=dirichlet", "partition.alpha=0.3", "partition.min_size=3"],
        [HALF],
        [HALF, "sampling=poisson", "seed=3"],
        ["shift=rotation", "shift.newcomers=0.5", "shift.join_round=2"],
        ["model.name=tests.networks.Normed", "privacy.strict=false"],
        ["devices=lognormal", "devices.dropout=0.3", "strategy.min_fit_fraction=0"],
        ["privacy=fixed_client"],
        ["privacy=adaptive_client", "privacy.noise_multiplier=0.3",
         "privacy.initial_clipping_norm=0.1", "privacy.clip_norm_lr=1e-9"],
        ["failing"],
    ],
    ids=lambda words: " ".join(words) or "all",
)  # fmt: skip
def test_the_noise_of_whole_trials(words: list[str], request: pytest.FixtureRequest) -> None:
    """Nobody learns anything: the model ends where the noise of its rounds took it.

    Each round's is z S over those that replied, or over those drawn on average, whatever their
    sizes; adaptive clipping's updates bear z_Delta (Andrew et al. 2021).
    """
    if "failing" in words:
        request.getfixturevalue("failing")
        words = ["training.engine=sequential"]
    base = [*SILENT, "model=mlp", "rounds=2", "training.lr=1e-9", *words]
    if not any(word.startswith("privacy=adaptive") for word in words):
        base.append("privacy.clipping_norm=0.1")
    config = small(*base)
    _, _, *rounds, noised = events_of(config)
    still = [word for word in base if not word.startswith(("privacy.noise", "privacy.strict"))]
    *_, plain = events_of(small(*still, "privacy.noise_multiplier=0"))
    moved = np.concatenate(
        [
            (noised.models["global"][name] - plain.models["global"][name]).ravel()
            for name in plain.models["global"]
            if not name.startswith(("frozen", "norm.running", "norm.num", "shift"))
        ]
    )
    poisson = config.sampling == "poisson"
    taken = [4.0 if poisson else record.metrics["3_clients/trained"] for record in rounds]
    z = config.privacy.noise_multiplier
    if config.privacy.adapts:
        z = (z**-2 - (2 * 8 / 20) ** -2) ** -0.5
    expected = z * 0.1 * sum(m**-2 for m in taken if m) ** 0.5
    assert np.std(moved) == pytest.approx(expected, rel=5 / len(moved) ** 0.5)
    assert abs(np.mean(moved)) < 5 * expected / len(moved) ** 0.5


# A budget: the noise that it needs, and the end of it


@pytest.mark.parametrize("words", [[], [HALF], [HALF, "sampling=poisson"]])
def test_a_target_finds_its_noise(words: list[str]) -> None:
    config = small(*QUICK, *words, "privacy.target_epsilon=5", "rounds=7")
    plan = config.account.plan
    assert plan is not None
    assert 4.9 < plan.epsilon(7) <= 5
    assert config.canonical()["privacy"]["noise_multiplier"] == config.privacy.noise_multiplier
    assert RunConfig.model_validate(config.model_dump()) == config
    told = epsilons(events_of(config))
    assert told[-1] == plan.epsilon(7)
    [line] = remarks_of(*QUICK, *words, "privacy.target_epsilon=5", "rounds=7")
    assert f"noise multiplier {config.privacy.noise_multiplier:g}, " in line
    assert line.endswith(f"epsilon {plan.epsilon(7):.4g} after 7 rounds")


def remarks_of(*words: str) -> list[str]:
    return remarks(expand_grids([load_sweep("")], ["num_clients=8", *words]))


def test_targets_are_an_axis_and_each_has_its_noise() -> None:
    trials = expand_grids(
        [load_sweep("")],
        [*QUICK, "privacy.target_epsilon=1,4,16", "seed=0,1"],
    )
    noise = {t.config.privacy.target_epsilon: t.config.privacy.noise_multiplier for t in trials}
    assert len(trials) == len({trial.config.key for trial in trials}) == 6
    assert list(noise) == [1, 4, 16]
    assert list(noise.values()) == sorted(noise.values(), reverse=True)
    assert len(remarks(trials)) == 3


def test_noise_beside_a_target_is_refused() -> None:
    assert "has no effect with privacy.target_epsilon=5" in refused(
        *QUICK, "privacy.target_epsilon=5", "privacy.noise_multiplier=2"
    )
    assert "privacy.noise_multiplier=" in refused(
        "privacy=adaptive_server", "privacy.client_metrics=false", "privacy.target_epsilon=0.5"
    )


@pytest.mark.parametrize("every", [1, 3])
def test_a_trial_ends_before_its_budget_does(every: int, tmp_path: Any) -> None:
    """At the last evaluated round from which the next one would be over it; resumed, alike."""
    words = [*QUICK, HALF, "rounds=9", f"evaluate_every={every}"]
    plan = small(*words).account.plan
    assert plan is not None
    budget = (plan.epsilon(6) + plan.epsilon(7)) / 2
    config = small(*words, f"stop.epsilon={budget}")
    whole = events_of(config)
    last = whole[-2]
    assert last.round == 6
    assert last.metrics[EPSILON] == plan.epsilon(6) <= budget < last.metrics[EPSILON_AHEAD]
    assert whole[-1].stopped.startswith(f"epsilon={plan.epsilon(6):.4g}, and ")
    assert whole[-1].summary["epsilon"] == plan.epsilon(6)

    def events() -> Any:
        store = CheckpointStore(str(tmp_path), config.key)
        return run_trial(config, digits(), make_split(digits(), config), checkpoints=store)

    for stop_after in (2, 5):
        for event in events():
            if isinstance(event, RoundRecord) and event.round == stop_after:
                break
    assert outcome(list(events())) == outcome(whole)


def test_budgets_that_mean_nothing_are_refused() -> None:
    assert "with privacy=none: nothing is computed" in refused("stop.epsilon=3")
    given = refused(*QUICK, "privacy.noise_multiplier=0", "stop.epsilon=3")
    assert "with privacy.noise_multiplier=0: nothing is computed" in given
    assert "spent by the first evaluation, in round 1" in refused(*QUICK, "stop.epsilon=0.1")


# What epsilon does not cover


def test_strict_is_the_default_and_refuses_what_no_account_covers() -> None:
    assert refused("privacy=fixed_server") == (
        "privacy=fixed_server: epsilon does not cover what clients tell beside updates (losses, "
        "accuracies, numbers of examples); set privacy.client_metrics=false, or "
        "privacy.strict=false, which names it in the run"
    )
    timed = [*QUICK, HALF, "devices=lognormal", "schedule=oort"]
    assert "whom schedule=oort asks, by what clients told; set schedule=sync" in refused(*timed)
    named = small(*timed, "privacy.strict=false")
    assert named.account.said.endswith("cover whom schedule=oort asks, by what clients told")


def test_attackers_who_may_see_the_honest_updates_are_not_covered() -> None:
    """One client moves what they send; those at their own data are clients as others are."""
    told = "what attack=alie sends, which may depend on others' updates"
    assert f"epsilon does not cover {told}; set attack=none" in refused(*QUICK, "attack=alie")
    assert small(*QUICK, "attack=alie", "privacy.strict=false").account.said.endswith(told)
    assert small(*QUICK, "attack=label_flip").account.plan is not None
    assert "attack" not in small(*SGD, "attack=alie").account.said  # the noise was there before


def test_statistics_of_examples_are_refused_before_anything_starts() -> None:
    words = [*SILENT, "model.name=tests.networks.Normed", "resources=inline", "num_clients=8"]
    trials = expand_grids([load_sweep("")], words)
    prepared = prepare_inline(trials)
    with pytest.raises(ConfigError, match=r"of its examples \(norm.running_mean, .*take another"):
        check_models(trials, prepared, None)
    named = expand_grids([load_sweep("")], [*words, "privacy.strict=false"])
    assert check_models(named, prepare_inline(named), None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_runs_under_a_privacy_or_is_refused_in_a_line(name: str, kind: str) -> None:
    words = [f"strategy={name}", f"privacy={kind}", "privacy.client_metrics=false",
             "privacy.noise_multiplier=0.5", "model=logreg", "rounds=1"]  # fmt: skip
    if name not in STRATEGIES.saying("private_mean"):
        told = refused(*words)
        noised = "what clients train" if kind == "local_sgd" else "a plain mean over clients"
        assert told.startswith(f"privacy={kind} noises {noised}, and strategy={name} ")
        assert "\n" not in told
        return
    _, first, last, result = events_of(small(*words))
    key, final = (EPSILON, "epsilon")
    if kind == "local_sgd":
        key, final = (EPSILON_MAX, "client_epsilon_max")
    assert last.metrics[key] == result.summary[final] > 0
    assert first.events == (small(*words).account.said,)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sampling=poisson", "strategy=kmeans"], "may draw nobody, and strategy=kmeans needs"),
        (["sampling=poisson", "devices=lognormal"], "each client has to be there to be drawn"),
        ([*QUICK, HALF, "privacy.accountant=pld"], "knows no samples of a fixed size; set sampl"),
        ([*QUICK, "privacy.delta=0.2"], "lets one client's data be published as they are"),
        ([*QUICK, "stop.target=0.5"], "clients tell nothing with privacy.client_metrics=false"),
        ([*QUICK, "strategy.fraction_evaluate=0.5"], "no effect with privacy.client_metrics=false"),
        (["sampling=poisson", "strategy.min_train_nodes=2"], "no effect with sampling=poisson"),
        ([f"stop.metric={EPSILON}", "stop.target=1"], "nothing is computed with privacy=none"),
        ([*QUICK, "privacy.noise_multiplier=0", "privacy.delta=0.01"], "no effect with privacy.no"),
    ],
)
def test_what_does_not_go_together(words: list[str], said: str) -> None:
    assert said in refused(*words)


def test_silent_clients_tell_nothing_and_learn_the_same() -> None:
    """No number of theirs is in any record, and the weights are those of clients that tell."""
    words = [*QUICK, "privacy.strict=false"]
    *_, told = events_of(small(*words, "privacy.client_metrics=true"))
    _, _, *rounds, silent = events_of(small(*words))
    assert silent.weights_sha256 == told.weights_sha256
    assert silent.summary.keys() == told.summary.keys() - {
        "client_acc", "client_acc_p10", "client_acc_min", "client_acc_jain",
    }  # fmt: skip
    for record in rounds:
        for column in ("train_loss", "train_acc", "eval_loss", "eval_acc"):
            assert np.isnan(record.clients[column]).all()
        assert set(record.clients["train_examples"]) == {0}
        about = {key for key in record.metrics if key.startswith("3_clients/")}
        assert about == {
            "3_clients/asked", "3_clients/trained", "3_clients/nonfinite", "3_clients/test_acc",
            "3_clients/test_acc_p10", "3_clients/test_acc_min", "3_clients/test_loss",
        }  # fmt: skip


def test_clipping_alone_says_that_it_guarantees_nothing() -> None:
    _, first, last, _ = events_of(small(*QUICK, "privacy.noise_multiplier=0", "rounds=1"))
    assert first.events == ("privacy=fixed_server: clipping without noise guarantees nothing",)
    assert EPSILON not in last.metrics


# DP-SGD in clients


def test_clipped_gradients_are_those_of_examples_one_by_one() -> None:
    """Against autograd, example by example, for convolutions, and parameters of no dimension."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 10), Scaled())
    x, y = torch.randn(7, 1, 8, 8), torch.arange(7)
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    expected = [torch.zeros_like(p) for p in params.values()]
    lengths = []
    for x_1, y_1 in zip(x.split(1), y.split(1), strict=True):
        gradient = torch.autograd.grad(F.cross_entropy(model(x_1), y_1), [*params.values()])
        lengths.append(float(torch.cat([g.flatten() for g in gradient]).norm()))
        for total, g in zip(expected, gradient, strict=True):
            total += g * min(1.0, 7.0 / lengths[-1])
    assert min(lengths) < 7.0 < max(lengths)
    sums, loss, hits = clipped_sums(model, params, x, y, 7.0)
    for found, total in zip(sums.values(), expected, strict=True):
        torch.testing.assert_close(found, total, rtol=1e-4, atol=1e-5)
    assert loss == pytest.approx(float(F.cross_entropy(model(x), y, reduction="sum")), rel=1e-5)
    assert hits == int((model(x).argmax(1) == y).sum())
    x[0, 0, 0, 0] = torch.inf  # its gradient is no number: it adds nothing
    without, _, _ = clipped_sums(model, params, x[1:], y[1:], 7.0)
    torch.testing.assert_close(clipped_sums(model, params, x, y, 7.0)[0], without)
    none, loss, hits = clipped_sums(model, params, x[:0], y[:0], 7.0)
    assert (loss, hits) == (0, 0)
    assert all(not value.any() for value in none.values())


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x


def test_gradients_of_a_real_target_are_clipped_too() -> None:
    model, x, y = nn.Linear(3, 1), torch.randn(5, 3), torch.randn(5)
    params = dict(model.named_parameters())
    sums, loss, _ = clipped_sums(model, params, x, y, 1e9)
    expected = torch.autograd.grad(loss_of(model(x), y, reduction="sum"), [*params.values()])
    torch.testing.assert_close([*sums.values()], [*expected])
    assert loss == pytest.approx(float(loss_of(model(x), y, reduction="sum")), rel=1e-5)


def test_a_step_bears_the_noise_and_batches_have_the_rate() -> None:
    """Gradients clipped to nearly nothing: a step of SGD is -lr z S / b; a batch has b of n."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 400))
    before = parameters_to_vector(model.parameters()).detach().clone()
    x, y = torch.randn(50, 1, 8, 8), torch.zeros(50, dtype=torch.int64)
    hp = LocalTraining(lr=0.5, momentum=0.0, steps=1, batch_size=10, dp_norm=1e-6, dp_noise=3e6)
    told = train_privately(model, x, y, hp, seed=1)
    moved = (parameters_to_vector(model.parameters()).detach() - before).numpy()
    assert np.std(moved) == pytest.approx(0.5 * 3e6 * 1e-6 / 10, rel=0.02)
    assert told["steps"] == 1
    many = LocalTraining(lr=1e-9, momentum=0.0, epochs=4, batch_size=10, dp_norm=1.0, dp_noise=0.0)
    assert train_privately(model, x, y, many, seed=2)["steps"] == 20
    with pytest.raises(ValueError, match="normalises by its batch"):
        train_privately(nn.Sequential(nn.BatchNorm2d(1), model), x, y, hp, seed=1)


@pytest.mark.parametrize("words", [[], [HALF, "training.batch_size=3"]])
def test_each_client_has_an_epsilon_of_its_own(words: list[str]) -> None:
    """By its examples and the rounds that asked it; resumed trials have it of their records."""
    words = [*SGD, *words, "partition=dirichlet", "partition.alpha=0.3", "partition.min_size=4"]
    config = small("training.batch_size=8", *words, "training.epochs=2")
    _, _, *rounds, result = events_of(config)
    sizes = make_split(digits(), config).train_rows
    account = Account(Relation.EXAMPLE, sum(map(len, sizes)) ** -1.1)
    asked = Counter(client for record in rounds for client in record.clients["client"])
    expected = []
    for client, rows in enumerate(sizes):
        n, b = len(rows), min(config.training.batch_size, len(rows))
        steps = 2 * -(-n // b)
        expected.append(account.epsilon({Release(1.0, rate=b / n): steps * asked[client]}))
    last = rounds[-1]
    assert last.metrics[EPSILON_MEAN] == np.mean(expected)
    assert last.metrics[EPSILON_MAX] == result.summary["client_epsilon_max"] == max(expected)
    assert last.clients["epsilon"] == [expected[client] for client in last.clients["client"]]
    again = ClientsSpending(config, np.array([len(rows) for rows in sizes]), 1.0)
    again.go_on(rounds[:-1])
    assert again.settled(last).metrics == last.metrics


def test_dp_sgd_learns_and_is_refused_where_it_means_nothing() -> None:
    words = [*SGD, "rounds=4", "training.epochs=4", "privacy.noise_multiplier=0.6"]
    _, first, *rounds, result = events_of(small(*words))
    assert rounds[-1].metrics["1_global/acc"] > 0.6
    assert first.events == (small(*words).account.said,)
    assert "DP-SGD in each client" in first.events[0]
    assert "delta 1 / (all training examples)^1.1, neighbours differ by one of a" in first.events[0]
    assert result.summary["client_epsilon_max"] > result.summary["client_epsilon"] * 0.99
    assert "each client has an epsilon of its own" in refused(*SGD, "stop.epsilon=3")
    assert "under privacy=local_sgd alone" in refused(
        *QUICK, f"stop.metric={EPSILON_MAX}", "stop.mode=max", "stop.target=3"
    )


def test_a_target_of_clients_finds_the_noise_of_who_spends_most() -> None:
    """Clients of other sizes, all asked: dp-accounting itself says that less noise is too little.

    What a client spends is by its n: nobody spends more than the target, and one nearly all of it.
    """
    import dp_accounting as dp

    target = ["privacy.target_epsilon=3", "training.batch_size=50"]
    config = small(*SGD, *target, "partition=linear", "rounds=2")
    examples = make_split(digits(), config).on(digits()).num_examples()
    assert len(set(examples)) > 1
    z = noise_of(config, examples)

    def spent(z: float, n: int) -> float:
        batch, accountant = config.training.batch_size, dp.rdp.RdpAccountant()
        steps = -(-n // batch)
        event = dp.PoissonSampledDpEvent(min(batch, n) / n, dp.GaussianDpEvent(z))
        accountant.compose(event, 2 * steps)
        return float(accountant.get_epsilon(examples.sum() ** -1.1))

    assert max(spent(z, n) for n in examples.tolist()) == pytest.approx(3, rel=1e-3)
    assert max(spent(z, n) for n in examples.tolist()) <= 3
    assert max(spent(z * 0.999, n) for n in examples.tolist()) > 3
    events = events_of(config)
    assert f"noise multiplier {z:g}, for the client that spends most" in events[1].events[1]
    assert "noise for epsilon 3 of who spends most" in events[1].events[0]
    worst = max(map(partial(spent, z), examples.tolist()))
    assert events[-1].summary["client_epsilon_max"] == pytest.approx(worst)
    assert small(*SGD, "privacy.target_epsilon=3").key != small(*SGD).key
    assert not config.course_key  # with more rounds each has other noise
    assert "noise_multiplier" not in config.canonical()["privacy"]


# What is stored and shown of it


def test_a_report_has_epsilon_and_the_accuracy_within_one(
    template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table, its caption, the run's description, ``best``, ``report --epsilon``."""
    shutil.copy(template, tmp_path / "mlflow.db")
    here = f"tracking.output={tmp_path}"
    words = [
        *QUICK, HALF, "sampling=poisson", "privacy=none,fixed_server", "privacy.target_epsilon=8",
        "num_clients=8", "rounds=4", "evaluate_every=2", "resources.engine=inline",
        "resources.trials=1", "tracking.log_models=false", "tracking.figures=none", here,
    ]  # fmt: skip
    plan = planned("", words, "spent")
    outcome, tracker = run_sweep(
        SweepPlan("spent", "", plan.command, plan.trials, Restart()), LineView(new_console())
    )
    assert outcome.exit_status == 0
    sweep = read_sweep(tracker.store, "spent")
    public, private = sweep.trials

    # Each round has what is spent, and the run says what that is about.
    rounds = private.history([EPSILON, "1_global/acc"])
    of = plan.trials[1].config.account.plan
    assert of is not None
    assert rounds[EPSILON].dropna().tolist() == [of.epsilon(number) for number in (1, 2, 3, 4)]
    assert private.final["epsilon"] == of.epsilon(4)
    assert "epsilon" not in public.final
    note = private.run.data.tags["mlflow.note.content"]
    assert f"noise multiplier {of.noise_multiplier:g}, " in note
    assert "version.dp-accounting" in private.run.data.tags

    # So does the table; of those without noise it says nothing.
    middle = (of.epsilon(2) + of.epsilon(3)) / 2
    files = report(sweep, Choice(epsilon=middle)).files
    told = unescape(str(files["report.md"])).replace("\\", "")
    assert "| epsilon |" in told
    assert "neighbours differ by one client more or less, RDP accountant of dp-accounting" in told
    assert "(1 of 2 trials)" in told
    cells = pd.read_csv(StringIO(str(files["report.csv"]))).set_index("privacy")
    after_two = rounds.set_index("round").loc[2, "1_global/acc"]
    assert cells.loc["fixed_server", "acc_at_epsilon_mean"] == after_two
    assert np.isnan(cells.loc["none", "acc_at_epsilon_mean"])
    assert main(["best", "spent", "--metric", "epsilon", here]) == 0
    assert f"epsilon {of.epsilon(4):.4f} (one trial)" in capsys.readouterr().out


# Keys


def test_keys_of_trials_from_before_there_was_an_account_are_the_same() -> None:
    """What is younger is in the key only where it is given; what is refused or named never is."""
    before = TrialConfig().canonical()["privacy"]
    assert before == {"name": "none"}
    named = {"name": "fixed_server", "strict": False}
    private = TrialConfig.model_validate({"privacy": named}).canonical()
    assert private["privacy"] == {
        "name": "fixed_server", "noise_multiplier": 1.0, "clipping_norm": 1.0,
    }  # fmt: skip
    assert "sampling" not in private
    silent = {"name": "fixed_server", "client_metrics": False}
    keys = {
        TrialConfig.model_validate({"privacy": {**silent, "strict": strict}}).key
        for strict in (True, False)
    }
    assert len(keys) == 1
