"""Parts of one's own: a file, named by where it lies, is all that a run needs."""

import colorsys
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import fedsweep
from fedsweep.catalog import CATALOG
from fedsweep.cli import main
from fedsweep.config import RunConfig, TrackingConfig
from fedsweep.config.trial import PARTS
from fedsweep.data.sources import load_images
from fedsweep.errors import ConfigError, DataError, RunnerError, TrialError
from fedsweep.parts.code import code_of_file, raised_by_own, traceback_of
from fedsweep.records import RoundRecord, TrialResult
from fedsweep.report.report import report
from fedsweep.report.searched import Searched
from fedsweep.scores import SCORES
from fedsweep.strategies import STRATEGIES
from fedsweep.sweeps.compose import compose, expand
from fedsweep.sweeps.prepare import make_split
from fedsweep.tracking.read import read_sweep
from fedsweep.tracking.runs import TrialRun
from fedsweep.trial.checkpoint import CheckpointStore
from fedsweep.trial.trial import run_trial
from tests.trials import events_of, outcome

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["resources.engine=inline", "num_clients=6", "dataset.max_train=100", "rounds=2"]

PAGE = (ROOT / "docs" / "own.md").read_text()
BY_PARITY, DIMMED, NET, MAKE, WEAKEST, DAMPED, LONGER = re.findall(
    r"```python\n(.*?)```", PAGE, flags=re.DOTALL
)
NET = NET.replace("from torch", "from sizes import HIDDEN\nfrom torch").replace("=7", "=HIDDEN")
PARTS_OF_ONE = {
    "partition": ("by_parity", BY_PARITY, "partition.even=2"),
    "shift": ("dimmed", DIMMED, "shift.step=0.25"),
    "model": ("net", NET, "model.kwargs.width=5"),
    "dataset": ("stripes", MAKE, "dataset.max_train=60"),
}


@pytest.fixture(autouse=True)
def own_path(registries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the parts and folders that a test adds go away afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file of each kind, and what one of them imports."""
    for name, text, _ in PARTS_OF_ONE.values():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "sizes.py").write_text("HIDDEN = 7\n")
    sys.modules.pop("sizes", None)
    return tmp_path


def elsewhere(config: RunConfig, sent: Path) -> tuple[str, dict[str, float]]:
    """Return a trial's key and the metrics of its last round, as another process has them."""
    sent.write_bytes(cloudpickle.dumps(config))
    code = (
        "import json, pickle, sys; from pathlib import Path\n"
        "from tests.trials import events_of\n"
        "config = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "print(json.dumps([config.key, events_of(config)[-2].metrics]))\n"
    )
    command = [sys.executable, "-c", code, str(sent)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    key, metrics = json.loads(done.stdout)
    return key, metrics


def learn(config: RunConfig) -> list[dict[str, float]]:
    """Run a trial on its own data; return its rounds' metrics."""
    return outcome(events_of(config, images=load_images(config.dataset, config.data)))[1]


@pytest.mark.parametrize("kind", PARTS_OF_ONE)
def test_a_file_is_all_that_a_trial_needs(folder: Path, kind: str) -> None:
    name, _, setting = PARTS_OF_ONE[kind]
    word = f"{kind}={folder}/{name}.py"
    without = learn(compose(SMALL))
    config = compose([*SMALL, word])
    assert getattr(config, kind).name == name
    learned = learn(config)
    assert learned[-1]["3_clients/train_loss"] != without[-1]["3_clients/train_loss"]

    other = compose([*SMALL, word, setting])
    assert other.key != config.key
    again = learn(other)
    assert again[-1]["3_clients/train_loss"] != learned[-1]["3_clients/train_loss"]


def test_who_has_what_is_what_the_rule_says(folder: Path) -> None:
    config = compose([f"partition={folder}/by_parity.py:ByParity", "partition.even=1"])
    labels = np.arange(40) % 4
    rows = config.partition.rows(labels, 3, seed=1)
    assert {int(label) for label in labels[rows[0]]} == {0, 2}
    assert {int(label) for own in rows[1:] for label in labels[own]} == {1, 3}
    assert sorted(np.concatenate(rows)) == [*range(40)]


@pytest.mark.parametrize("kind", PARTS_OF_ONE)
def test_it_is_an_axis_by_its_name(folder: Path, kind: str) -> None:
    name, _, setting = PARTS_OF_ONE[kind]
    known = {"partition": "iid", "shift": "rotation", "model": "logreg", "dataset": "digits"}[kind]
    words = [f"{kind}={known},{folder}/{name}.py", "strategy=fedavg", "seed=0"]
    fixed = ["partition=iid", "shift=none", "model=logreg", "dataset=digits"]
    words += [word for word in fixed if not word.startswith(kind)]
    if kind in ("partition", "shift"):
        words.append(f"{setting},{setting.rpartition('=')[2]}1")  # of the axis' second value alone
    trials = expand("", words)[1]
    names = [known, name, name] if kind in ("partition", "shift") else [known, name]
    assert [trial.axes[kind] for trial in trials] == names
    assert compose(trials[1].overrides) == trials[1].config
    key, _, value = setting.partition("=")
    if kind in ("partition", "shift"):
        with pytest.raises(ConfigError, match=f"it belongs to {kind}={name}"):
            compose([f"{kind}={known}", f"{key}={value}"])


@pytest.mark.parametrize("kind", [kind for kind in PARTS_OF_ONE if kind != "dataset"])
def test_its_content_is_part_of_the_key(folder: Path, kind: str) -> None:
    name = PARTS_OF_ONE[kind][0]
    file = folder / f"{name}.py"
    before = compose([f"{kind}={file}"])
    assert compose([f"{kind}={file}"]).key == before.key
    assert compose([f"{kind}.name={file}"]).key == before.key

    file.write_text(file.read_text() + "\n# edited\n")
    assert compose([f"{kind}={file}"]).key != before.key
    moved = folder / "elsewhere"
    moved.mkdir()
    for path in folder.glob("*.py"):
        (moved / path.name).write_text(path.read_text())
    edited = compose([f"{kind}={file}"]).key
    sys.modules.pop("sizes", None)
    assert code_of_file(moved / f"{name}.py").digest == code_of_file(file).digest
    for registry in PARTS.values():
        for table in (registry._found, registry._origins):
            assert table is not None
            table.pop(name, None)  # type: ignore[attr-defined]
    assert compose([f"{kind}={moved}/{name}.py"]).key == edited


def test_what_it_imports_from_its_folder_is_part_of_it(folder: Path) -> None:
    words = [*SMALL, f"model={folder}/net.py"]
    before = compose(words)
    seven = outcome(events_of(before))[1][-1]["3_clients/train_loss"]
    (folder / "sizes.py").write_text("HIDDEN = 9  # more\n")
    after = compose(words)
    assert after.key != before.key
    assert outcome(events_of(after))[1][-1]["3_clients/train_loss"] != seven


def test_an_edit_leaves_modules_of_the_same_name_alone(folder: Path) -> None:
    (folder / "colorsys.py").write_text(DIMMED.replace("class Dimmed", "class Tinted"))
    before = colorsys
    for text in ("", "\n# edited\n"):
        (folder / "colorsys.py").write_text((folder / "colorsys.py").read_text() + text)
        assert compose([f"shift={folder}/colorsys.py"]).shift.name == "colorsys"
    assert sys.modules["colorsys"] is before


def test_an_edited_class_is_the_one_that_runs(folder: Path) -> None:
    file = folder / "dimmed.py"
    compose([f"shift={file}"])
    file.write_text(DIMMED.replace("step", "fall"))
    assert compose([f"shift={file}", "shift.fall=0.25"]).shift.fall == 0.25
    with pytest.raises(ConfigError, match="unknown key 'shift.step'"):
        compose([f"shift={file}", "shift.step=0.25"])


def test_that_a_file_was_edited_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "dimmed.py"
    words = f"shift={file}", "seed=0,1", "rounds=1", "num_clients=4", "resources=inline"
    quiet = "tracking.figures=none", "tracking.log_models=false", f"tracking.output={tmp_path}"
    first = fedsweep.sweep(*words, *quiet)
    assert first._stored.edited() == []

    file.write_text(DIMMED.replace("(x *", "(x.astype(float) *"))
    capsys.readouterr()
    second = fedsweep.sweep(*words, *quiet)
    out = capsys.readouterr().out
    told = f"run before with another text of {file}: 2; as it is now these are other trials"
    assert told in out
    assert second._stored.edited() == []
    before = fedsweep.load(first._stored.run_id, output=str(tmp_path))
    told = f"{file} was edited since: 2 of 2 trials ran with another text of it."
    assert before._stored.edited() == [told]
    assert told in str(report(before._stored).files["index.html"])


def test_it_reaches_a_process_that_cant_see_its_folder(folder: Path, tmp_path: Path) -> None:
    words = [f"{kind}={folder}/{name}.py" for kind, (name, _, _) in PARTS_OF_ONE.items()]
    config = compose([*SMALL, *words])
    expected = outcome(events_of(config))[1][-1]["3_clients/train_loss"]
    for name in ("by_parity", "dimmed", "net", "sizes", "stripes"):
        (folder / f"{name}.py").unlink()
    key, metrics = elsewhere(config, tmp_path / "sent")
    assert (key, metrics["3_clients/train_loss"]) == (config.key, expected)
    assert pickle.loads((tmp_path / "sent").read_bytes()).key == config.key


def test_a_class_of_an_importable_module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = folder / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "rules.py").write_text(BY_PARITY.replace("ByParity", "Fair"))
    monkeypatch.syspath_prepend(str(folder))
    config = compose(["partition=mine.rules:Fair", "partition.even=2"])
    assert (config.partition.name, config.partition.even) == ("rules", 2)
    assert config.canonical()["code"].keys() == {"partition"}


@pytest.mark.parametrize(
    ("word", "text", "refusal"),
    [
        ("partition={}", "X = 1\n", "has none, and one partition is wanted: a class derived from"),
        ("partition={}:Fair", "X = 1\n", "Fair is not there; it should be a partition: a class"),
        ("partition={}:X", "X = 1\n", "X is no partition: a class derived from fedsweep.scenario"),
        ("partition={}", "import nunpy\n",
         "own.py:1: ModuleNotFoundError: No module named 'nunpy'"),
        ("partition={}", "def f(:\n", "own.py:1: SyntaxError: invalid syntax"),
        ("model={}", "def net(a):\n    return a\n",
         "has none, and one model is wanted: a torch.nn"),
        ("shift={}x", "", "own.pyx"),
        ("shift={}.py", "", "there is no file"),
        ("strategy={}", LONGER.replace("Field(1,", "Field(99,"),
         "own.py: the default of more is 99: Input should be less than or equal to 10"),
        ("partition=nowhere.at:all", "", "nowhere"),
        ("strategy={}", "def f():\n    1 / 0\nf()\n",
         "own.py:2: ZeroDivisionError: division by zero"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_the_file(
    tmp_path: Path, word: str, text: str, refusal: str
) -> None:
    file = tmp_path / "own.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        compose([word.format(file)])
    assert refusal in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("[[0]] * num_clients", "wrong.py: parts\\(\\) gave an example to several clients"),
        ("[[i] for i in range(num_clients - 1)]", "wrong.py: parts\\(\\) gave 5 for 6 clients"),
        ("[[i] for i in range(num_clients - 1)] + [[10**6]]", "gave places outside of 0 to"),
        ("[[i] for i in range(num_clients - 1)] + [[]]", "can't split"),
        ("None", "gave None; give an array of places for each client"),
        ("[labels % 6 == i for i in range(6)]", r"gave bool of shape \(1437,\) for a client; give"),
        ("[[i + 0.5] for i in range(6)]", "gave float64 of shape"),
        ("labels['x']", r"wrong.py:\d+: IndexError: "),
    ],
)
def test_what_is_no_partition_is_refused(tmp_path: Path, given: str, why: str) -> None:
    file = tmp_path / "wrong.py"
    text = BY_PARITY.partition("        if")[0] + f"        return {given}\n"
    file.write_text(text)
    with pytest.raises(DataError, match=why):
        events_of(compose([*SMALL, f"partition={file}"]))


def test_a_file_that_is_not_there_is_said_with_the_nearest(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*/dimed.py. Did you mean dimmed.py"):
        compose([f"shift={folder}/dimed.py"])


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    for place, text in (("a", DIMMED), ("b", DIMMED + "\n# another\n")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "dimmed.py").write_text(text)
    (tmp_path / "rotation.py").write_text(DIMMED)
    compose([f"shift={tmp_path}/a/dimmed.py"])
    with pytest.raises(ConfigError, match="there is a shift 'dimmed' of .*a/dimmed.py already"):
        compose([f"shift={tmp_path}/b/dimmed.py"])
    with pytest.raises(ConfigError, match="there is a shift 'rotation' already; rename yours"):
        compose([f"shift={tmp_path}/rotation.py"])


NEEDY = """

class Needy(FedAvg):
    def __init__(self, model, **rest):
        super().__init__(**rest)
"""


def test_an_unmodified_flower_strategy_has_its_keywords_as_settings(tmp_path: Path) -> None:
    file = tmp_path / "plain.py"
    file.write_text(DAMPED.replace("**rest", "log_every=10, **rest", 1) + NEEDY)
    config = compose([*SMALL, f"strategy={file}:Damped", "strategy.damping=0"])
    assert (config.strategy.name, config.strategy.log_every) == ("Damped", 10)
    plain = compose([*SMALL, "strategy=fedavg"])
    losses = [
        outcome(events_of(trial))[1][-1]["3_clients/train_loss"]
        for trial in (config, plain, compose([*SMALL, f"strategy={file}:Damped"]))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[2] > losses[1]
    with pytest.raises(ConfigError, match="unknown key 'strategy.dampin'. Did you mean"):
        compose([f"strategy={file}:Damped", "strategy.dampin=1"])
    with pytest.raises(ConfigError, match="Needy needs model, and no setting can give it"):
        compose([f"strategy={file}:Needy"])


def test_an_unmodified_strategy_goes_on_with_what_it_first_set_in_a_round(tmp_path: Path) -> None:
    """It stays near the model of its first round, which a checkpoint has to have."""
    anchored = DAMPED.replace("self.old = arrays", 'self.old = getattr(self, "old", arrays)')
    assert anchored != DAMPED
    (tmp_path / "anchored.py").write_text(anchored)
    word = f"strategy={tmp_path / 'anchored.py'}"
    config = compose([*SMALL, word, "checkpoint.every=1", "rounds=3"])
    images = load_images(config.dataset, config.data)

    def events() -> Generator[Any, None, None]:
        store = CheckpointStore(str(tmp_path), config.key)
        return run_trial(config, images, make_split(images, config), checkpoints=store)

    for event in events():
        if isinstance(event, RoundRecord) and event.round == 2:
            break
    started, *rest = events()
    assert started.first_round == 3
    assert outcome([started, *rest]) == outcome(events_of(config, images=images))


def test_what_no_checkpoint_holds_of_a_strategy_is_said_once(tmp_path: Path) -> None:
    """Sets and dicts with numbers as keys change in rounds; a constant one is no state."""
    counting = DAMPED.replace(
        "self.old = arrays",
        "self.old = arrays; self.fixed = {1, 2}; self.seen[server_round] = {server_round}",
    ).replace("super().__init__(**rest)", "super().__init__(**rest); self.seen = {}; self.of = {3}")
    assert counting.count("self.seen") == 2
    (tmp_path / "counting.py").write_text(counting)
    *rounds, _ = events_of(compose([*SMALL, f"strategy={tmp_path}/counting.py", "rounds=3"]))
    told = [event for record in rounds[1:] for event in record.events if "plain data" in event]
    assert [event.partition("changed its ")[2].partition(",")[0] for event in told] == [
        "seen", "fixed",
    ]  # fmt: skip
    assert not any("of," in event for event in told)


def test_a_key_that_a_constructor_does_not_take_is_refused(tmp_path: Path) -> None:
    text = DAMPED.replace(", **rest):", "):").replace(
        "super().__init__(**rest)", "super().__init__()"
    )
    (tmp_path / "damped.py").write_text(text)
    word = f"strategy={tmp_path}/damped.py:Damped"
    with pytest.raises(
        ConfigError, match="no effect with strategy=damped, whose constructor has no"
    ):
        compose([word, "strategy.fraction_train=0.5"])
    assert outcome(events_of(compose([*SMALL, word])))[1]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("return {'train': (x[:80], y[:80]), 'test': (x[80:], y[80:])}", []),
        ("return (x[:80], y[:80]), (x[80:], y[80:])", []),
        ("return x, y", ["dataset.test_fraction=0.2"]),
        ("return {'a': (x[:80], y[:80]), 'b': (x[80:], y[80:])}",
         ["dataset.train_split=a", "dataset.test_split=b"]),
        ("return x[..., None].repeat(3, -1), y", ["dataset.test_fraction=0.2"]),
        ("import pandas as pd; return pd.DataFrame({'image': list(x), 'label': y})",
         ["dataset.test_fraction=0.2"]),
        ("import datasets, PIL.Image as p; i = [p.fromarray(a) for a in x]\n"
         "    d = datasets.Dataset.from_dict({'pic': i, 'label': y})\n"
         "    return datasets.DatasetDict(d.train_test_split(20, shuffle=False))",
         ["dataset.image=pic"]),
        ("import torch; return torch.tensor(x), torch.tensor(y)", ["dataset.test_fraction=0.2"]),
    ],
)  # fmt: skip
def test_what_a_function_may_return(tmp_path: Path, body: str, named: list[str]) -> None:
    file = tmp_path / "made.py"
    head = "import numpy as np\n\n\ndef made():\n    y = np.arange(100) % 4\n"
    head += "    x = np.zeros((100, 6, 5), np.uint8)\n    x[np.arange(100), y] = 200\n"
    file.write_text(f"{head}    {body}\n")
    config = compose([f"dataset={file}", *named])
    assert config.dataset.content
    images = load_images(config.dataset, config.data)
    assert images.class_names == ("0", "1", "2", "3")
    assert (len(images.train_y), len(images.test_y)) == (80, 20)
    assert images.shape == (3 if "repeat" in body else 1, 6, 5)
    for x, y in ((images.train_x, images.train_y), (images.test_x, images.test_y)):
        assert (x.max((1, 3)).argmax(1) == y).all()
    assert compose([f"dataset={file}", *named]).key == config.key
    file.write_text(file.read_text().replace("200", "100"))
    assert compose([f"dataset={file}", *named]).key != config.key


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        ("return 1 / 0", "made.py:made raises ZeroDivisionError: division by zero"),
        ("return 3", "returns a int; return {'train': split, 'test': split}"),
        ("return x, y", "returns one split; set dataset.test_fraction=0.2"),
        ("return x / 255, y", "pixels are float64; give images as uint8"),
        ("return x[0], y", "images have the shape"),
        ("return {'train': (x, y[:5]), 'test': (x, y)}", "10 images and labels of shape (5,)"),
        ("return {'train': (x, y / 2), 'test': (x, y)}", "labels are float64"),
        ("return {'train': (x, [*'ab' * 4, 'a', None])}", "the label of image 9 is missing"),
        ("return {'train': (x, [*'ab' * 4, np.nan, 'a'])}", "the label of image 8 is missing"),
        ("return {'train': (x, [*'ab' * 4, 1, 2])}", "labels are texts and numbers"),
        ("return {'fit': (x, y), 'test': (x, y)}", "returns the splits fit, test, and 'train'"),
        ("return {'train': (x, y), 'test': (x[:, 1:], y)}", "10 x 6 x 5"),
        ("import pandas as pd; return pd.DataFrame({'image': list(x), 'target': y})",
         "has the columns image, target, and no 'label'; set dataset.label"),
        ("import os; r = int.from_bytes(os.urandom(4), 'big'); x[0, 0, 0] = r % 251\n"
         "    x[1, 0, 0] = r // 251 % 251; return (x, y), (x, y)", "let it give the same"),
    ],
)  # fmt: skip
def test_what_is_no_data_set_is_refused_in_one_line(
    tmp_path: Path, body: str, refusal: str
) -> None:
    file = tmp_path / "made.py"
    head = "import numpy as np\n\n\ndef made():\n    y = np.arange(10) % 4\n"
    head += "    x = np.zeros((10, 6, 5), np.uint8)\n"
    file.write_text(f"{head}    {body}\n")
    if "10 x 6" in refusal:
        refusal = "images to train and to test on differ: 6 x 5 greyscale and 5 x 5 greyscale"

    def made_twice() -> None:
        config = compose([f"dataset={file}", f"data.cache={tmp_path}/cache"])
        shutil.rmtree(tmp_path / "cache")
        load_images(config.dataset, config.data)

    with pytest.raises(RunnerError) as refused:
        made_twice()
    assert refusal in str(refused.value)


def test_a_data_set_of_ones_own_does_not_hide_another(tmp_path: Path) -> None:
    (tmp_path / "mnist.py").write_text(MAKE.replace("def stripes", "def mnist"))
    with pytest.raises(ConfigError, match="there is a dataset 'mnist' already; rename yours"):
        compose([f"dataset={tmp_path}/mnist.py"])
    with pytest.raises(ConfigError, match="unknown dataset 'mnits'. Did you mean 'mnist'"):
        compose(["dataset=mnits"])


@pytest.fixture
def weakest(tmp_path: Path) -> str:
    """The page's metric."""
    (tmp_path / "weakest.py").write_text(WEAKEST)
    return f"{tmp_path}/weakest.py"


def test_a_metric_of_ones_own_is_logged_watched_and_part_of_the_key(weakest: str) -> None:
    plain = compose([*SMALL, "metrics=macro_f1"])
    config = compose([*SMALL, f"metrics=[{weakest},macro_f1]", "stop.metric=3_clients/weakest",
                      "stop.target=0.99"])  # fmt: skip
    assert config.metrics == ("macro_f1", "weakest")
    assert config.key != plain.key
    *_, last, result = events_of(config)
    keys = [key for key in last.metrics if "weakest" in key]
    assert sorted(keys) == ["1_global/weakest", "3_clients/test_weakest", "3_clients/weakest"]
    assert 0 <= last.metrics["1_global/weakest"] <= last.metrics["1_global/acc"]
    assert result.summary["client_weakest"] == last.metrics["3_clients/weakest"]
    assert CATALOG["1_global/weakest"].heading == "global recall of the weakest class (%)"
    Path(weakest).write_text(WEAKEST.replace(".min()", ".max()"))
    edited = compose([*SMALL, f"metrics=[{weakest},macro_f1]"])
    assert edited.canonical()["code"] != config.canonical()["code"]
    assert events_of(edited)[-2].metrics["1_global/weakest"] > last.metrics["1_global/weakest"]


def test_a_metric_reaches_the_trials_process(weakest: str, tmp_path: Path) -> None:
    config = compose([*SMALL, f"metrics={weakest}"])
    expected = events_of(config)[-2].metrics["3_clients/weakest"]
    Path(weakest).unlink()
    key, metrics = elsewhere(config, tmp_path / "sent")
    assert (key, metrics["3_clients/weakest"]) == (config.key, expected)


def test_who_reads_a_store_knows_the_metric_without_its_code(weakest: str) -> None:
    told = SCORES.declared(compose([f"metrics={weakest}"]).metrics)
    for key in [metric.key for metric in CATALOG if metric.on_request == "weakest"]:
        CATALOG.remove(key)
    SCORES.declare(told)
    SCORES.declare(told)
    assert CATALOG["3_clients/weakest"].heading == "client recall of the weakest class (%)"
    assert CATALOG["3_clients/weakest"].of is None
    for wrong in (
        '{"acc": {"title": "x", "unit": "%", "better": "higher"}}',
        "[1]",
        "{",
        '{"a": 1}',
    ):
        with pytest.raises((ConfigError, ValueError, KeyError, TypeError, AttributeError)):
            SCORES.declare(wrong)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("def f(a, b):\n    return 1\n", "has none, and one metric is wanted: a function of"),
        ("def acc(c):\n    return 1\n", "'3_clients/acc' is declared already"),
        ("def f(c):\n    return 1\nf.better = 'up'\n", "own.better='up'; give higher, lower"),
    ],
)
def test_what_is_no_metric_is_refused(weakest: str, text: str, refusal: str) -> None:
    file = Path(weakest).with_name("acc.py" if "acc" in text else "own.py")
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        compose([f"metrics={file}"])
    assert refusal in str(refused.value)
    with pytest.raises(ConfigError, match="unknown metric 'macro_f2'. Did you mean 'macro_f1'"):
        compose(["metrics=macro_f2"])


@pytest.mark.parametrize(
    ("view", "refusal"),
    [
        ("x[:1]", r"view\(\) gave uint8 of shape \(1, 1, 8, 8\) for uint8 of shape \(2, 1, 8, 8\)"),
        ("x.rotate(90)", r"odd.py:\d+: AttributeError: 'numpy.ndarray' object has no attribute"),
        ("x * self.step", r"view\(\) gave float64 of shape \(2, 1, 8, 8\)"),
    ],
)
def test_a_shift_that_shows_something_else_is_refused(
    tmp_path: Path, view: str, refusal: str
) -> None:
    (tmp_path / "odd.py").write_text(DIMMED.replace("(x * self.step**group).astype(x.dtype)", view))
    with pytest.raises(RunnerError, match=refusal):
        events_of(compose([*SMALL, f"shift={tmp_path}/odd.py"]))


RAISES = """
from fedsweep.strategies.clients import ClientPart, with_method
from fedsweep.strategies.fedavg import FedAvg


class Raises(FedAvg):
    settings = FedAvg.settings

    def configure_train(self, server_round, arrays, config, grid):
        config = with_method(config, RaisesClients.method)
        return super().configure_train(server_round, arrays, config, grid)


class RaisesClients(ClientPart):
    method = "raises"

    def fit(self, work):
        return 1 / 0
"""


def test_what_fails_at_run_time_says_where(tmp_path: Path) -> None:
    file = tmp_path / "raises.py"
    file.write_text(RAISES)
    line = RAISES.splitlines().index("        return 1 / 0") + 1
    with pytest.raises(RunnerError, match=rf"first error: {file}:{line}: ZeroDivisionError"):
        events_of(compose([*SMALL, f"strategy={file}"]))


def test_a_method_may_share_the_settings_of_one_that_is_there(tmp_path: Path) -> None:
    """Both reach other processes, and so does another of one's own beside them."""
    for name in ("shares", "others"):
        (tmp_path / f"{name}.py").write_text(
            RAISES.replace('method = "raises"', f'method = "{name}"')
        )
    words = ["strategy=fedavg", *(f"strategy={tmp_path}/{n}.py" for n in ("shares", "others"))]
    configs = [compose([word]) for word in words]
    assert [type(config.strategy) for config in configs] == [type(configs[0].strategy)] * 3
    for config in configs:
        again = cloudpickle.loads(cloudpickle.dumps(config))
        assert (again, again.key) == (config, config.key)


def test_the_pages_method_with_clients_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "longer.py"
    file.write_text(LONGER)
    losses = [
        outcome(events_of(compose([*SMALL, f"strategy={file}", f"strategy.more={more}"])))[1]
        for more in (0, 3)
    ]
    plain = outcome(events_of(compose([*SMALL, "strategy=fedavg"])))[1]
    assert losses[0][-1]["3_clients/train_loss"] == plain[-1]["3_clients/train_loss"]
    assert losses[1][-1]["3_clients/train_loss"] < plain[-1]["3_clients/train_loss"]
    with pytest.raises(ConfigError, match="more=11: it has to be a whole number from 0 to 10"):
        compose([f"strategy={file}", "strategy.more=11"])


COMMANDS = re.findall(r"^    (fedsweep sweep .*|fedsweep run .*)$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize("line", [line for line in COMMANDS if "my_package" not in line])
def test_the_pages_commands_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, weakest: str, line: str
) -> None:
    (folder / "damped.py").write_text(DAMPED)
    monkeypatch.chdir(folder)
    _, command, *words = shlex.split(line.partition(" --name")[0])
    if command == "run":
        assert compose(words)
    else:
        named = "" if "=" in words[0] else words.pop(0)
        assert expand(named, words)[1]


def test_a_wrong_return_of_a_client_part_names_its_file(folder: Path) -> None:
    file = folder / "longer.py"
    text = LONGER.replace("return Update(trained.results, trained.models)", "return trained.models")
    file.write_text(text)
    with pytest.raises(TrialError, match=rf"{file}:\d+: LongerClients.fit returns \w+; return an"):
        events_of(compose([*SMALL, f"strategy={file}:Longer"]))
    file.write_text(LONGER.replace("trained.results, trained.models", "trained.results, []"))
    with pytest.raises(TrialError, match=rf"{file}:\d+: .* an Update whose models are a list"):
        events_of(compose([*SMALL, f"strategy={file}:Longer"]))


GIVES = """
import numpy as np
from fedsweep.scenario.attack import Attacker
from fedsweep.scenario.compression import Compressor
from fedsweep.scenario.defence import Defender
from fedsweep.scenario.device import DrawnDevices
from flwr.serverapp.strategy import FedAvg


class Nothing(FedAvg):
    def aggregate_train(self, server_round, replies):
        super().aggregate_train(server_round, replies)


class Late(Attacker):
    def forge(self, honest_HP, own_BP, seed):
        return own_BP[0]


class One(Defender):
    def defend(self, updates_CP):
        return updates_CP.mean(axis=0)


class First(Compressor):
    def encode(self, update_P, seed):
        return {"first": update_P[:1]}

    def decode(self, parts, size, seed):
        return parts["first"]


class None_(DrawnDevices):
    def table(self, num_clients, seed):
        pass


def counts(classes):
    return classes.counts[0]


def forgotten(classes):
    classes.counts
"""


@pytest.mark.parametrize(
    ("word", "refusal"),
    [
        ("strategy={}:Nothing", "Nothing.aggregate_train returns NoneType; return the arrays and"),
        ("attack={}:Late", r"Late.forge gave \(650,\) for updates \(1, 650\)"),
        ("defence={}:One", r"One.defend gave \(650,\) for updates \(6, 650\)"),
        ("compression={}:First", r"First.decode gave \(1,\) for an update of 650 numbers"),
        ("devices={}:None_", "None_.table returns NoneType; return a DeviceTable"),
        ("metrics=[{}:counts]", "counts returns ndarray; return a number"),
        ("metrics=[{}:forgotten]", "forgotten returns NoneType; return a number"),
    ],
)
def test_what_own_code_should_not_give_names_its_place_and_is_not_tried_again(
    weakest: str, word: str, refusal: str
) -> None:
    file = Path(weakest).with_name("gives.py")
    file.write_text(GIVES)
    with pytest.raises(Exception, match=rf"/gives.py:\d+: {refusal}") as failed:
        events_of(compose([*SMALL, "model=logreg", word.format(file)]))
    assert raised_by_own(traceback_of(failed.value))


def test_a_trial_that_own_code_ended_is_not_tried_again(
    weakest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(weakest).with_name("gives.py")
    file.write_text(GIVES)
    words = [f"strategy={file}:Nothing", f"tracking.output={tmp_path}/out", "model=logreg"]
    assert main(["run", *SMALL, *words, "tracking.figures=none"]) == 1
    out, err = capsys.readouterr()
    assert "goes on (retry" not in out
    assert "/gives.py:11: Nothing.aggregate_train returns NoneType" in err


def test_a_trial_that_the_code_around_ended_is(folder: Path) -> None:
    told = f'  File "{folder}/dimmed.py", line 3, in view\n  File "numpy.py", line 1, in sum\n'
    assert not raised_by_own(f"{told}ValueError: at {folder}/dimmed.py:3: no")


def test_an_unknown_key_lists_those_of_its_method_alone() -> None:
    with pytest.raises(ConfigError) as refused:
        compose(["strategy=kmeans", "strategy.num_clustrs=3"])
    told = str(refused.value)
    assert "Did you mean 'strategy.num_clusters'?" in told
    assert "strategy.warmup_rounds" in told
    assert "strategy.proximal_mu" not in told
    with pytest.raises(
        ConfigError, match=r"strategy.proximal_mu does not apply to strategy=kmeans"
    ):
        compose(["strategy=kmeans", "strategy.proximal_mu=3"])


@pytest.mark.parametrize("key", ["damping", "ditto_lambda"])
def test_an_unknown_key_of_a_sweep_lists_those_of_ones_own_method_too(
    tmp_path: Path, key: str
) -> None:
    """Whether the method that has it comes first or last."""
    (tmp_path / "damped.py").write_text(DAMPED)
    for methods in ("fedavg,ditto,{}", "{},ditto,fedavg"):
        words = [f"strategy={methods.format(tmp_path / 'damped.py')}", f"strategy.{key}_=0.1,1"]
        with pytest.raises(ConfigError) as refused:
            expand("", words)
        hint, _, valid = str(refused.value).partition("? Valid: ")
        assert hint == f"unknown key 'strategy.{key}_'. Did you mean 'strategy.{key}'"
        assert {"strategy.damping", "strategy.ditto_lambda"} < {*valid.rstrip(".").split(", ")}


def test_a_search_over_a_method_of_ones_own_goes_on_to_the_same_winner(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver ends at the fourth trial; what goes on has not read the file before."""
    file = tmp_path / "damped.py"
    file.write_text(DAMPED)
    read = {table: dict(getattr(STRATEGIES, table)) for table in ("_found", "_origins", "_names")}
    finish, left = TrialRun.finish, [3]

    def dying(self: TrialRun, result: TrialResult) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        finish(self, result)

    def search(out: Path) -> int:
        for table, there in read.items():
            monkeypatch.setattr(STRATEGIES, table, dict(there))
        return main([
            "sweep", f"strategy={file}", "seed=0", "num_clients=2", "rounds=2", "model=logreg",
            "resources.engine=inline", "tracking.log_models=false", "tracking.figures=none",
            "search.space.strategy.damping=0,0.5,0.98", "search.budget=24", "search.generation=3",
            "search.min_rounds=1", "--name", "hunt", f"tracking.output={out}",
        ])  # fmt: skip

    def searched(out: Path) -> Searched:
        return Searched.from_json(read_sweep(TrackingConfig(output=str(out)), "hunt").searched)

    outs = [tmp_path / "whole", tmp_path / "interrupted"]
    for out in outs:
        out.mkdir()
        shutil.copy(template, out / "mlflow.db")
    assert search(outs[0]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(TrialRun, "finish", dying)
        assert search(outs[1]) == 130
    assert search(outs[1]) == 0
    whole, resumed = map(searched, outs)
    assert whole == resumed
    [tuning] = whole.tunings
    assert tuning.winner is not None
    assert tuning.tried[tuning.winner].values == {"strategy.damping": 0}  # FedAvg, after 2 rounds


def test_names_of_flowers_records_are_no_settings() -> None:
    config = compose(["strategy=flwr.serverapp.strategy:FedMedian"])
    assert not [key for key in config.strategy.model_dump() if key.endswith("_key")]
