"""Configuration: what composes, what is refused and in which words, and how a grid is expanded."""

import inspect
import os
import random
import tempfile
from itertools import combinations
from pathlib import Path

import pytest

from fedsweep.cli import main
from fedsweep.config import RunConfig, SessionConfig, TrialConfig
from fedsweep.config.section import flat, short_names
from fedsweep.errors import ConfigError
from fedsweep.models import MODELS
from fedsweep.records import TrialRow
from fedsweep.report.results import results_table
from fedsweep.sweeps.compose import (
    CONFIGS,
    SweepFile,
    compose,
    expand,
    expand_grids,
    groups,
    options,
    remarks,
    to_yaml,
)

GROUP_OPTIONS = [(group, option) for group in groups() for option in options(group)]


def beside(group: str, option: str) -> list[str]:
    """What an option does not go without."""
    own = {
        "clustered_fedbuff": ["strategy=oracle", "strategy.server.mode=simulated"],
        "over_selection": ["strategy.fraction_train=0.5"],
    }
    if (group, option) == ("partition", "natural"):
        return ["dataset=synthetic"]
    if group == "schedule" and option != "sync":
        return ["devices=lognormal", *own.get(option, [])]
    if group == "privacy" and option != "none":
        return ["privacy.client_metrics=false"]
    if (group, option) == ("devices", "trace"):
        path = Path(tempfile.gettempdir()) / f"fedsweep-test-trace-{os.getpid()}.csv"
        path.write_text("id,rate,downlink,uplink\n0,1,1,1\n")
        return [f"devices.path={path}", "devices.pick=drawn"]
    return []


@pytest.mark.parametrize(("group", "option"), GROUP_OPTIONS)
def test_every_option_composes(group: str, option: str) -> None:
    config = compose([f"{group}={option}", *beside(group, option)])
    assert isinstance(config, RunConfig)
    section = getattr(config, group, None)
    if hasattr(section, "name"):
        assert (
            section.name == option
            or group == "training"
            or (group == "dataset" and option in ("hub", "folder"))
        )


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
    assert trials[0].axes == {
        "shift": "none",
        "partition": "iid",
        "strategy.num_clusters": "1",
        "seed": "0",
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["dataset=mnst"], "unknown dataset 'mnst'. Did you mean 'mnist'?"),
        (["datset=mnist"], "unknown key or group 'datset'. Did you mean 'dataset'?"),
        (["training.lrr=1"], "unknown key 'training.lrr'. Did you mean 'training.lr'?"),
        (["training.lr=-1"], "training.lr=-1: it has to be a number above 0 and at most 1000"),
        (["training.optimizer=sgdd"], "training.optimizer='sgdd': input should be 'sgd' or 'adam'"),
        (["rounds=0"], "rounds=0: it has to be a whole number from 1 to 1000000"),
        (
            ["strategy=kmeans", "strategy.num_clusters=40"],
            "strategy.num_clusters=40 is more than num_clients=10",
        ),
        (["strategy.num_clusters=3"], "strategy.num_clusters does not apply to strategy=fedavg"),
        (["strategy=kmeans", "strategy.server.rulee=x"], "Did you mean 'strategy.server.rule'?"),
        (["resources.hosts.cpu.cont=2"], "Did you mean 'resources.hosts.cpu.count'?"),
        (["seed=0,1"], "'seed=0,1' has several values, and `run` takes one trial"),
        (["mnist"], "'mnist' is not key=value"),
        (["seed=[1"], "can't be read"),
        (["shift=rotation", "shift.angles=[1,2]"], "angles has 2 values for 4 groups"),
        (["shift=rotation", "shift.groups=20"], "shift.groups=20 is more than num_clients=10"),
        (
            ["strategy=krum", "num_clients=4"],
            "needs at least 5 training clients a round, but there are 4",
        ),
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
    assert (
        base.key
        == compose(["resources.hosts.cpu.count=7", "tracking.output=/x", "data.root=/y"]).key
    )
    assert base.key != compose(["seed=1"]).key
    assert base.key != compose(["training.lr=0.1"]).key


def test_an_axis_that_does_not_apply_collapses() -> None:
    words = ["strategy=fedavg,kmeans", "seed=0", "shift=none", "partition=iid"]
    _, trials = expand("default", words)
    assert [trial.axes for trial in trials] == [
        {"shift": "none", "partition": "iid", "seed": "0", "strategy": "fedavg"},
        *(
            {
                "shift": "none",
                "partition": "iid",
                "strategy.num_clusters": k,
                "seed": "0",
                "strategy": "kmeans",
            }
            for k in ("1", "2", "4")
        ),
    ]


def test_axes_from_the_command_line_replace_those_of_the_file() -> None:
    _, trials = expand(
        "default", ["seed=range(0,2)", "strategy.num_clusters=4", "shift=rotation", "partition=iid"]
    )
    assert [trial.config.seed for trial in trials] == [0, 1]
    assert {trial.config.strategy.num_clusters for trial in trials} == {4}


def test_an_axis_is_its_full_key() -> None:
    _, trials = expand(
        "servers", ["strategy=fedavg,oracle", "strategy.server.mode=simulated,hybrid", "seed=0"]
    )
    rules = ["load", "load_once", "random", "round_robin", "largest_data"]
    assert [trial.axes for trial in trials] == [{"seed": "0", "strategy": "fedavg"}] + [
        {
            "strategy.server.rule": rule,
            "seed": "0",
            "strategy": "oracle",
            "strategy.server.mode": mode,
        }
        for rule in rules
        for mode in ("simulated", "hybrid")
    ]
    assert trials[-1].config.strategy.server.rule == "largest_data"
    assert trials[-1].label == "rule=largest_data seed=0 strategy=oracle mode=hybrid"
    grid = ("strategy.server.rule", "seed", "strategy", "strategy.server.mode")
    assert {trial.grid for trial in trials} == {grid}


def test_values_are_those_of_the_configuration() -> None:
    """However they are written: a trial of another session is found in the same cell."""
    _, trials = expand("default", [*ONE, "training.lr=.1,1e-2,1", "training.steps=null,5"])
    assert {trial.axes["training.lr"] for trial in trials} == {"0.1", "0.01", "1.0"}
    assert {trial.axes["training.steps"] for trial in trials} == {"null", "5"}


def test_short_names_are_unique_and_ends_of_their_keys() -> None:
    assert short_names(["strategy.num_clusters", "partition.alpha", "strategy.alpha", "seed"]) == {
        "strategy.num_clusters": "num_clusters", "partition.alpha": "partition.alpha",
        "strategy.alpha": "strategy.alpha", "seed": "seed",
    }  # fmt: skip
    assert short_names(["seed", "model.kwargs.seed"]) == {
        "seed": "seed",
        "model.kwargs.seed": "kwargs.seed",
    }


EVERY_KEY = [
    *flat(RunConfig().model_dump()),
    *groups(),
    "model.kwargs.seed",
    "model.kwargs.server.ewma",
]


def test_no_two_axes_have_one_name() -> None:
    """Over grids of all settings, of every pair and of drawn handfuls."""
    draw = random.Random(0)
    handfuls = [draw.sample(EVERY_KEY, draw.randint(3, 12)) for _ in range(500)]
    for keys in [EVERY_KEY, *combinations(EVERY_KEY, 2), *handfuls]:
        names = short_names(keys)
        assert len(set(names.values())) == len(set(keys))
        assert all(key == name or key.endswith(f".{name}") for key, name in names.items())


def test_an_option_of_a_network_goes_where_it_applies() -> None:
    """As a setting of a method does: said once where some trials lack it, refused where all do."""
    _, trials = expand("", ["model=mlp,logreg", "model.kwargs.hidden=4,8", "seed=0,1"])
    places = [(t.axes["model"], t.axes.get("model.kwargs.hidden"), t.axes["seed"]) for t in trials]
    hidden = (("mlp", "4"), ("mlp", "8"), ("logreg", None))
    assert sorted(places, key=str) == sorted([(*way, s) for way in hidden for s in "01"], key=str)
    assert {t.config.key for t in trials if t.axes["model"] == "logreg"} == {
        t.config.key for t in expand("", ["model=logreg", "seed=0,1"])[1]
    }

    _, trials = expand("", ["model=mlp,logreg,tests.networks.Small", "model.kwargs.hidden=8"])
    assert [t.config.model.kwargs for t in trials] == [{"hidden": 8}, {}, {"hidden": 8}]
    assert remarks(trials) == ["model.kwargs.hidden=8 applies to 2 of 3 trials"]

    none = (
        "'model.kwargs.hiden=8' applies to none of the 2 trials: .* model=mlp, which takes hidden"
    )
    with pytest.raises(ConfigError, match=none):
        expand("", ["model=mlp,logreg", "model.kwargs.hiden=8"])


def test_what_a_network_takes_is_known_without_building_it() -> None:
    for name in MODELS:
        parameters = [*inspect.signature(MODELS.factory(name)).parameters]
        of_data = ("input_shape", "num_classes", "num_symbols")
        assert MODELS.takes(name) == [key for key in parameters if key not in of_data], name


# Settings with two values each, and what they need: each pair of them makes a grid.
SETTINGS = {
    "partition.alpha": ("0.1,1", ("partition=dirichlet",)),
    "partition.min_size": ("1,2", ("partition=dirichlet",)),
    "strategy.alpha": ("0.1,1", ("strategy=apfl",)),
    "strategy.min_size": ("2,3", ("strategy=cfl",)),
    "strategy.proximal_mu": ("0.1,0.2", ("strategy=stocfl",)),
    "training.proximal_mu": ("0.1,0.2", ()),
    "training": ("sgd,adam", ()),
    "stop.wall_s": ("10,20", ()),
    "rounds": ("4,5", ()),
    "num_clients": ("4,5", ()),
    "shift.newcomers": ("0,0.25", ()),
    "shift.noise_std": ("1,64", ("shift=noise",)),
    "dataset.normalize": ("unit,standard", ()),
    "model.kwargs.hidden": ("4,8", ("model=mlp",)),
    "strategy": ("fedavg,fedavgm", ()),
}


def fit(one: str, two: str) -> bool:
    """Whether one option of each group has both settings."""
    needs = {*SETTINGS[one][1], *SETTINGS[two][1]}
    wanted = [word.split("=")[0] for word in needs]
    return len(set(wanted)) == len(wanted) and not {one, two} & {*wanted}


PAIRS = [pair for pair in combinations(SETTINGS, 2) if fit(*pair)]


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_different_settings_stand_in_different_cells(one: str, two: str) -> None:
    """A cell's trials differ in nothing but the seed, and no two cells are alike."""
    (values, needs), (others, more) = SETTINGS[one], SETTINGS[two]
    file = SweepFile(axes={"seed": [0, 1]})
    trials = expand_grids(
        [file], [*dict.fromkeys((*needs, *more)), f"{one}={values}", f"{two}={others}"]
    )
    assert len(trials) == 8
    rows = [TrialRow(trial.axes, {"client_acc": 0.5}) for trial in trials]
    cells = results_table(rows, axes=trials[0].grid)
    assert cells.numbers["trials"].tolist() == [2, 2, 2, 2]
    for trial in trials:
        place = {key: value for key, value in trial.axes.items() if key != "seed"}
        alike = [t.config for t in trials if {**t.axes, **place} == t.axes]
        assert len({config.model_copy(update={"seed": 0}).key for config in alike}) == 1
        assert len(alike) == 2


def test_a_trial_of_one_grid_has_a_place_on_the_axes_of_another_one() -> None:
    """What its own grid sets for all; an axis that does not apply to it stays without."""
    clustered = SweepFile(
        overrides=("strategy=kmeans", "strategy.warmup_rounds=1"),
        axes={"strategy.num_clusters": [2, 4], "seed": [0]},
    )
    plain = SweepFile(axes={"strategy": ["fedavg", "ifca"], "seed": [0]})
    trials = expand_grids([clustered, plain], [])
    assert trials[0].grid == ("strategy.num_clusters", "seed", "strategy")
    assert [trial.axes for trial in trials] == [
        {"strategy.num_clusters": "2", "seed": "0", "strategy": "kmeans"},
        {"strategy.num_clusters": "4", "seed": "0", "strategy": "kmeans"},
        {"seed": "0", "strategy": "fedavg"},
        {"strategy.num_clusters": trials[3].axes["strategy.num_clusters"], "seed": "0",
         "strategy": "ifca"},
    ]  # fmt: skip


ONE = ["shift=none", "partition=iid", "seed=0", "strategy=fedavg"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["resources.trials=1,2"],
         "'resources.trials' is no axis: it says where trials run and are logged"),
        (["resources=cpu,inline"], "'resources' is no axis"),
        (["tracking.figures=all,none"], "'tracking.figures' is no axis"),
        (["data.root=a,b"], "'data.root' is no axis"),
        (["checkpoint.every=1,2"], "'checkpoint.every' is no axis"),
        (["strategy.q=1"],
         "'strategy.q=1' applies to none of the 1 trials; it belongs to strategy=qfedavg"),
        (["strategy.q=1,2"], "'strategy.q=1,2' applies to none of the 1 trials"),
        (["strategy.num_clusters=3"], "'strategy.num_clusters=3' applies to none of the 1 trials"),
        (["shift.groups=2"], "it belongs to shift=inversion|label_groups"),
        (["stop.metric=1_global/acc,3_clients/acc"], "it has no effect with no stop.target"),
        (["seed=0,0"], "the values of 'seed=0,0' all give the same trials"),
        (["halving.axis=seed", "rounds=4"], "halving.axis=seed: no two trials differ in it alone"),
    ],
)  # fmt: skip
def test_what_does_nothing_in_a_grid_is_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand("default", [*ONE, *words])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_key_is_told_those_of_all_methods_of_the_sweep() -> None:
    """Wherever the method that has it stands; its value may be an axis."""
    for words, near, beside in [
        ("strategy=fedavg,kmeans,ditto", "num_clusters", "ditto_lambda"),
        ("strategy.name=ditto,fedavg,kmeans", "num_clusters", "ditto_lambda"),
        ("attack=ipm,alie,none", "eps", "z"),
    ]:
        group = words.partition("=")[0].removesuffix(".name")
        for values in ("1", "1,2"):
            with pytest.raises(ConfigError) as caught:
                expand("", [words, f"{group}.{near}_={values}"])
            hint, _, valid = str(caught.value).removesuffix(".").partition("? Valid: ")
            assert hint == f"unknown key '{group}.{near}_'. Did you mean '{group}.{near}'"
            named = {key.removeprefix(f"{group}.") for key in valid.split(", ")}
            assert {near, beside, "name"} <= named
            assert "q" not in named  # of none of these methods


def test_of_two_words_for_one_key_the_last_counts() -> None:
    trials = expand(
        "default",
        [*ONE, "strategy.server.rule=random,load", "strategy=kmeans", "strategy.server.rule=load"],
    )[1]
    assert {trial.config.strategy.server.rule for trial in trials} == {"load"}
    assert expand("default", [*ONE, "seed=0,1", "seed=1"])[1][0].config.seed == 1


def test_what_applies_to_some_trials_is_said_once() -> None:
    _, trials = expand(
        "default",
        ["shift=none", "partition=iid", "strategy=fedavg,kmeans", "strategy.distance=cosine"],
    )
    assert remarks(trials) == [
        "strategy.warmup_rounds=3 applies to 9 of 12 trials",
        "strategy.distance=cosine applies to 6 of 12 trials",  # nor to one cluster
    ]
    assert remarks(expand("default", ["strategy=kmeans"])[1]) == []


def test_an_axis_of_the_file_that_applies_to_no_trial_is_said() -> None:
    assert remarks(expand("default", ONE)[1]) == [
        "strategy.warmup_rounds=3 applies to 0 of 1 trials",
        "axis strategy.num_clusters applies to 0 of 1 trials",
    ]  # fmt: skip


def test_trials_without_a_rival_are_said() -> None:
    words = [*ONE[:3], "strategy=fedavg,kmeans", "halving.axis=strategy.num_clusters"]
    assert remarks(expand("default", words)[1])[-1] == (
        "halving over strategy.num_clusters: 1 of 4 trials have no rival and run in full"
    )


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("dataset", True), ("dataset.normalize", True), ("partition.sizes", True),
        ("partition.eval_fraction", True), ("shift.noise_std", True), ("shift.drift_round", True),
        ("shift.newcomers", True), ("num_clients", True), ("evaluate_every", True),
        ("strategy.fraction_evaluate", True), ("strategy", False), ("strategy.alpha", False),
        ("rounds", False), ("training.batch_size", False), ("model", False),
        ("num_clients_more", False), ("problem.alpha", True), ("run_config.alpha", False),
    ],
)  # fmt: skip
def test_what_makes_a_problem_is_told_by_the_full_key(key: str, problem: bool) -> None:
    assert TrialConfig.is_problem(key) is problem


def test_the_parts_of_a_problem_are_settings_of_a_trial() -> None:
    for key in TrialConfig.PROBLEM - {"experiment", "problem"}:
        assert key.split(".")[0] in TrialConfig.model_fields


def test_a_run_is_a_trial_and_a_session_and_the_trial_alone_is_the_key() -> None:
    trial, session = TrialConfig.model_fields.keys(), SessionConfig.model_fields.keys()
    assert [*RunConfig.model_fields] == [*trial, *session]
    assert set(trial).isdisjoint(session)
    run = compose(["strategy=kmeans"])
    assert set(run.canonical()) <= set(trial)
    alone = TrialConfig.model_validate({key: getattr(run, key) for key in trial})
    assert (alone.key, alone.settings_key) == (run.key, run.settings_key)


def test_a_trials_command_gives_the_trial_again() -> None:
    _, trials = expand("default", ["shift=rotation", "seed=0,1"])
    for trial in trials:
        words = [word.strip("'") for word in trial.command.split()[2:]]
        assert compose(words).key == trial.config.key


def test_an_empty_axis_and_a_bad_cell_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown sweep 'defalt'. Did you mean 'default'"):
        expand("defalt", [])
    with pytest.raises(
        ConfigError, match=r"num_clusters=40 is more than num_clients=20.*num_clusters=40"
    ):
        expand("default", ["strategy.num_clusters=1,40"])


def test_centralized_is_one_client() -> None:
    assert compose(["partition=centralized"]).num_clients == 1


def test_resolved_config_reads_back() -> None:
    from omegaconf import OmegaConf

    config = compose(["dataset=mnist", "strategy=kmeans"])
    again = RunConfig.model_validate(OmegaConf.to_container(OmegaConf.create(to_yaml(config))))
    assert again.key == config.key


# Sweeps of one's own


def test_a_sweep_of_words_has_their_axes_and_no_others() -> None:
    words = ["strategy=fedavg,kmeans", "partition=dirichlet", "partition.alpha=0.1,1", "seed=0,1"]
    trials = expand("", words)[1]
    assert len(trials) == 8
    assert trials[0].grid == ("strategy", "partition.alpha", "seed")
    assert trials[0].config.key == compose([*trials[0].overrides]).key
    alone = compose(["partition=dirichlet", "partition.alpha=0.1"])
    assert trials[0].config.key == alone.key


def test_a_sweep_may_be_a_file_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    axes = "{strategy: [fedavg, kmeans], seed: [0, 1]}"
    file.write_text(f"description: mine\noverrides: [rounds=3]\naxes: {axes}\n")
    described, trials = expand(str(file), ["seed=5"])
    assert described.description == "mine"
    assert [t.axes for t in trials] == [{"strategy": s, "seed": "5"} for s in ("fedavg", "kmeans")]
    assert {t.config.rounds for t in trials} == {3}


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        (None, "can't be read: No such file or directory"),
        ("axes: [a", "expected ',' or ']'"),
        ("axis: {seed: [0]}", "unknown key 'axis'. Did you mean 'axes'"),
        ("axes: {sede: [0]}", "unknown key or group 'sede'. Did you mean 'seed'"),
        ("just words", "unknown key 'just words'"),
    ],
)
def test_a_sweeps_file_that_is_wrong_is_refused(
    tmp_path: Path, text: str | None, refusal: str
) -> None:
    file = tmp_path / "study.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        expand(str(file), [])
    assert refusal in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sweep", "strategy=fedavg,kmeans", "--dry-run"], "2 trials of sweep 'adhoc'"),
        (
            ["sweep", "--name", "mine", "strategy=fedavg", "seed=0,1,2", "--dry-run"],
            "3 trials of sweep 'mine'",
        ),
        (["sweep", "smoke", "--name", "x", "--dry-run"], "1 trial of sweep 'x'"),
    ],
)
def test_the_command_line_takes_axes_alone(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["sweep"], "name a sweep (beyond_images, captured, default, "),
        (["sweep", "--name", "a/b", "seed=0,1"], "--name='a/b' is no name of a file or folder"),
        (["sweep", "smok"], "Did you mean 'smoke'"),
    ],
)
def test_a_sweep_without_a_name_or_with_a_bad_one_is_refused(
    words: list[str], refusal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert refusal in capsys.readouterr().err


@pytest.fixture
def own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with a sweep, a data set and an experiment."""
    folder = tmp_path / "my configs"
    files = {
        "sweep/mine": "axes: {seed: [0, 1]}\noverrides: [dataset=tiny]\n",
        "dataset/tiny": "name: digits\nmax_train: 200\n",
        "experiment/short": "# @package _global_\nrounds: 3\nstrategy: {fraction_train: 0.5}\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
    monkeypatch.setenv("FEDSWEEP_CONFIG", str(folder))
    return folder


def test_a_folder_of_ones_own_has_sweeps_options_and_experiments(own_configs: Path) -> None:
    assert {"mine", "default"} < {*options("sweep")}
    trials = expand("mine", [])[1]
    assert [t.config.dataset.max_train for t in trials] == [200, 200]
    config = compose(["experiment=short", "strategy=kmeans"])
    assert (config.rounds, config.strategy.fraction_train) == (3, 0.5)
    with pytest.raises(ConfigError, match="unknown dataset 'tny'. Did you mean 'tiny'"):
        compose(["dataset=tny"])


def test_what_is_there_already_is_not_replaced(own_configs: Path) -> None:
    (own_configs / "sweep" / "default.yaml").write_text("axes: {seed: [0]}\n")
    with pytest.raises(ConfigError, match="there is a sweep 'default' already; rename yours"):
        expand("default", [])


def test_the_command_line_names_the_folder(
    own_configs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FEDSWEEP_CONFIG")
    assert main(["sweep", "mine", "--dry-run"]) == 2
    assert main(["sweep", "mine", "--dry-run", "--config-dir", str(own_configs)]) == 0
    assert "2 trials of sweep 'mine'" in capsys.readouterr().out
    assert main(["sweep", "mine", "--config-dir", str(own_configs / "none")]) == 2
    assert "none is not a folder; name another" in capsys.readouterr().err


def test_two_trials_at_one_place_are_refused() -> None:
    """A number and the text of it are two settings that read alike: no two seeds of a cell."""
    words = ["model=mlp", "model.kwargs.hidden=8,16,'8'"]
    with pytest.raises(
        ConfigError, match=r"two trials have the same values of all axes \(hidden=8"
    ):
        expand("", words)
