"""Methods that need several models or a memory, in the built-in ClientApp: three tiny clients."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn import functional as F

from fedsweep.client.app import make_client_app
from fedsweep.models import build_model
from fedsweep.seeding import derive_seed
from fedsweep.strategies import build_strategy
from fedsweep.strategies.candidates import best
from fedsweep.strategies.fedsoft import importance
from fedsweep.training.arrays import load_weights, read_weights
from fedsweep.training.local import LocalTraining, evaluate, train
from tests.fakes import FakeGrid
from tests.unit.test_client_app import (
    CLASSES,
    LOGREG,
    SEED,
    SHAPE,
    FakeData,
    _identity,  # noqa: F401  (a fixture, used by every test here)
    context,
    normalised,
    same,
    send,
)

LR = 0.1
STEP = {
    "server-round": 1,
    "lr": LR,
    "momentum": 0.0,
    "batch-size": 0,
}  # one full batch: one gradient step


@pytest.fixture
def data() -> FakeData:
    return FakeData()


@pytest.fixture
def app(data: FakeData) -> ClientApp:
    return make_client_app(data, LOGREG, SEED)


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("logreg", SHAPE, CLASSES)


def arrays(seed: int) -> ArrayRecord:
    return read_weights(model(seed))


def of_client(
    data: FakeData, client: int, split: str = "train"
) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = data.client(client, split)
    return normalised(x), torch.from_numpy(y)


def gradient(
    weights: dict[str, np.ndarray], data: FakeData, client: int = 0
) -> dict[str, np.ndarray]:
    """Return the gradient of the client's training loss, by its definition."""
    net = model(0)
    load_weights(net, record(weights))
    x, y = of_client(data, client)
    F.cross_entropy(net(x), y).backward()
    return {name: p.grad.numpy() for name, p in net.named_parameters() if p.grad is not None}


def record(weights: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord(
        {key: Array(np.asarray(value, np.float32)) for key, value in weights.items()}
    )


def numbers(sent: ArrayRecord) -> dict[str, np.ndarray]:
    return {key: array.numpy() for key, array in sent.items()}


def close(actual: ArrayRecord, expected: dict[str, np.ndarray]) -> bool:
    return all(
        np.allclose(numbers(actual)[key], value, atol=1e-6) for key, value in expected.items()
    )


def fitted(data: FakeData, client: int, split: str) -> ArrayRecord:
    """Return a model that knows these examples by heart."""
    net = model(1)
    x, y = of_client(data, client, split)
    train(net, x, y, LocalTraining(lr=0.5, epochs=200, batch_size=0), seed=0)
    return read_weights(net)


# Choosing


def test_choose_trains_the_model_with_the_lowest_loss_before_training(
    app: ClientApp, data: FakeData
) -> None:
    sent = {"model-0": arrays(1), "model-1": fitted(data, 0, "train"), "model-2": arrays(2)}
    config = ConfigRecord({**STEP, "method": "choose"})
    reply = send(app, "train", {**sent, "config": config}, context(0))
    losses = []
    for candidate in sent.values():
        net = model(0)
        load_weights(net, candidate)
        losses.append(evaluate(net, *of_client(data, 0))["loss"])
    assert reply["choice"]["cluster"] == 1
    assert reply["choice"]["losses"] == pytest.approx(losses)
    expected = numbers(sent["model-1"])
    slope = gradient(expected, data)
    assert close(reply["arrays"], {key: expected[key] - LR * slope[key] for key in expected})
    assert reply["metrics"]["num-examples"] == 12
    assert "cluster" not in reply["metrics"]


def test_a_loss_that_is_not_finite_is_never_the_lowest() -> None:
    assert best([float("nan"), 3.0, 2.0, float("-inf")]) == 2
    assert best([float("nan"), float("inf")]) == 0


@pytest.mark.parametrize("method", ["choose", "soft"])
def test_an_evaluation_chooses_by_training_examples_never_by_the_labels_it_is_scored_on(
    app: ClientApp, data: FakeData, method: str
) -> None:
    """Model 0 knows the held-out examples by heart, model 1 the training's: model 1 is taken."""
    sent = {"model-0": fitted(data, 0, "eval"), "model-1": fitted(data, 0, "train")}
    config = ConfigRecord({"method": method, "sigma": 0.1})
    reply = send(app, "evaluate", {**sent, "config": config}, context(0))
    losses = []
    for candidate in sent.values():
        net = model(0)
        load_weights(net, candidate)
        losses.append(evaluate(net, *of_client(data, 0, "eval"))["loss"])
    assert losses[0] < losses[1]
    assert reply["metrics"]["eval_loss"] == pytest.approx(losses[1])
    assert reply["choice"]["cluster"] == 1


def test_losses_alone(app: ClientApp, data: FakeData) -> None:
    sent = {"model-0": arrays(1), "model-1": arrays(2)}
    reply = send(app, "query.losses", {**sent, "config": ConfigRecord({})}, context(1))
    both = send(
        app, "train", {**sent, "config": ConfigRecord({**STEP, "method": "choose"})}, context(1)
    )
    assert reply["metrics"]["losses"] == both["choice"]["losses"]
    assert not reply.array_records


# FedSoft


def test_importance_by_hand() -> None:
    """Four examples: two are best under model 0, two under model 2;
    a loss that is not a number is never best.
    """
    losses = np.array([[1.0, 2, 3], [1, 2, 3], [3, 2, 1], [float("nan"), 2, 1]])
    assert importance(losses, 0.0) == [0.5, 0.0, 0.5]
    assert importance(losses, 0.1) == [0.5, 0.1, 0.5]


def test_soft_is_pulled_to_all_centres(app: ClientApp, data: FakeData) -> None:
    """Two steps: w <- w - lr (grad + lambda sum_s u_s (w - c_s)), from the mean of the centres."""
    centres, lam = [arrays(1), arrays(2)], 0.7
    config = ConfigRecord(
        {**STEP, "steps": 2, "method": "soft", "estimate": True, "sigma": 0.2, "lambda": lam}
    )
    ctx = context(0)
    reply = send(
        app, "train", {"model-0": centres[0], "model-1": centres[1], "config": config}, ctx
    )
    u = reply["choice"]["weights"]
    assert min(u) >= 0.2
    c = [numbers(centre) for centre in centres]
    w = {key: (u[0] * c[0][key] + u[1] * c[1][key]) / sum(u) for key in c[0]}
    for _ in range(2):
        slope = gradient(w, data)
        pull = {
            key: sum(share * (w[key] - centre[key]) for share, centre in zip(u, c, strict=True))
            for key in w
        }
        w = {key: w[key] - LR * (slope[key] + lam * pull[key]) for key in w}
    assert close(reply["arrays"], w)
    assert reply["choice"]["cluster"] == int(np.argmax(u))
    # Not due: the shares stay, whatever the centres are now.
    later = ConfigRecord({**config, "estimate": False})
    again = send(app, "train", {"model-0": arrays(3), "model-1": arrays(4), "config": later}, ctx)
    assert again["choice"]["weights"] == u


# Ditto, APFL, FedPer, fine-tuning


def test_ditto_pulls_the_personal_model_to_the_global_one_as_sent(
    app: ClientApp, data: FakeData
) -> None:
    config, ctx = ConfigRecord({**STEP, "method": "ditto", "lambda": 2.0}), context(0)
    v = w = numbers(arrays(1))
    for seed in (
        1,
        2,
    ):  # the second global model is another one: the personal model goes on from its own weights
        w = numbers(arrays(seed))
        reply = send(app, "train", {"arrays": record(w), "config": config}, ctx)
        slope_v, slope_w = gradient(v, data), gradient(w, data)
        v = {key: v[key] - LR * (slope_v[key] + 2.0 * (v[key] - w[key])) for key in v}
        assert close(reply["arrays"], {key: w[key] - LR * slope_w[key] for key in w})
        assert close(ctx.state["ditto"], v)
    asked = {"arrays": arrays(3), "config": ConfigRecord({"method": "ditto"})}
    plain = send(app, "evaluate", {"arrays": ctx.state["ditto"]}, context(0))
    assert send(app, "evaluate", asked, ctx)["metrics"] == plain["metrics"]
    # Who never trained has the global model.
    plain = send(app, "evaluate", {"arrays": arrays(3)}, context(0))
    assert send(app, "evaluate", asked, context(0))["metrics"] == plain["metrics"]


@pytest.mark.parametrize("adaptive", [False, True])
def test_apfl_by_its_equations(app: ClientApp, data: FakeData, adaptive: bool) -> None:
    alpha, ctx = 0.3, context(0)
    config = ConfigRecord({**STEP, "method": "apfl", "alpha": alpha, "adaptive": adaptive})
    v = numbers(arrays(1))
    for seed in (1, 2):
        w = numbers(arrays(seed))
        reply = send(app, "train", {"arrays": record(w), "config": config}, ctx)
        slope_m = gradient({key: alpha * v[key] + (1 - alpha) * w[key] for key in v}, data)
        slope_w = gradient(w, data)
        apart = {key: v[key] - w[key] for key in v}
        v = {key: v[key] - LR * alpha * slope_m[key] for key in v}  # by the alpha that is in m
        if adaptive:
            alpha -= LR * sum(float((apart[key] * slope_m[key]).sum()) for key in v)
        assert close(reply["arrays"], {key: w[key] - LR * slope_w[key] for key in w})
        assert close(ctx.state["apfl"], v)
        assert reply["metrics"]["alpha"] == pytest.approx(alpha, abs=1e-6)
    assert (alpha != 0.3) is adaptive
    w = numbers(arrays(3))
    mixed = record({key: alpha * v[key] + (1 - alpha) * w[key] for key in v})
    actual = send(app, "evaluate", {"arrays": record(w), "config": config}, ctx)["metrics"]
    expected = send(app, "evaluate", {"arrays": mixed}, context(0))["metrics"]
    assert actual["eval_loss"] == pytest.approx(expected["eval_loss"])


HYPERPARAMETERS: list[dict[str, Any]] = [
    {"momentum": 0.0},
    {"momentum": 0.9},
    {"momentum": 0.0, "weight-decay": 0.5},
    {"momentum": 0.0, "proximal-mu": 0.5},
    {"optimizer": "adam"},
    {"momentum": 0.9, "augment": "crop_flip"},
    {"momentum": 0.0, "precision": "bf16"},
]


@pytest.mark.parametrize("changes", HYPERPARAMETERS)
def test_apfl_trains_as_the_hyperparameters_say(
    app: ClientApp, data: FakeData, changes: dict[str, Any]
) -> None:
    """w is what FedAvg trains; with alpha 1, where m is v, so is v, without the proximal term."""
    x, y = of_client(data, 0)
    given = {key.replace("-", "_"): value for key, value in changes.items()}
    hp = LocalTraining(lr=LR, batch_size=2, epochs=3, **given)
    trained = {}
    for seed in (1, 2):
        net = model(seed)
        own = hp if seed == 1 else replace(hp, proximal_mu=0.0)
        train(net, x, y, own, derive_seed(SEED, "train", 1, 0))
        trained[seed] = {name: value.numpy() for name, value in net.state_dict().items()}
    ctx = context(0)
    ctx.state["apfl"] = arrays(2)
    config = {"server-round": 1, "lr": LR, "batch-size": 2, "epochs": 3, **changes}
    named = ConfigRecord({**config, "method": "apfl", "alpha": 1.0, "adaptive": False})
    reply = send(app, "train", {"arrays": arrays(1), "config": named}, ctx)
    for name, value in numbers(reply["arrays"]).items():
        assert np.array_equal(value, trained[1][name])
        assert ctx.state["apfl"][name].numpy() == pytest.approx(trained[2][name], abs=1e-6)
    assert reply["metrics"]["steps"] == 3 * -(-len(y) // 2)


def test_apfl_leaves_the_draws_of_the_process_alone(data: FakeData) -> None:
    """A model that draws (dropout) gives the same bits again, and so does the process after it."""
    spec = type(LOGREG)(name="tests.networks.Dropping", kwargs={"features": 16, "classes": CLASSES})
    app = make_client_app(data, spec, SEED)
    initial = send(app, "query.init", {}, context(0))["arrays"]
    config = ConfigRecord(
        {**STEP, "batch-size": 2, "method": "apfl", "alpha": 0.5, "adaptive": True}
    )
    ends = []
    for before in (1, 2):
        torch.manual_seed(before)
        state = torch.get_rng_state()
        ends.append(send(app, "train", {"arrays": initial, "config": config}, context(0))["arrays"])
        assert torch.equal(state, torch.get_rng_state())
    assert same(*ends)
    undrawn = send(
        app, "train", {"arrays": initial, "config": ConfigRecord({**config, "lr": 0.0})}, context(0)
    )
    assert same(undrawn["arrays"], initial)


def test_fedper_heads_stay_and_begin_as_the_trials_initial_one(data: FakeData) -> None:
    app = make_client_app(data, type(LOGREG)(name="mlp", kwargs={"hidden": 4}), SEED)
    initial = send(app, "query.init", {}, context(0))["arrays"]
    head = [key for key in initial if key.startswith("output")]
    base = ArrayRecord({key: array for key, array in initial.items() if key not in head})
    config, ctx = ConfigRecord({**STEP, "method": "fedper", "own": head}), context(0)
    asked = {"arrays": base, "config": config}
    before = send(app, "evaluate", asked, ctx)["metrics"]
    assert before == send(app, "evaluate", {"arrays": initial}, context(0))["metrics"]
    reply = send(app, "train", asked, ctx)
    whole = send(app, "train", {"arrays": initial, "config": ConfigRecord(STEP)}, context(0))[
        "arrays"
    ]
    assert same(reply["arrays"], ArrayRecord({key: whole[key] for key in base}))
    assert same(ctx.state["fedper"], ArrayRecord({key: whole[key] for key in head}))
    after = send(app, "evaluate", {"arrays": reply["arrays"], "config": config}, ctx)["metrics"]
    assert after == send(app, "evaluate", {"arrays": whole}, context(0))["metrics"]


def test_fine_tuning_comes_before_the_evaluation_and_is_forgotten(
    app: ClientApp, data: FakeData
) -> None:
    ctx = context(0)
    config = ConfigRecord(
        {"server-round": 4, "lr": 0.3, "batch-size": 5, "method": "finetune", "finetune-epochs": 2}
    )
    reply = send(app, "evaluate", {"arrays": arrays(1), "config": config}, ctx)
    tuned = model(1)
    hp = LocalTraining(lr=0.3, batch_size=5, epochs=2)
    train(tuned, *of_client(data, 0), hp, derive_seed(SEED, "prepare", 4, 0))
    assert reply["metrics"]["eval_loss"] == pytest.approx(
        evaluate(tuned, *of_client(data, 0, "eval"))["loss"]
    )
    assert not ctx.state


# SCAFFOLD


def test_scaffold_corrects_the_gradient_and_renews_c_i(app: ClientApp, data: FakeData) -> None:
    """One step: y = x - lr (g + c - c_i), and c_i becomes g."""
    ctx, x = context(0), numbers(arrays(1))
    c_i = {key: np.zeros_like(value) for key, value in x.items()}
    for seed in (2, 3):
        c = {key: 0.1 * value for key, value in numbers(arrays(seed)).items()}
        content = {
            "arrays": record(x),
            "control": record(c),
            "config": ConfigRecord({**STEP, "method": "scaffold"}),
        }
        reply = send(app, "train", content, ctx)
        g = gradient(x, data)
        assert close(
            reply["arrays"], {key: x[key] - LR * (g[key] + c[key] - c_i[key]) for key in x}
        )
        assert close(reply["control"], {key: g[key] - c_i[key] for key in x})
        assert close(ctx.state["scaffold"], g)
        c_i = g


def test_scaffold_under_momentum_divides_by_the_weight_of_the_gradients(app: ClientApp) -> None:
    """Three steps with momentum .5 move by lr (1 + 1.5 + 1.75) of a constant gradient."""
    x, ctx = arrays(1), context(0)
    zero = record({key: np.zeros_like(value) for key, value in numbers(x).items()})
    config = ConfigRecord({**STEP, "momentum": 0.5, "steps": 3, "method": "scaffold"})
    reply = send(app, "train", {"arrays": x, "control": zero, "config": config}, ctx)
    moved = {key: value - numbers(reply["arrays"])[key] for key, value in numbers(x).items()}
    assert close(ctx.state["scaffold"], {key: value / (LR * 4.25) for key, value in moved.items()})


def test_scaffold_finds_the_optimum_of_all_examples(app: ClientApp, data: FakeData) -> None:
    """Clients of 12, 7 and 1 examples, two of them a round, an L2 penalty: L-BFGS's on all 20."""
    decay, net = 0.1, model(0)
    parts = [of_client(data, client) for client in range(3)]
    x, y = (torch.cat(column).double() for column in zip(*parts, strict=True))
    params = list(net.double().parameters())
    options = {"max_iter": 200, "tolerance_grad": 1e-12, "line_search_fn": "strong_wolfe"}
    search = torch.optim.LBFGS(params, **options)

    def objective() -> torch.Tensor:
        search.zero_grad()
        loss = F.cross_entropy(net(x), y.long()) + decay / 2 * sum((p**2).sum() for p in params)
        loss.backward()
        return loss

    search.step(objective)
    best_of_all = {name: p.detach().numpy() for name, p in net.named_parameters()}
    config = ConfigRecord({**STEP, "steps": 5, "weight-decay": decay})
    away = {}
    for name in ("scaffold", "fedavg"):
        random.seed(2)
        params_of = {"fraction_train": 0.67, "min_available_nodes": 1, "min_train_nodes": 1}
        strategy, grid, sent = build_strategy(name, params_of, 0, 3), FakeGrid(app, 3), arrays(1)
        for number in range(1, 151):
            messages = list(strategy.configure_train(number, sent, ConfigRecord({**config}), grid))
            assert len(messages) == 2
            sent = strategy.aggregate_train(number, grid.send_and_receive(messages))[0]
        squares = [((sent[key].numpy() - w) ** 2).sum() for key, w in best_of_all.items()]
        away[name] = float(sum(squares)) ** 0.5
    assert away["scaffold"] < 1e-3
    assert away["fedavg"] > 0.05


@pytest.mark.parametrize(
    ("kind", "config", "sentence"),
    [
        ("train", {"method": "scafold"}, "unknown method 'scafold'. Valid: apfl, choose, ditto"),
        (
            "train",
            {"method": "scaffold", "optimizer": "adam"},
            "training.optimizer=adam: its control variates are mean gradients of SGD",
        ),
        ("evaluate", {"method": "scafold"}, "unknown method 'scafold'"),
    ],
)
def test_what_a_client_can_not_do_is_said(
    app: ClientApp, kind: str, config: dict[str, Any], sentence: str
) -> None:
    content: dict[str, Any] = {
        "arrays": arrays(1),
        "control": arrays(1),
        "config": ConfigRecord(config),
    }
    with pytest.raises(ValueError, match=sentence):
        send(app, kind, content, context(0))


@pytest.mark.parametrize("method", ["", "apfl", "pfedme", "perfedavg", "fedala", "fedrod"])
def test_a_layer_that_nothing_goes_through_stays_as_it_is(data: FakeData, method: str) -> None:
    """No loss depends on it, so it has no gradient: no method moves it, nor lets it decay."""
    spec = type(LOGREG)(name="tests.networks.Spare", kwargs={"features": 16, "classes": CLASSES})
    app, ctx = make_client_app(data, spec, SEED), context(0)
    sent, spare = send(app, "query.init", {}, ctx)["arrays"], ["spare.weight", "spare.bias"]
    config = {**STEP, "weight-decay": 0.5, "proximal-mu": 0.5, "epochs": 2, "method": method}
    told = {"alpha": 0.5, "adaptive": True, "lambda": 1.0, "outer-lr": 0.1, "inner-steps": 2}
    told |= {"inner-lr": 0.1, "approximation": "first_order", "delta": 0.1}
    told |= {"ala-layers": 1, "ala-share": 1.0, "ala-lr": 1.0, "ala-start": 2}
    config = ConfigRecord({**config, **told})
    for _ in range(2):
        reply = send(app, "train", {"arrays": sent, "config": config}, ctx)["arrays"]
        assert all(np.array_equal(reply[name].numpy(), sent[name].numpy()) for name in spare)
        assert not np.array_equal(reply["out.weight"].numpy(), sent["out.weight"].numpy())


def test_states_survive_the_engines_copies(app: ClientApp) -> None:
    """What a client remembers are Flower records: these travel, and go into checkpoints."""
    ctx = context(0)
    config = ConfigRecord({**STEP, "method": "apfl", "alpha": 0.5, "adaptive": True})
    send(app, "train", {"arrays": arrays(1), "config": config}, ctx)
    assert isinstance(ctx.state, RecordDict)
    assert sorted(ctx.state) == ["apfl", "apfl-alpha"]
