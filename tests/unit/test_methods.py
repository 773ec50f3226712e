"""A method is one file: what is read from it, and that a new one needs nothing else touched."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import pytest
from flwr.app import ConfigRecord

from fedsweep.config import RunConfig, TrackingConfig
from fedsweep.errors import ConfigError
from fedsweep.figures.canvas import PALETTE, strategy_colour
from fedsweep.parts.registry import FOLDERS
from fedsweep.report.report import report
from fedsweep.strategies import STRATEGIES, build_strategy, is_weighted_mean, settings_of
from fedsweep.strategies.base import models_of
from fedsweep.strategies.clients import ClientPart, Update, Work
from fedsweep.sweeps.compose import compose, expand, options
from fedsweep.sweeps.resume import Restart
from fedsweep.tracking.read import read_sweep
from tests.fakes import FakeGrid, halfway_app, record
from tests.trials import events_of, outcome
from tests.unit.test_sweep import Place, dies, place  # noqa: F401 - fixtures

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "docs" / "strategies" / "README.md"
HALVES = '''"""Halves: after warm-up clients are cut in two by their updates' length (of a test)."""

import numpy as np
from pydantic import Field

from fedsweep.strategies.clients import ClientPart, Update, with_method
from fedsweep.strategies.clustered import ClusterTraining, WarmupSettings
from fedsweep.strategies.grouping import Found
from fedsweep.strategies.selection import ServerSettings


class HalvesSettings(WarmupSettings, ServerSettings):
    """Where the clients are cut, and how long they train."""

    share: float = Field(0.5, gt=0, lt=1, description="share of the clients in the first half")
    passes: int = Field(1, ge=1, le=10, description="passes over the examples in each round")

    def check_in(self, setting):
        super().check_in(setting)
        if not 0 < round(self.share * setting.num_clients) < setting.num_clients:
            raise ValueError(f"strategy.share={self.share:g} leaves a half empty; move it to 0.5")


class Halves(ClusterTraining):
    """Two clusters."""

    settings = HalvesSettings
    partial_means = True

    def __init__(self, *, share=0.5, passes=1, **common):
        super().__init__(num_clusters=2, **common)
        self.share, self.passes = share, passes

    def configure_train(self, server_round, arrays, config, grid):
        config = with_method(config, HalvesClients.method, passes=self.passes)
        return super().configure_train(server_round, arrays, config, grid)

    def find(self, rows_CP):
        lengths = np.linalg.norm(rows_CP, axis=1)
        labels = np.zeros(len(lengths), np.int64)
        labels[np.argsort(lengths)[round(self.share * len(lengths)) :]] = 1
        return Found(labels, float("nan"))


class HalvesClients(ClientPart):
    """A client trains as long as it is told, and counts its rounds."""

    method = "halves"

    def fit(self, work):
        trained = work.train(work.sent(), epochs=int(work.config["passes"]))
        before = [0 if own is None else int(own["rounds"]) for own in work.recalled("halves")]
        work.remember("halves", [{"rounds": count + 1} for count in before])
        return Update(trained.results, trained.models, {"rounds_before": before})
'''
SMALL = [
    "resources.engine=inline", "num_clients=6", "model=logreg", "dataset.max_train=120",
    "tracking.log_models=false",
]  # fmt: skip


@pytest.fixture
def halves(registries: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a method, made known to this process."""
    path = tmp_path_factory.mktemp("methods") / "halves.py"
    path.write_text(HALVES)
    STRATEGIES.add_file(path)
    return path


# What the files say


def test_the_page_says_of_each_method_what_its_class_says() -> None:
    def row(*cells: object) -> str:
        return (
            f"| {' | '.join('yes' if c is True else '' if c is False else str(c) for c in cells)} |"
        )

    rows = []
    for name, method in STRATEGIES.items():
        has = models_of(method)
        models = (has.has_global_model, has.clusters_clients, has.personal_models)
        means = (name in STRATEGIES.saying(fact) for fact in ("partial_means", "private_mean"))
        rows.append(row(f"`{name}`", *models, *means))
    headings = row(
        "method", "global model", "clusters", "a model per client", "partial means", "privacy"
    )
    table = "\n".join([headings, "|---|---|---|---|---|---|", *rows])
    assert table in README.read_text(), table


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_methods_option_and_its_name_are_one_trial(name: str) -> None:
    option = compose([f"strategy={name}"])
    assert option.key == compose([f"strategy.name={name}"]).key
    assert option.strategy == settings_of(name)
    assert RunConfig.model_validate(option.model_dump()) == option
    assert RunConfig.model_validate(option.model_dump(mode="json")) == option
    assert pickle.loads(pickle.dumps(option)) == option


def test_each_key_of_a_method_is_described() -> None:
    for name in STRATEGIES:
        for key, field in STRATEGIES.settings(name).model_fields.items():
            assert field.description, (name, key)


def test_a_setting_of_another_method_is_refused_in_python_too() -> None:
    with pytest.raises(ValueError, match="num_clusters"):
        RunConfig.model_validate({"strategy": {"name": "fedavg", "num_clusters": 3}})
    with pytest.raises(ConfigError, match="unknown strategy 'kmens'. Did you mean 'kmeans'"):
        RunConfig.model_validate({"strategy": {"name": "kmens"}})


@pytest.mark.parametrize(
    ("name", "clients", "refusal"),
    [
        ("krum", 4, "num_malicious_nodes=1 needs at least 5 training clients a round"),
        ("multikrum", 5, "num_nodes_to_select=3 needs at least 6 training clients a round"),
        ("bulyan", 6, "num_malicious_nodes=1 needs at least 7 training clients a round"),
        ("fedtrimmedavg", 4, "strategy.beta=0.2 cuts nobody of 4 clients a round"),
    ],
)
def test_who_constructs_a_robust_mean_is_refused_as_the_command_line_is(
    name: str, clients: int, refusal: str
) -> None:
    settings = settings_of(name).model_dump(exclude={"name", "min_fit_fraction"})
    strategy, grid = STRATEGIES[name](**settings), FakeGrid(halfway_app({}), clients)
    with pytest.raises(ValueError, match=refusal) as by_class:
        strategy.configure_train(1, record(0), ConfigRecord(), grid)
    with pytest.raises(ConfigError) as by_words:
        compose([f"strategy={name}", f"num_clients={clients}"])
    assert str(by_class.value) == str(by_words.value)
    grid = FakeGrid(halfway_app({}), clients + 1)
    assert len(list(strategy.configure_train(1, record(0), ConfigRecord(), grid))) == clients + 1


# What is refused of a file


@pytest.mark.parametrize(
    ("name", "old", "new", "refusal"),
    [
        ("kmeans", "", "", "there is a strategy 'kmeans' already; rename yours"),
        ("other", 'method = "halves"', 'method = "ditto"',
         "there is a client part of method 'ditto'"),
        ("other", "def fit(", "def fitt(",
         r"other.py: HalvesClients overrides neither fit nor model, so its clients are FedAvg's"),
        ("other", "import numpy", "import nunpy",
         r"other.py:3: ModuleNotFoundError: No module named 'nunpy'"),
        ("other", "self.share, self", "self.share self",
         r"other.py:32: SyntaxError: invalid syntax"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_method_leaves_nothing_behind(
    registries: None, tmp_path: Path, name: str, old: str, new: str, refusal: str
) -> None:
    path = tmp_path / f"{name}.py"
    path.write_text(HALVES.replace(old, new, 1))
    before = list(STRATEGIES), dict(STRATEGIES._client_parts)
    with pytest.raises(ValueError, match=refusal):
        STRATEGIES.add_file(path)
    assert (list(STRATEGIES), dict(STRATEGIES._client_parts)) == before
    path.write_text(HALVES)
    if name == "other":
        STRATEGIES.add_file(path)
        STRATEGIES.add_file(path)  # it is known
        assert "other" in STRATEGIES


# The proof: one file, and nothing else


def test_it_is_in_words_and_their_refusals(halves: Path) -> None:
    assert "halves" in options("strategy")
    assert compose(["strategy=halves", "strategy.share=0.25"]).strategy.share == 0.25
    for words, refusal in (
        (["strategy=halfes"], "Did you mean 'halves'"),
        (["strategy=halves", "strategy.shar=0.1"], "Did you mean 'strategy.share'"),
        (["strategy=halves", "strategy.share=2"],
         "share=2: it has to be a number above 0 and below 1"),
        (["strategy=halves", "strategy.q=2"], "does not apply to strategy=halves"),
        (["strategy=fedavg", "strategy.share=0.2"], "it belongs to strategy=halves"),
        (["strategy=halves", "strategy.share=0.01"], "leaves a half empty; move it to 0.5"),
        (["strategy=halves", "strategy.warmup_rounds=99"], "strategy=halves would never cluster"),
        (["strategy=halves", "strategy.server.rule=random", "strategy.server.hysteresis=1"],
         "no effect"),
        (["strategy=halves", "privacy=fixed_server"], "strategy=halves takes none"),
        (["strategy=halves", "shift=none", "stop.metric=2_clusters/ari", "stop.target=1"],
         "no known groups"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=refusal):
            compose(words)


def test_it_is_an_axis_and_has_keys_of_its_own(halves: Path) -> None:
    words = [
        "strategy=fedavg,halves",
        "strategy.share=0.25,0.5",
        "seed=0",
        "shift=none",
        "partition=iid",
    ]
    trials = expand("default", words)[1]
    places = [(t.axes["strategy"], t.axes.get("strategy.share")) for t in trials]
    assert places == [("fedavg", None), ("halves", "0.25"), ("halves", "0.5")]
    assert len({trial.config.key for trial in trials}) == 3
    config = cloudpickle.loads(cloudpickle.dumps(trials[1].config))
    assert config == trials[1].config
    colours = {strategy_colour(name) for name in options("strategy")}
    assert len(colours) == len(STRATEGIES)


def test_its_clients_do_their_part_one_by_one_and_batched(
    halves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each counts its rounds in its state; after the clustering hosts may reply partial means."""
    strategy = build_strategy("halves", settings_of("halves").canonical(), seed=0, num_clients=6)
    assert is_weighted_mean(strategy)
    part, told = type(STRATEGIES.client_part("halves")), list[int]()
    fit = part.fit

    def told_by(self: ClientPart, work: Work) -> Update:
        update = fit(self, work)
        told.extend(int(count) for count in update.metrics["rounds_before"])
        return update

    monkeypatch.setattr(part, "fit", told_by)
    losses = {}
    for engine in ("sequential", "vectorized"):
        words = ["strategy=halves", "strategy.passes=2", f"training.engine={engine}", "rounds=3"]
        learned = outcome(events_of(compose([*SMALL, *words])))[1]
        assert told == [0] * 6 + [1] * 6 + [2] * 6
        told.clear()
        assert learned[-1]["2_clusters/count"] == 2
        losses[engine] = learned[-1]["3_clients/train_loss"]
    assert losses["sequential"] == pytest.approx(losses["vectorized"], rel=1e-4)
    once = outcome(events_of(compose([*SMALL, "strategy=halves", "rounds=3"])))[1]
    assert once[-1]["3_clients/train_loss"] > losses["vectorized"] * 1.01


def test_it_goes_on_from_a_checkpoint_and_is_reported(
    halves: Path,
    place: Place,  # noqa: F811
    dies: Callable[[int, int], None],  # noqa: F811
) -> None:
    words = ["strategy=halves", "strategy.share=0.25,0.5", "num_clients=6", "rounds=3", "seed=0"]
    words += ["strategy.warmup_rounds=1", "tracking.figures=none"]
    whole, _ = place.run(*words)
    dies(2, 1)
    again, text = place.run(*words, restart=Restart(fresh=True))
    assert "died, goes on (retry 1 of 2): on purpose" in text
    ends = [
        [[row.metrics[key] for key in ("acc", "client_acc")] for row in done.rows]
        for done in (whole, again)
    ]
    assert ends[0] == ends[1]
    colours = {run.data.tags["mlflow.runColor"] for run in place.runs()}
    assert colours == {*PALETTE[:2]}  # two settings of one method
    files = report(read_sweep(TrackingConfig(output=str(place.out)), "default")).files
    assert all(share in str(files["report.md"]) for share in ("0.25", "0.5"))


def test_every_process_reads_the_folders_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "halves.py").write_text(HALVES)
    told = {**os.environ, FOLDERS: str(tmp_path)}
    for words, expected in (
        (["run", "--help"], " halves, "),
        (["config", "strategy=halves", "strategy.passes=3"], "passes: 3"),
    ):
        command = [sys.executable, "-m", "fedsweep", *words]
        out = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=told, check=True
        )
        assert expected in out.stdout


def test_a_folder_that_can_not_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("1 / 0\n")
    for folder, refusal in (
        (tmp_path, f"{tmp_path}/own.py:1: ZeroDivisionError: division by zero"),
        (tmp_path / "none", f"${FOLDERS} names {tmp_path}/none, which is no folder"),
    ):
        command = [sys.executable, "-m", "fedsweep", "config", "strategy=own"]
        told = {**os.environ, FOLDERS: str(folder)}
        out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=told)
        assert out.returncode == 2
        assert refusal in out.stderr
        assert out.stderr.count("\n") == 1
