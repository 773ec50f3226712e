"""fedsweep in Python: the same trials as by words, results as frames, parts given as they are."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

import fedsweep
from fedsweep.api import Results
from fedsweep.errors import ConfigError, RunnerError
from fedsweep.given import words_of
from fedsweep.strategies.fedavg import FedAvg

SMALL = {
    "dataset": "digits",
    "model": "logreg",
    "num_clients": 4,
    "rounds": 2,
    "resources": "inline",
    "tracking.figures": "none",
    "tracking.log_models": False,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("api")
    return fedsweep.sweep(
        axes={"strategy": ["fedavg", "kmeans"], "seed": range(2)},
        settings={**SMALL, "strategy.warmup_rounds": 1, "tracking.output": folder},
        name="study",
        show="quiet",
    )


def keys(trials):
    return [trial.config.key for trial in trials]


def test_what_is_public_is_there() -> None:
    assert {*fedsweep.__all__} <= {*dir(fedsweep)}
    for name in fedsweep.__all__:
        assert callable(getattr(fedsweep, name))
    with pytest.raises(AttributeError, match="no attribute 'sweeep'"):
        fedsweep.sweeep  # noqa: B018


def test_settings_and_axes_are_the_trials_of_their_words() -> None:
    given = fedsweep.compose(
        settings={"rounds": np.int64(3), "training.lr": 0.5, "metrics": ["macro_f1"]},
        axes={"strategy": ["fedavg", "ditto"], "seed": range(2), "model": ["mlp"]},
    )
    words = "rounds=3", "training.lr=0.5", "metrics=[macro_f1]", "model=mlp"
    assert keys(given) == keys(fedsweep.compose(*words, "strategy=fedavg,ditto", "seed=0,1"))
    assert keys(fedsweep.compose("smoke", settings={"seed": 7})) == keys(
        fedsweep.compose("smoke", "seed=7")
    )


def test_a_part_of_this_project_is_named_by_its_file() -> None:
    assert words_of({"strategy": FedAvg}, {}, Path()) == ["strategy=fedavg"]


@pytest.mark.parametrize(
    ("settings", "axes", "told"),
    [
        ({"rounds": {1, 2}}, {}, "rounds: a set is no setting; give text, a number"),
        ({"strategy": lambda: 1}, {}, "a lambda has no name"),
        ({}, {"seed": 3}, "the axis seed is 3; give its values as a list"),
        ({}, {"strategy": "fedavg"}, "the axis strategy is 'fedavg'; give its values as a list"),
        ({"dataset": [1, 2, 3]}, {}, "the data set: images are 1; return {'train': split"),
        ({"roundz": 3}, {}, "unknown key or group 'roundz'. Did you mean 'rounds'?"),
    ],
)
def test_what_cannot_be_a_setting_is_refused(settings, axes, told) -> None:
    with pytest.raises(RunnerError, match=r"(?s)^[^\n]*$") as refused:
        fedsweep.compose(settings=settings, axes=axes)
    assert told in str(refused.value)


def test_a_part_inside_of_another_is_refused() -> None:
    class Inner(FedAvg):
        pass

    with pytest.raises(ConfigError, match="Inner is defined inside of another"):
        fedsweep.compose(settings={"strategy": Inner})


def test_results_are_frames(results: Results) -> None:
    assert len(results) == 4
    assert results.failures == {}
    trials, table, rounds = results.trials(), results.table(), results.rounds("1_global/acc")
    assert [*trials[["strategy", "seed"]].itertuples(index=False, name=None)] == [
        ("fedavg", 0), ("fedavg", 1), ("kmeans", 0), ("kmeans", 1),
    ]  # fmt: skip
    assert [*rounds] == ["strategy", "seed", "round", "1_global/acc"]
    assert [*rounds["round"]] == [0, 1, 2] * 4

    means = trials.groupby("strategy")["client_acc"].mean()
    assert [*table["client_acc_mean"]] == pytest.approx([*means])
    best = results.best("client_acc")
    assert best.place == {"strategy": means.idxmax()}
    assert best.value == pytest.approx(means.max())
    assert best.run_id in {*trials["run_id"]}
    assert repr(best).splitlines()[-1] == best.command
    assert best.command.startswith("fedsweep run ")
    assert results.best("client_acc", lowest=True).place == {"strategy": means.idxmin()}
    last = rounds[rounds["round"] == 2]["1_global/acc"]
    assert [*last] == pytest.approx([*trials["acc"]])

    assert {*results.assignments()["strategy"]} == {"kmeans"}
    assert {*results.clients()["strategy"]} == {"fedavg", "kmeans"}
    assert len(results.load())
    with pytest.raises(RunnerError, match="unknown metric '1_global/ac'. Did you mean"):
        results.rounds("1_global/ac")
    with pytest.raises(RunnerError, match="unknown metric 'clientacc'. Did you mean 'client_acc'"):
        results.best("clientacc")


def test_results_show_themselves(results: Results) -> None:
    assert repr(results).startswith("study: 4 trials\n| strategy | ")
    paper = results.paper(columns=["client_acc"])
    assert repr(paper) == paper.to("md").rstrip()
    assert repr(paper).startswith("| strategy | client accuracy (%) |")
    table = ElementTree.fromstring(results._repr_html_())
    rows = [[cell.text for cell in row] for row in table.iterfind("tbody/tr")]
    assert [row[0] for row in rows] == ["fedavg", "kmeans"]


def test_an_axis_and_a_metric_of_one_name_are_two_columns(results: Results) -> None:
    from dataclasses import replace

    places = [{**place, "rounds": "2"} for place in results._stored.places]
    axes = (*results._stored.axes, "rounds")
    frame = Results(replace(results._stored, axes=axes, places=tuple(places))).trials()
    assert frame.columns.is_unique
    assert (frame["rounds"].tolist(), frame["0_final/rounds"].tolist()) == ([2] * 4, [2.0] * 4)


def test_results_tell_what_they_lack(results: Results) -> None:
    from dataclasses import replace
    from types import SimpleNamespace

    _, _, *rest = results._stored.trials
    tags = SimpleNamespace(tags={}, metrics={}, params={})
    open_, lost = (
        SimpleNamespace(status=status, name=status, run=SimpleNamespace(data=tags), final={},
                        declare=lambda: None)
        for status in ("RUNNING", "FAILED")
    )  # fmt: skip
    partly = replace(results._stored, trials=(open_, lost, *rest), absent=3, searching=True)
    assert repr(Results(partly)).startswith(
        "study: 4 trials, 1 failed, 1 have yet to end, 3 are not in the store; the search did not "
        "end, these are default settings\n"
    )


def test_a_table_of_a_paper_is_chosen(results: Results) -> None:
    table = results.paper(rows=["strategy"], columns=["client_acc", "acc"], caption="Digits.")
    frame = table.frame()
    assert [*frame.index] == ["FedAvg", "K-means"]
    assert frame.shape == (2, 2)
    assert "\\toprule" in table.to("latex")
    assert "Digits." in table.to("md")
    assert "<table" in table._repr_html_()
    with pytest.raises(RunnerError, match=r"unknown .*'strategi'. Did you mean 'strategy'"):
        results.paper(rows=["strategi"])
    with pytest.raises(RunnerError, match=r"unknown key 'row'. Did you mean 'rows'"):
        results.paper(row=["strategy"])


def test_results_are_found_again(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    output = Path(results._stored.trials[0].store.uri.removeprefix("sqlite:///")).parent
    again = fedsweep.load("study", output=str(output))
    pd.testing.assert_frame_equal(again.table(), results.table())
    with pytest.raises(RunnerError, match="there is no sweep 'studi'.*did you mean 'study'"):
        fedsweep.load("studi", output=str(output))

    fedsweep.sweep(
        axes={"strategy": ["fedavg", "kmeans"], "seed": range(2)},
        settings={**SMALL, "strategy.warmup_rounds": 1, "tracking.output": output},
        name="study",
    )
    assert "4 finished, 0 failed; 0 to run" in capsys.readouterr().out


def test_a_trial_that_fails_raises_its_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from flwr.serverapp.strategy import FedAvg\n"
        "class Broken(FedAvg):\n"
        "    def aggregate_train(self, server_round, replies):\n"
        "        raise ValueError('no more')\n"
    )
    settings = SMALL | {"strategy": f"{tmp_path}/broken.py", "tracking.output": tmp_path}
    with pytest.raises(RunnerError, match="no more"):
        fedsweep.run(settings=settings, show="quiet")
    swept = fedsweep.sweep(settings=settings, axes={"seed": [0, 1]}, show="quiet")
    assert len(swept.failures) == 2
    assert all("no more" in reason for reason in swept.failures.values())


FRAME = pd.DataFrame(
    {
        "image": [*np.random.default_rng(0).integers(0, 255, (60, 6, 6)).astype(np.uint8)],
        "label": ["cat", "dog", "emu"] * 20,
    }
)


@pytest.mark.parametrize(
    "given",
    [
        FRAME,
        {"train": FRAME[:50], "test": FRAME[50:]},
        (np.stack([*FRAME["image"]]), np.arange(60) % 3, ["cat", "dog", "emu"]),
    ],
    ids=["a frame", "splits", "arrays"],
)
def test_data_are_kept_by_what_they_hold(given: object, tmp_path: Path) -> None:
    split = {} if isinstance(given, dict) else {"dataset.test_fraction": 0.2}
    settings = {**SMALL, **split, "dataset": given}
    trials = [
        fedsweep.compose(settings={**settings, "tracking.output": tmp_path / name})
        for name in ("a", "a", "b")
    ]
    assert len({*map(tuple, map(keys, trials))}) == 1, "the folder is no part of the key"
    assert len([*(tmp_path / "a" / "own").iterdir()]) == 2, "the file, and what it holds"
    [trial] = trials[0]
    ran = fedsweep.run(settings={**settings, "tracking.output": tmp_path / "a"}, show="quiet")
    assert ran.rounds()["round"].max() == 2
    assert trial.config.dataset.name in ran.command


def test_names_of_classes_hold_for_labels_that_are_their_numbers(tmp_path: Path) -> None:
    images = np.zeros((6, 4, 4), np.uint8)
    data = {"dataset": (images, np.arange(6), ["a", "b", "c"]), "dataset.test_fraction": 0.5}
    with pytest.raises(RunnerError, match="labels of 3 named classes are 0 to 2; there is 3"):
        fedsweep.compose(settings={**data, "tracking.output": tmp_path})


SCRIPT = '''
import json
import math
from dataclasses import dataclass
from typing import Literal

import fedsweep
import numpy as np
from pydantic import Field

from fedsweep.strategies.clients import ClientPart, Update, with_method
from fedsweep.strategies.fedavg import FedAvg
from fedsweep.strategies.settings import FedAvgSettings

BASE = 1
ROOTS = {"two": math.sqrt(2)}
ARRAY = np.ones(3)


def start(word: Literal["x"] = "x") -> int:
    return BASE


class OwnSettings(FedAvgSettings):
    more: int = Field(1, ge=0, le=10, description="passes added")


@dataclass
class Server(FedAvg):
    settings = OwnSettings

    def __init__(self, *, more=1, **fedavg):
        super().__init__(**fedavg)
        self.more = more + start()

    def configure_train(self, server_round, arrays, config, grid):
        config = with_method(config, Clients.method, passes=self.more)
        return super().configure_train(server_round, arrays, config, grid)


class Clients(ClientPart):
    method = "own"

    def fit(self, work):
        trained = work.train(work.sent(), epochs=int(work.config["passes"]))
        return Update(trained.results, trained.models)


def needs_an_array(classes):
    return float(ARRAY.sum())


def plain(classes):
    """how many there are"""
    return float(np.isfinite(classes.counts).mean())


plain.better = "lower"
plain.unit = ""

print(json.dumps("begins"))
settings = json.loads(SETTINGS)
own = {"strategy": Server, "strategy.more": 2, "metrics": [plain]}
ran = fedsweep.run(settings=settings | own, show="quiet")
print(json.dumps([ran.command, ran.rounds("3_clients/plain")["3_clients/plain"].tolist()]))
try:
    fedsweep.compose(settings={"metrics": [needs_an_array]})
except fedsweep.RunnerError as error:
    print(json.dumps(str(error)))
'''


def test_what_a_script_defines_is_taken_from_its_text(tmp_path: Path) -> None:
    settings = json.dumps({**SMALL, "tracking.output": str(tmp_path / "out")})
    script = tmp_path / "study.py"
    script.write_text(SCRIPT.replace("SETTINGS", repr(settings)))
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    begins, ran, refused = map(json.loads, done.stdout.splitlines())
    assert begins == "begins", "the script ran once"
    command, values = ran
    assert f"{tmp_path}/out/own/Server.py:Server" in command
    assert values == [1.0, 1.0]
    assert refused == (
        "needs_an_array needs ARRAY (ndarray), which no file can define; make it inside of "
        "needs_an_array, or put both into a file"
    )
    text = (tmp_path / "out" / "own" / "Server.py").read_text()
    assert "BASE = 1" in text
    plain = (tmp_path / "out" / "own" / "plain.py").read_text()
    assert plain.endswith("plain.better = 'lower'\n\nplain.unit = ''\n")
    assert "class OwnSettings" in text
    assert "class Clients" in text
    assert "ROOTS" not in text
    assert "print" not in text
