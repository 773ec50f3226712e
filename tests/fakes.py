"""Fakes that validate: a Grid that checks what is sent, and clients with numbers to follow.

``FakeGrid`` runs a ClientApp in this process. It refuses what a real grid would, keeps every
message, and seals the arrays of training replies: a strategy that reads arrays which could have
stayed where they are fails its test.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
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
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsweep.engine.flower import (
    Run,
    empty_run,
    identify,
    reference_of,
    remote_record,
    set_message_id,
    size_of,
)
from fedsweep.strategies.insides import aggregate_arrayrecords, aggregate_metricrecords
from fedsweep.strategies.layout import Layout
from fedsweep.strategies.own_part import OwnPart


def record(*values: float) -> ArrayRecord:
    """Return a model of one array, ``w``."""
    return ArrayRecord({"w": Array(np.array(values, np.float64))})


def start_of(strategy: Strategy) -> ArrayRecord:
    """Return a model of zeros for a strategy; where clients have a part of their own, ``head`` is
    it.
    """
    if not isinstance(strategy, OwnPart):
        return record(0, 0)
    strategy.layout = Layout(("w", "head.weight"), averaged=("head.running_mean",))
    own = {f"head.{name}": record(5)["w"] for name in ("weight", "running_mean")}
    return ArrayRecord({**record(0, 0), **own})


def values(arrays: ArrayRecord | None) -> list[float]:
    """Return what ``record`` was given."""
    assert arrays is not None
    return [float(value) for value in arrays["w"].numpy()]


class Sealed:
    """What a record stands for that must not be read before the grid opens it."""

    def __init__(self, arrays: ArrayRecord) -> None:
        self.is_open = False
        self._arrays = arrays

    def read(self) -> ArrayRecord:
        """Return the arrays."""
        assert self.is_open, "the strategy read arrays that should have stayed references"
        return self._arrays


def seal(arrays: ArrayRecord) -> ArrayRecord:
    """Return the record as one that may be passed on, but not read."""
    return remote_record(Sealed(arrays), Sealed.read, size_of(arrays))


def opened(arrays: ArrayRecord) -> ArrayRecord:
    """Break the seal of a record, if it has one."""
    if isinstance(sealed := reference_of(arrays), Sealed):
        sealed.is_open = True
    return arrays


class FakeGrid(Grid):
    """A Flower Grid of ``num_nodes`` nodes with ids 1, 2, ...

    Parameters
    ----------
    app : ClientApp
        Runs for every message, in the order of node ids.
    num_nodes : int
        Nodes.
    fails : callable, optional
        Messages for which it is true get an error reply.
    loses : callable, optional
        Messages for which it is true get no reply at all.
    seals : callable, optional
        Whether the arrays of training replies are sealed now.
    chunk_size : callable, optional
        How many training replies with one content become one partial mean now.
    """

    def __init__(
        self,
        app: ClientApp,
        num_nodes: int,
        *,
        fails: Callable[[Message], bool] = lambda _: False,
        loses: Callable[[Message], bool] = lambda _: False,
        seals: Callable[[], bool] = lambda: False,
        chunk_size: Callable[[], int] = lambda: 1,
    ) -> None:
        identify(empty_run())
        self.app, self.num_nodes = app, num_nodes
        self.fails, self.loses, self.seals, self.chunk_size = fails, loses, seals, chunk_size
        self.sent: list[list[Message]] = []  # the messages of each call, in the order of node ids
        self.received: list[list[Message]] = []
        self._contexts: dict[int, Context] = {}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Run the app for each message; replies come in the order of node ids."""
        batch = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        nodes = [message.metadata.dst_node_id for message in batch]
        assert len(set(nodes)) == len(nodes), f"a node got two messages in one call: {nodes}"
        assert set(nodes) <= set(self.get_node_ids()), f"unknown node among {nodes}"
        replies = []
        for number, message in enumerate(batch):
            assert not message.metadata.message_id, "a message was sent twice"
            set_message_id(message, f"{len(self.sent)}.{number}")
            if not self.loses(message):
                replies.append(self._run(message))
        if batch and batch[0].metadata.message_type == "train":
            replies = self._partial_means(batch, replies)
            if self.seals():
                for reply in replies:
                    if reply.has_content():
                        for name, arrays in reply.content.array_records.items():
                            reply.content[name] = seal(arrays)
        self.sent.append(batch)
        self.received.append(replies)
        return replies

    def sent_to(self, call: int) -> dict[int, list[float]]:
        """Return node -> the model that it was sent in a call."""
        return {m.metadata.dst_node_id: values(m.content["arrays"]) for m in self.sent[call]}

    def _run(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if self.fails(message):
            return Message(Error(0, "the fake node failed"), reply_to=message)
        context = self._contexts.setdefault(
            node,
            Context(
                1,
                node,
                {"partition-id": node - 1, "num-partitions": self.num_nodes},
                RecordDict(),
                {},
            ),
        )
        for arrays in message.content.array_records.values():
            opened(arrays)
        return self.app(message, context)

    def _partial_means(self, batch: Sequence[Message], replies: list[Message]) -> list[Message]:
        size = self.chunk_size()
        if size == 1:
            return replies
        groups: dict[int, list[Message]] = {}
        for message, reply in zip(batch, replies, strict=True):
            if reply.has_content():
                groups.setdefault(id(message.content), []).append(reply)
        means = [
            partial_mean(group[start : start + size])
            for group in groups.values()
            for start in range(0, len(group), size)
        ]
        return means + [reply for reply in replies if reply.has_error()]

    def get_node_ids(self) -> list[int]:
        """Return 1, 2, ..."""
        return list(range(1, self.num_nodes + 1))

    def set_run(self, run: Run) -> None:
        """Not used by strategies."""
        raise NotImplementedError

    @property
    def run(self) -> Run:
        """Not used by strategies."""
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Not used by strategies."""
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Not used by strategies."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Not used by strategies."""
        raise NotImplementedError


def partial_mean(replies: Sequence[Message]) -> Message:
    """Return the one reply that stands for several: weighted mean, summed examples, all loads."""
    first = replies[0]
    contents = [reply.content for reply in replies]
    weights = [content["metrics"]["num-examples"] for content in contents]
    names = ("cpu_s", "rss_mb", "node_cpu", "node_mem")
    loads = {name: [float(content["load"][name]) for content in contents] for name in names}
    metrics = aggregate_metricrecords(contents, "num-examples")
    metrics["num-examples"] = sum(weights)
    nodes = [reply.metadata.src_node_id for reply in replies]
    first.content = RecordDict(
        {
            "arrays": aggregate_arrayrecords(contents, "num-examples"),
            "metrics": metrics,
            "load": ConfigRecord({"node-ids": nodes, "num-examples": weights, **loads}),
        }
    )
    return first


MIXING = ("fedem", "fedrc")
"""Client parts that train all models."""


def halfway_app(
    targets: Mapping[int, Sequence[float]],
    examples: Mapping[int, int] | None = None,
    cpu_s: Mapping[int, float] | None = None,
) -> ClientApp:
    """Return clients that go half the way from the model they get to a target of their own.

    They know the methods of the built-in ClientApp too, with the squared distance to the target as
    loss and one example per client: ``choose`` and ``query.losses``; ``soft`` (share 1 of the
    nearest model, sigma of the others); ``fedem`` and ``fedrc``, which take half the way with each
    model, times what of the example is the model's; ``scaffold``, where half the way is a step of
    length 1 along the gradient x - y.

    Parameters
    ----------
    targets : mapping
        Node -> where its model should end.
    examples : mapping, optional
        Node -> its weight; 1 where left out.
    cpu_s : mapping, optional
        Node -> the CPU seconds that it reports; its id where left out.
    """
    app = ClientApp()

    def losses(message: Message, context: Context) -> list[float]:
        target = np.array(targets[context.node_id])
        models = [arrays["w"].numpy() for arrays in message.content.array_records.values()]
        return [float(np.sum((target - weights) ** 2)) for weights in models]

    def model(message: Message, context: Context) -> np.ndarray:
        method = message.content["config"].get("method")
        if method in ("choose", "soft"):
            found = losses(message, context)
            nearest = int(np.argmin(found))
            if method == "choose" or message.metadata.message_type == "evaluate":
                return message.content[f"model-{nearest}"]["w"].numpy()
            shares = soft_shares(message, nearest, len(found))
            return sum(
                u * message.content[f"model-{k}"]["w"].numpy() for k, u in enumerate(shares)
            ) / sum(shares)
        if method in MIXING:
            sent = message.content.array_records.values()
            return sum(
                share * arrays["w"].numpy()
                for share, arrays in zip(mixed_shares(message, context), sent, strict=True)
            )
        if method == "local" and "model" in context.state:
            return context.state["model"]["w"].numpy()
        return message.content["arrays"]["w"].numpy()

    def soft_shares(message: Message, nearest: int, count: int) -> list[float]:
        return [
            1.0 if k == nearest else float(message.content["config"]["sigma"]) for k in range(count)
        ]

    def mixed_shares(message: Message, context: Context) -> np.ndarray:
        kept = context.state.get("mixture")
        found = np.array(losses(message, context))
        before = np.ones_like(found) if kept is None else np.array(kept["weights"])
        if kept is not None and message.metadata.message_type == "evaluate":
            return before
        likely = before * np.exp(found.min() - found)
        return likely / likely.sum()

    def choice(message: Message, context: Context) -> ConfigRecord:
        if message.content["config"]["method"] in MIXING:
            shares = mixed_shares(message, context)
            told = {"cluster": int(shares.argmax()), "weights": shares.tolist()}
            return ConfigRecord({**told, "classes": shares.tolist()})  # there is one class
        found = losses(message, context)
        nearest = int(np.argmin(found))
        if message.content["config"]["method"] == "soft":
            return ConfigRecord(
                {"cluster": nearest, "weights": soft_shares(message, nearest, len(found))}
            )
        return ConfigRecord({"cluster": nearest, "losses": found})

    def metrics(context: Context, kind: str, weights: np.ndarray) -> MetricRecord:
        loss = float(np.sum((np.array(targets[context.node_id]) - weights) ** 2))
        return MetricRecord(
            {
                f"{kind}_loss": loss,
                f"{kind}_acc": 0.5,
                "num-examples": (examples or {}).get(context.node_id, 1),
            }
        )

    def train_mixed(message: Message, context: Context) -> Message:
        target, told = np.array(targets[context.node_id]), choice(message, context)
        content = RecordDict({"choice": told})
        for share, (name, sent) in zip(
            told["weights"], message.content.array_records.items(), strict=True
        ):
            w = sent["w"].numpy()
            content[name] = ArrayRecord({"w": Array(w + 0.5 * share * (target - w))})
        content["metrics"] = metrics(context, "train", target)
        context.state["mixture"] = MetricRecord({"weights": told["weights"]})
        return Message(content, reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if message.content["config"].get("method") in MIXING:
            return train_mixed(message, context)
        before = model(message, context)
        moved = before + 0.5 * (np.array(targets[context.node_id]) - before)
        method = message.content["config"].get("method")
        if method == "scaffold":
            c = message.content["control"]["w"].numpy()
            c_i = (
                context.state["scaffold"]["w"].numpy()
                if "scaffold" in context.state
                else np.zeros_like(c)
            )
            moved = moved - (c - c_i)
            context.state["scaffold"] = ArrayRecord({"w": Array(c_i - c + before - moved)})
        after = ArrayRecord({"w": Array(moved)})
        node = context.node_id
        load = {"cpu_s": (cpu_s or {}).get(node, float(node)), "wall_s": 1.0, "rss_mb": 1.0}
        content = RecordDict(
            {
                "metrics": metrics(context, "train", before),
                "load": ConfigRecord({**load, "node_cpu": 50.0, "node_mem": 50.0}),
            }
        )
        if method == "fednova":
            content["metrics"]["gradient_norm"] = 1.0
        if method == "qfedavg":
            content["metrics"]["start_loss"] = content["metrics"]["train_loss"]
        if method == "local":
            context.state["model"] = after
        else:
            content["arrays"] = after
        if method in ("choose", "soft"):
            content["choice"] = choice(message, context)
        if method == "scaffold":
            content["control"] = ArrayRecord(
                {"w": Array(context.state["scaffold"]["w"].numpy() - c_i)}
            )
        return Message(content, reply_to=message)

    @app.query("examples")
    def ask_examples(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": (examples or {}).get(context.node_id, 1)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    @app.query("losses")
    def ask_losses(message: Message, context: Context) -> Message:
        content = RecordDict(
            {"metrics": MetricRecord({"losses": losses(message, context), "num-examples": 1})}
        )
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        content = RecordDict({"metrics": metrics(context, "eval", model(message, context))})
        if message.content["config"].get("method") in ("choose", "soft", *MIXING):
            content["choice"] = choice(message, context)
        return Message(content, reply_to=message)

    @app.query("aggregate")
    def aggregate(message: Message, context: Context) -> Message:
        weights = message.content["weights"]
        members = message.content.array_records
        assert list(weights) == list(members), "weights and members differ"
        contents = [
            RecordDict({"a": arrays, "m": MetricRecord({"n": weights[key]})})
            for key, arrays in members.items()
        ]
        total = MetricRecord({"num-examples": sum(weights.values())})
        content = RecordDict({"arrays": aggregate_arrayrecords(contents, "n"), "metrics": total})
        return Message(content, reply_to=message)

    @app.query("signature")
    def signature(message: Message, context: Context) -> Message:
        arrays = ArrayRecord({"signature": Array(np.array([targets[context.node_id]], np.float32))})
        return Message(RecordDict({"arrays": arrays}), reply_to=message)

    @app.query("subspace")
    def subspace(message: Message, context: Context) -> Message:
        target = np.array(targets[context.node_id], np.float32)[:, None]
        arrays = ArrayRecord({"subspace": Array(target / np.linalg.norm(target))})
        return Message(RecordDict({"arrays": arrays}), reply_to=message)

    @app.query("root")
    def root(message: Message, context: Context) -> Message:
        assert message.content["config"]["root"] >= 1
        w = message.content["arrays"]["w"].numpy()
        middle = np.mean([np.asarray(target) for target in targets.values()], axis=0)
        arrays = ArrayRecord({"w": Array((w + 0.5 * (middle - w)).astype(w.dtype))})
        return Message(RecordDict({"arrays": arrays}), reply_to=message)

    @app.query("sketch")
    def sketch(message: Message, context: Context) -> Message:
        update = 0.5 * (np.array(targets[context.node_id]) - message.content["arrays"]["w"].numpy())
        assert message.content["config"]["sketch-of"] == ["w"]
        content = RecordDict({"sketch": ConfigRecord({"float32": update.astype("<f4").tobytes()})})
        return Message(content, reply_to=message)

    return app
