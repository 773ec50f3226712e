"""What is relied on of Flower beyond its public names: a test for each thing, and for no others.

``make test-flower`` runs this folder on another release of Flower.
"""

import ast
import logging
import random
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, fedavg, strategy_utils

from fedsweep.engine.flower import (
    CLIENT_GONE,
    CLIENT_RAISED,
    empty_run,
    identify,
    make_message,
    node_config,
    quiet,
    reference_of,
    remote_record,
    sampling,
    set_message_id,
    size_of,
)
from fedsweep.engine.grid import inline_grid
from fedsweep.engine.host import AppSpec
from fedsweep.errors import TrialError
from fedsweep.seeding import seeded_globals
from fedsweep.strategies import Share
from fedsweep.strategies.base import sort_replies
from fedsweep.strategies.insides import (
    AggregationError,
    InconsistentMessageReplies,
    Shared,
    aggregate_arrayrecords,
    aggregate_metricrecords,
    log,
    sample_nodes,
)

ROOT = Path(__file__).parents[2]
PUBLIC = {"flwr.app", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.clientapp"}
INSIDES = {"runner/app/insides.py", "runner/engine/flower.py", "strategies/insides.py"}
PARTITIONS = "runner/scenario/partition.py"
"""The one file that uses flwr-datasets: it has releases of its own, and is no engine's business."""

MANY = range(1, 10**12 + 1)
"""Nodes, so many that a list of them can't be made."""


@pytest.fixture(autouse=True)
def _server() -> None:
    identify(empty_run())


def model(*values: float) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.array(values, np.float32))})


def reply(to: Message, value: float, weight: float) -> Message:
    metrics = MetricRecord({"num-examples": weight, "loss": value})
    return Message(RecordDict({"arrays": model(value), "metrics": metrics}), reply_to=to)


def grid_of(nodes: int):
    return inline_grid(AppSpec("key", ClientApp, {}, nodes, {}))


# Nothing else


@cache
def parsed() -> dict[str, list[ast.AST]]:
    """All nodes of our own files."""
    files = (p for room in ("runner", "strategies", "models") for p in (ROOT / room).rglob("*.py"))
    return {p.relative_to(ROOT).as_posix(): list(ast.walk(ast.parse(p.read_text()))) for p in files}


def imported() -> Iterator[tuple[str, str, str]]:
    """File, module and name of all that is imported of Flower; "" for a whole module."""
    for file, nodes in parsed().items():
        for node in nodes:
            match node:
                case ast.ImportFrom(module=str(module)) if module.split(".")[0] == "flwr":
                    yield from ((file, module, alias.name) for alias in node.names)
                case ast.Import(names=names):
                    modules = (alias.name for alias in names)
                    yield from ((file, m, "") for m in modules if m.split(".")[0] == "flwr")


def test_flowers_insides_are_imported_in_three_files() -> None:
    deep = {
        file
        for file, module, name in imported()
        if module not in PUBLIC or name not in import_module(module).__all__
    }
    assert deep == INSIDES


def test_private_parts_are_touched_in_these_files_alone() -> None:
    """No other file reaches into ``x.__dict__[...]``, or at a private name of Flower's."""
    theirs = private_names("flwr") | private_names("flwr_datasets")
    ours = {name for nodes in parsed().values() for name in defined(nodes)}
    touching = set()
    for file, nodes in parsed().items():
        for node in nodes:
            match node:
                case ast.Subscript(value=ast.Attribute(attr="__dict__")):
                    touching.add(file)
                case ast.Attribute(attr=name) if name in theirs - ours:
                    touching.add(file)
    assert touching == {"runner/engine/flower.py", PARTITIONS}


def defined(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Names that code gives to a function, a class, or an attribute of its own."""
    for node in nodes:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def private_names(package: str) -> set[str]:
    """Names with an underscore of a package, those of what strategies, apps and records are."""
    root = Path(import_module(package).__file__).parent
    rooms = ("app", "clientapp", "serverapp") if package == "flwr" else (".",)
    files = (path for room in rooms for path in (root / room).rglob("*.py"))
    names = {n for path in files for n in defined(ast.walk(ast.parse(path.read_text())))}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


# Messages


def test_a_message_knows_who_sends_it_after_identify() -> None:
    message = Message(RecordDict(), 3, "train")
    said = message.metadata
    assert (said.run_id, said.src_node_id, said.dst_node_id) == (1, 1, 3)


def test_a_message_id_that_is_set_is_what_the_reply_names() -> None:
    message = Message(RecordDict(), 3, "train")
    assert message.metadata.message_id == ""
    set_message_id(message, "1-7")
    assert message.metadata.message_id == "1-7"
    answer = Message(RecordDict(), reply_to=message)
    assert answer.metadata.reply_to_message_id == "1-7"
    assert answer.metadata.src_node_id == 3
    set_message_id(answer.metadata, "1-8")
    assert answer.metadata.message_id == "1-8"


def test_a_message_is_made_from_metadata_with_content_or_error() -> None:
    metadata = Message(RecordDict(), 3, "train").metadata
    content = RecordDict({"arrays": model(1.0)})
    assert make_message(metadata, content).content is content
    failed = make_message(metadata, error=Error(CLIENT_RAISED, "why"))
    assert failed.has_error()
    assert (failed.error.code, failed.error.reason) == (CLIENT_RAISED, "why")
    assert failed.metadata is metadata
    assert CLIENT_RAISED != CLIENT_GONE


def test_a_client_app_finds_its_partition_where_flowers_own_engine_puts_it() -> None:
    config = node_config(2, 5)
    assert config == {"partition-id": 2, "num-partitions": 5}
    app = ClientApp()

    @app.query("who")
    def who(message: Message, context: Context) -> Message:
        return Message(RecordDict({"node": ConfigRecord(context.node_config)}), reply_to=message)

    answer = app(Message(RecordDict(), 3, "query.who"), Context(1, 3, config, RecordDict(), {}))
    assert dict(answer.content["node"]) == config


def test_a_mod_stands_around_a_client_app() -> None:
    def doubled(message, context, call_next):
        answer = call_next(message, context)
        answer.content["metrics"]["n"] *= 2
        return answer

    app = ClientApp(mods=[doubled])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"n": 3})}), reply_to=message)

    context = Context(1, 1, node_config(0, 1), RecordDict(), {})
    answer = app(Message(RecordDict(), 1, "train"), context)
    assert answer.content["metrics"]["n"] == 6


# Arrays that stay where they are


class Shelf:
    """Where arrays are, and how often they were fetched."""

    def __init__(self, **records: ArrayRecord) -> None:
        self.records, self.fetched = records, 0

    def fetch(self, ref: str) -> ArrayRecord:
        self.fetched += 1
        return self.records[ref]


def test_a_remote_record_is_read_like_any_other() -> None:
    shelf = Shelf(a=model(1.0, 2.0))
    record = remote_record("a", shelf.fetch, nbytes=136)
    assert isinstance(record, ArrayRecord)
    assert (reference_of(record), size_of(record), shelf.fetched) == ("a", 136, 0)
    assert list(record) == ["w"]
    assert len(record) == 1
    assert [array.numpy().tolist() for array in record.values()] == [[1.0, 2.0]]
    assert record["w"].numpy().tolist() == [1.0, 2.0]
    assert dict(record.items()) == dict(shelf.records["a"].items())
    assert record == shelf.records["a"]
    assert [a.tolist() for a in record.to_numpy_ndarrays()] == [[1.0, 2.0]]


def test_a_copy_of_a_remote_record_stays_a_reference_and_leaves_the_record_alone() -> None:
    shelf = Shelf(a=model(1.0))
    record = remote_record("a", shelf.fetch, nbytes=132)
    copied = record.copy()
    assert (reference_of(copied), reference_of(record), shelf.fetched) == ("a", "a", 0)
    copied["w"] = Array(np.zeros(1, np.float32))
    assert [r["w"].numpy().tolist() for r in (record, copied, copied.copy())] == [
        [1.0],
        [0.0],
        [0.0],
    ]


def test_a_remote_record_that_is_changed_is_a_record_of_its_own() -> None:
    shelf = Shelf(a=model(1.0))
    record = remote_record("a", shelf.fetch, nbytes=132)
    record["v"] = Array(np.zeros(2, np.float32))
    assert reference_of(record) is None
    assert sorted(record) == ["v", "w"]
    assert list(shelf.records["a"]) == ["w"]
    del record["w"]
    assert list(record) == ["v"]
    assert size_of(record) == len(record["v"].data)


def test_a_remote_record_travels_as_its_arrays() -> None:
    import pickle

    record = remote_record("a", Shelf(a=model(4.0)).fetch, nbytes=132)
    there = pickle.loads(pickle.dumps(record))
    assert reference_of(there) is None
    assert there["w"].numpy().tolist() == [4.0]


def test_a_content_and_a_message_carry_a_remote_record_unread() -> None:
    shelf = Shelf(a=model(1.0))
    record = remote_record("a", shelf.fetch, nbytes=132)
    message = Message(RecordDict({"arrays": record}), 1, "train")
    assert message.content.array_records["arrays"] is record
    assert reference_of(message.content["arrays"]) == "a"
    assert shelf.fetched == 0


def test_an_array_is_its_dtype_shape_kind_and_bytes() -> None:
    """As the object store takes it apart."""
    array = Array(np.arange(3, dtype=np.int16))
    same = Array(array.dtype, array.shape, array.stype, bytes(array.data))
    assert same.numpy().tolist() == [0, 1, 2]
    assert same == array


# Strategies


def test_fedavg_puts_one_content_into_all_messages_of_a_round() -> None:
    grid, arrays = grid_of(5), model(1.0)
    messages = list(FedAvg().configure_train(1, arrays, ConfigRecord(), grid))
    assert len(messages) == 5
    made = Shared(lambda content: content.array_records["arrays"])
    assert all(made(message.content) is arrays for message in messages)
    assert len(made.values()) == 1
    assert messages[0].content["config"]["server-round"] == 1


def test_what_is_shared_is_made_once_and_told_apart_by_identity() -> None:
    made = []
    shared = Shared(lambda thing: made.append(thing) or len(made))
    one, equal = [1], [1]
    assert [shared(one), shared(equal), shared(one)] == [1, 2, 1]
    assert list(shared.values()) == [1, 2]
    assert made == [one, equal]


def test_flowers_sampling_never_lists_the_nodes() -> None:
    few = {"min_train_nodes": 1, "min_evaluate_nodes": 1}
    strategy = FedAvg(fraction_train=1e-11, fraction_evaluate=2e-11, **few)
    grid, record = grid_of(len(MANY)), ArrayRecord()
    with sampling():
        train = list(strategy.configure_train(1, record, ConfigRecord(), grid))
        evaluate = list(strategy.configure_evaluate(1, record, ConfigRecord(), grid))
    assert (len(train), len(evaluate)) == (10, 20)
    assert all(message.metadata.dst_node_id in MANY for message in train + evaluate)


def test_sampling_draws_the_nodes_that_flower_draws() -> None:
    grid, strategy = grid_of(50), FedAvg(fraction_train=0.3)

    def drawn() -> list[int]:
        messages = strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
        return [message.metadata.dst_node_id for message in messages]

    with seeded_globals(7):
        theirs = drawn()
    with seeded_globals(7), sampling():
        ours = drawn()
    assert ours == theirs
    assert len(set(ours)) == 15


def test_flowers_module_is_left_as_it_was() -> None:
    with sampling():
        assert fedavg.sample_nodes is not strategy_utils.sample_nodes
    assert fedavg.sample_nodes is strategy_utils.sample_nodes
    assert "list" not in vars(fedavg)


def test_too_few_nodes_are_refused_where_flower_would_wait() -> None:
    strategy = FedAvg(min_available_nodes=4)
    with (
        sampling(),
        pytest.raises(TrialError, match="3 of 4 clients or more.* are 3;"),
    ):
        list(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid_of(3)))


def test_all_nodes_are_what_a_sample_of_none_is_drawn_from() -> None:
    state = random.getstate()
    sampled, nodes = sample_nodes(grid_of(4), 4, sample_size=0)
    assert (sampled, list(nodes)) == ([], [1, 2, 3, 4])
    assert random.getstate() == state


def test_a_share_of_clients_is_rounded_as_its_decimals_say() -> None:
    """FedAvg takes ``int(clients * fraction)``: .29 of 100 is 28.999999999999996 in floats."""
    grid = grid_of(100)
    sizes = [
        len(
            list(
                FedAvg(fraction_train=share).configure_train(1, ArrayRecord(), ConfigRecord(), grid)
            )
        )
        for share in (0.29, Share(0.29))
    ]
    assert sizes == [28, 29]


def test_replies_are_sorted_and_checked_as_fedavg_does() -> None:
    sent = [Message(RecordDict(), node, "train") for node in (1, 2, 3)]
    replies = [
        reply(sent[0], 1.0, 1),
        Message(Error(0, "why"), reply_to=sent[1]),
        reply(sent[2], 4.0, 2),
    ]
    strategy = FedAvg()
    valid, errors = sort_replies(strategy, iter(replies), read_arrays=True)
    assert (valid, errors) == strategy._check_and_log_replies(replies, is_train=True)
    assert valid == [replies[0], replies[2]]
    del replies[2].content["metrics"]["num-examples"]
    with pytest.raises(InconsistentMessageReplies):
        sort_replies(strategy, replies, read_arrays=True)


def test_means_are_weighted_by_the_key() -> None:
    """(1 * 1 + 4 * 2) / 3 = 3."""
    sent = Message(RecordDict(), 1, "train")
    contents = [reply(sent, value, weight).content for value, weight in ((1.0, 1), (4.0, 2))]
    assert aggregate_arrayrecords(contents, "num-examples")["w"].numpy().tolist() == [3.0]
    mean = aggregate_metricrecords(contents, "num-examples")
    assert mean["loss"] == pytest.approx(3.0)
    assert "num-examples" not in mean
    assert FedAvg().train_metrics_aggr_fn is aggregate_metricrecords


def test_a_strategy_that_makes_no_model_raises_what_flower_catches() -> None:
    assert issubclass(AggregationError, Exception)
    assert AggregationError.__mro__[1] is InconsistentMessageReplies.__mro__[1]


def test_server_optimizers_keep_the_model_that_was_sent() -> None:
    """FedAdam of ours gives each array the dtype that it has in ``current_arrays``."""
    strategy = FedAdam()
    grid = grid_of(2)
    messages = list(strategy.configure_train(1, model(1.0), ConfigRecord(), grid))
    strategy.aggregate_train(1, [reply(message, 2.0, 1) for message in messages])
    assert strategy.current_arrays["w"].dtype == np.float32


def test_flowers_log_is_the_logger_that_is_quieted() -> None:
    before = log.__self__.level
    try:
        quiet()
        assert log.__self__ is logging.getLogger("flwr")
        assert not log.__self__.isEnabledFor(logging.INFO)
        assert log.__self__.isEnabledFor(logging.WARNING)
    finally:
        log.__self__.setLevel(before)


# flwr-datasets


def test_a_partitioner_keeps_each_parts_indices() -> None:
    import datasets
    from flwr_datasets.partitioner import DirichletPartitioner

    made = DirichletPartitioner(3, "label", alpha=5.0, seed=1)
    made.dataset = datasets.Dataset.from_dict({"label": [0, 1] * 30, "row": list(range(60))})
    assert made.num_partitions == 3  # makes the split
    for part in range(3):
        kept = [made.dataset["row"][index] for index in made._partition_id_to_indices[part]]
        assert kept == list(made.load_partition(part)["row"])
