"""Configuration: what composes, what is refused and in which words, and how a grid is expanded."""

import pytest

from runner.compose import CONFIGS, compose, expand, groups, options, to_yaml
from runner.config import TrialConfig
from runner.config.section import axis_name
from runner.errors import ConfigError

GROUP_OPTIONS = [(group, option) for group in groups() for option in options(group)]


@pytest.mark.parametrize(("group", "option"), GROUP_OPTIONS)
def test_every_option_composes(group: str, option: str) -> None:
    config = compose([f"{group}={option}"])
    assert isinstance(config, TrialConfig)
    section = getattr(config, group, None)
    if hasattr(section, "name"):
        assert section.name == option or group == "training" or (group == "dataset" and option in ("hub", "folder"))


@pytest.mark.parametrize("name", options("sweep"))
def test_every_sweep_expands(name: str) -> None:
    _, trials = expand(name, [])
    assert len({trial.config.key for trial in trials}) == len(trials) > 0


def test_every_experiment_names_its_command() -> None:
    for path in (CONFIGS / "experiment").glob("*.yaml"):
        assert f"experiment={path.stem}" in path.read_text() or path.stem in path.read_text()


def test_default_sweep_is_the_one_of_the_mission() -> None:
    _, trials = expand("default", [])
    assert len(trials) == 2 * 2 * 3 * 3
    assert trials[0].axes == {"shift": "none", "partition": "iid", "num_clusters": "1", "seed": "0"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["dataset=mnst"], "unknown dataset 'mnst'. Did you mean 'mnist'?"),
        (["datset=mnist"], "unknown key or group 'datset'. Did you mean 'dataset'?"),
        (["training.lrr=1"], "unknown key 'training.lrr'. Did you mean 'training.lr'?"),
        (["training.lr=-1"], "training.lr=-1: input should be greater than 0"),
        (["training.optimizer=sgdd"], "training.optimizer='sgdd': input should be 'sgd' or 'adam'"),
        (["rounds=0"], "rounds=0: input should be greater than or equal to 1"),
        (["strategy=kmeans", "strategy.num_clusters=40"], "strategy.num_clusters=40 is more than num_clients=10"),
        (["strategy.num_clusters=3"], "strategy.num_clusters does not apply to strategy=fedavg"),
        (["strategy=kmeans", "strategy.server.rulee=x"], "Did you mean 'strategy.server.rule'?"),
        (["resources.hosts.cpu.cont=2"], "Did you mean 'resources.hosts.cpu.count'?"),
        (["seed=0,1"], "'seed=0,1' has several values, and `run` takes one trial"),
        (["mnist"], "'mnist' is not key=value"),
        (["seed=[1"], "can't be read"),
        (["shift=rotation", "shift.angles=[1,2]"], "angles has 2 values for 4 groups"),
        (["shift=rotation", "shift.groups=20"], "shift.groups=20 is more than num_clients=10"),
        (["strategy=krum", "num_clients=4"], "needs at least 5 training clients a round, but there are 4"),
        (["strategy=kmeans", "privacy=fixed_server"], "strategy=kmeans takes none; set"),
    ],
)
def test_bad_input_is_one_line(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(words)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_key_is_stable_and_ignores_where_a_trial_runs() -> None:
    base = compose([])
    assert base.key == compose([]).key
    assert base.key == compose(["resources.hosts.cpu.count=7", "tracking.output=/x", "data.root=/y"]).key
    assert base.key != compose(["seed=1"]).key
    assert base.key != compose(["training.lr=0.1"]).key


def test_an_axis_that_does_not_apply_collapses() -> None:
    words = ["strategy=fedavg,kmeans", "seed=0", "shift=none", "partition=iid"]
    _, trials = expand("default", words)
    assert [trial.axes for trial in trials] == [
        {"shift": "none", "partition": "iid", "seed": "0", "strategy": "fedavg"},
        *(
            {"shift": "none", "partition": "iid", "num_clusters": k, "seed": "0", "strategy": "kmeans"}
            for k in ("1", "2", "4")
        ),
    ]


def test_axes_from_the_command_line_replace_those_of_the_file() -> None:
    _, trials = expand("default", ["seed=range(0,2)", "strategy.num_clusters=4", "shift=rotation", "partition=iid"])
    assert [trial.config.seed for trial in trials] == [0, 1]
    assert {trial.config.strategy.num_clusters for trial in trials} == {4}


def test_axes_have_short_names_that_still_say_what_they_are() -> None:
    names = {
        "shift": "shift", "seed": "seed", "strategy.num_clusters": "num_clusters",
        "strategy.server.rule": "server_rule", "resources.hosts.cpu.count": "cpu_count",
        "model.kwargs.hidden": "hidden",
    }  # fmt: skip
    assert {key: axis_name(key) for key in names} == names
    _, trials = expand("servers", ["strategy=fedavg,oracle", "strategy.server.mode=simulated,hybrid", "seed=0"])
    rules = ["load", "load_once", "random", "round_robin", "largest_data"]
    assert [trial.axes for trial in trials] == [{"seed": "0", "strategy": "fedavg"}] + [
        {"server_rule": rule, "seed": "0", "strategy": "oracle", "server_mode": mode}
        for rule in rules
        for mode in ("simulated", "hybrid")
    ]
    assert trials[-1].config.strategy.server.rule == "largest_data"


def test_a_trials_command_gives_the_trial_again() -> None:
    _, trials = expand("default", ["shift=rotation", "seed=0,1"])
    for trial in trials:
        words = [word.strip("'") for word in trial.command.split()[4:]]
        assert compose(words).key == trial.config.key


def test_an_empty_axis_and_a_bad_cell_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown sweep 'defalt'. Did you mean 'default'"):
        expand("defalt", [])
    with pytest.raises(ConfigError, match=r"num_clusters=40 is more than num_clients=20.*num_clusters=40"):
        expand("default", ["strategy.num_clusters=1,40"])


def test_centralized_is_one_client() -> None:
    assert compose(["partition=centralized"]).num_clients == 1


def test_resolved_config_reads_back() -> None:
    from omegaconf import OmegaConf

    config = compose(["dataset=mnist", "strategy=kmeans"])
    again = TrialConfig.model_validate(OmegaConf.to_container(OmegaConf.create(to_yaml(config))))
    assert again.key == config.key
