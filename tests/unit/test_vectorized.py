"""The batched program against the reference trainer in float64, and by hand where it is silent."""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fedsweep.models import build_model
from fedsweep.models._dropout import Dropout
from fedsweep.training import convolution, layers, vectorized, winograd
from fedsweep.training.batched import Program
from fedsweep.training.layers import UnsupportedError
from fedsweep.training.local import LocalTraining, predict, train
from fedsweep.training.pool import Examples
from fedsweep.training.vectorized import losses_of_each, predict_many, train_many
from fedsweep.training.winograd import WinogradLayer

SHAPE, CLASSES = (2, 11, 10), 5  # pooling drops a row of 11
SIZES = (13, 4, 30, 1)

TOLERANCE = 1e-5
"""Largest difference of float32 weights of about 0.1 from the reference's float64 weights."""


def padded_net() -> nn.Module:
    """Strides, padding, no biases, nesting, linear outputs of pooling without ReLU."""
    stem = nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), nn.ReLU(), nn.Identity()
    )
    return nn.Sequential(
        stem,
        nn.Conv2d(4, 3, 3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(18, 6, bias=False),
        nn.Linear(6, CLASSES),
    )


def dropping_net() -> nn.Module:
    """Dropout of images and of vectors."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        Dropout(0.25),
        nn.Flatten(),
        nn.Linear(288, 6),
        nn.ReLU(),
        Dropout(0.5),
        nn.Linear(6, CLASSES),
    )


def narrow_net() -> nn.Module:
    """Few channels and even sides: 2x2 outputs at once, which are pooled, or not."""
    return nn.Sequential(
        nn.Conv2d(2, 4, (2, 3), padding=(0, 1)),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 3, (2, 4), bias=False),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


NETS = {"padded": padded_net, "dropping": dropping_net, "narrow": narrow_net}


def make(name: str) -> nn.Module:
    torch.manual_seed(3)
    return NETS[name]() if name in NETS else build_model(name, SHAPE, CLASSES)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([v.flatten() for v in model.state_dict().values()])


def examples() -> tuple[Examples, list[tuple[int, int]]]:
    generator = torch.Generator().manual_seed(4)
    total = 3 + sum(SIZES)  # the first rows are nobody's
    x = torch.randn(total, *SHAPE, generator=generator)
    x[:, :, 5:] = 0  # blank areas, where poolings meet equal values
    places = [(3 + sum(SIZES[:c]), n) for c, n in enumerate(SIZES)]
    return Examples(x, torch.randint(CLASSES, (total,), generator=generator)), places


def reference(
    model: nn.Module, hp: LocalTraining, seeds: list[int]
) -> tuple[torch.Tensor, list[dict[str, float]]]:
    own_examples, places = examples()
    weights, results = [], []
    for (first, count), seed in zip(places, seeds, strict=True):
        own, rows = deepcopy(model).double(), slice(first, first + count)
        results.append(train(own, own_examples.x[rows].double(), own_examples.y[rows], hp, seed))
        weights.append(flat(own))
    return torch.stack(weights), results


@pytest.fixture(params=["direct", "dual"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which form a first linear layer trains in, whatever it costs."""
    monkeypatch.setattr(vectorized, "pays", lambda *_, **__: request.param == "dual")
    return request.param


SETTINGS: dict[str, dict] = {
    "sgd": {"momentum": 0.0},
    "momentum": {"momentum": 0.9, "epochs": 2},
    "penalties": {"momentum": 0.5, "weight_decay": 0.1, "proximal_mu": 0.3},
    "adam": {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.01},
    "full-batch": {"steps": 3, "batch_size": 0},
    "cut-short": {"steps": 2, "momentum": 0.0, "weight_decay": 0.1},
    "augmented": {"epochs": 2, "augment": "crop_flip"},
}


def cases() -> list:
    """Each model under all settings, and in dual form where it has one."""
    direct = [
        (name, what, "direct")
        for name in ("logreg", "mlp", "lenet", "cnn", "simple_cnn", *NETS)
        for what in SETTINGS
    ]
    dual = [
        (name, what, "dual")
        for name in ("logreg", "mlp")
        for what in SETTINGS
        if what not in ("adam", "augmented")
    ]
    return [
        pytest.param(name, SETTINGS[what], form, id=f"{name}-{what}-{form}")
        for name, what, form in direct + dual
    ]


@pytest.mark.parametrize(("name", "hp", "form"), cases(), indirect=["form"])
def test_every_client_gets_what_the_reference_gives_it(name: str, hp: dict, form: str) -> None:
    model, seeds = make(name), [5, 6, 7, 8]
    training = LocalTraining(**{"lr": 0.05, "batch_size": 8, **hp})
    expected, expected_results = reference(model, training, seeds)
    actual, results = train_many(Program(model, SHAPE), flat(model), *examples(), training, seeds)
    for c in range(len(SIZES)):
        if (
            training.optimizer == "adam"
        ):  # where a gradient is nothing but rounding, Adam steps by its sign
            assert (actual[c] - expected[c]).abs().mean() < TOLERANCE
        else:
            assert (actual[c] - expected[c]).abs().max() < TOLERANCE
        assert results[c]["loss"] == pytest.approx(expected_results[c]["loss"], rel=1e-4)
        assert results[c]["accuracy"] == expected_results[c]["accuracy"]
        assert results[c]["steps"] == expected_results[c]["steps"]


@pytest.mark.parametrize(("name", "what", "form"), [
    ("mlp", "momentum", "direct"), ("mlp", "momentum", "dual"), ("mlp", "full-batch", "dual"),
    ("lenet", "adam", "direct"), ("logreg", "augmented", "direct"), ("logreg", "sgd", "direct"),
], indirect=["form"])  # fmt: skip
def test_weighted_examples_are_the_references_whole_or_in_slices(
    name: str, what: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some examples count nothing, and are seen all the same."""
    model, seeds = make(name), [5, 6, 7, 8]
    hp = LocalTraining(**{"lr": 0.05, "batch_size": 8, **SETTINGS[what]})
    generator = np.random.default_rng(0)
    shares = [generator.uniform(size=n) * (generator.uniform(size=n) > 0.3) for n in SIZES]
    own, places = examples()
    expected, wanted = [], []
    for (first, count), seed, weights in zip(places, seeds, shares, strict=True):
        alone, rows = deepcopy(model).double(), slice(first, first + count)
        x, y, w = own.x[rows].double(), own.y[rows], torch.from_numpy(weights)
        wanted.append(train(alone, x, y, hp, seed, weights=w))
        expected.append(flat(alone))
    if form == "direct":  # a batch in parts, two clients at a time
        monkeypatch.setattr(Program, "block", lambda *_: (2, 3))
    actual, results = train_many(
        Program(model, SHAPE), flat(model), own, places, hp, seeds, weights=shares
    )
    for c in range(len(SIZES)):
        assert (actual[c] - expected[c]).abs().mean() < TOLERANCE
        for key in ("loss", "accuracy", "steps"):
            assert results[c][key] == pytest.approx(wanted[c][key], rel=1e-4, abs=1e-9)


def test_a_weight_is_how_often_an_example_is_there() -> None:
    """Weights 3, 0 and 1 of three examples: four, of a batch that is divided by three."""
    own = examples()[0]
    x, y, hp = own.x[:3], own.y[:3], LocalTraining(lr=0.03, batch_size=0, steps=2, momentum=0.5)
    weighted, often = make("mlp"), make("mlp")
    result = train(weighted, x, y, hp, 0, weights=torch.tensor([3.0, 0.0, 1.0]))
    rows = [0, 0, 0, 2]
    found = train(often, x[rows], y[rows], replace(hp, lr=0.04), 0)
    torch.testing.assert_close(flat(weighted), flat(often), rtol=1e-5, atol=1e-6)
    assert result["loss"] == pytest.approx(found["loss"] * 4 / 3, rel=1e-5)
    assert result["accuracy"] == pytest.approx(found["accuracy"] * 4 / 3)


def test_blocks_and_slices_of_batches_change_nothing_but_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, hp, seeds = make("lenet"), LocalTraining(batch_size=8), [1, 2, 3, 4]
    whole = [
        row.clone()
        for row in train_many(Program(model, SHAPE), flat(model), *examples(), hp, seeds)[0]
    ]
    monkeypatch.setattr(
        Program, "block", lambda *_: (2, 3)
    )  # two clients at a time, three examples of a batch
    parts, results = train_many(Program(model, SHAPE), flat(model), *examples(), hp, seeds)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE)
    assert [r["steps"] for r in results] == [2, 1, 4, 1]


@pytest.mark.parametrize("name", ["cnn", *NETS])
@pytest.mark.parametrize("floats", [1, 400, 4000])
@pytest.mark.parametrize(
    "momentum", [0.0, 0.5]
)  # without, gradients go into the weights that are still read
def test_patches_and_points_at_a_time_change_nothing_but_rounding(
    name: str, momentum: float, floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seeds = make(name), [1, 2, 3, 4]
    hp = LocalTraining(lr=0.1, batch_size=8, momentum=momentum)
    rows, _ = train_many(Program(model, SHAPE), flat(model), *examples(), hp, seeds)
    whole = [row.clone() for row in rows]
    monkeypatch.setattr(convolution, "NEAR_PATCHES", floats)
    monkeypatch.setattr(winograd, "NEAR_POINTS", floats)
    parts, _ = train_many(Program(model, SHAPE), flat(model), *examples(), hp, seeds)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "alone"), [("cnn", True), ("simple_cnn", False), ("lenet", False), ("mlp", False)]
)
def test_single_examples_of_too_few_tiles_go_one_by_one(name: str, alone: bool) -> None:
    shape = (1, 28, 28)
    model = build_model(name, shape, CLASSES)
    own = Examples(torch.zeros(6, *shape), torch.zeros(6, dtype=torch.int64))
    places, hp = [(0, 3), (3, 3)], LocalTraining(batch_size=1, steps=1)
    with (
        pytest.raises(UnsupportedError, match="wide convolutions of single")
        if alone
        else nullcontext()
    ):
        train_many(Program(model, shape), flat(model), own, places, hp, [1, 2])


@pytest.mark.parametrize(
    "momentum", [0.0, 0.9]
)  # without, gradients go into the weights that are still read
def test_a_large_dense_layer_is_updated_in_parts(
    momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, hp, seeds = (
        make("simple_cnn"),
        LocalTraining(batch_size=8, momentum=momentum),
        [1, 2, 3, 4],
    )
    monkeypatch.setattr(layers, "NEAR_FLOATS", 3000)  # 5 of 128 rows at a time
    actual, _ = train_many(Program(model, SHAPE), flat(model), *examples(), hp, seeds)
    for own, expected in zip(actual, reference(model, hp, seeds)[0], strict=True):
        torch.testing.assert_close(own.double(), expected, rtol=0, atol=TOLERANCE)


def test_each_client_may_start_elsewhere(form: str) -> None:
    models = [make("mlp") for _ in SIZES]
    for c, model in enumerate(models):
        model.hidden.bias.data += c
    hp, seeds = LocalTraining(batch_size=8, proximal_mu=0.2), [1, 2, 3, 4]
    start = torch.stack([flat(model) for model in models])
    actual, _ = train_many(Program(models[0], SHAPE), start, *examples(), hp, seeds)
    for c, model in enumerate(models):
        torch.testing.assert_close(
            actual[c].double(), reference(model, hp, seeds)[0][c], rtol=0, atol=TOLERANCE
        )


def test_correction_is_added_to_each_steps_gradient(form: str) -> None:
    # Blank images: the weights' gradients are 0, so that 4 steps of lr 0.1 take 4 * 0.1 * 2 off
    # each weight.
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    hp = LocalTraining(lr=0.1, momentum=0.0, steps=4)
    blank = Examples(torch.zeros(2, 1, 1, 3), torch.tensor([0, 1])), [(0, 1), (1, 1)]
    correction = torch.tensor([[2.0] * 6, [0.0] * 6])
    rows, _ = train_many(
        Program(model, (1, 1, 3)), torch.ones(6), *blank, hp, [0, 0], correction=correction
    )
    torch.testing.assert_close(rows[0], torch.full((6,), 1 - 0.8))
    assert rows[1].tolist() == [1.0] * 6


def test_correction_anchor_and_own_weights_of_the_pull_are_those_of_the_reference(
    form: str,
) -> None:
    model, hp, seeds = (
        make("mlp"),
        LocalTraining(batch_size=8, weight_decay=0.05, epochs=2),
        [1, 2, 3, 4],
    )
    generator = torch.Generator().manual_seed(9)
    correction, anchor = 0.1 * torch.randn(2, 4, len(flat(model)), generator=generator)
    mu = torch.tensor([0.3, 0.0, 0.2, 0.1])
    own_examples, places = examples()
    for given in (
        {"correction": correction},
        {"anchor": anchor, "mu": mu},
        {"correction": correction, "mu": mu},
    ):
        actual, _ = train_many(Program(model, SHAPE), flat(model), *examples(), hp, seeds, **given)
        for c, (first, count) in enumerate(places):
            own, rows = deepcopy(model).double(), slice(first, first + count)
            shapes = [p.shape for p in own.parameters()]
            pieces = {
                name: [
                    part.double().view(shape)
                    for part, shape in zip(
                        t[c].split([s.numel() for s in shapes]), shapes, strict=True
                    )
                ]
                for name, t in given.items()
                if name != "mu"
            }
            own_hp = replace(hp, proximal_mu=float(mu[c]) if "mu" in given else 0.0)
            train(own, own_examples.x[rows].double(), own_examples.y[rows], own_hp, seeds[c],
                  anchor=pieces.get("anchor"), offset=pieces.get("correction"))  # fmt: skip
            torch.testing.assert_close(actual[c].double(), flat(own), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("only", ["hidden", "output"])
def test_what_does_not_move_stays_to_the_bit_and_the_rest_is_the_references(
    form: str, only: str, optimizer: str
) -> None:
    model, seeds = make("mlp"), [1, 2, 3, 4]
    hp = LocalTraining(optimizer, batch_size=8, weight_decay=0.05, proximal_mu=0.2, epochs=2)
    moving = [name for name, _ in model.named_parameters() if name.startswith(only)]
    moves = torch.cat([torch.full((p.numel(),), n in moving) for n, p in model.named_parameters()])
    actual, results = train_many(
        Program(model, SHAPE), flat(model), *examples(), hp, seeds, moves=moves
    )
    own_examples, places = examples()
    for c, (first, count) in enumerate(places):
        own, rows = deepcopy(model).double(), slice(first, first + count)
        of_rows = own_examples.x[rows].double(), own_examples.y[rows]
        result = train(own, *of_rows, hp, seeds[c], only=moving)
        torch.testing.assert_close(actual[c].double(), flat(own), rtol=0, atol=TOLERANCE)
        assert torch.equal(actual[c][~moves], flat(model)[~moves])
        assert not torch.equal(actual[c][moves], flat(model)[moves])
        assert results[c]["loss"] == pytest.approx(result["loss"], rel=1e-4)


def test_the_dual_form_is_taken_where_it_costs_less() -> None:
    # IFCA's MLP: 10 steps over 100 examples, 4 * 1000 * F * O directly; 60 examples once;
    # a logistic regression once.
    assert vectorized.pays(784, 200, 100, 1000, 10, drift=False)
    assert vectorized.pays(784, 200, 60, 60, 6, drift=False)
    assert not vectorized.pays(784, 10, 60, 60, 6, drift=False)
    assert not vectorized.pays(784, 200, 6000, 6000, 600, drift=False)


@pytest.mark.parametrize("name", ["logreg", "mlp", "lenet", "padded", "narrow", "simple_cnn"])
def test_losses_of_each_are_those_of_every_model_alone(name: str) -> None:
    models = [make(name) for _ in range(3)]
    for k, model in enumerate(models):
        for p in model.parameters():
            p.data += 0.05 * k
    own_examples, places = examples()
    values = torch.stack([flat(model) for model in models])
    losses = losses_of_each(Program(models[0], SHAPE), values, own_examples, places)
    for own, (first, count) in zip(losses, places, strict=True):
        rows = slice(first, first + count)
        for k, model in enumerate(models):
            logits = predict(model, own_examples.x[rows])
            expected = nn.functional.cross_entropy(logits, own_examples.y[rows], reduction="none")
            torch.testing.assert_close(own[:, k].float(), expected, rtol=1e-4, atol=1e-4)


def test_bytes_become_floats_when_they_are_taken() -> None:
    x = torch.tensor([[[[0, 51]], [[102, 255]]]], dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(2, 1, 1) for values in ([0.0, 0.2], [1.0, 0.4]))
    taken = Examples(x, torch.zeros(1, dtype=torch.int64), mean, std).images(torch.tensor([0, 0]))
    torch.testing.assert_close(
        taken, torch.tensor([[[[0.0, 0.2]], [[0.5, 2.0]]]]).expand(2, -1, -1, -1)
    )


def ends_with_images() -> nn.Module:
    """A wide convolution, whose memory is used again, gives the logits."""
    return nn.Sequential(
        nn.Conv2d(2, 32, (4, 3), stride=(3, 3)), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten()
    )


@pytest.mark.parametrize("block", [(2, 30), (2, 4), (1, 1)])  # clients and examples at a time
@pytest.mark.parametrize(
    "make_model", [lambda: make("lenet"), lambda: make("simple_cnn"), ends_with_images]
)
def test_predict_many_is_predict(
    make_model: Callable[[], nn.Module], block: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Program, "block", lambda *_: block)
    models = [make_model(), make_model()]
    next(models[1].parameters()).data += 0.1
    own_examples, places = examples()
    program, values = Program(models[0], SHAPE), torch.stack([flat(model) for model in models])
    for sets in (
        places[:2],
        [places[2]] * 2,
    ):  # own examples of different number, the same for both
        logits = predict_many(program, values, own_examples, sets)
        for model, actual, (first, count) in zip(models, logits, sets, strict=True):
            torch.testing.assert_close(
                actual, predict(model, own_examples.x[first : first + count])
            )


class Custom(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(220, 5))
    model[1].bias.requires_grad_(False)
    return model


def tied() -> nn.Module:
    layer = nn.Linear(220, 220)
    return nn.Sequential(nn.Flatten(), layer, layer)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Sequential(nn.BatchNorm2d(2)), "BatchNorm2d has no batched form"),
        (nn.Sequential(nn.Flatten(), nn.Dropout()), "Dropout has no batched form"),
        (Custom(), "Custom has no batched form"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, groups=2)), "groups"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding="same")), "padding='same'"),
        (nn.Sequential(nn.MaxPool2d(3)), "MaxPool2d other than 2x2"),
        (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), "ceil_mode"),
        (nn.Sequential(nn.Linear(10, 3)), "inputs of shape"),
        (frozen(), "frozen"),
        (tied(), "share parameters"),
    ],
)
def test_what_has_no_batched_program_says_why(model: nn.Module, why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        Program(model, SHAPE)


@pytest.mark.parametrize(
    ("convolution", "left"),
    [
        (nn.Conv2d(2, 5, 3), None),
        (nn.Conv2d(2, 512, 3), None),  # by minimal filtering
        (nn.Conv2d(2, 512, 5, padding=2), None),
        (nn.Conv2d(2, 512, 1), (2, 512)),
        (nn.Conv2d(2, 512, (3, 5)), (2, 512)),
        (nn.Conv2d(2, 512, 3, stride=2), (2, 512)),
    ],
)
def test_other_wide_convolutions_are_left_to_the_library(
    convolution: nn.Conv2d, left: tuple[int, int] | None
) -> None:
    model, why = (
        nn.Sequential(convolution),
        "^convolutions of {} to {} channels are faster one by one on a CPU$",
    )
    with (
        nullcontext() if left is None else pytest.raises(UnsupportedError, match=why.format(*left))
    ):
        Program(model, SHAPE)
    Program(model, SHAPE, torch.device("cuda"))


def test_minimal_filtering_is_for_cpus() -> None:
    on = {name: Program(make("cnn"), SHAPE, torch.device(name)).layers for name in ("cpu", "cuda")}
    assert [
        any(isinstance(layer, WinogradLayer) for layer in layers) for layers in on.values()
    ] == [True, False]


def test_dropout_needs_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Program, "columns", lambda *_: 3)
    with pytest.raises(UnsupportedError, match="dropout in batches of more than 3 examples"):
        train_many(
            Program(make("dropping"), SHAPE),
            flat(make("dropping")),
            *examples(),
            LocalTraining(),
            [1, 2, 3, 4],
        )


def test_a_gpus_memory_decides_how_much_goes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(
        total_memory=4 * 64 * 220 * 50
    )  # a 64th of its floats: 50 examples of 220 pixels
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert Program(make("logreg"), SHAPE).block(10, torch.device("cuda")) == (5, 10)


def test_bf16_has_no_batched_form() -> None:
    hp = LocalTraining(precision="bf16")
    with pytest.raises(UnsupportedError, match="bf16"):
        train_many(Program(make("mlp"), SHAPE), flat(make("mlp")), *examples(), hp, [1, 2, 3, 4])


def test_a_client_without_examples_is_an_error() -> None:
    own_examples, _ = examples()
    places = [(0, 2), (2, 0)]
    with pytest.raises(ValueError, match="without examples"):
        train_many(
            Program(make("mlp"), SHAPE),
            flat(make("mlp")),
            own_examples,
            places,
            LocalTraining(),
            [1, 2],
        )


def test_memory_is_used_again_where_it_suffices() -> None:
    memory, like = layers.Buffer(), torch.zeros(1)
    first = memory.get((4, 3), like)
    assert memory.get((2, 6), like).data_ptr() == first.data_ptr()
    assert memory.get((5,), like).data_ptr() == first.data_ptr()
    larger = memory.get((5, 5), like)
    assert larger.shape == (5, 5)
    assert memory.get((4, 3), like).data_ptr() == larger.data_ptr()
    assert memory.get((4, 3), like.double()).dtype == torch.float64
