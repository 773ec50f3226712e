"""Networks: published sizes, all the data sets' shapes, refusals."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from fedsweep.config import ModelConfig, TrainingConfig
from fedsweep.models import MODELS, build_model
from fedsweep.models._dropout import Dropout
from fedsweep.sweeps.compose import options

ROOT = Path(__file__).parents[2]
DIGITS, MNIST, CIFAR = (1, 8, 8), (1, 28, 28), (3, 32, 32)


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("logreg", MNIST, 784 * 10 + 10),
        ("mlp", MNIST, 784 * 200 + 200 + 200 * 10 + 10),
        ("lenet", MNIST, 44_426),  # 177 kB
        ("lenet", CIFAR, 62_006),
        ("cnn", MNIST, 1_663_370),  # McMahan et al. 2017
        ("simple_cnn", CIFAR, 896 + 18_496 + 12_544 * 128 + 128 + 1_290),
        ("lenet", DIGITS, 156 + 2_416 + 64 * 120 + 120 + 10_164 + 850),
    ],
)
def test_sizes(name: str, shape: tuple[int, int, int], parameters: int) -> None:
    assert size(build_model(name, shape, 10)) == parameters


OF_IMAGES = sorted(MODELS.keys() - {"resnet18", "bag", "lstm"})


@pytest.mark.parametrize("name", OF_IMAGES)
@pytest.mark.parametrize("shape", [DIGITS, MNIST, CIFAR, (2, 9, 13)])
def test_every_model_takes_every_data_set(name: str, shape: tuple[int, int, int]) -> None:
    model = build_model(name, shape, 7)
    assert model.training
    assert model(torch.randn(3, *shape)).shape == (3, 7)


def test_the_last_parameters_are_the_classifier() -> None:
    for name in OF_IMAGES:
        weight, bias = list(build_model(name, DIGITS, 7).state_dict().values())[-2:]
        assert (weight.shape[0], bias.shape) == (7, (7,))


def test_resnet18_has_group_norm_and_a_stem_for_small_images() -> None:
    model = build_model("resnet18", (1, 16, 16), 7, groups=4)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert {m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)} == {4}
    assert model.conv1.kernel_size == (3, 3)
    large = build_model("resnet18", (3, 64, 64), 10)
    assert size(large) == 11_181_642  # torchvision's 11,689,512 with 10 classes in place of 1,000
    with pytest.raises(ValueError, match="divisible"):
        build_model("resnet18", (1, 16, 16), 7, groups=5)


def test_the_global_generator_fixes_the_weights() -> None:
    first, second, third = (build(seed) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def build(seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.cat(
        [p.detach().ravel() for p in build_model("mlp", DIGITS, 10, hidden=3).parameters()]
    )


class Custom(nn.Module):
    def __init__(self, width: int, outputs: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


CALLED: list[str] = []


def unsaid() -> "NoSuchName":  # noqa: F821
    CALLED.append("unsaid")


def lies() -> nn.Module:
    return 3  # type: ignore[return-value]


def wide(width: int) -> Custom:
    return Custom(width)


class Callable:
    def __call__(self) -> nn.Module:
        CALLED.append("instance")
        return Custom(3)


instance = Callable()
partial = functools.partial(wide, 3)


@pytest.fixture
def custom(monkeypatch: pytest.MonkeyPatch) -> str:
    """The dotted path of ``Custom``."""
    monkeypatch.setitem(sys.modules, "my_models", sys.modules[__name__])
    return "my_models.Custom"


def test_dotted_path(custom: str) -> None:
    model = build_model(custom, DIGITS, 10, width=5)
    assert isinstance(model, Custom)
    assert model.layers[1].out_features == 5


def test_a_function_says_that_it_returns_a_network(custom: str) -> None:
    assert isinstance(build_model("my_models.wide", DIGITS, 10, width=5), Custom)
    assert isinstance(build_model("torchvision.models.resnet18", (3, 32, 32), 1000), nn.Module)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("os.system", {"command": "touch MARK"}),
        ("os.mkdir", {"path": "MARK"}),
        ("posix.mkdir", {"path": "MARK"}),
        ("subprocess.run", {"args": ["touch", "MARK"]}),
        ("subprocess.Popen", {"args": ["touch", "MARK"]}),
        ("builtins.exec", {"source": "open('MARK', 'w')"}),
        ("builtins.open", {"file": "MARK", "mode": "w"}),
        ("pathlib.Path.touch", {"self": "MARK"}),
        ("shutil.copy", {"src": "/etc/hostname", "dst": "MARK"}),
        ("torch.save", {"obj": 1, "f": "MARK"}),
        ("my_models.unsaid", {}),
        ("my_models.instance", {}),
        ("my_models.partial", {}),
        ("my_models.Custom.forward", {"self": 1, "x": 2}),
    ],
)
def test_what_is_no_network_is_refused_before_it_is_called(
    custom: str, name: str, kwargs: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    CALLED.clear()
    with pytest.raises(ValueError, match="not a torch.nn.Module class|can't be imported"):
        build_model(name, DIGITS, 10, **kwargs)
    assert CALLED == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "shape", "kwargs", "message"),
    [
        (
            "lanet",
            DIGITS,
            {},
            "unknown model 'lanet'. Did you mean 'lenet'\\? Valid: bag, cnn, lenet, logreg, "
            "lstm, mlp, resnet18, simple_cnn, or",
        ),
        ("lenet", (1, 3, 28), {}, "images of 3x28 pixels are too small; lenet needs at least 4x4"),
        ("cnn", (1, 28, 3), {}, "images of 28x3 pixels are too small; cnn needs at least 4x4"),
        (
            "mlp",
            DIGITS,
            {"width": 3},
            "unexpected keyword argument 'width'. It takes: hidden, layers.",
        ),
        ("mlp", DIGITS, {"hidden": 0}, "hidden=0; it must be at least 1"),
        ("mlp", DIGITS, {"num_classes": 3}, "takes num_classes from the data set; leave it out"),
        (
            "no.such.Module",
            DIGITS,
            {},
            "model 'no.such.Module' can't be imported: No module named 'no'; give",
        ),
        (
            "torch.nn.Liner",
            DIGITS,
            {},
            "'torch.nn.Liner' can't be imported: .*has no attribute 'Liner'",
        ),
        (".Net", DIGITS, {}, "'.Net' can't be imported"),
        ("torch.pi", DIGITS, {}, "model 'torch.pi' is a float, not a torch.nn.Module class"),
        (
            "torch.Generator",
            DIGITS,
            {},
            "'torch.Generator' is a class, not a torch.nn.Module class, or",
        ),
        ("my_models.lies", DIGITS, {}, "gives a int, not a torch.nn.Module"),
        ("torch.nn.Flatten", DIGITS, {}, "'torch.nn.Flatten' has no parameter that is trained"),
        (
            "my_models.Custom",
            DIGITS,
            {},
            "missing a required argument: 'width'. It takes: width, outputs.",
        ),
        (
            "my_models.Custom",
            MNIST,
            {"width": 3},
            "can't take images of shape 1x28x28: mat1 and mat2",
        ),
        (
            "my_models.Custom",
            DIGITS,
            {"width": 3, "outputs": 4},
            r"gives \(1, 4\) .* needs \(1, 10\)",
        ),
        ("my_models.Custom", DIGITS, {"width": "x"}, "can't be built with {'width': 'x'}"),
    ],
)
def test_refusals(
    custom: str, name: str, shape: tuple[int, int, int], kwargs: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_model(name, shape, 10, **kwargs)
    assert "\n" not in str(caught.value)


def test_dropout_drops_by_one_byte_a_value_features_last() -> None:
    torch.manual_seed(1)
    words = torch.empty(9, dtype=torch.int64).random_(
        -(2**63), None
    )  # 72 bytes for 2 x 5 x 7 values
    keeps = (words.view(torch.uint8)[:70] >= 64).float().view(2, 5, 7) / 0.75
    torch.manual_seed(1)
    images = torch.ones(2, 7, 5, 1)
    torch.testing.assert_close(Dropout(0.25)(images), keeps.movedim(-1, 1).unsqueeze(-1))
    torch.manual_seed(1)
    channels_last = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(Dropout(0.25)(channels_last), keeps.movedim(-1, 1).unsqueeze(-1))
    assert Dropout(0.25).eval()(images) is images
    dropped = Dropout(0.5)(torch.ones(1000, 100))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)  # six standard deviations


def test_dropout_refuses_what_a_byte_can_not_decide() -> None:
    for p in (-0.5, 1.0, 0.1):
        with pytest.raises(ValueError, match="a multiple of 1/256 of the values, not"):
            Dropout(p)


def test_configs_compose() -> None:
    assert [ModelConfig(name=name).name for name in options("model")] == sorted(MODELS)
    training = {
        p.stem: TrainingConfig(**yaml.safe_load(p.read_text()))
        for p in (ROOT / "configs/training").glob("*.yaml")
    }
    assert training["sgd"] == TrainingConfig()
    assert (training["adam"].optimizer, training["adam"].lr) == ("adam", 0.001)
    assert (training["full_batch"].batch_size, training["full_batch"].steps) == (0, 10)


def test_models_and_training_import_neither_flower_nor_ray() -> None:
    code = (
        "import sys, models, fedsweep.training.local\n"
        "print([m for m in ('ray', 'flwr', 'mlflow', 'torchvision', 'psutil', 'pydantic') "
        "if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
