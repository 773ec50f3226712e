"""Balanced accuracy, macro F1 and calibration against scikit-learn, on the same predictions."""

import warnings
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import balanced_accuracy_score, f1_score

from fedsweep.catalog import CATALOG, ClassCounts, Observed
from fedsweep.data.federated import FederatedData
from fedsweep.errors import ConfigError
from fedsweep.models import build_model
from fedsweep.scores import SCORES
from fedsweep.sweeps.compose import compose
from fedsweep.sweeps.prepare import make_split
from fedsweep.tracking.artifacts import class_table
from fedsweep.training.local import predict
from fedsweep.training.targets import full_table_of, table_of
from tests.trials import digits, events_of, outcome, small

NAMES = ("balanced_acc", "macro_f1", "ece")
ASKED = f"metrics=[{','.join(NAMES)}]"
QUICK = ["rounds=2", "model=logreg", "num_clients=6", "evaluate_every=2"]
ENGINES = ["sequential", "vectorized"]


def expected(true: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Return balanced accuracy and macro F1 as scikit-learn has them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are predicted and never true
        balanced = balanced_accuracy_score(true, predicted)
    return float(balanced), float(f1_score(true, predicted, average="macro", zero_division=0))


def expected_ece(true: np.ndarray, shares: np.ndarray) -> float:
    """Return the calibration error of probabilities (n, classes): scikit-learn's curve, weighed."""
    surest = shares.max(1)
    hits, confidences = calibration_curve(shares.argmax(1) == true, surest, n_bins=15)
    weights = np.histogram(surest, np.linspace(0, 1, 16))[0]
    return float((np.abs(hits - confidences) * weights[weights > 0]).sum() / len(true))


def found(counts: np.ndarray) -> tuple[float, float]:
    classes = ClassCounts(counts)
    return classes.balanced_accuracy(), classes.macro_f1()


# The figures


def test_by_hand() -> None:
    """Of 3 x class 0 two are hit, of 1 x class 1 none, 2 is predicted twice, 3 is nowhere.

    Recalls 2/3 and 0: mean 1/3. F1 of class 0 is 2 x 2 / (3 + 2), of classes 1 and 2 it is 0: mean
    4/15.
    """
    counts = np.array([[3, 1, 0, 0], [2, 0, 2, 0], [2, 0, 0, 0]])
    assert found(counts) == pytest.approx((1 / 3, 4 / 15))


def test_of_nothing_there_is_no_figure() -> None:
    assert all(np.isnan(found(np.zeros((3, 4), int))))


@pytest.mark.parametrize("seed", range(20))
def test_any_predictions(seed: int) -> None:
    """Classes absent from labels, from predictions and from both, few examples and many."""
    rng = np.random.default_rng(seed)
    classes, n = int(rng.integers(2, 12)), int(rng.integers(1, 60))
    true = rng.choice(rng.choice(classes, max(1, classes // 2), replace=False), n)
    logits = torch.from_numpy(rng.normal(size=(n, classes)) + 2 * np.eye(classes)[true])
    logits[:, int(rng.integers(classes))] = -9  # never predicted
    y = torch.from_numpy(true)
    table = table_of(logits, y)
    counted = ClassCounts.of_table(table)
    assert found(counted.counts) == pytest.approx(expected(true, logits.argmax(1).numpy()))
    assert counted.calibration_error() == pytest.approx(
        expected_ece(true, logits.softmax(1).numpy()), abs=1e-8
    )
    full = ClassCounts.of_full_table(full_table_of(logits, y))
    np.testing.assert_array_equal(full.counts, counted.counts)
    np.testing.assert_array_equal(full.confidences, counted.confidences)
    parts = [table_of(logits[i::3], y[i::3]) for i in range(3)]
    np.testing.assert_array_equal(sum(parts), table)  # they add up, to the bit


def test_calibration_by_hand() -> None:
    """Two say .9 and one of them is right, one says .6 and is: (|1 - 1.8| + |1 - .6|) / 3 = .4."""
    shares = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6]], dtype=torch.float64)
    counted = ClassCounts.of_table(table_of(shares.log(), torch.tensor([0, 0, 1])))
    assert counted.calibration_error() == pytest.approx(0.4, abs=1e-9)
    assert np.isnan(ClassCounts(np.zeros((3, 2), int)).calibration_error())


def test_a_confidence_on_the_border_is_of_the_part_below_and_nan_of_the_least() -> None:
    certain, split = torch.tensor([[50.0, -50.0]]), torch.zeros(1, 5).double()  # 1, and 3/15
    lost = torch.tensor([[float("nan"), 0.0]])
    for outputs, place in ((certain, 14), (split, 2), (lost, 0)):
        counted = ClassCounts.of_table(table_of(outputs, torch.tensor([0])))
        assert counted.confidences[0].tolist() == [int(i == place) for i in range(15)]


# Whole trials, whose predictions are made again from their final models


def shares(model: dict[str, np.ndarray], data: FederatedData, x: np.ndarray) -> np.ndarray:
    net = build_model("logreg", digits().train_x.shape[1:], 10)
    net.load_state_dict({key: torch.from_numpy(value) for key, value in model.items()})
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.images.mean, data.images.std))
    outputs = predict(net, (torch.from_numpy(x.copy()).float() / 255 - mean) / std)
    return outputs.double().softmax(1).numpy()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "words",
    [
        ["partition=pathological"],  # a client has two classes
        ["shift=label_groups", "shift.groups=2"],  # neither test set has all classes
        ["strategy=kmeans", "strategy.num_clusters=2", "strategy.warmup_rounds=1", "shift=rotation",
         "shift.groups=2"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_those_of_a_trial(words: list[str], engine: str) -> None:
    words = [*QUICK, *words, ASKED, f"training.engine={engine}"]
    *_, last, result = events_of(small(*words))
    config = small(*words)
    data = make_split(digits(), config).on(digits())
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {
        "own": [],
        "global": [],
        "held_out": [],
    }
    for client, cluster in zip(last.clients["client"], last.clients["cluster"], strict=True):
        own = result.models["global" if cluster < 0 else f"cluster_{cluster}"]
        x, y = data.test(int(data.groups_in(0)[client]))
        pairs["own"].append((y, shares(own, data, x)))
        pairs["global"].append((y, shares(result.models["global"], data, x)))
        x, y = data.client(client, "eval")
        if len(y):
            pairs["held_out"].append((y, shares(own, data, x)))
    assert len(pairs["own"]) == 6
    keys = {"own": "3_clients/test_{}", "global": "1_global/{}", "held_out": "3_clients/{}"}
    for whose, parts in pairs.items():
        true, said = (np.concatenate(side) for side in zip(*parts, strict=True))
        shown = [last.metrics[keys[whose].format(name)] for name in NAMES]
        wanted = [*expected(true, said.argmax(1)), expected_ece(true, said)]
        assert shown == pytest.approx(wanted, rel=1e-5), whose
    assert result.summary["client_balanced_acc"] == last.metrics["3_clients/balanced_acc"]
    assert result.summary["macro_f1"] == last.metrics["1_global/macro_f1"]


@pytest.mark.parametrize("engine", ENGINES)
def test_those_of_personal_models(engine: str) -> None:
    """In the last round only, as their accuracy; on what they hold out in each evaluation."""
    words = ["rounds=2", "model=logreg", "strategy=ditto", ASKED, f"training.engine={engine}"]
    *_, first, last, result = events_of(small(*words))
    matrix = result.confusion
    true, predicted = np.nonzero(matrix)
    times = matrix[true, predicted]
    shown = [last.metrics[f"3_clients/test_{name}"] for name in ("balanced_acc", "macro_f1")]
    assert shown == pytest.approx(expected(np.repeat(true, times), np.repeat(predicted, times)))
    assert "3_clients/test_macro_f1" not in first.metrics
    assert 0 < first.metrics["3_clients/macro_f1"] < 1


@pytest.mark.parametrize("engine", ENGINES)
def test_asking_changes_nothing_else(engine: str) -> None:
    """The same weights, and the same bits of each other metric; none of these where nobody asks."""
    words = [*QUICK, f"training.engine={engine}"]
    weights, plain = outcome(events_of(small(*words)))
    again, asked = outcome(events_of(small(*words, ASKED)))
    assert again == weights
    on_request = {metric.key for metric in CATALOG if metric.on_request in SCORES}
    assert not on_request & {key for metrics in plain for key in metrics}
    assert [{k: v for k, v in one.items() if k not in on_request} for one in asked] == plain
    assert {key for key in asked[-1] if key in on_request} == on_request
    assert set(asked[0]) & on_request == {f"1_global/{name}" for name in NAMES}


def test_a_trial_that_ends_early_has_them_at_its_end() -> None:
    words = ["rounds=5", "model=logreg", "strategy=local", ASKED, "stop.target=0.01"]
    *_, last, result = events_of(small(*words))
    assert last.round == 1
    assert 0 < result.summary["client_test_balanced_acc"] < 1
    assert result.summary["client_macro_f1"] == last.metrics["3_clients/macro_f1"]


def test_the_table_of_classes_by_hand() -> None:
    """Of three a's two are found; nobody is taken for c, of which there is none."""
    table = pd.read_parquet(
        BytesIO(class_table(np.array([[2, 1, 0], [0, 4, 0], [0, 0, 0]]), "abc"))
    )
    assert table["class"].tolist() == ["a", "b", "c"]
    assert table[["examples", "predicted", "hits"]].to_numpy().tolist() == [
        [3, 2, 2], [4, 5, 4], [0, 0, 0],
    ]  # fmt: skip
    assert table["accuracy"].tolist()[:2] == pytest.approx([2 / 3, 1])
    assert table["precision"].tolist()[:2] == pytest.approx([1, 0.8])
    assert table[["accuracy", "precision"]].iloc[2].isna().all()


# Asking


def test_asking_is_part_of_the_key_and_its_order_is_not() -> None:
    one, other = compose([ASKED]), compose(["metrics=[macro_f1,ece,balanced_acc,macro_f1]"])
    assert one.key == other.key
    assert compose(["metrics=macro_f1"]).metrics == ("macro_f1",)
    assert len({one.key, compose([]).key, compose(["metrics=macro_f1"]).key}) == 3
    assert compose(["metrics=[]"]).key == compose([]).key


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["metrics=balanced_ac"], r"Did you mean 'balanced_acc'\? Valid: balanced_acc, ece, macro"),
        (
            ["stop.metric=1_global/macro_f1", "stop.target=.9", "metrics=balanced_acc"],
            r"is logged on request; set metrics=\[balanced_acc,macro_f1\]",
        ),
        (
            ["stop.metric=3_clients/macro_f1", "stop.target=.9", "metrics=macro_f1",
             "partition.eval_fraction=0"],
            "no client holds out",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(words: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        compose(words)
    assert "\n" not in str(refused.value)


def test_it_can_be_watched() -> None:
    words = ["rounds=4", "model=logreg", "metrics=macro_f1", "stop.metric=1_global/macro_f1"]
    *_, result = events_of(small(*words, "stop.target=0.2"))
    assert result.stopped.startswith("1_global/macro_f1=")


def test_nobodys_predictions_have_no_figure() -> None:
    assert CATALOG.computed(Observed(), ["balanced_acc", "macro_f1"]) == {}
