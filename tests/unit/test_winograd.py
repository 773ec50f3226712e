"""Winograd's minimal filtering against convolutions: exact (float64), within rounding (float32)."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsweep.training.layers import Weights
from fedsweep.training.winograd import WinogradLayer, filtered, maps

INNER, OUTER = 16, 64


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_tile_of_outputs_by_hand(kernel: int) -> None:
    a, g, b = maps(kernel)
    w, x = torch.arange(1.0, kernel + 1).double(), torch.tensor([3.0, 1, 4, 1, 5, 9, 2, 6]).double()
    x = x[: kernel + 3]
    by_hand = {
        3: [3 + 2 + 12, 1 + 8 + 3, 4 + 2 + 15, 1 + 10 + 27],
        5: [
            3 + 2 + 12 + 4 + 25,
            1 + 8 + 3 + 20 + 45,
            4 + 2 + 15 + 36 + 10,
            1 + 10 + 27 + 8 + 30,
        ],
    }
    torch.testing.assert_close(
        a @ ((g @ w) * (b @ x)), torch.tensor(by_hand[kernel]).double(), rtol=1e-13, atol=0
    )


def reference(
    w: Tensor, bias: Tensor, x: Tensor, g: Tensor, padding: tuple[int, int]
) -> list[Tensor]:
    """Return a convolution's output and gradients (input, weights, bias) of a client in float64."""
    x, w, bias = (t.double().requires_grad_() for t in (x.permute(3, 0, 1, 2), w, bias))
    y = F.conv2d(x, w, bias, padding=padding)
    d_x, d_w, d_b = torch.autograd.grad(y, (x, w, bias), g.double().permute(3, 0, 1, 2))
    return [y.permute(1, 2, 3, 0), d_x.permute(1, 2, 3, 0), d_w, d_b]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 5e-6)])
@pytest.mark.parametrize(
    ("kernel", "padding", "height", "width", "examples"),
    [
        (3, (0, 0), 6, 10, 10),  # whole tiles
        (3, (1, 1), 9, 7, 3),
        (3, (2, 0), 3, 3, 1),
        (5, (2, 2), 14, 14, 2),
        (5, (0, 2), 6, 5, 2),
        (5, (1, 0), 8, 9, 3),
    ],
)
@pytest.mark.parametrize("clients", [1, 3])
def test_it_is_the_convolution(
    kernel: int, padding: tuple[int, int], height: int, width: int, examples: int, clients: int,
    dtype: torch.dtype, tolerance: float,
) -> None:  # fmt: skip
    layer = WinogradLayer(nn.Conv2d(INNER, OUTER, kernel, padding=padding), (INNER, height, width))
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    w, bias = draw(clients, OUTER, INNER, kernel, kernel), draw(clients, OUTER)
    x = draw(clients, INNER, height, width, examples)
    before = draw(*w.shape), draw(*bias.shape)
    for beta in (0.5, 0.0):  # its memory is used twice
        weights = Weights(
            (w, bias), tuple(t.clone() if beta else torch.full_like(t, torch.nan) for t in before)
        )
        y, kept = layer.forward(weights, x, None)
        y, g = y.clone(), draw(*y.shape)
        d_x = layer.backward(weights, kept, g, beta, True)
        assert d_x is not None
        for c in range(clients):
            d_w, d_b = (
                new[c] - (beta * old[c] if beta else 0)
                for new, old in zip(weights.grads, before, strict=True)
            )
            expected = reference(w[c], bias[c], x[c], g[c], padding)
            for actual, exact in zip((y[c], d_x[c], d_w, d_b), expected, strict=True):
                assert actual.shape == exact.shape
                rounding = tolerance * (4 if kernel == 5 else 1)  # of more points, further apart
                assert (actual - exact).abs().max() < rounding * exact.abs().max()


def test_gradients_go_into_the_weights_themselves_and_a_bias_is_not_needed() -> None:
    torch.manual_seed(2)
    layer = WinogradLayer(nn.Conv2d(INNER, OUTER, 3, bias=False), (INNER, 8, 8))
    w, x = torch.randn(1, OUTER, INNER, 3, 3), torch.randn(1, INNER, 8, 8, 4)
    own = w.clone()
    weights = Weights((own,), (own,))
    y, kept = layer.forward(weights, x, None)
    g = torch.randn_like(y)
    d_x = layer.backward(weights, kept, g, 1.0, True)
    _, exact_d_x, exact_d_w, _ = reference(w[0], torch.zeros(OUTER), x[0], g[0], (0, 0))
    assert d_x is not None
    for actual, exact in ((own[0], w[0] + exact_d_w), (d_x[0], exact_d_x)):
        assert (actual - exact).abs().max() < 5e-6 * exact.abs().max()


# For autograd, in networks that are trained one by one


class TwoWide(nn.Module):
    """Two wide convolutions whose outputs are added up: nothing that has a batched program."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(INNER, OUTER, 3, padding=1, bias=False)
        self.second = nn.Conv2d(INNER, OUTER, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


def test_a_network_in_training_has_the_gradients_of_its_convolutions() -> None:
    torch.manual_seed(0)
    model = TwoWide().double()
    x = torch.randn(6, INNER, 9, 11, dtype=torch.float64, requires_grad=True)
    wanted = [x, *model.parameters()]
    y = model(x)
    g = torch.randn_like(y)
    expected = [y, *torch.autograd.grad(y, wanted, g)]
    with filtered(model):
        y = model(x)
        assert not torch.equal(y, expected[0])  # it was computed otherwise
        found = [y, *torch.autograd.grad(y, wanted, g)]
    for own, exact in zip(found, expected, strict=True):
        assert (own - exact).abs().max() < 1e-12 * exact.abs().max()


def test_after_its_training_a_network_is_what_it_was() -> None:
    model, x = TwoWide(), torch.randn(6, INNER, 9, 11)
    before, kinds = model(x), [type(module) for module in model.modules()]
    with pytest.raises(KeyError), filtered(model):
        raise KeyError
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(model(x), before)


def test_images_too_few_for_it_are_convolved_by_the_library() -> None:
    model, x = TwoWide(), torch.randn(2, INNER, 8, 8)  # 8 tiles
    before, alone = model(x), model(x[0])
    with filtered(model):
        assert torch.equal(model(x), before)
        assert torch.equal(model(x[0]), alone)  # without a dimension of examples


def test_images_smaller_than_a_kernel_have_the_librarys_message() -> None:
    model = nn.Conv2d(INNER, OUTER, 5)
    with filtered(model), pytest.raises(RuntimeError, match="can't be greater than actual input"):
        model(torch.randn(600, INNER, 1, 1))


def test_a_second_backward_pass_is_refused_where_its_values_are_gone() -> None:
    model, x = TwoWide(), torch.randn(6, INNER, 9, 11)
    with filtered(model):
        loss = model(x).sum()
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="one backward pass"):
            loss.backward()
