"""Building strategies from the configuration."""

import inspect
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from flwr.serverapp import strategy as flower

from fedsweep.config import PrivacyConfig, TrialConfig
from fedsweep.errors import ConfigError
from fedsweep.strategies import (
    STRATEGIES,
    Clustered,
    Resumable,
    build_strategy,
    is_weighted_mean,
    settings_of,
    wrap_privacy,
)

CONFIGS = Path(__file__).parents[2] / "configs"
CLUSTERED = {
    "kmeans",
    "flhc",
    "cfl",
    "fesem",
    "fedgroup",
    "pacfl",
    "stocfl",
    "fedclust",
    "oracle",
    "hierfavg",
}
NAMES = sorted(STRATEGIES)


def _params(name: str, **changes: Any) -> dict[str, Any]:
    return settings_of(name=name, **changes).canonical()


def _build(name: str, **changes: Any) -> flower.Strategy:
    params, groups = _params(name, **changes), {node: node % 2 for node in range(1, 9)}
    return build_strategy(
        name, params, seed=1, num_clients=8, client_learning_rate=0.05, groups=groups
    )


def test_every_method_is_a_file_and_every_kind_of_privacy_an_option() -> None:
    folder = Path(build_strategy.__code__.co_filename).parent
    assert all((folder / f"{name}.py").exists() for name in NAMES)
    assert len(NAMES) >= 45  # none was lost
    kinds = get_args(PrivacyConfig.model_fields["name"].annotation)
    assert {path.stem for path in (CONFIGS / "privacy").glob("*.yaml")} == set(kinds)


def test_every_file_is_valid_and_names_itself() -> None:
    for path in (CONFIGS / "privacy").glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        named = {"privacy": content | ({} if path.stem == "none" else {"strict": False})}
        assert TrialConfig.model_validate(named).privacy.name == path.stem


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("fedavg", "fraction_train", 0.25),
        ("fedavg", "fraction_evaluate", 0.75),
        ("fedavg", "min_train_nodes", 3),
        ("fedavg", "min_evaluate_nodes", 4),
        ("fedavg", "min_available_nodes", 5),
        ("fedavgm", "server_learning_rate", 0.5),
        ("fedavgm", "server_momentum", 0.25),
        ("fedadam", "eta", 0.5),
        ("fedadam", "beta_1", 0.5),
        ("fedyogi", "beta_2", 0.5),
        ("fedadagrad", "tau", 0.5),
        ("fedprox", "proximal_mu", 0.5),
        ("fedtrimmedavg", "beta", 0.25),
        ("krum", "num_malicious_nodes", 2),
        ("multikrum", "num_nodes_to_select", 2),
        ("bulyan", "num_malicious_nodes", 0),
        ("qfedavg", "q", 0.5),
        ("kmeans", "num_clusters", 3),
        ("kmeans", "warmup_rounds", 2),
        ("kmeans", "recluster_every", 2),
        ("kmeans", "representation", "last_layer"),
        ("kmeans", "distance", "euclidean"),
        ("kmeans", "choose_k", "gap"),
        ("kmeans", "max_clusters", 3),
        ("kmeans", "gate", 0.05),
        ("kmeans", "stable_after", 2),
        ("flhc", "linkage", "complete"),
        ("flhc", "threshold", 0.5),
        ("flhc", "distance", "manhattan"),
        ("fedclust", "threshold", 0.5),
        ("fedgroup", "num_clusters", 2),
        ("fesem", "num_clusters", 2),
        ("pacfl", "vectors", 2),
        ("pacfl", "measure", "smallest"),
        ("cfl", "eps1", 0.5),
        ("cfl", "eps2", 0.5),
        ("cfl", "relative", False),
        ("cfl", "min_size", 5),
        ("stocfl", "merge_cosine", 0.5),
        ("stocfl", "proximal_mu", 0.5),
    ],
)
def test_each_setting_reaches_the_strategy(name: str, key: str, value: Any) -> None:
    beside = {"choose_k": "given", "gate": 0.0} if value == "manhattan" else {}
    assert getattr(_build(name, **beside, **{key: value}), key) == value


def test_server_settings_reach_the_election() -> None:
    strategy: Any = _build("kmeans", server={"rule": "random", "ewma": 0.25})
    assert (strategy.election.rule.rule, strategy.election.rule.ewma, strategy.election.seed) == (
        "random",
        0.25,
        1,
    )


def test_qfedavg_takes_the_clients_learning_rate() -> None:
    strategy: Any = _build("qfedavg")
    assert strategy.client_learning_rate == 0.05
    with pytest.raises(ValueError, match="client_learning_rate"):
        build_strategy("qfedavg", _params("qfedavg"), seed=1, num_clients=8)


def test_a_share_of_the_clients_is_counted_as_people_do() -> None:
    """.29 of 100 is 29; the share k / n of n is k; what is not whole is cut off, exactly."""
    shares = [(n, Fraction(k, n), k / n) for n in range(1, 151) for k in range(1, n + 1)]
    shares += [
        (n, Fraction(k, 1000), float(f"{k / 1000}"))
        for n in (3, 7, 10, 25, 40, 100, 1000, 1_000_000)
        for k in range(1, 1001)
    ]
    for n, exact, share in shares:
        params = _params("fedavg", fraction_train=share, fraction_evaluate=share, min_train_nodes=1)
        strategy: Any = build_strategy("fedavg", params, seed=1, num_clients=n)
        expected = int(n * exact)  # rounds towards 0
        assert int(n * strategy.fraction_train) == int(n * strategy.fraction_evaluate) == expected
        assert settings_of(fraction_train=share).trained(n) == max(expected, 1)
    everybody: Any = build_strategy("fedavg", _params("fedavg"), seed=1, num_clients=8)
    assert everybody.fraction_train == everybody.fraction_evaluate == 1


def test_what_can_not_work_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown strategy 'fedavgg'"):
        build_strategy("fedavgg", {}, seed=1, num_clients=8)
    with pytest.raises(ValueError, match="num_clusters=9 is more than num_clients=8"):
        _build("kmeans", num_clusters=9)
    with pytest.raises(ValueError, match="only updates have an angle"):
        _build("kmeans", representation="weights")
    with pytest.raises(ValueError, match="manhattan has no K-means"):
        _build("kmeans", distance="manhattan")
    with pytest.raises(ValueError, match="manhattan goes with"):
        _build("flhc", distance="manhattan", gate=0.05)
    with pytest.raises(ValueError, match="need every member in every round"):
        _build("cfl", fraction_train=0.5)
    with pytest.raises(ValueError, match="needs the true groups"):
        build_strategy("oracle", _params("oracle"), seed=1, num_clients=8)


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        ({"name": "kmeans", "representation": "data"}, "only updates have an angle"),
        (
            {"name": "flhc", "representation": "losses", "distance": "euclidean"},
            "belongs to strategy=kmeans",
        ),
        ({"name": "kmeans", "distance": "manhattan"}, "goes with strategy=flhc"),
        ({"name": "cfl", "fraction_train": 0.5}, "every member in every round"),
        ({"name": "fesem", "num_clusters": 11}, "more than num_clients=10"),
    ],
)
def test_the_configuration_refuses_what_can_not_work(strategy: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        TrialConfig.model_validate({"strategy": strategy})


def test_which_strategies_average() -> None:
    """FedMedian is a FedAvg by inheritance, and no weighted mean."""
    averaging = {name for name in NAMES if is_weighted_mean(_build(name))}
    flower = {"fedavg", "fedavgm", "fedprox", "fedadam", "fedadagrad", "fedyogi"}
    personal = {"fedavg_ft", "ditto", "fedper", "apfl", "fedrep", "fedbn", "fedbabu", "pfedme"}
    assert averaging == flower | CLUSTERED | personal | {"perfedavg", "fedala", "fedrod", "moon"}


def test_a_strategy_of_somebody_else_is_no_weighted_mean() -> None:
    class Mine(flower.FedAvg):
        pass

    assert not is_weighted_mean(Mine())
    assert not is_weighted_mean(
        flower.FedAvg(train_metrics_aggr_fn=lambda _replies, _key: flower.FedAvg)
    )


@pytest.mark.parametrize("where", ["server", "client"])
@pytest.mark.parametrize("norm", ["fixed", "adaptive"])
def test_privacy_wraps(norm: str, where: str) -> None:
    name, settings = f"{norm}_{where}", {"noise_multiplier": 0.25}
    if name.startswith("adaptive"):
        settings |= {
            "initial_clipping_norm": 3.0,
            "target_clipped_quantile": 0.75,
            "clip_norm_lr": 0.125,
        }
    else:
        settings |= {"clipping_norm": 3.0}
    config = PrivacyConfig(name=name, **settings).canonical()
    wrapped: Any = wrap_privacy(_build("fedavg"), config)
    assert wrapped.clients_clip is name.endswith("client")
    assert (wrapped.clipping_norm, wrapped.norm.noise_multiplier) == (3.0, 0.25)
    if name.startswith("adaptive"):
        assert (wrapped.norm.target_clipped_quantile, wrapped.norm.clip_norm_lr) == (0.75, 0.125)
    assert not is_weighted_mean(wrapped)


@pytest.mark.parametrize("joining", [False, True])
def test_adaptive_clipping_with_too_few_clients_is_refused(joining: bool) -> None:
    """Half of twelve train; where half of them join later, half of six do at first."""
    shift = {"newcomers": 0.5, "join_round": 3} if joining else {}
    trial = {"num_clients": 12, "strategy": {"fraction_train": 0.5}, "shift": shift}
    limit = 0.3 if joining else 0.6
    privacy = {"name": "adaptive_server", "noise_multiplier": limit, "strict": False}
    sentence = rf"adaptive clipping needs less than {limit:g} \(clients / 10\)"
    with pytest.raises(ConfigError, match=sentence):
        TrialConfig.model_validate({**trial, "privacy": privacy})
    TrialConfig.model_validate({**trial, "privacy": {**privacy, "noise_multiplier": limit - 0.01}})


def test_no_privacy_is_no_wrapper() -> None:
    strategy = _build("fedavg")
    assert wrap_privacy(strategy, PrivacyConfig().canonical()) is strategy
    with pytest.raises(ValueError, match="unknown privacy 'fixed'"):
        wrap_privacy(strategy, {"name": "fixed"})


def test_protocols() -> None:
    assert isinstance(_build("kmeans"), Clustered)
    assert all(
        isinstance(_build(name), Clustered) and isinstance(_build(name), Resumable)
        for name in CLUSTERED
    )
    assert not isinstance(_build("local"), Clustered)
    assert isinstance(_build("kmeans"), Resumable)
    assert isinstance(_build("local"), Resumable)
    assert not isinstance(_build("fedavg"), Clustered | Resumable)


def test_what_is_not_given_is_as_the_settings_have_it() -> None:
    cfl = build_strategy("cfl", {"gate": 0.01}, seed=0, num_clients=20)
    assert (cfl.eps1, cfl.eps2, cfl.relative, cfl.gate) == (0.9, 0.7, True, 0.01)
    assert build_strategy("fedadam", {}, seed=0, num_clients=4).eta == settings_of("fedadam").eta


AS_ELSEWHERE = {
    **dict.fromkeys((("cfl", key) for key in ("eps1", "eps2", "relative")), "the authors' code"),
    ("multikrum", "num_nodes_to_select"): "Flower's class",
}
"""Parameters whose defaults are those of others, for who takes the class alone."""


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_class_that_is_taken_alone_has_the_defaults_of_its_settings(name: str) -> None:
    made = STRATEGIES[name]
    if "__init__" not in vars(made) or "settings" not in vars(made):
        return
    fields = made.settings.model_fields
    parameters = inspect.signature(vars(made)["__init__"]).parameters.values()
    defaults = {
        given.name: given.default
        for given in parameters
        if given.name in fields and given.default not in (given.empty, None)
    }
    ours = {key: fields[key].get_default(call_default_factory=True) for key in defaults}
    for key in defaults:
        assert (defaults[key] == ours[key]) is ((name, key) not in AS_ELSEWHERE), key
