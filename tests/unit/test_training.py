"""Local training against numbers worked out by hand."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from fedsweep.config import TrainingConfig
from fedsweep.errors import ConfigError
from fedsweep.predictions import confusion_of
from fedsweep.sweeps.compose import compose
from fedsweep.training.local import (
    LocalTraining,
    distort,
    distortions,
    evaluate,
    passes,
    predict,
    score,
    train,
)
from fedsweep.training.targets import full_table_of

SIGMOID_1 = 1 / (1 + math.exp(-1))  # 0.731059


def linear(features: int, bias: tuple[float, float] = (0.0, 0.0)) -> nn.Module:
    """Two classes, weights zero."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(features, 2))
    nn.init.zeros_(model[1].weight)
    model[1].bias.data = torch.tensor(bias)
    return model


def biases(model: nn.Module) -> list[float]:
    return model[1].bias.detach().tolist()


def zeros(*labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Blank images: only the bias of the model matters."""
    return torch.zeros(len(labels), 1, 1, 1), torch.tensor(labels)


def test_one_sgd_step_of_logistic_regression() -> None:
    # Weights 0, so p = 1/2. Gradient of row 0: ((1/2 - 1)(1, 2) + (1/2)(3, -1)) / 2 = (0.5, -0.75);
    # row 1: minus that.
    model = linear(2)
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]]).view(2, 1, 1, 2)
    result = train(model, x, torch.tensor([0, 1]), LocalTraining(lr=0.1, momentum=0.0), seed=0)
    torch.testing.assert_close(model[1].weight.data, torch.tensor([[-0.05, 0.075], [0.05, -0.075]]))
    assert biases(model) == [0.0, 0.0]
    assert result == {"loss": pytest.approx(math.log(2)), "accuracy": 0.5, "steps": 1}


@pytest.mark.parametrize(
    ("hp", "start", "expected"),
    [
        # g = p_0 - 1 = -1/2, then sigmoid(1) - 1.
        ({"steps": 2}, 0.0, 0.5 + (1 - SIGMOID_1)),
        # v = -1/2, then (1/2)(-1/2) + sigmoid(1) - 1.
        ({"steps": 2, "momentum": 0.5}, 0.0, 0.5 + 0.25 + (1 - SIGMOID_1)),
        # g = sigmoid(1) - 1 + 0.1 * 1.
        ({"weight_decay": 0.1}, 1.0, 1.0 + (1 - SIGMOID_1) - 0.1),
        # The first step is at the start, where the proximal term is 0;
        # the second adds mu * 1/2 to the gradient.
        ({"steps": 2, "proximal_mu": 0.5}, 0.0, 0.5 + (1 - SIGMOID_1) - 0.25),
        # Adam's first step is lr * sign(g).
        ({"optimizer": "adam", "lr": 0.01}, 0.0, 0.01),
        ({"epochs": 2}, 0.0, 0.5 + (1 - SIGMOID_1)),
    ],
)
def test_each_hyperparameter_by_hand(hp: dict, start: float, expected: float) -> None:
    model = linear(1, (start, 0.0))
    train(model, *zeros(0), LocalTraining(**{"lr": 1.0, "momentum": 0.0, **hp}), seed=0)
    assert biases(model)[0] == pytest.approx(expected, abs=1e-6)


def test_loss_is_averaged_over_examples_not_batches() -> None:
    hp = LocalTraining(lr=1e-30, batch_size=2)  # batches of 2 and 1
    result = train(linear(1, (1.0, 0.0)), *zeros(0, 0, 1), hp, seed=0)
    assert result["loss"] == pytest.approx((2 * math.log1p(math.exp(-1)) + math.log1p(math.e)) / 3)
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["steps"] == 2


def test_passes_cover_every_example_in_a_new_order() -> None:
    first, second = (p.tolist() for p in passes(20, LocalTraining(epochs=2, batch_size=8), seed=1))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    again = [p.tolist() for p in passes(20, LocalTraining(epochs=2, batch_size=8), seed=1)]
    assert again == [first, second]
    other = [p.tolist() for p in passes(20, LocalTraining(epochs=2, batch_size=8), seed=2)]
    assert other[0] != first


@pytest.mark.parametrize(
    ("hp", "sizes"),
    [
        ({"batch_size": 4}, [10]),
        ({"batch_size": 4, "steps": 1}, [4]),
        ({"batch_size": 4, "steps": 3}, [10]),
        ({"batch_size": 4, "steps": 5}, [10, 8]),
        ({"batch_size": 0, "steps": 3}, [10, 10, 10]),
        ({"batch_size": 64, "epochs": 2}, [10, 10]),
    ],
)
def test_steps_and_epochs(hp: dict, sizes: list[int]) -> None:
    assert [len(p) for p in passes(10, LocalTraining(**hp), seed=0)] == sizes


def test_steps_are_counted() -> None:
    assert (
        train(linear(1), *zeros(*[0] * 10), LocalTraining(batch_size=4, steps=5), seed=0)["steps"]
        == 5
    )


def test_no_examples_is_an_error() -> None:
    with pytest.raises(ValueError, match="without examples"):
        train(linear(1), *zeros(), LocalTraining(), seed=0)


def noisy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2))


def trained(hp: LocalTraining, seed: int, model: nn.Module | None = None) -> torch.Tensor:
    model = model or noisy()
    generator = torch.Generator().manual_seed(7)
    x, y = torch.randn(20, 1, 2, 2, generator=generator), torch.arange(20) % 2
    train(model, x, y, hp, seed)
    return torch.cat([p.detach().ravel() for p in model.parameters()])


def test_the_seed_fixes_shuffling_and_dropout() -> None:
    hp = LocalTraining(batch_size=8)
    assert torch.equal(trained(hp, 1), trained(hp, 1))
    assert not torch.equal(trained(hp, 1), trained(hp, 2))
    # Full batch: nothing is shuffled, so only dropout can tell the seeds apart.
    full = LocalTraining(batch_size=0)
    assert not torch.equal(trained(full, 1), trained(full, 2))
    plain = [nn.Sequential(nn.Flatten(), nn.Linear(4, 2)) for _ in range(2)]
    plain[1].load_state_dict(plain[0].state_dict())
    assert torch.equal(trained(full, 1, plain[0]), trained(full, 2, plain[1]))


def test_the_global_generator_is_left_as_it_was() -> None:
    model = noisy()
    before = torch.get_rng_state()
    trained(LocalTraining(), 1, model)
    assert torch.equal(torch.get_rng_state(), before)


def test_frozen_and_unused_parameters_stay() -> None:
    class Extra(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(1, 2), nn.Linear(1, 2)
            self.used.weight.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x.flatten(1))

    model = Extra()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train(model, *zeros(0, 1, 1), LocalTraining(batch_size=1, proximal_mu=0.1), seed=0)
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert changed == ["used.bias"]


def test_a_loss_that_is_not_finite_is_returned() -> None:
    x, y = zeros(0, 1)
    assert math.isnan(train(linear(1), x * math.nan, y, LocalTraining(), seed=0)["loss"])


def test_evaluate_by_hand() -> None:
    model = linear(1, (1.0, 0.0))
    result = evaluate(model, *zeros(0, 0, 1), batch_size=2)
    loss_sum = 2 * math.log1p(math.exp(-1)) + math.log1p(math.e)
    assert result["loss_sum"] == pytest.approx(loss_sum)
    assert result["loss"] == pytest.approx(loss_sum / 3)
    assert (result["correct"], result["count"]) == (2, 3)


def test_predict_turns_dropout_off_and_does_not_depend_on_the_batch() -> None:
    model = noisy()
    x = torch.randn(7, 1, 2, 2)
    torch.testing.assert_close(predict(model, x, 3), predict(model, x))
    assert predict(model, x).shape == (7, 2)


def test_confusion_is_true_by_predicted() -> None:
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 9, 0], [9, 0, 0]])
    labels = torch.tensor([0, 1, 2, 2])
    expected = [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
    actual = confusion_of(full_table_of(logits, labels))
    assert actual.dtype == np.int64
    assert actual.tolist() == expected
    assert np.trace(actual) == score(logits, labels)["correct"]


def test_defaults_are_those_of_the_configuration() -> None:
    config, hp = TrainingConfig(), LocalTraining()
    of_privacy = {f.name for f in fields(hp) if f.name.startswith("dp_")}
    assert not any(getattr(hp, name) for name in of_privacy)  # off, where privacy says nothing
    shared = {f.name for f in fields(hp)} - {"steps"} - of_privacy
    assert {k: getattr(config, k) for k in shared} == {k: getattr(hp, k) for k in shared}
    assert (config.steps, hp.steps) == (None, 0)
    # Everything that the configuration can say is read: decay goes into lr, threads is the app's.
    assert set(TrainingConfig.model_fields) - {"lr_decay", "threads", "engine"} == shared | {
        "steps"
    }


def test_config_record_keys() -> None:
    sent = {
        "server-round": 3, "lr": 0.8, "lr-decay": 0.5, "optimizer": "adam", "momentum": 0.1,
        "weight-decay": 0.2, "epochs": 4, "steps": 5, "batch-size": 6, "proximal-mu": 0.7,
        "keep-local": True,
    }  # fmt: skip
    expected = LocalTraining("adam", 0.8 * 0.25, 0.1, 0.2, 4, 5, 6, 0.7)
    assert LocalTraining.from_config(sent) == expected
    assert LocalTraining.from_config({"server-round": 9}) == LocalTraining()


def test_unknown_optimizer() -> None:
    with pytest.raises(ValueError, match=r"unknown optimizer 'sdg'\. Valid: sgd, adam\."):
        LocalTraining.from_config({"optimizer": "sdg"})


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ((0, 0, 1), [[2, 1, 0], [5, 4, 3]]),
        (
            (0, 1, 0),
            [[1, 2, 1], [4, 5, 4]],
        ),  # what comes into view is reflected: column 3 is column 1
        (
            (0, -1, 1),
            [[1, 0, 1], [4, 3, 4]],
        ),  # mirrored: 2 1 0, moved the other way, and column -1 is column 1
        ((1, 0, 0), [[3, 4, 5], [0, 1, 2]]),
    ],
)
def test_distortions_by_hand(how: tuple[int, int, int], expected: list[list[int]]) -> None:
    x = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3).repeat(2, 1, 1, 1)
    plain, changed = distort(x, torch.tensor([(0, 0, 0), how]))
    assert plain.tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert changed.tolist() == [expected]


def test_distortions_are_the_clients_own_and_new_in_each_pass() -> None:
    hp = LocalTraining(augment="crop_flip")
    one, two = distortions(500, hp, 1, 32), distortions(500, hp, 2, 32)
    first, second, other = next(one), next(one), next(two)
    assert first[:, :2].min() == -4
    assert first[:, :2].max() == 4
    assert set(first[:, 2].tolist()) == {0, 1}
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not next(distortions(500, LocalTraining(augment="flip"), 1, 32))[:, :2].any()


def test_bf16_steps_see_the_weights_of_the_step_before() -> None:
    """Twenty steps on a logistic loss, whose slope falls: autocast must not keep its weights."""

    class Logistic(torch.nn.Linear):
        """Logits (w x, 0)."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x.flatten(1))
            return torch.cat([out, torch.zeros_like(out)], 1)

    ends = {}
    for precision in ("float32", "bf16"):
        model = Logistic(1, 1, bias=False)
        torch.nn.init.zeros_(model.weight)
        hp = LocalTraining(lr=4.0, momentum=0.0, batch_size=0, steps=20, precision=precision)
        train(model, torch.ones(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64), hp, seed=0)
        ends[precision] = model.weight.item()
    # Stale weights would give twenty times the first step: 20 x 4 x .5 = 40.
    assert ends["bf16"] == pytest.approx(ends["float32"], rel=0.02)
    assert ends["bf16"] < 5


def test_precision() -> None:
    model = linear(1)
    train(model, *zeros(0), LocalTraining(lr=1.0, momentum=0.0, precision="bf16"), seed=0)
    assert biases(model)[0] == pytest.approx(0.5, abs=0.01)
    assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(ValueError, match="GPUs"):
        train(model, *zeros(0), LocalTraining(precision="tf32"), seed=0)
    with pytest.raises(ConfigError, match="resources=gpu"):
        compose(["training.precision=tf32"])
