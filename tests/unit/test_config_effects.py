"""A setting that is accepted has an effect: each key changes a trial's result, or is refused."""

from typing import Any

import pytest
import yaml

from fedsweep.catalog import CATALOG
from fedsweep.cli import main
from fedsweep.config import TrainingConfig
from fedsweep.config.section import flat
from fedsweep.errors import ConfigError
from fedsweep.strategies import STRATEGIES, settings_of
from fedsweep.strategies.selection import ServerRule
from fedsweep.sweeps.compose import (
    CONFIGS,
    SweepFile,
    compose,
    compose_trial,
    expand_grids,
    options,
    remarks,
)
from fedsweep.sweeps.words import literal, parse
from tests.trials import events_of

HOW = {"engine", "threads"}  # how a client trains: the same numbers up to rounding
BOUNDS = {"name", "min_available_nodes", "min_fit_fraction"}  # what they have to say is a refusal

TRAINING: dict[str, Any] = {
    "optimizer": "adam", "lr": 0.05, "lr_decay": 0.5, "momentum": 0.5, "weight_decay": 0.1,
    "epochs": 2, "steps": 1, "batch_size": 5, "proximal_mu": 1.0,
    "augment": "crop_flip", "precision": "bf16",
}  # fmt: skip
SMALL = [
    "resources=inline", "dataset.max_train=120", "model=logreg", "num_clients=8", "rounds=3",
    "partition=dirichlet", "partition.min_size=5", "partition.alpha=0.3",
]  # fmt: skip
KNOWN: dict[str, list[str]] = {
    "scaffold": ["training.lr=0.01"], "krum": [], "bulyan": ["strategy.num_malicious_nodes=1"],
    **{name: ["model=mlp"] for name in ("fedper", "fedrep", "fedbabu", "moon")},
    "fedbn": ["model.name=tests.networks.NormedMLP"],
    "cfl": ["strategy.relative=true", "strategy.eps1=0.95", "strategy.eps2=0.1", "strategy.gate=0"],
}  # fmt: skip


def result(words: list[str]) -> Any:
    """Return all that a trial gives but times: weights, metrics, who serves whom."""
    _, *rounds, last = events_of(compose(words))
    metrics = [
        {key: value for key, value in one.metrics.items() if CATALOG.follows(key) != "clock"}
        for one in rounds
    ]
    return last.weights_sha256, repr(metrics), repr([one.assignments for one in rounds])


_results: dict[tuple[str, ...], Any] = {}


def known(words: list[str]) -> Any:
    key = tuple(words)
    if key not in _results:
        _results[key] = result(words)
    return _results[key]


def _refused(words: list[str]) -> bool:
    try:
        compose(words)
    except ConfigError:
        return True
    return False


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_each_key_of_training_changes_the_result_or_is_refused(name: str) -> None:
    assert set(TRAINING) == set(TrainingConfig.model_fields) - HOW
    base = [*SMALL, "rounds=2", "strategy.fraction_evaluate=0.5", f"strategy={name}"]
    base += KNOWN.get(name, [])
    same, refused = [], []
    for key, value in TRAINING.items():
        words = [*base, f"training.{key}={value}"]
        if _refused(words):
            refused.append(key)
        elif result(words) == known(base):
            same.append(key)
    assert same == []
    assert set(refused) <= {"optimizer", "proximal_mu"}


ROBUST = ("krum", "multikrum", "bulyan")  # which need more clients the more attackers there are
HALF_WITHOUT_ATTACKERS = ["strategy.num_malicious_nodes=0", "strategy.fraction_train=0.5"]

# Keys of a strategy: another value, and what it needs beside it (for one method: "name.key").
STRATEGY: dict[str, tuple[Any, list[str]]] = {
    "fraction_train": (0.5, []),
    "fraction_evaluate": (0.5, []),
    "min_train_nodes": (6, ["strategy.fraction_train=0.5"]),
    "min_evaluate_nodes": (6, ["strategy.fraction_evaluate=0.5"]),
    **{f"{name}.fraction_train": (0.5, ["strategy.num_malicious_nodes=0"]) for name in ROBUST},
    "multikrum.fraction_train": (0.75, ["strategy.num_malicious_nodes=0"]),
    "fedtrimmedavg.fraction_train": (0.75, []),
    **{f"{name}.min_train_nodes": (6, HALF_WITHOUT_ATTACKERS) for name in ROBUST},
    "multikrum.min_train_nodes": (7, [*HALF_WITHOUT_ATTACKERS[:1], "strategy.fraction_train=0.7"]),
    "fedtrimmedavg.min_train_nodes": (7, ["strategy.fraction_train=0.7"]),
    "server_learning_rate": (0.5, []),
    "server_momentum": (0.5, []),
    "eta": (0.1, []),
    "beta_1": (0.5, []),
    "beta_2": (0.5, []),
    "tau": (0.1, []),
    "proximal_mu": (1.0, []),
    "beta": (0.4, []),
    "num_malicious_nodes": (2, []),
    "bulyan.num_malicious_nodes": (0, []),
    "multikrum.num_malicious_nodes": (0, []),
    "num_nodes_to_select": (2, []),
    "q": (1.0, []),
    "num_clusters": (2, []),
    "flhc.num_clusters": (2, ["strategy.choose_k=given"]),
    "choose_k": ("davies_bouldin", []),
    "max_clusters": (2, ["strategy.choose_k=silhouette"]),
    "gate": (0.5, []),
    "warmup_rounds": (2, []),
    "recluster_every": (1, []),
    "stable_after": (2, ["strategy.recluster_every=1", "rounds=6", "strategy.num_clusters=2"]),
    "representation": ("last_layer", ["model=mlp"]),
    "distance": ("euclidean", []),
    "sketch": (8, []),
    "linkage": ("single", ["strategy.gate=0"]),
    "threshold": (0.05, []),
    "vectors": (1, []),
    "measure": ("smallest", []),
    "eps1": (0.01, []),
    "eps2": (9.0, []),
    "relative": ("false", []),
    "min_size": (7, []),
    "merge_cosine": (-0.5, []),
    "auto_k": ("true", []),
    "estimate_every": (1, []),
    "soft_lambda": (5.0, []),
    "smoother": (0.5, []),
    "finetune_epochs": (3, []),
    "finetune": ("body", []),
    "ditto_lambda": (5.0, []),
    "head_epochs": (2, []),
    "pfedme_lambda": (5.0, []),
    "inner_steps": (2, []),
    "outer_lr": (0.02, []),
    "server_beta": (0.5, []),
    "inner_lr": (0.1, []),
    "approximation": ("hessian_free", []),
    "delta": (0.1, ["strategy.approximation=hessian_free"]),
    "ala_layers": (2, ["model=mlp"]),
    "ala_share": (0.3, []),
    "ala_lr": (0.1, []),
    "ala_start": (2, []),
    "dyn_alpha": (0.3, []),
    "moon_mu": (5.0, []),
    "temperature": (2.0, []),
    "cloud_every": (3, []),
    "personal_epochs": (3, []),
    "head_layers": (2, ["model=lenet"]),
    "alpha": (0.1, []),
    "adaptive": ("false", []),
    "steps": (2, []),
    "radius": (0.05, []),
    "smoothing": (1000.0, []),
    "gap": (2.0, []),
    "root_examples": (20, []),
}
SERVER: dict[str, tuple[Any, list[str]]] = {
    "rule": ("round_robin", []),
    "mode": ("hybrid", []),
    "cpu_weight": (5.0, []),
    "mem_weight": (5.0, []),
    "node_weight": (5.0, []),
    "ewma": (0.1, []),
    "hysteresis": (0.1, ["strategy.server.min_tenure=1"]),
    "min_tenure": (9, ["strategy.server.hysteresis=1"]),
}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_each_key_of_a_strategy_changes_the_result(name: str) -> None:
    applying = set(settings_of(name=name).canonical()) - BOUNDS - {"server"}
    assert applying <= set(STRATEGY)
    same = []
    for key in sorted(applying):
        value, beside = STRATEGY.get(f"{name}.{key}", STRATEGY[key])
        base = [*SMALL, f"strategy={name}", *KNOWN.get(name, []), *beside]
        if name == "cfl" and "fraction_train" in key + " ".join(beside):
            with pytest.raises(ConfigError, match="every member in every round"):
                compose([*base, f"strategy.{key}={value}"])
            continue
        if result([*base, f"strategy.{key}={value}"]) == known(base):
            same.append(key)
    assert same == []


@pytest.mark.parametrize("key", sorted(SERVER))
def test_each_key_of_the_servers_changes_who_serves_or_what_is_logged_of_it(key: str) -> None:
    """On simulated devices nothing is measured; ewma needs loads that change: measured ones."""
    assert set(SERVER) == set(ServerRule.model_fields)
    value, beside = SERVER[key]
    mode = [] if key == "ewma" else ["strategy.server.mode=simulated"]
    words = ["strategy=oracle", "shift=rotation", "rounds=5", "strategy.fraction_train=0.5"]
    base = [*SMALL, *words, *mode, *beside]
    assert result([*base, f"strategy.server.{key}={value}"]) != known(base)


@pytest.mark.parametrize(
    ("word", "beside"),
    [
        ("training.momentum=0.5", ["training=adam"]),
        ("training.epochs=3", ["training.steps=2"]),
        ("training.proximal_mu=0.1", ["strategy=fedprox"]),
        ("training.proximal_mu=0.1", ["strategy=fedsoft"]),
        ("strategy.num_clusters=3", ["strategy=kmeans", "strategy.choose_k=silhouette"]),
        ("strategy.num_clusters=3", ["strategy=flhc"]),  # whose file says silhouette
        ("strategy.max_clusters=3", ["strategy=kmeans"]),
        ("strategy.choose_k=gap", ["strategy=pacfl", "strategy.threshold=5"]),
        ("strategy.gate=0.1", ["strategy=kmeans", "strategy.num_clusters=1"]),
        ("strategy.stable_after=2", ["strategy=kmeans"]),
        ("strategy.min_evaluate_nodes=2", ["strategy.fraction_evaluate=0"]),
        ("strategy.server.hysteresis=1", ["strategy=kmeans", "strategy.server.rule=random"]),
        ("strategy.server.ewma=1", ["strategy=kmeans", "strategy.server.mode=simulated"]),
        ("shift.drift_fraction=0.2", ["shift=rotation"]),
        ("shift.join_round=3", ["shift=rotation"]),
        ("stop.min_delta=0.1", ["stop.target=0.9"]),
        ("stop.metric=1_global/acc", []),
        ("halving.factor=2", []),
    ],
)
def test_a_key_without_effect_is_refused_and_leaves_a_grid(word: str, beside: list[str]) -> None:
    [(key, value)] = [(read.key, read.value) for read in parse([word])]
    with pytest.raises(ConfigError, match=f"^'{key}=.*' has no effect with ") as caught:
        compose([*beside, word])
    assert "\n" not in str(caught.value)
    assert compose(beside)
    if not key.startswith("halving."):
        trials = expand_grids([SweepFile(axes={key: [value]})], beside)
        assert [(trial.config.key, trial.axes) for trial in trials] == [(compose(beside).key, {})]
        assert not any(word in trial.overrides for trial in trials)


def test_a_grid_keeps_a_key_where_it_has_an_effect() -> None:
    """Momentum under SGD twice, under Adam once."""
    file = SweepFile(axes={"training.optimizer": ["sgd", "adam"], "training.momentum": [0.0, 0.5]})
    trials = expand_grids([file], [])
    places = [list(trial.axes.values()) for trial in trials]
    assert places == [["sgd", "0.0"], ["sgd", "0.5"], ["adam"]]


def test_a_number_of_clusters_that_is_not_asked_for_limits_nothing() -> None:
    assert compose(["strategy=flhc", "num_clients=3"]).strategy.choose_k == "silhouette"
    assert compose(["strategy=pacfl", "num_clients=3", "strategy.threshold=5"])
    with pytest.raises(ConfigError, match="num_clusters=4 is more than num_clients=3"):
        compose(["strategy=kmeans", "num_clients=3"])


WARM = sorted({*(STRATEGIES.options_of("warmup_rounds") or ())} - {"cfl"})


@pytest.mark.parametrize(
    ("words", "key", "refused", "fine"),
    [
        *((f"strategy={name}", "strategy.warmup_rounds", 5, 4) for name in WARM),
        ("strategy=cfl", "strategy.warmup_rounds", 4, 3),
        ("strategy=cfl", "rounds", 1, 2),
        ("strategy=kmeans", "strategy.recluster_every", 4, 3),
        ("strategy=kmeans strategy.recluster_every=1", "strategy.stable_after", 4, 3),
        ("strategy=kmeans strategy.recluster_every=1", "strategy.stable_after", 1, 2),
        ("strategy=fedsoft", "strategy.estimate_every", 5, 4),
        ("shift=rotation shift.newcomers=0.2", "shift.join_round", 5, 4),
        ("shift=rotation", "shift.newcomers", 0.01, 0.1),
        ("shift=rotation", "shift.drift_round", 5, 4),
        ("shift=rotation shift.drift_round=2", "shift.drift_fraction", 0.1, 0.3),
        ("shift=rotation shift.drift_round=2", "shift.groups", 1, 2),
        ("", "evaluate_every", 5, 4),
        ("", "stop.patience", 4, 3),
        ("evaluate_every=3", "stop.patience", 2, 1),
        ("strategy=fedavg_ft", "strategy.fraction_evaluate", 0, 0.1),
        ("strategy=kmeans strategy.server.cpu_weight=0 strategy.server.mem_weight=0",
         "strategy.server.node_weight", 0, 0.1),
    ],
)  # fmt: skip
def test_what_can_not_happen_is_refused(words: str, key: str, refused: Any, fine: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["rounds=4", *words.split(), f"{key}={refused}"])
    assert key.split(".")[-1] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert compose(["rounds=4", *words.split(), f"{key}={fine}"])


def test_centralized_says_that_it_has_one_client() -> None:
    """Its one client was silent: 20 were asked for, and one trained."""
    with pytest.raises(ConfigError, match="'num_clients=20' has no effect with partition=centr"):
        compose(["partition=centralized", "num_clients=20"])
    axes = {"partition": ["iid", "centralized"], "num_clients": [10, 20]}
    trials = expand_grids([SweepFile(axes=axes)], [])
    assert [trial.axes for trial in trials] == [
        {"partition": "iid", "num_clients": "10"},
        {"partition": "iid", "num_clients": "20"},
        {"partition": "centralized"},
    ]
    assert [trial.config.num_clients for trial in trials] == [10, 20, 1]
    said = expand_grids([SweepFile(axes={"partition": ["iid", "centralized"]})], ["num_clients=20"])
    assert remarks(said) == ["num_clients=20 applies to 1 of 2 trials"]
    with pytest.raises(ConfigError, match="'num_clients=5,6' applies to none of the 1 trials"):
        expand_grids([SweepFile(overrides=("partition=centralized",))], ["num_clients=5,6"])


WORDS = (
    ["training.optimizer=adam"],
    ["training.steps=3"],
    ["strategy=fedprox"],
    ["partition=centralized"],
    ["strategy=kmeans"],
    ["training.optimizer=adam", "training.momentum=0.5"],
    ["dataset.name=digits"],
    [],
)


@pytest.mark.parametrize("name", options("experiment"))
@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_what_an_experiment_sets_has_an_effect_or_is_said(name: str, words: list[str]) -> None:
    """Where a trial has not what its experiment's file says, a word or a remark says so."""
    try:
        trial = compose_trial([f"experiment={name}", *words])
    except ConfigError:
        return
    there = flat(trial.config.model_dump())
    tree = yaml.safe_load((CONFIGS / "experiment" / f"{name}.yaml").read_text())
    settings = flat({key: tree[key] for key in tree.keys() - {"reproduction", "defaults"}})
    given = {word.split("=")[0] for word in words}
    for key, value in settings.items():
        setting = f"{key}={literal(value)}"
        has_effect = there.get(key) == value and key not in trial.config.idle()
        assert has_effect or key in given or setting in trial.unused, setting
    if not words:
        assert trial.unused == {}
    assert len(remarks([trial])) == len(trial.unused)


def test_an_experiments_setting_without_effect_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    adam = "training.optimizer=adam"
    idle = f"training.momentum=0.0 of experiment=mcmahan has no effect: {adam}"
    assert remarks([compose_trial(["experiment=mcmahan", adam])]) == [idle]
    assert main(["config", "experiment=mcmahan", adam]) == 0
    assert capsys.readouterr().err == f"{idle}\n"
    grid = expand_grids([SweepFile()], ["experiment=mcmahan", "training.optimizer=sgd,adam"])
    assert remarks(grid) == ["training.momentum=0.0 of experiment=mcmahan applies to 1 of 2 trials"]
    centralized = compose_trial(["experiment=mcmahan", "partition=centralized"])
    one = "num_clients=100 of experiment=mcmahan has no effect: partition=centralized, which has"
    assert remarks([centralized]) == [f"{one} one client"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["experiment=drift", "shift=none"], "'shift=none' has no effect on shift.name, which"),
        (["experiment=mcmahan", "dataset=cifar10"], "experiment=mcmahan sets to mnist; leave out"),
        (["experiment=mcmahan", "dataset=cifar10"], "add dataset.name=cifar10 dataset.id=uoft-"),
        (["experiment=ifca_rotated_mnist", "training=adam"], "no effect on training.optimizer"),
    ],
)
def test_an_option_that_an_experiment_overrules_is_refused(words: list[str], sentence: str) -> None:
    """It ran on MNIST where CIFAR-10 was asked for."""
    with pytest.raises(ConfigError) as caught:
        compose(words)
    assert sentence in str(caught.value)
    with pytest.raises(ConfigError, match="has no effect on"):
        expand_grids([SweepFile()], words)


def test_what_the_refusal_of_an_option_says_to_add_is_enough() -> None:
    added = ["dataset.name=cifar10", "dataset.id=uoft-cs/cifar10"]
    config = compose(["experiment=mcmahan", "dataset=cifar10", *added])
    assert (config.dataset.name, config.dataset.image, config.rounds) == ("cifar10", "img", 300)


def test_a_share_that_is_no_client_is_refused() -> None:
    with pytest.raises(ConfigError, match="fraction_train=0.05 of num_clients=10 is no client"):
        compose(["strategy.fraction_train=0.05"])
    for words in (["num_clients=20"], ["strategy.min_train_nodes=2"], ["partition=centralized"]):
        compose(["strategy.fraction_train=0.05", *words])
