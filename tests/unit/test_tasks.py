"""Tasks beyond images: what is read, how it is scaled, trained and scored, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import mean_absolute_error, r2_score
from torch.nn import functional as F

from fedsweep.catalog import CATALOG, RealSums
from fedsweep.config import RunConfig
from fedsweep.data.federated import FederatedData
from fedsweep.data.sources import ImageData, load_images
from fedsweep.errors import ConfigError, DataError
from fedsweep.figures.examples import SHOWN
from fedsweep.models import build_model
from fedsweep.records import TrialResult
from fedsweep.scenario.task import coded, strata_edges, strata_names
from fedsweep.scenario.tasks import TASKS
from fedsweep.scenario.tasks.images import Images
from fedsweep.sweeps.compose import SweepFile, compose, expand_grids, options
from fedsweep.training.batched import Program
from fedsweep.training.local import LocalTraining, train
from fedsweep.training.pool import ExamplePool, Examples
from fedsweep.training.targets import (
    hits_at,
    in_unit,
    loss_of,
    losses_at,
    real_sums,
    slopes_of,
)
from fedsweep.training.vectorized import train_many
from tests.trials import events_of, outcome

FEW = ["rounds=2", "num_clients=4"]
WORDS = {
    "classes of a table": ["dataset=breast_cancer"],
    "a number of a table": ["dataset=diabetes"],
    "natural clients": ["dataset=synthetic", "partition=natural", "num_clients=30"],
}


def data_of(config: RunConfig) -> ImageData:
    return load_images(config.dataset, config.data, config.natural_column)


def run(*words: str) -> list[Any]:
    config = compose([*FEW, *words])
    return events_of(config, images=data_of(config))


def table(folder: Path, name: str, **columns: Any) -> str:
    path = folder / name
    frame = pd.DataFrame(columns)
    frame.to_csv(path, index=False) if name.endswith("csv") else frame.to_parquet(path)
    return str(path)


# What a task is


def test_images_are_the_task_that_is_meant_and_that_no_key_names() -> None:
    """Trials of images are known under the keys that they had before there were tasks."""
    config = compose([])
    assert isinstance(config.dataset, Images)
    assert "task" not in config.canonical()["dataset"]
    assert compose(["dataset.task=images"]).key == config.key
    assert config.key == "6bbb43491250"


@pytest.mark.parametrize("task", TASKS)
def test_every_task_says_its_settings_in_the_resolved_configuration(task: str) -> None:
    words = [] if task == "images" else [f"dataset={task}"]
    assert words == [] or task in options("dataset")
    settings = TASKS.settings(task)
    assert settings.model_fields["task"].description
    made = settings.model_validate({"task": task})
    assert TASKS.settings_from(made.model_dump()) == made


def test_settings_of_another_task_are_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match="dataset.alpha does not apply to dataset.task=images; it"
    ):
        compose(["dataset.alpha=1"])
    with pytest.raises(ConfigError, match=r"unknown task 'tabula'. Did you mean 'tabular'"):
        compose(["dataset.task=tabula"])
    with pytest.raises(ConfigError, match="data of your own come in by dataset=FILE.py"):
        compose(["dataset.task=./mine.py"])


def test_a_grid_over_tasks_leaves_out_what_does_not_apply() -> None:
    words = ["dataset=digits,breast_cancer,synthetic", "dataset.beta=0.5", "strategy=fedavg"]
    betas = [
        getattr(trial.config.dataset, "beta", None) for trial in expand_grids([SweepFile()], words)
    ]
    assert betas == [None, None, 0.5]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["dataset=wine", "shift=rotation"], "shift=rotation changes pixels, and dataset.task=tab"),
        (["dataset=diabetes", "shift=label_groups"], "shift=label_groups changes classes"),
        (["dataset=wine", "training.augment=flip"], "training.augment=flip mirrors images"),
        (["dataset=diabetes", "metrics=[macro_f1]"], "metrics=macro_f1 count classes"),
        (["dataset=diabetes", "stop.target=0.5"], "a real number has no accuracy"),
        (["dataset=wine", "stop.metric=3_clients/r2", "stop.target=1"], "is none of dataset.task="),
        (["dataset=diabetes", "devices=tiers", "schedule=tifl", "rounds=30"],
         "schedule=tifl goes by accuracies, .*; set schedule.interval=0"),
        (["dataset=wine", "attack=backdoor"], "attack=backdoor changes pixels, and dataset.task="),
        (["dataset=diabetes", "attack=label_flip"], "attack=label_flip changes classes"),
        (["dataset=diabetes", "shift=label_noise"], "shift=label_noise changes classes"),
        (["dataset=wine", "partition=natural"], "does not say it itself; set partition.column"),
        (["dataset=synthetic", "partition=natural", "shift=label_groups"], "set one of them"),
        (["dataset=synthetic", "partition=natural", "dataset.groups=2", "shift=label_permutation"],
         "the known groups would be of two kinds"),
        (["dataset=tabular", "dataset.categorical=[a]", "dataset.ignore=[a]"], "is in dataset.ign"),
    ],
)  # fmt: skip
def test_what_a_task_is_not_made_for_is_refused(words: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        compose([*words, "num_clients=30"])


# Targets


def test_squared_errors_have_the_slopes_and_sums_of_torch() -> None:
    """Loss, gradient and losses of numbers as torch's autograd has them."""
    torch.manual_seed(0)
    outputs, y = torch.randn(2, 5, 1, requires_grad=True), torch.randn(2, 5)
    weights = torch.rand(2, 5)
    ((outputs[..., 0] - y) ** 2 * weights).sum().backward()
    assert torch.allclose(slopes_of(outputs.detach(), y, weights), outputs.grad)
    assert torch.allclose(losses_at(outputs.detach(), y), (outputs[..., 0] - y) ** 2)
    assert loss_of(outputs[0], y[0]) == F.mse_loss(outputs[0, :, 0], y[0])
    assert not hits_at(outputs[0], y[0]).any()


def test_slopes_of_classes_are_those_of_the_cross_entropy() -> None:
    torch.manual_seed(0)
    outputs, y = torch.randn(6, 3, requires_grad=True), torch.tensor([0, 1, 2, 2, 1, 0])
    weights = torch.rand(6)
    (F.cross_entropy(outputs, y, reduction="none") * weights).sum().backward()
    assert torch.allclose(slopes_of(outputs.detach(), y, weights), outputs.grad, atol=1e-7)


def test_errors_add_up_to_those_of_scikit_learn() -> None:
    """Sums of two clients, in the unit of the data, give R2 and MAE of all examples together."""
    rng = np.random.default_rng(0)
    true, predicted = rng.normal(100, 20, 50), rng.normal(100, 20, 50)
    mean, unit = true.mean(), true.std()
    scaled = [torch.tensor((values - mean) / unit) for values in (true, predicted)]
    parts = [
        in_unit(real_sums(scaled[1][part].unsqueeze(1), scaled[0][part]), float(unit))
        for part in (slice(0, 20), slice(20, 50))
    ]
    sums = RealSums(parts[0] + parts[1])
    assert sums.r2() == pytest.approx(r2_score(true, predicted))
    assert sums.mae() == pytest.approx(mean_absolute_error(true, predicted))
    assert np.isnan(RealSums(np.zeros(5)).r2())
    assert np.isnan(RealSums(np.array([3, 1, 1, 6, 12.0])).r2())  # 2, 2, 2: constant


@pytest.mark.parametrize("model", ["logreg", "mlp"])
@pytest.mark.parametrize("settings", [{}, {"proximal_mu": 0.5}, {"batch_size": 0, "epochs": 6}])
def test_numbers_are_trained_batched_as_one_by_one(model: str, settings: dict[str, Any]) -> None:
    """Three clients of different sizes; the full batch takes the first layer's dual form."""
    torch.manual_seed(0)
    x, y = torch.randn(60, 30), torch.randn(60)
    places, seeds = [(0, 25), (25, 10), (35, 25)], [1, 2, 3]
    hp = LocalTraining(lr=0.05, batch_size=8, epochs=2)
    hp = LocalTraining(**{**vars(hp), **settings})
    network = build_model(model, (30,), 1)
    program = Program(network, (30,))
    start = torch.cat([p.detach().flatten() for p in network.parameters()])
    rows, results = train_many(program, start, Examples(x, y), places, hp, seeds)
    rows = [row.clone() for row in rows]
    for (first, count), seed, row, result in zip(places, seeds, rows, results, strict=True):
        own = build_model(model, (30,), 1)
        own.load_state_dict(network.state_dict())
        part = slice(first, first + count)
        expected = train(own, x[part], y[part], hp, seed)
        flat = torch.cat([p.detach().flatten() for p in own.parameters()])
        assert torch.allclose(row, flat, atol=1e-5)
        assert result["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert np.isnan(result["accuracy"])
        assert np.isnan(expected["accuracy"])


def test_a_pool_keeps_floats_and_symbols_as_they_are() -> None:
    pool = ExamplePool((), (), torch.device("cpu"))
    x, y = pool.examples(
        "a", lambda: (np.array([[0.5, -2]], np.float32), np.array([1.5], np.float32))
    )
    assert (x.tolist(), y.tolist(), y.dtype) == ([[0.5, -2.0]], [1.5], torch.float32)
    symbols = ExamplePool((), (), torch.device("cpu"))
    x, _ = symbols.examples("a", lambda: (np.array([[3, 300]], np.int32), np.array([1])))
    assert (x.tolist(), x.dtype) == ([[3, 300]], torch.int64)


# Tables


def test_columns_become_features_by_hand(tmp_path: Path) -> None:
    """Numbers as they are, texts one by one, a missing number as the training clients' mean."""
    path = table(
        tmp_path, "t.csv", size=[1.0, 2.0, None, 5.0] * 5, hue=["red", "blue", "red", "blue"] * 5,
        code=[10, 2, 10, 2] * 5, label=["yes", "no", "yes", "no"] * 5,
    )  # fmt: skip
    words = ["dataset=tabular", f"dataset.path={path}", "dataset.categorical=[code]"]
    config = compose([*words, "num_clients=2", "partition.eval_fraction=0"])
    data = data_of(config)
    assert data.names == ("size", "hue=blue", "hue=red", "code=2", "code=10")
    assert data.class_names == ("no", "yes")
    assert data.scaled == (True, False, False, False, False)
    red = data.train_y == 1
    assert (data.train_x[red, 1:] == [0, 1, 0, 1]).all()
    assert (data.train_x[~red, 1:] == [1, 0, 1, 0]).all()
    assert "5 missing in size: taken as its mean" in data.told
    assert len(data.test_y) == 4  # a fifth of each class
    assert np.bincount(data.test_y).tolist() == [2, 2]

    split = FederatedData.build(data, config)
    everybody = np.concatenate([split.client(client, "train")[0] for client in range(2)])
    known = ~np.isnan(np.concatenate([data.train_x[rows, 0] for rows in split.train_rows]))
    assert everybody[known, 0].mean() == pytest.approx(0, abs=1e-6)
    assert everybody[known, 0].std() == pytest.approx(1, abs=1e-6)
    assert (everybody[~known, 0] == 0).all()


def test_scaling_sees_training_rows_of_clients_alone(tmp_path: Path) -> None:
    """Changing a row that a client holds out, or one to test on, changes nobody's scaling."""
    config = compose(["dataset=diabetes", "num_clients=3"])
    data = data_of(config)
    split = FederatedData.build(data, config)
    held, tested = data.train_x.copy(), data.test_x.copy()
    held[np.concatenate(split.eval_rows)] = 1e6
    tested[:] = 1e6
    other = FederatedData.build(
        ImageData(**{**vars(data), "train_x": held, "test_x": tested}), config
    )
    assert (split.scaling.mean == other.scaling.mean).all()
    trained = np.concatenate(split.train_rows)
    assert split.scaling.mean == pytest.approx(data.train_x[trained].mean(0), rel=1e-5)
    assert split.scaling.std == pytest.approx(data.train_x[trained].std(0), rel=1e-4)
    assert split.scaling.target_mean == pytest.approx(data.train_y[trained].mean())
    assert split.scaling.target_std == pytest.approx(data.train_y[trained].std())


def test_newcomers_are_in_no_sum() -> None:
    words = ["dataset=diabetes", "num_clients=4", "shift=label_permutation", "shift.newcomers=0.5"]
    config = compose([word.replace("diabetes", "wine") for word in words] + ["shift.groups=2"])
    data = data_of(config)
    split = FederatedData.build(data, config)
    there = np.concatenate(split.train_rows[:2])
    assert split.scaling.mean == pytest.approx(data.train_x[there].mean(0), rel=1e-5)


@pytest.mark.parametrize("name", ["csv", "parquet"])
def test_splits_of_a_folder_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    table(tmp_path, f"train.{name}", a=[1.0, 2, 3], label=[0, 1, 0])
    table(tmp_path, f"test.{name}", a=[9.0], label=[1])
    data = data_of(compose(["dataset=tabular", f"dataset.path={tmp_path}"]))
    assert data.train_x[:, 0].tolist() == [1, 2, 3]
    assert (data.test_x.tolist(), data.test_y.tolist()) == ([[9.0]], [1])


TABLE: dict[str, Any] = {"a": [1.0, 2.0], "label": ["x", "y"]}


@pytest.mark.parametrize(
    ("columns", "more", "why"),
    [
        ({"b": [1, 2]}, [], "unknown column 'label'.* Set dataset.label"),
        ({"label": ["x", None], "a": [1, 2]}, [], "row 1: column 'label' has missing values"),
        ({"label": ["x", "y"]}, [], "no column but 'label' to learn from"),
        (TABLE, ["dataset.target=real"], "holds .*, and dataset.target=real learns numbers"),
        ({"label": np.arange(60) / 7, "a": range(60)}, [], "60 different values in 60 rows: these"),
        ({"label": [0, 1] * 100, "a": [f"t{i}" for i in range(200)]}, [], "160 different texts"),
        (TABLE, ["dataset.ignore=[b]"], "unknown column 'b'.* Set dataset.ignore"),
    ],
)
def test_what_is_no_table_to_learn_from_is_said_in_a_line(
    tmp_path: Path, columns: dict[str, Any], more: list[str], why: str
) -> None:
    path = table(tmp_path, "t.csv", **columns)
    with pytest.raises(DataError, match=why) as error:
        data_of(compose(["dataset=tabular", f"dataset.path={path}", *more]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("number", "told"), [(np.inf, "inf"), (1e300, "1e\\+300")])
@pytest.mark.parametrize("column", ["a", "label"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_numbers_that_are_not_finite_are_refused_with_their_row(
    tmp_path: Path, column: str, number: float, told: str, split: str
) -> None:
    """One would make the mean of its column infinite, and each client's features no numbers."""
    for name in ("train", "test"):
        columns = {"a": [1.0, 2, 3], "label": [0.5, 1, 2]}
        if name == split:
            columns[column][1] = number
        table(tmp_path, f"{name}.csv", **columns)
    words = ["dataset=tabular", f"dataset.path={tmp_path}", "dataset.target=real"]
    with pytest.raises(DataError, match=rf"{split}.csv, row 1: column '{column}' holds {told}, "):
        data_of(compose(words))


def test_what_is_missing_or_rounded_in_columns_is_said(tmp_path: Path) -> None:
    """Seconds since 1970 are 128 apart in 32 bits: rows of one hour fall on few numbers."""
    columns: dict[str, Any] = {
        "at": 1.7e9 + 90 * np.arange(40), "year": 1980 + np.arange(40), "same": [0.1] * 40,
        "hue": ["red", None, "blue", "red"] * 10, "label": [0, 1] * 20,
    }  # fmt: skip
    path = table(tmp_path, "t.csv", **columns)
    data = data_of(compose(["dataset=tabular", f"dataset.path={path}"]))
    assert "10 missing in hue: none of its values" in data.told
    assert "32 bits do not tell apart the numbers of at: write them less what" in data.told
    exact = columns["at"].astype(np.float32).astype(np.float64)
    assert np.abs(exact - columns["at"]).max() > 50


@pytest.mark.parametrize("name", ["csv", "parquet"])
@pytest.mark.parametrize("kind", ["object", "Int64", "category"])
def test_rows_that_are_nobodys_are_no_client(tmp_path: Path, name: str, kind: str) -> None:
    """Missing owners were one client together, or ended in a TypeError."""
    owner = pd.Series([1, 2, None, 1] * 10).astype("Int64").astype(kind)
    path = table(tmp_path, f"t.{name}", a=np.arange(40.0), w=owner, label=[0, 1] * 20)
    words = ["dataset=tabular", f"dataset.path={path}", "dataset.ignore=[w]", "num_clients=2"]
    config = compose([*words, "partition=natural", "partition.column=w"])
    told = r"column 'w' does not say whose \d+ of 32 training examples are; remove those rows"
    with pytest.raises(DataError, match=told):
        load_images(config.dataset, config.data, "w")


def test_what_is_no_file_of_a_table_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for place, why in (("t.txt", "no .csv or .parquet file"), ("gone", "no file or folder"),
                       ("empty", "holds no train.csv")):  # fmt: skip
        with pytest.raises(DataError, match=why):
            compose(["dataset=tabular", f"dataset.path={tmp_path / place}"])
    # As of any data set that is not here: it is composed, and refused before it runs.
    nowhere = compose(["dataset=tabular", "data.root=null"])
    assert nowhere.dataset.content is None
    with pytest.raises(DataError, match="dataset.path is not set, and data.root is not set"):
        data_of(nowhere)


def test_the_content_of_a_table_is_part_of_the_key(tmp_path: Path) -> None:
    path = table(tmp_path, "t.csv", **TABLE)
    words = ["dataset=tabular", f"dataset.path={path}"]
    before = compose(words).key
    (tmp_path / "elsewhere").mkdir()
    other = table(tmp_path / "elsewhere", "u.csv", **TABLE)
    assert compose(["dataset=tabular", f"dataset.path={other}"]).key == before
    table(tmp_path, "t.csv", a=[1.0, 3.0], label=["x", "y"])
    assert compose(words).key != before


def test_a_number_has_strata_for_partitions_and_pictures() -> None:
    """Ten ranges of equal counts; few values have fewer."""
    edges = strata_edges(np.arange(100.0))
    assert np.bincount(np.searchsorted(edges, np.arange(100.0), side="right")).tolist() == [10] * 10
    assert strata_names([1.0, 2.5]) == ("below 1", "1 to 2.5", "from 2.5")
    assert strata_names(strata_edges(np.ones(5))) == ("below 1", "from 1")
    config = compose(
        ["dataset=diabetes", "partition=dirichlet", "partition.alpha=0.1", "num_clients=4"]
    )
    split = FederatedData.build(data_of(config), config)
    counts = split.label_counts()
    assert counts.shape == (4, 10)
    assert counts.sum() == sum(map(len, split.train_rows))
    assert (counts == 0).any()


def test_names_that_are_numbers_are_in_their_order() -> None:
    assert coded(["10", "9", "b", "10"]).values == ("9", "10", "b")
    assert coded(["10", "9", "b", "10"]).codes.tolist() == [1, 0, 2, 1]


# Clients that are there by nature


def test_synthetic_clients_are_those_of_the_paper() -> None:
    """One client's features have the spread j^-1.2, its classes are linear in them."""
    config = compose(["dataset=synthetic", "partition=natural", "num_clients=30",
                      "partition.eval_fraction=0"])  # fmt: skip
    data = data_of(config)
    split = FederatedData.build(data, config)
    sizes = split.num_examples()
    assert (len(sizes), sizes.min() >= 40) == (30, True)
    x, y = split.client(largest := int(sizes.argmax()), "train")
    assert x.std(0) == pytest.approx(np.arange(1, 61) ** -0.6, rel=0.1)
    assert (x == data.train_x[split.train_rows[largest]]).all()  # not standardised
    x, y = split.client(int((split.label_counts() > 5).sum(1).argmax()), "train")
    assert len(np.unique(y)) > 1
    assert LogisticRegression(C=1e4, max_iter=2000).fit(x, y).score(x, y) > 0.98


def test_known_groups_share_a_model_and_a_test_set() -> None:
    words = ["dataset=synthetic", "dataset.groups=2", "dataset.clients=6", "partition=natural",
             "num_clients=6", "dataset.alpha=0", "dataset.beta=0"]  # fmt: skip
    config = compose(words)
    data = data_of(config)
    split = FederatedData.build(data, config)
    assert split.groups.tolist() == [0, 1, 0, 1, 0, 1]
    assert sum(len(split.test(group)[1]) for group in (0, 1)) == len(data.test_y)
    parts = [np.concatenate([split.client(c, "train")[i] for c in (0, 2, 4)]) for i in (0, 1)]
    model = LogisticRegression(C=1e4, max_iter=3000).fit(*parts)
    of_own, of_other = (model.score(*split.test(group)) for group in (0, 1))
    assert of_own > 0.8
    assert of_other < 0.6
    assert FederatedData.build(data, compose([*words[:3], "num_clients=3"])).shift.num_groups == 1


def test_natural_partitions_are_values_of_a_column(tmp_path: Path) -> None:
    """Writers a (6 rows), b (4), c (3), d (1)."""
    writers = [*"aaaaaabbbbcccd"]
    path = table(tmp_path, "t.csv", x=range(14), w=writers, label=[0, 1] * 7)
    base = ["dataset=tabular", f"dataset.path={path}", "dataset.ignore=[w]", "partition=natural",
            "partition.column=w", "dataset.test_fraction=0.1",
            "partition.eval_fraction=0"]  # fmt: skip

    def owners(*words: str) -> list[list[str]]:
        config = compose([*base, *words])
        rows = FederatedData.build(data_of(config), config).train_rows
        x = data_of(config).train_x[:, 0].astype(int)
        return [sorted({writers[i] for i in x[own]}) for own in rows]

    assert owners("num_clients=3") == [["a"], ["b"], ["c"]]
    assert len(owners("num_clients=2", "partition.some=true")) == 2
    [together] = owners("num_clients=1", "partition.values=3")
    assert together == ["a", "b", "c"]
    capped = compose([*base, "num_clients=3", "partition.max_size=2"])
    assert FederatedData.build(data_of(capped), capped).num_examples().tolist() == [2, 2, 2]
    with pytest.raises(DataError, match="3 clients, fewer than num_clients=9; set num_clients=3"):
        owners("num_clients=9")
    with pytest.raises(DataError, match="3 clients, more than num_clients=2; set num_clients=3"):
        owners("num_clients=2")
    with pytest.raises(DataError, match="unknown column 'v'.* Set partition.column"):
        owners("partition.column=v", "num_clients=3")


# Trials


@pytest.mark.parametrize("words", WORDS.values(), ids=[*WORDS])
def test_a_trial_of_a_task_is_the_same_batched_and_one_by_one(words: list[str]) -> None:
    batched, single = (
        outcome(run(*words, "model=mlp", "model.kwargs.hidden=8", f"training.engine={engine}"))[1]
        for engine in ("vectorized", "sequential")
    )
    for a, b in zip(batched, single, strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=2e-3, nan_ok=True)


def test_a_number_is_learnt_as_by_least_squares() -> None:
    """Linear regression on one client reaches scikit-learn's own R2 and error on the test set."""
    words = ["dataset=diabetes", "model=logreg", "partition=centralized", "rounds=1"]
    more = ["partition.eval_fraction=0", "training.batch_size=0", "training.epochs=3000",
            "training.momentum=0.9", "training.lr=0.02"]  # fmt: skip
    config = compose([*words, *more])
    data = data_of(config)
    result = events_of(config, images=data)[-1]
    expected = LinearRegression().fit(data.train_x, data.train_y)
    predicted = expected.predict(data.test_x)
    assert result.summary["r2"] == pytest.approx(r2_score(data.test_y, predicted), abs=0.01)
    error = mean_absolute_error(data.test_y, predicted)
    assert result.summary["mae"] == pytest.approx(error, rel=0.01)
    assert not any("acc" in name for name in result.summary)
    assert result.confusion is None


def test_classes_of_a_table_are_learnt_as_by_scikit_learn() -> None:
    """Federated logistic regression on breast_cancer: within 2 % of one model on all the data."""
    words = ["dataset=breast_cancer", "model=logreg", "num_clients=5", "rounds=15"]
    config = compose([*words, "training.lr=0.05"])
    data = data_of(config)
    assert len(data.train_y) + len(data.test_y) == len(load_breast_cancer().target)
    mean, std = data.train_x.mean(0), data.train_x.std(0)
    alone = LogisticRegression(max_iter=1000).fit((data.train_x - mean) / std, data.train_y)
    best = alone.score((data.test_x - mean) / std, data.test_y)
    assert events_of(config, images=data)[-1].summary["acc"] >= best - 0.02


def test_what_a_trial_of_numbers_logs_is_declared_and_no_accuracy() -> None:
    result: TrialResult
    started, *rounds, result = run("dataset=diabetes", "strategy=kmeans", "strategy.num_clusters=2")
    assert {"r2", "mae", "client_r2", "client_mae"} <= result.summary.keys()
    for record in rounds:
        assert not [key for key in record.metrics if "acc" in key]
        assert all(key in CATALOG for key in record.metrics)
    assert started.data.num_outputs == 1  # by which its models are logged
    assert load_diabetes().data.shape[1] == started.data.examples[0][0].shape[1]


def test_attackers_and_wrong_labels_are_of_any_task_with_classes() -> None:
    """What attackers train on is scaled as all examples are, and their labels are flipped."""
    words = ["dataset=wine", "num_clients=4", "attack=label_flip", "attack.clients=[1]"]
    attacked, plain = (compose([*words[: 2 + more]]) for more in (2, 0))
    data = data_of(plain)
    (x, y), (own_x, own_y) = (
        FederatedData.build(data, config).client(1, "train") for config in (plain, attacked)
    )
    assert (x == own_x).all()
    assert (own_y == 2 - y).all()
    result = run(*words[2:], "dataset=wine", "shift=label_noise", "shift.groups=2")[-1]
    assert np.isfinite(result.summary["client_acc"])


@pytest.mark.parametrize("words", WORDS.values(), ids=[*WORDS])
def test_examples_of_a_task_are_drawn(words: list[str]) -> None:
    config = compose([*FEW, *words])
    summary = FederatedData.build(data_of(config), config).summary(config)
    examples, targets = summary.examples[0]
    draw: Callable[..., Any] = SHOWN[summary.shows]
    figure = draw(examples, [str(y) for y in targets], summary.names, "a title")
    assert figure.axes
