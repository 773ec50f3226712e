"""How a client's examples are cut into batches: no client is lost by its size."""

import pytest
import torch

from fedsweep.training.local import LocalTraining, batch_sizes, cut, evaluate, passes, train
from tests.networks import Normed
from tests.trials import events_of, small


@pytest.mark.parametrize(
    ("examples", "size", "least", "sizes"),
    [
        (21, 10, 1, [10, 10, 1]),
        (21, 10, 2, [10, 11]),
        (22, 10, 2, [10, 10, 2]),
        (20, 10, 2, [10, 10]),
        (1, 10, 2, [1]),
        (11, 10, 2, [11]),
        (7, 0, 2, [7]),
        (3, 1, 2, [1, 1, 1]),
    ],
)
def test_what_is_left_joins_the_batch_before_it(
    examples: int, size: int, least: int, sizes: list[int]
) -> None:
    assert batch_sizes(examples, size, least) == sizes
    hp = LocalTraining(batch_size=size, epochs=2)
    orders = list(passes(examples, hp, 0, least))
    for order in orders:
        assert [len(batch) for batch in cut(order, examples, size, least)] == sizes
        assert sorted(order.tolist()) == list(range(examples))
    assert len(orders) == 2
    steps = LocalTraining(batch_size=size, steps=len(sizes) + 1)
    assert (
        sum(len(cut(order, examples, size, least)) for order in passes(examples, steps, 0, least))
        == steps.steps
    )


@pytest.mark.parametrize("examples", [1, 2, 10, 11, 12, 21])
def test_no_client_is_lost_by_its_size(examples: int) -> None:
    """BatchNorm can't normalise one example: a batch of one uses what was seen before."""
    torch.manual_seed(0)
    model = Normed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.rand(examples, 1, 8, 8), torch.arange(examples) % 10
    result = train(model, x, y, LocalTraining(lr=0.1), seed=0)
    assert result["steps"] == len(batch_sizes(examples, 10, 2))
    counted = int(model.norm.num_batches_tracked)
    assert counted == (0 if examples == 1 else result["steps"])
    assert not torch.equal(model.out.weight, before["out.weight"])
    assert torch.equal(model.frozen.weight, before["frozen.weight"])
    assert all(module.training == model.training for module in model.modules())
    assert torch.isfinite(torch.tensor(evaluate(model, x, y)["loss"]))


def test_apfl_loses_no_client_by_its_size() -> None:
    """Eight clients of which some leave one example for the last batch of 2."""
    words = [
        "strategy=apfl",
        "model.name=tests.networks.Normed",
        "training.batch_size=2",
        "partition=linear",
    ]
    _, *rounds, _ = events_of(small(*words, "rounds=2"))
    assert all(record.metrics["6_load/failed_tasks"] == 0 for record in rounds[1:])
