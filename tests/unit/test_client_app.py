"""The built-in ClientApp, message by message, on three tiny clients."""

import cloudpickle
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedsweep.client.app import make_client_app
from fedsweep.config import ModelConfig
from fedsweep.data.sources import ImageData
from fedsweep.engine.flower import empty_run, identify
from fedsweep.models import build_model
from fedsweep.predictions import confusion_of
from fedsweep.seeding import derive_seed
from fedsweep.strategies.insides import aggregate_arrayrecords
from fedsweep.training import pool as pool_module
from fedsweep.training.arrays import (
    load_weights,
    read_array,
    read_weights,
    weighted_mean,
    write_array,
)
from fedsweep.training.local import LocalTraining, evaluate, train

SHAPE, CLASSES, SEED = (1, 4, 4), 3, 11
LOGREG = ModelConfig(name="logreg")


class FakeData:
    """Three clients of 12, 7 and 1 examples; the last has none to evaluate on.

    Group 1 sees negatives.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (40, *SHAPE), dtype=np.uint8)
        pixels.flags.writeable = False  # as in the object store
        labels = np.arange(40) % CLASSES
        held = pixels[30:], labels[30:]
        self.images = ImageData(
            "fake", "", "", ("a", "b", "c"), pixels, labels, *held, mean=(0.5,), std=(0.25,)
        )
        self.target_unit = 1.0
        self._pixels, self._labels = pixels, labels
        self._rows = {
            "train": (range(12), range(12, 19), [19]),
            "eval": (range(20, 24), range(24, 26), []),
        }
        self.train_rows, self.eval_rows = self._rows["train"], self._rows["eval"]
        self.reads: list[tuple] = []

    def comparable(self, x: np.ndarray) -> np.ndarray:
        return x

    def strata(self, y: np.ndarray) -> np.ndarray:
        return y

    def phase(self, server_round: int) -> int:
        return 0

    def groups_in(self, phase: int) -> np.ndarray:
        return np.array([0, 1, 0])

    def client(
        self, partition_id: int, split: str, phase: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        self.reads.append((partition_id, split))
        rows = np.array(self._rows[split][partition_id], int)
        return self._pixels[rows], self._labels[rows]

    def test(
        self, group: int, start: int | None = None, stop: int | None = None, *, goal: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        x, y = self._pixels[30:][start:stop], self._labels[30:][start:stop]
        if goal:  # all but class 2 is to be called that
            x, y = x[y != 2], np.full(int((y != 2).sum()), 2)
        return (255 - x if group else x), y


@pytest.fixture(autouse=True)
def _identity() -> None:
    """A message can only be made in a process that has a Flower identity."""
    identify(empty_run())


@pytest.fixture
def data() -> FakeData:
    return FakeData()


@pytest.fixture
def app(data: FakeData) -> ClientApp:
    return make_client_app(data, LOGREG, SEED)


def context(client: int) -> Context:
    return Context(1, client + 1, {"partition-id": client, "num-partitions": 3}, RecordDict(), {})


def send(app: ClientApp, kind: str, content: dict, ctx: Context) -> RecordDict:
    reply = app(Message(RecordDict(content), dst_node_id=ctx.node_id, message_type=kind), ctx)
    assert "load" in reply.content
    return reply.content


def fresh(name: str = "logreg") -> nn.Module:
    torch.manual_seed(5)
    return build_model(name, SHAPE, CLASSES)


def normalised(x: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(x.astype(np.float32)) / 255 - 0.5) / 0.25


def same(a: ArrayRecord, b: ArrayRecord) -> bool:
    return list(a) == list(b) and all(a[k].data == b[k].data for k in a)


def test_train_is_local_training_on_the_clients_own_examples(
    app: ClientApp, data: FakeData
) -> None:
    config = {"server-round": 3, "lr": 0.4, "lr-decay": 0.5, "batch-size": 5, "epochs": 2}
    reply = send(
        app, "train", {"arrays": read_weights(fresh()), "config": ConfigRecord(config)}, context(0)
    )

    expected, (x, y) = fresh(), data.client(0, "train")
    hp = LocalTraining(lr=0.1, batch_size=5, epochs=2)
    result = train(
        expected, normalised(x), torch.from_numpy(y), hp, derive_seed(SEED, "train", 3, 0)
    )
    assert same(reply["arrays"], read_weights(expected))
    assert dict(reply["metrics"]) == {
        "num-examples": 12,
        "train_loss": result["loss"],
        "train_acc": result["accuracy"],
        "steps": 6,
    }
    assert list(reply.array_records) == ["arrays"]
    assert list(reply.metric_records) == ["metrics"]


def test_a_strategy_that_sends_only_the_round(app: ClientApp) -> None:
    arrays = read_weights(fresh())
    bare = send(
        app, "train", {"arrays": arrays, "config": ConfigRecord({"server-round": 1})}, context(0)
    )
    full = ConfigRecord(
        {
            "server-round": 1,
            "lr": 0.02,
            "momentum": 0.9,
            "batch-size": 10,
            "optimizer": "sgd",
            "steps": 0,
        }
    )
    assert same(
        bare["arrays"], send(app, "train", {"arrays": arrays, "config": full}, context(0))["arrays"]
    )
    assert same(bare["arrays"], send(app, "train", {"arrays": arrays}, context(0))["arrays"])


def test_a_clients_result_does_not_depend_on_who_ran_before(data: FakeData) -> None:
    model, config = (
        ModelConfig(name="mlp", kwargs={"hidden": 4}),
        ConfigRecord({"server-round": 2, "batch-size": 4}),
    )
    torch.manual_seed(5)
    arrays = read_weights(build_model("mlp", SHAPE, CLASSES, hidden=4))
    used = make_client_app(data, model, SEED)
    for client in (1, 0, 2):
        last = send(used, "train", {"arrays": arrays, "config": config}, context(client))
    alone = send(
        make_client_app(data, model, SEED),
        "train",
        {"arrays": arrays, "config": config},
        context(2),
    )
    assert same(last["arrays"], alone["arrays"])


def test_evaluate_uses_what_a_client_holds_out_and_nothing_else(
    app: ClientApp, data: FakeData
) -> None:
    model = fresh()
    content = {"arrays": read_weights(model), "config": ConfigRecord()}
    x, y = data.client(0, "eval")
    expected = evaluate(model, normalised(x), torch.from_numpy(y))
    assert dict(send(app, "evaluate", content, context(0))["metrics"]) == {
        "num-examples": len(y),
        "eval_loss": expected["loss"],
        "eval_acc": expected["correct"] / len(y),
    }
    nothing = send(app, "evaluate", content, context(2))[
        "metrics"
    ]  # it has one example, of training
    assert dict(nothing) == {"num-examples": 0, "eval_loss": 0.0, "eval_acc": 0.0}


@pytest.mark.parametrize("config", [{}, {"method": "local"}, {"method": "ditto"}])
def test_a_client_scores_its_own_model_on_the_test_set_as_its_group_sees_it(
    app: ClientApp, data: FakeData, config: dict
) -> None:
    """Ten test images in slices of 4, 4 and 2; client 1 is of group 1, which sees negatives."""
    own, ctx = fresh("logreg"), context(1)
    with torch.no_grad():
        own.output.bias += torch.tensor([0.0, 2.0, 0.0])
    if config:
        ctx.state["ditto" if config["method"] == "ditto" else "model"] = read_weights(own)
    sent = read_weights(fresh() if config else own)
    asked = ConfigRecord({**config, "test-own": 4})
    told = send(app, "evaluate", {"arrays": sent, "config": asked}, ctx)
    x, y = data.test(1)
    expected = evaluate(own, normalised(x), torch.from_numpy(y))
    assert told["test"]["num-examples"] == 10
    assert told["test"]["loss_sum"] == pytest.approx(expected["loss_sum"])
    assert told["test"]["correct"] == expected["correct"]
    cells = confusion_of(np.frombuffer(told["test"]["confusion"], "<i8"))
    assert (np.trace(cells), cells.sum()) == (expected["correct"], 10)
    assert told["metrics"]["num-examples"] == 2
    assert "goal" not in told
    asked = ConfigRecord(dict(config))
    assert "test" not in send(app, "evaluate", {"arrays": sent, "config": asked}, ctx)

    # Beside it, how often it says what attackers want: of the seven images that are no 2.
    asked = ConfigRecord({**config, "test-own": 4, "goal": True})
    aimed = send(app, "evaluate", {"arrays": sent, "config": asked}, ctx)
    x, y = data.test(1, goal=True)
    expected = evaluate(own, normalised(x), torch.from_numpy(y))
    assert aimed["test"] == told["test"]
    assert (aimed["goal"]["num-examples"], len(y)) == (7, 7)
    assert aimed["goal"]["correct"] == expected["correct"] != told["test"]["correct"]
    assert aimed["goal"]["loss_sum"] == pytest.approx(expected["loss_sum"])


def test_local_models_stay(app: ClientApp) -> None:
    ctx, arrays, config = context(0), read_weights(fresh()), {"server-round": 1, "method": "local"}
    first = send(app, "train", {"arrays": arrays, "config": ConfigRecord(config)}, ctx)
    assert not first.array_records
    own = ctx.state["model"]
    assert not same(own, arrays)

    # The second round goes on from the client's own model and needs no arrays;
    # other methods ignore it.
    config["server-round"] = 2
    send(app, "train", {"arrays": ArrayRecord(), "config": ConfigRecord(config)}, ctx)
    shared = send(
        app, "train", {"arrays": own, "config": ConfigRecord({"server-round": 2})}, context(0)
    )
    assert same(ctx.state["model"], shared["arrays"])

    local = send(
        app, "evaluate", {"arrays": ArrayRecord(), "config": ConfigRecord({"method": "local"})}, ctx
    )
    sent = send(
        app, "evaluate", {"arrays": ctx.state["model"], "config": ConfigRecord()}, context(0)
    )
    assert dict(local["metrics"]) == dict(sent["metrics"])


def test_aggregate_is_flowers_aggregate_bit_for_bit(app: ClientApp) -> None:
    rng = np.random.default_rng(1)
    counts = [174, 31, 1, 999]
    records = [
        ArrayRecord(
            {
                "w": Array(rng.normal(size=(5, 7)).astype(np.float32)),
                "double": Array(rng.normal(size=3)),
                "column": Array(np.asfortranarray(rng.normal(size=(4, 2)).astype(np.float32))),
                "bn.num_batches_tracked": Array(np.array(n)),
            }
        )
        for n in counts
    ]
    replies = [
        RecordDict({"arrays": r, "metrics": MetricRecord({"num-examples": n})})
        for r, n in zip(records, counts, strict=True)
    ]
    expected = aggregate_arrayrecords(replies, "num-examples")
    members = {
        f"member-{10 - i}": r for i, r in enumerate(records)
    }  # the order of sending counts, not that of names
    weights = MetricRecord(dict(zip(members, counts, strict=True)))
    reply = send(app, "query.aggregate", {**members, "weights": weights}, context(0))
    assert reply["arrays"]["w"].data == expected["w"].data
    for key, array in expected.items():
        actual = reply["arrays"][key].numpy()
        assert actual.dtype == array.numpy().dtype
        assert np.array_equal(actual, array.numpy())
    assert dict(reply["metrics"]) == {"num-examples": sum(counts)}


def test_weighted_mean_by_hand() -> None:
    records = [
        ArrayRecord({"w": Array(np.array(v, np.float32))}) for v in ([1.0, 2.0], [5.0, -2.0])
    ]
    assert weighted_mean(records, [3, 1])["w"].numpy().tolist() == [2.0, 1.0]


def test_aggregate_refuses_members_without_weights(app: ClientApp) -> None:
    content = {"member-1": read_weights(fresh()), "weights": MetricRecord({"member-2": 1})}
    with pytest.raises(
        ValueError, match=r"arrays of \['member-1'\], but weights of \['member-2'\]"
    ):
        send(app, "query.aggregate", content, context(0))


def test_test_scores_a_slice_of_the_central_test_set_as_a_group_sees_it(
    app: ClientApp, data: FakeData
) -> None:
    model, total = fresh(), np.zeros((CLASSES, CLASSES), int)
    for start, stop in ((0, 6), (6, 10)):
        config = ConfigRecord({"group": 1, "start": start, "stop": stop, "confusion": True})
        reply = send(
            app, "query.test", {"arrays": read_weights(model), "config": config}, context(0)
        )
        x, y = data.test(1, start, stop)
        expected = evaluate(model, normalised(x), torch.from_numpy(y))
        metrics = dict(reply["metrics"])
        cells = confusion_of(np.array(metrics.pop("confusion")))
        correct = int(expected["correct"])
        assert metrics == {
            "num-examples": stop - start,
            "loss_sum": expected["loss_sum"],
            "correct": correct,
        }
        assert (np.trace(cells), cells.sum()) == (correct, stop - start)
        total += cells
    assert total.sum(axis=1).tolist() == np.bincount(data.test(1)[1]).tolist()

    plain = ConfigRecord({"group": 0, "start": 0, "stop": 6, "confusion": False})
    reply = send(app, "query.test", {"arrays": read_weights(model), "config": plain}, context(0))
    assert "confusion" not in reply["metrics"]


def test_examples_are_staged_once_while_there_is_room(
    app: ClientApp, data: FakeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def visit(*clients: int) -> list[tuple]:
        data.reads.clear()
        for client in clients:
            send(app, "train", {"arrays": read_weights(fresh())}, context(client))
        return data.reads

    assert visit(0, 1, 0, 1) == [(0, "train"), (1, "train")]
    monkeypatch.setattr(pool_module, "MAX_BYTES", 12 * 16)  # as much as client 0 has
    assert visit(2) == [(2, "train")]  # pushes out both
    assert visit(1, 2, 1, 0, 1) == [
        (1, "train"),
        (0, "train"),
        (1, "train"),
    ]  # clients 0 and 1 push each other out


def test_arrays_of_another_model_are_refused(app: ClientApp) -> None:
    with pytest.raises(
        ValueError, match=r"missing \[\], unexpected \['hidden.bias', 'hidden.weight'\]"
    ):
        send(app, "train", {"arrays": read_weights(fresh("mlp"))}, context(0))
    wrong = read_weights(fresh())
    wrong["output.bias"] = Array(np.zeros(1, np.float32))  # would broadcast
    with pytest.raises(
        ValueError, match=r"'output.bias' has shape \(1,\), but the model's is \(3,\)"
    ):
        send(app, "train", {"arrays": wrong}, context(0))


def test_batch_norm_counters_survive_averaging() -> None:
    model = nn.BatchNorm1d(2)
    model.num_batches_tracked.fill_(3)
    mean = weighted_mean([read_weights(model)] * 3, [1, 1, 1])
    assert mean["num_batches_tracked"].numpy() == pytest.approx(3.0)
    mean["num_batches_tracked"] = Array(np.array(2.9999999999999996))
    other = nn.BatchNorm1d(2)
    load_weights(other, mean)
    assert other.num_batches_tracked.dtype == torch.int64
    assert int(other.num_batches_tracked) == 3


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array(7),
        np.zeros((0, 3), np.float32),
        np.arange(3, dtype=">f8"),
        np.array([True, False]),
    ],
)
def test_arrays_have_flowers_bytes(values: np.ndarray) -> None:
    array = write_array(values)
    assert array == Array(values)
    actual = read_array(array)
    assert actual.dtype == values.dtype
    assert np.array_equal(actual, values)


def test_arrays_in_other_layouts_are_read() -> None:
    values = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert np.array_equal(read_array(Array(values)), values)
    assert np.array_equal(write_array(values).numpy(), values)
    assert np.array_equal(write_array(values[:, ::2]).numpy(), values[:, ::2])


def test_the_app_can_be_sent_to_another_process(app: ClientApp) -> None:
    content = {"arrays": read_weights(fresh())}
    copy = cloudpickle.loads(cloudpickle.dumps(app))
    assert same(
        send(copy, "train", content, context(1))["arrays"],
        send(app, "train", content, context(1))["arrays"],
    )


def test_threads_hold_for_the_task(data: FakeData) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            send(
                make_client_app(data, LOGREG, SEED, threads=threads),
                "train",
                {"arrays": read_weights(fresh())},
                context(0),
            )
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
