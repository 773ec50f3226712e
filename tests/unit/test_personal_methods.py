"""Methods with a model, a part or a correction of each client's own: by their papers' equations.

One full batch is one gradient step, so that a round can be written out with autograd.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor
from torch.func import functional_call, grad, jvp
from torch.nn import functional as F

from fedsweep.client.app import make_client_app
from fedsweep.config import ModelConfig
from fedsweep.errors import ConfigError
from fedsweep.models import build_model
from fedsweep.seeding import derive_seed
from fedsweep.strategies.fednova import total_weight
from fedsweep.training.local import LocalTraining, batches
from tests.trials import small
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

MLP = ModelConfig(name="mlp", kwargs={"hidden": 5})
HEAD = ["output.weight", "output.bias"]
LR = 0.1
STEP = {"server-round": 1, "lr": LR, "momentum": 0.0, "batch-size": 0}

Weights = dict[str, Tensor]
Loss = Callable[[Weights], Tensor]


@pytest.fixture
def data() -> FakeData:
    return FakeData()


@pytest.fixture
def app(data: FakeData) -> ClientApp:
    return make_client_app(data, MLP, SEED)


def weights(seed: int) -> Weights:
    torch.manual_seed(seed)
    network = build_model("mlp", SHAPE, CLASSES, hidden=5)
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def logits(w: Weights, x: Tensor) -> Tensor:
    return functional_call(build_model("mlp", SHAPE, CLASSES, hidden=5), w, (x,))


def examples(data: FakeData, client: int = 0) -> tuple[Tensor, Tensor]:
    x, y = data.client(client, "train")
    return normalised(x), torch.from_numpy(y)


def loss_of(data: FakeData, client: int = 0) -> Loss:
    x, y = examples(data, client)
    return lambda w: F.cross_entropy(logits(w, x), y)


def stepped(w: Weights, slope: Weights, lr: float = LR, only: list[str] | None = None) -> Weights:
    return {k: v - lr * slope[k] if only is None or k in only else v for k, v in w.items()}


def record(w: Weights, only: list[str] | None = None) -> ArrayRecord:
    return ArrayRecord({k: Array(v.numpy()) for k, v in w.items() if only is None or k in only})


def close(actual: ArrayRecord, expected: Weights, only: list[str] | None = None) -> None:
    names = list(expected) if only is None else only
    assert sorted(actual) == sorted(names)
    for name in names:
        found = torch.from_numpy(np.array(actual[name].numpy()))
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-6)


def train(app: ClientApp, w: ArrayRecord, ctx: Context, **told: Any) -> RecordDict:
    return send(app, "train", {"arrays": w, "config": ConfigRecord({**STEP, **told})}, ctx)


def used(app: ClientApp, w: ArrayRecord, ctx: Context, **told: Any) -> float:
    """Return the loss of the model that a client uses, on what it holds out."""
    asked = {"arrays": w, "config": ConfigRecord({**STEP, **told})}
    return float(send(app, "evaluate", asked, ctx)["metrics"]["eval_loss"])


def held_out(data: FakeData, w: Weights) -> float:
    x, y = data.client(0, "eval")
    return float(F.cross_entropy(logits(w, normalised(x)), torch.from_numpy(y)))


BODY = ["hidden.weight", "hidden.bias"]


def test_fedrep_trains_the_head_then_the_base_under_it(app: ClientApp, data: FakeData) -> None:
    ctx, told = context(0), {"method": "fedrep", "own": HEAD, "head-epochs": 2}
    first = send(app, "query.init", {}, context(0))["arrays"]
    head = {k: torch.from_numpy(np.array(first[k].numpy())) for k in HEAD}
    slope = grad(loss_of(data))
    for seed in (1, 2):  # the second base meets the head that the client kept
        w = {**weights(seed), **head}
        reply = train(app, record(w, BODY), ctx, **told)
        for _ in range(2):
            w = stepped(w, slope(w), only=HEAD)
        w = stepped(w, slope(w), only=BODY)
        close(reply["arrays"], w, BODY)
        close(ctx.state["fedrep"], w, HEAD)
        head = {k: w[k] for k in HEAD}
    assert used(app, record(w, BODY), ctx, **told) == pytest.approx(held_out(data, w), rel=1e-5)


@pytest.mark.parametrize(("finetune", "only"), [("all", None), ("head", HEAD), ("body", BODY)])
def test_fedbabu_never_trains_the_head_and_fine_tunes_what_it_is_told(
    app: ClientApp, data: FakeData, finetune: str, only: list[str] | None
) -> None:
    ctx = context(0)
    told = {"method": "fedbabu", "own": HEAD, "finetune-epochs": 2, "finetune": finetune}
    first = send(app, "query.init", {}, context(0))["arrays"]
    w = {**weights(1), **{k: torch.from_numpy(np.array(first[k].numpy())) for k in HEAD}}
    slope = grad(loss_of(data))

    reply = train(app, record(w, BODY), ctx, **told)
    close(reply["arrays"], stepped(w, slope(w)), BODY)
    assert not ctx.state

    tuned = w
    for _ in range(2):
        tuned = stepped(tuned, slope(tuned), only=only)
    found = used(app, record(w, BODY), ctx, **told)
    assert found == pytest.approx(held_out(data, tuned), rel=1e-5)


def test_pfedme_by_its_equations(app: ClientApp, data: FakeData) -> None:
    """Two batches of everything: K = 3 steps of theta, then one of w, each time."""
    ctx, pull, eta = context(0), 2.0, 0.05
    told = {"method": "pfedme", "lambda": pull, "inner-steps": 3, "outer-lr": eta, "epochs": 2}
    w = theta = weights(1)
    slope = grad(loss_of(data))
    reply = train(app, record(w), ctx, **told)
    for _ in range(2):
        for _ in range(3):
            pulled = {k: v + pull * (theta[k] - w[k]) for k, v in slope(theta).items()}
            theta = stepped(theta, pulled)
        w = {k: v - eta * pull * (v - theta[k]) for k, v in w.items()}
    close(reply["arrays"], w)
    close(ctx.state["pfedme"], theta)
    assert used(app, record(w), ctx, **told) == pytest.approx(held_out(data, theta), rel=1e-5)


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("approximation", ["first_order", "hessian_free"])
def test_perfedavg_steps_along_the_gradient_after_a_step(
    app: ClientApp, data: FakeData, approximation: str, epochs: int
) -> None:
    """Two full batches are a pair; one alone is a pair with itself: the same step either way."""
    ctx, alpha, w = context(0), 0.3, weights(1)
    told = {"method": "perfedavg", "inner-lr": alpha, "approximation": approximation,
            "delta": 1e-2, "epochs": epochs}  # fmt: skip
    slope = grad(loss_of(data))
    u = stepped(w, slope(w), alpha)
    outer = slope(u)
    if approximation == "hessian_free":
        curved = jvp(slope, (w,), (outer,))[1]
        outer = {k: v - alpha * curved[k] for k, v in outer.items()}
    reply = train(app, record(w), ctx, **told)
    for name, expected in stepped(w, outer).items():
        found = torch.from_numpy(np.array(reply["arrays"][name].numpy()))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert used(app, record(w), ctx, **told) == pytest.approx(held_out(data, u), rel=1e-5)


def test_perfedavg_takes_the_outer_gradient_on_the_next_batch(
    app: ClientApp, data: FakeData
) -> None:
    """Batches of 7 and 5, in the order of plain training."""
    w, alpha, (x, y) = weights(1), 0.5, examples(data)
    told = {"method": "perfedavg", "inner-lr": alpha, "approximation": "first_order",
            "delta": 1e-3, "batch-size": 7}  # fmt: skip
    seed = derive_seed(SEED, "train", 1, 0)
    [of_pass] = batches(x, y, LocalTraining(batch_size=7), seed)
    inner, outer = (
        grad(lambda v, x=x_b, y=y_b: F.cross_entropy(logits(v, x), y)) for x_b, y_b in of_pass
    )
    reply = train(app, record(w), context(0), **told)
    close(reply["arrays"], stepped(w, outer(stepped(w, inner(w), alpha))))


def mixture(w: Weights, v: Weights, a: Weights) -> Weights:
    return {k: v[k] + (w[k] - v[k]) * a[k] for k in w}


def test_fedala_learns_how_much_of_the_global_head_it_takes(app: ClientApp, data: FakeData) -> None:
    ctx, eta = context(0), 3.0
    told = {"method": "fedala", "ala-layers": 1, "ala-share": 1.0, "ala-lr": eta, "ala-start": 2}
    slope = grad(loss_of(data))

    # The first time there is nothing to mix with.
    first = weights(1)
    reply = train(app, record(first), ctx, **told)
    v = stepped(first, slope(first))
    close(reply["arrays"], v)

    a = {k: torch.ones_like(p) for k, p in v.items()}
    for seed, passes in ((2, 2), (3, 1)):
        w = weights(seed)

        for _ in range(passes):
            found = slope(mixture(w, v, a))
            a |= {k: (a[k] - eta * found[k] * (w[k] - v[k])).clip(0, 1) for k in HEAD}
        start = mixture(w, v, a)
        reply = train(app, record(w), ctx, **told)
        v = stepped(start, slope(start))
        close(reply["arrays"], v)
        close(ctx.state["fedala-weights"], a)
    assert any((a[k] < 1).any() and (a[k] > 0).any() for k in HEAD)
    w = weights(4)
    expected = held_out(data, mixture(w, v, a))
    assert used(app, record(w), ctx, **told) == pytest.approx(expected, rel=1e-5)


def test_fedrod_trains_one_head_by_the_balanced_loss_and_one_beside_it(data: FakeData) -> None:
    """Written out with two heads; a client that lacks a class has a finite logarithm for it."""
    data._labels = np.where(data._labels == 2, 0, data._labels)
    app, ctx, told = make_client_app(data, MLP, SEED), context(0), {"method": "fedrod"}
    x, y = examples(data)
    counts = torch.bincount(y, minlength=CLASSES).double().clamp(min=1e-9)
    prior = (counts / counts.sum()).log().float()
    own = {k: torch.zeros_like(v) for k, v in weights(1).items() if k in HEAD}

    for seed in (1, 2):
        w = weights(seed)

        def balanced(w: Weights) -> Tensor:
            return F.cross_entropy(logits(w, x) + prior, y)

        def plain(own: Weights, w: Weights = w) -> Tensor:
            seen = F.relu(F.linear(x.flatten(1), w["hidden.weight"], w["hidden.bias"]))
            generic = F.linear(seen, w["output.weight"], w["output.bias"])
            return F.cross_entropy(generic + F.linear(seen, own[HEAD[0]], own[HEAD[1]]), y)

        reply = train(app, record(w), ctx, **told)
        loss = plain(own)
        own = stepped(own, grad(plain)(own))
        w = stepped(w, grad(balanced)(w))
        close(reply["arrays"], w)
        close(ArrayRecord({k: ctx.state["fedrod"][k] for k in HEAD}), own)
        assert reply["metrics"]["train_loss"] == pytest.approx(float(loss), rel=1e-5)
    both = {k: v + own[k] if k in own else v for k, v in w.items()}
    assert used(app, record(w), ctx, **told) == pytest.approx(held_out(data, both), rel=1e-5)


def test_feddyn_regularises_and_renews_what_it_keeps(app: ClientApp, data: FakeData) -> None:
    ctx, alpha = context(0), 0.4
    slope = grad(loss_of(data))
    g = {k: torch.zeros_like(v) for k, v in weights(1).items()}
    for seed in (1, 2):
        x = y = weights(seed)
        for _ in range(2):
            found = slope(y)
            y = stepped(y, {k: found[k] - g[k] + alpha * (y[k] - x[k]) for k in y})
        reply = train(app, record(x), ctx, method="feddyn", alpha=alpha, epochs=2)
        g = {k: g[k] - alpha * (y[k] - x[k]) for k in g}
        close(reply["arrays"], y)
        close(ctx.state["feddyn"], g)


def test_moon_draws_representations_to_the_global_models(app: ClientApp, data: FakeData) -> None:
    ctx, mu, t = context(0), 2.0, 0.5
    x, y = examples(data)
    before = weights(7)
    for seed in (1, 2):
        w = weights(seed)
        before = w if seed == 1 else before

        def loss(v: Weights, w: Weights = w, before: Weights = before) -> Tensor:
            def seen(model: Weights) -> Tensor:
                return F.relu(F.linear(x.flatten(1), model["hidden.weight"], model["hidden.bias"]))

            alike, unlike = (F.cosine_similarity(seen(v), seen(m)) for m in (w, before))
            contrast = -torch.log(
                torch.exp(alike / t) / (torch.exp(alike / t) + torch.exp(unlike / t))
            )
            return F.cross_entropy(logits(v, x), y) + mu * contrast.mean()

        reply = train(app, record(w), ctx, method="moon", mu=mu, temperature=t)
        plain = float(F.cross_entropy(logits(w, x), y))
        assert reply["metrics"]["train_loss"] == pytest.approx(plain, rel=1e-5)
        before = stepped(w, grad(loss)(w))
        close(reply["arrays"], before)
        close(ctx.state["moon"], before)


def test_moon_is_refused_where_it_would_be_fedavg(data: FakeData) -> None:
    """The examples themselves go into the only layer: no gradient comes of their angles."""
    small("strategy=moon", "model=logreg", "strategy.moon_mu=0")
    with pytest.raises(ConfigError, match="strategy=moon with model=logreg: .* more layers"):
        small("strategy=moon", "model=logreg")
    app, ctx = make_client_app(data, LOGREG, SEED), context(0)
    sent = send(app, "query.init", {}, ctx)["arrays"]
    with pytest.raises(ValueError, match="needs trained layers below the last one"):
        train(app, sent, ctx, method="moon", mu=1.0, temperature=0.5)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("mu", [0.0, 2.0])
def test_what_fednova_divides_by(momentum: float, mu: float) -> None:
    """K = 3 of lr .1, by hand: v_t = b v_{t-1} + 1 - mu lr m_{t-1}, m_t = m_{t-1} + v_t."""
    by_hand = {
        (0.0, 0.0): 3.0, (0.5, 0.0): 1 + 1.5 + 1.75,
        (0.0, 2.0): 1 + 0.8 + 0.64, (0.5, 2.0): 1 + 1.3 + (0.65 + 1 - 0.2 * 2.3),
    }  # fmt: skip
    assert total_weight(3, LR, momentum, mu) == pytest.approx(by_hand[momentum, mu])
