"""Each task begins with the same network, whatever ran in the process before."""

import pytest
import torch
from flwr.app import Message, RecordDict
from torch import Tensor, nn

from fedsweep.errors import TrialError
from fedsweep.sweeps.prepare import make_split
from fedsweep.training.modules import AsBuilt, check_repeats
from fedsweep.trial.trial import initial_model, make_grid, train_config
from tests.networks import Leaky
from tests.trials import digits, events_of, small

LEAKS = ["buffer", "attribute", "list", "late"]


def answers(model: nn.Module, batches: int) -> Tensor:
    model.train()
    for _ in range(batches):
        model(torch.ones(2, 64))
    model.eval()
    with torch.no_grad():
        return model(torch.ones(1, 64)).clone()


@pytest.mark.parametrize("where", LEAKS)
def test_what_a_state_dict_does_not_show_is_put_back(where: str) -> None:
    torch.manual_seed(0)
    model = Leaky(where)
    built = AsBuilt(model)
    new = answers(model, 0)
    assert not torch.equal(answers(model, 3), new)
    built.restore()
    assert torch.equal(answers(model, 0), new)
    assert not hasattr(model, "late")
    assert model.log == []


def test_a_network_keeps_what_it_refers_to_itself() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.by_name = {"first": model[0]}
    AsBuilt(model).restore()
    assert model.by_name["first"] is model[0]


def test_an_attribute_that_cannot_be_copied_is_refused() -> None:
    model = nn.Linear(2, 2)
    model.stream = (i for i in range(3))
    with pytest.raises(ValueError, match=r"Linear\.stream can't be copied"):
        AsBuilt(model)


def test_a_network_that_remembers_elsewhere_is_refused_before_it_trains() -> None:
    with pytest.raises(TrialError, match="keeps something outside its state_dict"):
        events_of(small("model.name=tests.networks.Leaky", "model.kwargs.where=class"))
    model = Leaky("class")
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    with pytest.raises(ValueError, match="trains differently the second time"):
        check_repeats(lambda: model, x, y, seed=0)


@pytest.mark.parametrize("where", LEAKS)
def test_results_do_not_depend_on_who_ran_before(where: str) -> None:
    """A client's update and its evaluation are the same in a new process and after two others."""
    words = ["model.name=tests.networks.Leaky", f"model.kwargs.where={where}"]
    config = small(*words, "training.engine=sequential")
    split = make_split(digits(), config)

    def reply_of(node: int, *before: int) -> tuple[bytes, dict[str, object]]:
        grid = make_grid(config, split.on(digits()), None, digits(), split)
        arrays, _ = initial_model(grid)
        content = RecordDict({"arrays": arrays, "config": train_config(config.training)})
        for asked in (*before, node):
            [trained] = grid.send_and_receive([Message(content, asked, "train")])
            [scored] = grid.send_and_receive([Message(content, asked, "evaluate")])
        weights = trained.content["arrays"]["out.weight"].numpy().tobytes()
        return weights, dict(scored.content["metrics"])

    assert reply_of(3, 1, 2) == reply_of(3)
