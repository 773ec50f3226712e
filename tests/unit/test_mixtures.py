"""FedEM and FedRC: expectation maximisation, by hand, by scikit-learn and by autograd."""

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.clientapp import ClientApp
from scipy.special import softmax
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional as F

from fedsweep.catalog import ClassCounts
from fedsweep.client.app import make_client_app
from fedsweep.models import build_model
from fedsweep.predictions import CONFIDENCE_UNIT
from fedsweep.strategies.fedrc import RARE, by_class, marginals
from fedsweep.strategies.mixtures import responsibilities
from fedsweep.training.targets import mixed
from tests.trials import events_of, small
from tests.unit.test_client_app import (
    CLASSES,
    LOGREG,
    SEED,
    SHAPE,
    FakeData,
    _identity,  # noqa: F401  (a fixture, used by every test here)
    context,
    normalised,
    send,
)

LR = 0.1
STEP = {"server-round": 1, "lr": LR, "momentum": 0.0, "batch-size": 0}
MIXING = ["fedem", "fedrc"]

Weights = dict[str, Tensor]


# Whose an example is


def test_responsibilities_by_hand() -> None:
    """Losses of ln 2 and ln 4 are likelihoods of 1/2 and 1/4, and so on."""
    losses = np.log([[2.0, 4.0], [8.0, 2.0]])
    even, uneven = np.array([0.5, 0.5]), np.array([0.2, 0.8])
    np.testing.assert_allclose(responsibilities(losses, even), [[2 / 3, 1 / 3], [1 / 5, 4 / 5]])
    # .2 / 2 against .8 / 4, and .2 / 8 against .8 / 2
    np.testing.assert_allclose(
        responsibilities(losses, uneven), [[1 / 3, 2 / 3], [1 / 17, 16 / 17]]
    )


def test_responsibilities_of_large_losses_are_scipys() -> None:
    rng = np.random.default_rng(0)
    losses, shares = rng.uniform(0, 2000, (50, 4)), rng.dirichlet(np.ones(4))
    expected = softmax(np.log(shares) - losses, axis=1)
    np.testing.assert_allclose(responsibilities(losses, shares), expected, atol=1e-15)


def test_an_em_step_is_that_of_a_gaussian_mixture() -> None:
    """Models that say one number each: squared errors are those of Gaussians of variance 1/2."""
    y, means = np.random.default_rng(1).normal(size=(40, 1)), np.array([-1.0, 0.5, 2.0])
    shares = np.array([0.5, 0.2, 0.3])
    oracle = GaussianMixture(3, covariance_type="spherical")
    oracle.means_, oracle.weights_ = means[:, None], shares
    oracle.covariances_, oracle.precisions_cholesky_ = np.full(3, 0.5), np.full(3, 2**0.5)
    np.testing.assert_allclose(
        responsibilities((y - means) ** 2, shares), oracle.predict_proba(y), rtol=1e-10
    )


def test_what_no_model_fits_is_shared_out_and_a_share_of_nothing_stays() -> None:
    nan, inf = float("nan"), float("inf")
    losses, shares = np.array([[nan, 1.0], [inf, nan], [0.0, 5.0]]), np.array([0.25, 0.75])
    q = responsibilities(losses, shares)
    np.testing.assert_array_equal(q[:2], [[0, 1], [0.25, 0.75]])
    none = np.array([0.0, 1.0])
    np.testing.assert_array_equal(responsibilities(losses, none), [[0, 1]] * 3)


def test_mixed_predictions_by_hand() -> None:
    """Probabilities (.8, .2) and (.4, .6), a quarter and three quarters: (.5, .5)."""
    outputs = torch.tensor([[[0.8, 0.2]], [[0.4, 0.6]]]).log() + 7.0  # whatever is added
    shares = torch.tensor([0.25, 0.75])
    torch.testing.assert_close(
        mixed(outputs, shares, real=False).exp(), torch.tensor([[0.5, 0.5]]).double()
    )
    numbers = torch.tensor([[[8.0]], [[4.0]]])
    assert mixed(numbers, shares, real=True).tolist() == [[5.0]]
    alone = mixed(outputs, torch.tensor([1.0, 0.0]), real=False).exp()
    torch.testing.assert_close(alone, torch.tensor([[0.8, 0.2]]).double())


# A client's round


@pytest.fixture
def data() -> FakeData:
    return FakeData()


@pytest.fixture
def app(data: FakeData) -> ClientApp:
    return make_client_app(data, LOGREG, SEED)


def weights(seed: int) -> Weights:
    torch.manual_seed(seed)
    network = build_model("logreg", SHAPE, CLASSES)
    return {name: p.detach().clone() * 3 for name, p in network.named_parameters()}


def outputs(w: Weights, x: Tensor) -> Tensor:
    return torch.func.functional_call(build_model("logreg", SHAPE, CLASSES), w, (x,))


def losses_of(models: list[Weights], x: Tensor, y: Tensor) -> Tensor:
    each = [F.cross_entropy(outputs(w, x).double(), y, reduction="none") for w in models]
    return torch.stack(each, 1)


def stepped(w: Weights, x: Tensor, y: Tensor, q: Tensor) -> Weights:
    """Return a model after a step along the gradient of the mean of q times the losses."""

    def loss(w: Weights) -> Tensor:
        each = F.cross_entropy(outputs(w, x), y, reduction="none")
        return (q.float() * each).sum() / len(y)

    slope = torch.func.grad(loss)(w)
    return {name: v - LR * slope[name] for name, v in w.items()}


def record(w: Weights) -> ArrayRecord:
    return ArrayRecord({k: Array(v.numpy()) for k, v in w.items()})


def close(actual: ArrayRecord, expected: Weights) -> None:
    assert list(actual) == list(expected)
    for name, values in expected.items():
        torch.testing.assert_close(
            torch.from_numpy(actual[name].numpy().copy()), values, rtol=1e-5, atol=1e-6
        )


def examples(data: FakeData, client: int, split: str) -> tuple[Tensor, Tensor]:
    x, y = data.client(client, split)
    return normalised(x), torch.from_numpy(y)


def train(app: ClientApp, models: list[Weights], ctx: Context, **told: Any) -> RecordDict:
    sent = {f"model-{k}": record(w) for k, w in enumerate(models)}
    return send(app, "train", {**sent, "config": ConfigRecord({**STEP, **told})}, ctx)


def evaluate(app: ClientApp, models: list[Weights], ctx: Context, **told: Any) -> RecordDict:
    sent = {f"model-{k}": record(w) for k, w in enumerate(models)}
    return send(app, "evaluate", {**sent, "config": ConfigRecord({**STEP, **told})}, ctx)


def test_a_fedem_round_by_its_equations(app: ClientApp, data: FakeData) -> None:
    """Two rounds: the second begins with the shares of the first."""
    ctx, (x, y) = context(0), examples(data, 0, "train")
    shares = torch.full((2,), 0.5).double()
    for seed in (1, 3):
        models = [weights(seed), weights(seed + 1)]
        reply = train(app, models, ctx, method="fedem")
        losses = losses_of(models, x, y)
        q = torch.softmax(shares.log() - losses, 1)
        shares = q.mean(0)
        assert list(reply.array_records) == ["model-0", "model-1"]
        for k, w in enumerate(models):
            close(reply[f"model-{k}"], stepped(w, x, y, q[:, k]))
        assert reply["choice"]["weights"] == pytest.approx(shares.tolist())
        assert reply["choice"]["cluster"] == int(shares.argmax())
        hits = torch.stack([outputs(w, x).argmax(1) == y for w in models], 1)
        metrics = reply["metrics"]
        assert metrics["train_loss"] == pytest.approx(float((q * losses).sum(1).mean()), rel=1e-5)
        assert metrics["train_acc"] == pytest.approx(float((q * hits).sum(1).mean()), rel=1e-5)
        assert metrics["num-examples"] == len(y)
    assert 0.02 < shares.min() < 0.48, "a client that is one model's alone would show less"


@pytest.mark.parametrize("method", MIXING)
def test_a_client_is_scored_by_its_mixture(app: ClientApp, data: FakeData, method: str) -> None:
    """By the shares that it has, under the models of the round; the labels it is scored on decide
    nothing. A newcomer takes a step of EM first, and forgets it.
    """
    ctx, newcomer = context(0), context(1)
    models = [weights(1), weights(2), weights(3)]
    shares = train(app, models, ctx, method=method)["choice"]["weights"]
    models = [weights(4), weights(5), weights(6)]
    reply = evaluate(app, models, ctx, method=method, **{"test-own": 4, "by-class": True})
    assert reply["choice"]["weights"] == shares

    x, y = examples(data, 0, "eval")
    pi = torch.tensor(shares).double()
    likely = torch.stack([outputs(w, x).double().softmax(1) for w in models], 2) @ pi
    assert reply["metrics"]["eval_loss"] == pytest.approx(float(F.nll_loss(likely.log(), y)))
    assert reply["metrics"]["eval_acc"] == float((likely.argmax(1) == y).double().mean())
    predicted = np.bincount(likely.argmax(1).numpy(), minlength=CLASSES)
    told = ClassCounts.of_table(np.frombuffer(reply["classes"]["counts"], "<i8"))
    assert told.counts[1].tolist() == predicted.tolist()
    surest = likely.amax(1).sum()  # how sure the mixture is, not its models
    assert told.confidences[2].sum() * CONFIDENCE_UNIT == pytest.approx(float(surest))

    x, y = (torch.from_numpy(v.copy()) for v in data.test(0))
    likely = torch.stack([outputs(w, normalised(x.numpy())).double().softmax(1) for w in models], 2)
    summed = F.nll_loss((likely @ pi).log(), y.long(), reduction="sum")
    assert reply["test"]["loss_sum"] == pytest.approx(float(summed))

    first = evaluate(app, models, newcomer, method=method)
    q = torch.softmax(-losses_of(models, *examples(data, 1, "train")), 1)
    assert first["choice"]["weights"] == pytest.approx(q.mean(0).tolist())
    assert not newcomer.state


# FedRC


def test_marginals_by_hand() -> None:
    """Of labels 0, 1, 1 model 0 has (.5, 1, .25), and model 1 the rest."""
    q = np.array([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])
    counts = by_class(q, np.array([0, 1, 1]), 3)
    np.testing.assert_array_equal(counts, [[0.5, 1.25, 0], [0.5, 0.75, 0]])
    common = marginals(counts)
    np.testing.assert_allclose(common[:, :2], [[2 / 7, 5 / 7], [0.4, 0.6]], rtol=1e-7)
    assert common[0, 2] == pytest.approx(RARE / 1.75)
    np.testing.assert_allclose(common.sum(axis=1), 1)


def test_fedrc_weighs_an_example_by_how_common_its_class_is(app: ClientApp, data: FakeData) -> None:
    models, ctx = [weights(1), weights(2)], context(0)
    common = np.random.default_rng(2).dirichlet(np.ones(CLASSES), 2)
    x, y = examples(data, 0, "train")
    reply = train(app, models, ctx, method="fedrc", marginals=common.ravel().tolist())
    likely = torch.exp(-losses_of(models, x, y)) / torch.from_numpy(common.T[y.numpy()])
    q = likely / likely.sum(1, keepdim=True)
    for k, w in enumerate(models):
        close(reply[f"model-{k}"], stepped(w, x, y, q[:, k]))
    table = np.array(reply["choice"]["classes"]).reshape(2, CLASSES)
    one_hot = np.eye(CLASSES)[y.numpy()]
    np.testing.assert_allclose(table, q.numpy().T @ one_hot, atol=1e-6)

    plain = train(app, models, context(0), method="fedrc")  # nothing is known in the first round
    same = train(app, models, context(0), method="fedem")
    assert plain["choice"]["weights"] == same["choice"]["weights"]
    assert plain["choice"]["weights"] != reply["choice"]["weights"]


def test_labels_alone_part_no_clients_under_fedrc() -> None:
    """Two models, each good at one class alone, and two clients with a class each.

    Under FedEM a client is of the model that knows its class. FedRC's ratio asks how much better a
    model knows a class than it has to, by how common that is with it: of both models the same.
    """
    losses = -np.log(np.array([[0.9, 0.1], [0.1, 0.9]]))  # class x model
    even = np.array([0.5, 0.5])
    of_models = marginals(np.array([[9.0, 1.0], [1.0, 9.0]]))  # each has the class that it knows
    for label in (0, 1):
        by_em = responsibilities(losses[[label]], even)
        by_ratio = responsibilities(losses[[label]] + np.log(of_models[:, [label]].T), even)
        assert by_em[0, label] == pytest.approx(0.9)
        np.testing.assert_allclose(by_ratio, [[0.5, 0.5]])


# Whole trials


@pytest.mark.parametrize("name", MIXING)
def test_concepts_are_told_apart(name: str) -> None:
    """Two groups call the classes otherwise: one model for all can't learn both."""
    words = ["model=mlp", "model.kwargs={hidden:32}", "shift=label_permutation", "shift.groups=2"]
    words += ["rounds=6", "training.epochs=5", "strategy.num_clusters=2", "evaluate_every=6"]
    *_, last, _ = events_of(small(*words, f"strategy={name}"))
    assert last.metrics["2_clusters/ari"] == 1
    assert last.metrics["2_clusters/largest_share"] > 0.65
    *_, of_one, _ = events_of(small(*words[:-2], "evaluate_every=6", "strategy=fedavg"))
    assert last.metrics["3_clients/acc"] > of_one.metrics["3_clients/acc"] + 0.1


def test_one_model_is_fedavg_but_for_rounding() -> None:
    words = ["model=logreg", "rounds=2"]
    *_, of_one = events_of(small(*words, "strategy=fedem", "strategy.num_clusters=1"))
    *_, averaged = events_of(small(*words, "strategy=fedavg"))
    for name, values in averaged.models["global"].items():
        np.testing.assert_allclose(of_one.models["cluster_0"][name], values, atol=1e-6)


def test_all_models_travel_both_ways() -> None:
    """MiB of a round with an evaluation: three models to train, back, and to be evaluated."""
    words = ["model=logreg", "rounds=1", "strategy.num_clusters=3"]
    *_, last, result = events_of(small(*words, "strategy=fedem"))
    model = sum(values.nbytes for values in result.models["cluster_0"].values()) / 2**20
    assert last.metrics["4_comm/mb_down"] == pytest.approx(8 * 2 * 3 * model, rel=0.5)
    assert last.metrics["4_comm/mb_up"] == pytest.approx(8 * 3 * model, rel=0.5)
