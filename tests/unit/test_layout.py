"""What a model's trained arrays are: every strategy does its maths on them, and on nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from torch import nn

from fedsweep.config import ModelConfig
from fedsweep.models import MODELS, build_model
from fedsweep.records import TrialResult
from fedsweep.strategies import STRATEGIES, Layout, with_layout
from fedsweep.strategies.apart import StateApart
from fedsweep.strategies.candidates import initial_models
from fedsweep.strategies.state import load_strategy_state, strategy_state
from fedsweep.sweeps.prepare import make_split
from fedsweep.tracking.models import model_op
from fedsweep.training.arrays import layout_of, load_weights, read_weights
from fedsweep.training.local import batch_sizes
from tests.fakes import FakeGrid
from tests.networks import Laden, Normed, Plain, Shared
from tests.trials import digits, events_of, small

PRIVACY = [
    f"privacy={kind}_{side}" for kind in ("fixed", "adaptive") for side in ("server", "client")
]
EVERY = [[f"strategy={name}"] for name in sorted(STRATEGIES)] + [[word] for word in PRIVACY]
NOISE = ["privacy.noise_multiplier=0.5", "privacy.strict=false"]
LAYOUT = Layout(("body.w", "out.w"), averaged=("mean",), carried=("count", "frozen"))


def result_of(*words: str) -> TrialResult:
    return events_of(small("rounds=2", "training.engine=sequential", *words))[-1]


def test_a_networks_layout() -> None:
    assert layout_of(Plain()) == Layout(("body.weight", "body.bias", "out.weight", "out.bias"))
    assert layout_of(Normed()) == Layout(
        ("scale", "body.weight", "body.bias", "norm.weight", "norm.bias", "out.weight", "out.bias"),
        averaged=("norm.running_mean", "norm.running_var"),
        carried=("shift", "frozen.weight", "frozen.bias", "norm.num_batches_tracked"),
    )
    for name in MODELS:
        shape, symbols = ((8,), 5) if name in ("bag", "lstm") else ((3, 32, 32), 0)
        model = build_model(name, shape, 10, symbols)
        assert layout_of(model) == Layout(tuple(name for name, _ in model.named_parameters()))


def test_a_layout_travels() -> None:
    for layout in (LAYOUT, Layout(("w",))):
        assert Layout.from_config(layout.to_config()) == layout


def test_shared_weights_are_one_array() -> None:
    """Twice in a record they would count twice in distances, and one copy would win when loaded."""
    model = Shared()
    layout, arrays = layout_of(model), read_weights(model)
    assert layout == Layout(("first.weight", "out.weight", "out.bias"))
    assert list(arrays) == list(layout.trained)
    arrays["first.weight"] = Array(np.full((64, 64), 0.25, np.float32))
    load_weights(model, arrays)
    assert model.second.weight[3, 5].item() == 0.25
    result = result_of("strategy=fedavgm", "model.name=tests.networks.Shared")
    assert list(result.models["global"]) == list(layout.trained)


def model(body: float, out: float, mean: float, count: int, frozen: float = 7.0) -> ArrayRecord:
    arrays = {"body.w": [body], "mean": mean, "count": count, "frozen": [frozen], "out.w": [out]}
    kinds = {"count": np.int64}
    return ArrayRecord({k: Array(np.array(v, kinds.get(k, np.float32))) for k, v in arrays.items()})


def plain(record: ArrayRecord) -> dict[str, object]:
    return {name: array.numpy().tolist() for name, array in record.items()}


def test_mean_by_hand() -> None:
    """Weights 1 and 3: (0 + 3 * 4) / 4 = 3; counters are those of the heaviest."""
    models = [model(0, 8, 1.0, 5), model(4, 0, 2.0, 9)]
    mean = LAYOUT.mean(models, [1, 3])
    assert plain(mean) == {
        "body.w": [3.0],
        "mean": 1.75,
        "count": 9,
        "frozen": [7.0],
        "out.w": [2.0],
    }
    assert mean["count"].dtype == "int64"
    assert LAYOUT.mean(models, [1, 3], heaviest=0)["count"].numpy() == 5
    assert LAYOUT.mean(models, [2, 2])["count"].numpy() == 5


def test_vectors_hold_what_is_trained() -> None:
    assert LAYOUT.vector(model(1, 2, 30, 40)).tolist() == [1.0, 2.0]
    assert LAYOUT.last_layer() == ["out.w"]
    shuffled = initial_models(
        ArrayRecord({**model(1, 2, 30, 40), "body.w": Array(np.arange(9.0))}), 2, 0, LAYOUT
    )[1]
    assert sorted(shuffled["body.w"].numpy()) == list(range(9)) != list(shuffled["body.w"].numpy())
    assert plain(shuffled) | {"body.w": 0} == plain(model(1, 2, 30, 40)) | {"body.w": 0}


def clients(examples: dict[int, int]) -> ClientApp:
    """Clients that add their node id to what is trained and counted, ten times it to the state."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        node = context.node_id
        sent = message.content["arrays"]
        steps = {"body.w": node, "out.w": node, "mean": 10 * node, "count": node}
        arrays = ArrayRecord(
            {k: Array(np.asarray(a.numpy() + steps.get(k, 0), a.dtype)) for k, a in sent.items()}
        )
        metrics = MetricRecord({"num-examples": examples[node], "train_loss": 1.0})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


def one_round(strategy, examples: dict[int, int], chunk: int = 1) -> ArrayRecord:
    grid = FakeGrid(clients(examples), len(examples), chunk_size=lambda: chunk)
    messages = strategy.configure_train(1, model(0, 0, 0, 100), ConfigRecord(), grid)
    arrays, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    for message in grid.sent[0]:
        assert list(message.content["arrays"]) == list(
            model(0, 0, 0, 0)
        )  # a client gets whole models
    return arrays


def test_a_server_optimizer_steps_what_is_trained_alone() -> None:
    """FedAvgM with server_learning_rate 2: x - 2 (x - mean) for parameters;
    the state is the mean itself.
    """
    inner = flower.FedAvgM(server_learning_rate=2.0, server_momentum=0.0)
    strategy = with_layout(inner, LAYOUT)
    assert isinstance(strategy, StateApart)
    arrays = one_round(strategy, {1: 10, 2: 30})
    assert plain(arrays) == {
        "body.w": [3.5],
        "mean": 17.5,
        "count": 102,
        "frozen": [7.0],
        "out.w": [3.5],
    }


def test_krum_is_told_nothing_of_counters() -> None:
    """Of updates 1 to 6 with one attacker, 2 to 5 have equally near three: the first is taken."""

    class Counting(flower.Krum):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            assert all(list(reply.content["arrays"]) == ["body.w", "out.w"] for reply in replies)
            return super().aggregate_train(server_round, replies)

    strategy = with_layout(Counting(num_malicious_nodes=1), LAYOUT)
    arrays = one_round(strategy, dict.fromkeys(range(1, 7), 10))
    assert arrays["body.w"].numpy() == 2.0
    assert arrays["mean"].numpy() == 35.0


def test_statistics_that_are_no_numbers_have_no_part_in_the_mean() -> None:
    """Client 6 diverged: Krum takes 2 as it would without it, and the state is 1 to 5's."""
    strategy = with_layout(STRATEGIES["krum"](num_malicious_nodes=1), LAYOUT)
    grid = FakeGrid(clients(dict.fromkeys(range(1, 7), 10)), 6)
    messages = strategy.configure_train(1, model(0, 0, 0, 100), ConfigRecord(), grid)
    replies = grid.send_and_receive(messages)
    nan = float("nan")
    replies[5].content["arrays"] = model(nan, nan, nan, 106)
    arrays, _ = strategy.aggregate_train(1, replies)
    assert plain(arrays) == {
        "body.w": [2.0], "mean": 30.0, "count": 101, "frozen": [7.0], "out.w": [2.0],
    }  # fmt: skip
    for reply in replies:
        reply.content["arrays"] = model(1, 1, nan, 106)
    arrays, _ = strategy.aggregate_train(1, replies)
    assert np.isnan(arrays["mean"].numpy())  # there is no other


def test_a_strategy_is_left_as_it_is_where_all_arrays_are_trained() -> None:
    strategy = flower.FedAdam()
    assert with_layout(strategy, Layout(("w",))) is strategy


@pytest.mark.parametrize(
    "words",
    [words for words in EVERY if words != ["strategy=fedbn"]],  # it needs statistics
    ids=lambda words: words[0],
)
def test_what_is_not_trained_changes_nothing(words: list[str]) -> None:
    """The same trained arrays, to the bit, with and without statistics, counters, frozen layers."""
    words = [*words, *(NOISE if "privacy" in words[0] else [])]
    without = result_of(*words, "model.name=tests.networks.Plain").models
    beside = result_of(*words, "model.name=tests.networks.Laden").models
    fixed = Laden()
    assert without.keys() == beside.keys()
    for name, arrays in without.items():
        for key, values in arrays.items():
            np.testing.assert_array_equal(values, beside[name][key], err_msg=f"{name}/{key}")
        assert set(beside[name]) == set(fixed.state_dict())
        # Nobody can tell that a floating buffer is fixed: it is averaged, so it may be off by a
        # rounding.
        np.testing.assert_allclose(beside[name]["fixed"], fixed.fixed, rtol=1e-6)
        assert beside[name]["seen"].dtype == np.int64


@pytest.mark.parametrize("words", EVERY, ids=lambda words: words[0])
def test_every_strategy_trains_a_network_with_batch_norm(words: list[str]) -> None:
    """It learns: the loss falls, what is frozen rests, a scalar parameter moves, counters count."""
    words = [*words, *(NOISE if "privacy" in words[0] else [])]
    setting = ["model.name=tests.networks.Normed", "rounds=3", "seed=3"]
    _, *rounds, result = events_of(small(*setting, "training.engine=sequential", *words))
    losses = [record.metrics["3_clients/train_loss"] for record in rounds[1:]]
    assert all(np.isfinite(losses)), losses
    private = "privacy" in words[0]
    assert private or words[0] == "strategy=qfedavg" or losses[-1] < losses[0]
    for arrays in result.models.values():
        assert all(np.isfinite(values).all() for values in arrays.values())
        assert arrays["norm.num_batches_tracked"].dtype == np.int64
        assert arrays["norm.running_var"].min() > 0
        assert arrays["shift"].tolist() == [1]


def test_batch_norms_statistics_are_averaged_by_examples_and_counters_carried() -> None:
    """Two rounds of FedAvg on unequal clients: partial means and whole replies give the same."""
    words = ("strategy=fedavg", "model.name=tests.networks.Normed", "partition=linear")
    chunked = result_of(*words, "resources.chunk_size=8").models["global"]
    single = result_of(*words, "resources.chunk_size=1").models["global"]
    for key, values in single.items():
        np.testing.assert_allclose(chunked[key], values, rtol=1e-5, atol=1e-6, err_msg=key)
    assert chunked["norm.num_batches_tracked"] == single["norm.num_batches_tracked"]
    sizes = make_split(digits(), small(*words)).train_rows
    largest = max(len(rows) for rows in sizes)
    assert single["norm.num_batches_tracked"] == 2 * len(batch_sizes(largest, 10, 2))


def test_layouts_are_read_off_the_dtypes_where_nobody_tells() -> None:
    layout = Layout.by_dtype(read_weights(nn.BatchNorm1d(2)))
    assert layout == Layout(
        ("weight", "bias", "running_mean", "running_var"), carried=("num_batches_tracked",)
    )


def test_complex_parameters_are_refused() -> None:
    odd = nn.Module()
    odd.w = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="'w' is complex"):
        layout_of(odd)


def test_shared_weights_come_back_from_mlflow(tmp_path: Path) -> None:
    """A record has shared weights once, and MLflow's program asks for both names."""
    config = ModelConfig(name="tests.networks.Shared")
    model = Shared()
    state = {name: array.numpy() for name, array in read_weights(model).items()}
    [op] = model_op("run", "global", config, state, (1, 8, 8), 10)
    assert op.kind == "model"
    (tmp_path / "model.pt2").write_bytes(op.files["data/model.pt2"])
    program = torch.export.load(tmp_path / "model.pt2").module()
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(program(x), model(x))


def test_a_server_optimizer_goes_on_from_a_checkpoint_beside_the_state() -> None:
    """Its momentum is kept, and nothing of the round's model."""
    strategy = with_layout(flower.FedAvgM(server_momentum=0.9), LAYOUT)
    one_round(strategy, {1: 10, 2: 30})
    state = strategy_state(strategy)
    assert list(state) == ["strategy"]
    again = with_layout(flower.FedAvgM(server_momentum=0.9), LAYOUT)
    load_strategy_state(again, state)
    assert plain(one_round(again, {1: 10, 2: 30})) == plain(one_round(strategy, {1: 10, 2: 30}))


def test_statistics_that_no_privacy_covers_are_said() -> None:
    words = ["privacy=fixed_server", *NOISE, "rounds=1"]
    said = small(*words).account.said
    _, first, *_ = events_of(small(*words, "model.name=tests.networks.Normed"))
    assert first.events == (
        said,
        "privacy=fixed_server: the model's running statistics (norm.running_mean, "
        "norm.running_var) are averaged without clipping or noise: no guarantee covers them",
    )
    _, first, *_ = events_of(small(*words))
    assert first.events == (said,)
