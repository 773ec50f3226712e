"""The built-in Flower ClientApp: train, evaluate, aggregate a cluster, score a model on the central test set.

Messages, by type (all content keys are Flower's own where Flower has them):

==================  ==============================================  ====================================================
type                content                                         reply
==================  ==============================================  ====================================================
``train``           ``arrays``, ``config`` (see below)              ``arrays``, ``metrics``: num-examples, train_loss,
                                                                    train_acc, steps
``evaluate``        ``arrays``, ``config``                          ``metrics``: num-examples, eval_loss, eval_acc
``query.aggregate`` an ArrayRecord per member, ``weights``:         ``arrays``: weighted mean, ``metrics``: num-examples
                    MetricRecord with the same keys
``query.init``      nothing                                         ``arrays``: the trial's initial model
``query.test``      ``arrays``, ``config``: group, start, stop,     ``metrics``: num-examples, loss_sum, correct,
                    confusion (bool)                                confusion (classes x classes, row by row)
==================  ==============================================  ====================================================

``config`` of ``train`` holds ``server-round``, ``lr``, ``lr-decay`` and the fields of ``LocalTraining``. A key that is
not sent has its default, so Flower's strategies work as they are. With ``keep-local`` a client trains and evaluates a
model of its own, kept in ``context.state["model"]`` and begun from the first arrays it receives; its replies carry no
arrays. Every reply also has ``load``, see ``runner.load.load_mod``.
"""

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from torch import nn

from models import build_model
from runner.client.arrays import load_weights, read_weights, weighted_mean
from runner.client.messages import make_reply, message_config, own_or_sent, partition_id, train_metrics
from runner.client.pool import ExamplePool, Read
from runner.client.together import ChunkRunner, Engine
from runner.client.training import LocalTraining, confusion, evaluate, predict, score, train
from runner.data.federated import FederatedData
from runner.load import load_mod
from runner.seeding import derive_seed


class ModelSpec(Protocol):
    """What names a network: ``ModelConfig`` or anything like it."""

    @property
    def name(self) -> str:
        """As ``models.build_model`` takes it."""

    @property
    def kwargs(self) -> dict[str, Any]:
        """Options of the network."""


def make_client_app(
    data: FederatedData,
    model: ModelSpec,
    seed: int,
    device: Literal["cpu", "auto"] = "cpu",
    threads: int = 1,
    train_mods: Sequence[Mod] = (),
    engine: Engine = "sequential",
) -> ClientApp:
    """Return the ClientApp of a trial. It holds one model and some clients' examples per process, made when first used.

    Parameters
    ----------
    data : FederatedData
        All clients' data; a client is the ``partition-id`` of its context's ``node_config``.
    model : ModelSpec
        Name and keyword arguments of the network.
    seed : int
        The trial's seed.
    device : "cpu" | "auto"
        ``auto`` takes the GPU where there is one.
    threads : int
        Torch threads per client task.
    train_mods : sequence of Mod
        Flower mods around training, as the privacy wrappers need them.
    engine : "sequential" | "vectorized" | "auto"
        How a host trains the clients of a chunk, see ``runner.client.together``.
    """
    client = BuiltinClient(data, model, seed, device, threads)
    app = BuiltinApp(ChunkRunner(client, engine, bool(train_mods)), mods=[load_mod])
    app.train(mods=list(train_mods))(client.train)
    app.evaluate()(client.evaluate)
    app.query("aggregate")(client.aggregate)
    app.query("test")(client.test)
    app.query("init")(client.init)
    return app


class BuiltinApp(ClientApp):
    """A ClientApp that can also run a whole chunk of messages at once (``runner.engine.host.ChunkApp``)."""

    def __init__(self, chunks: ChunkRunner, mods: list[Mod]) -> None:
        super().__init__(mods=mods)
        self._chunks = chunks

    def run_chunk(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message] | None:
        """Return one reply a message, or None where they are to be run one by one."""
        return self._chunks.run(messages, contexts)

    def notes(self) -> list[str]:
        """Return what there is to say since the last call, one line each."""
        return self._chunks.notes()


class BuiltinClient:
    """Any client of the trial, one at a time: all that a client is beyond its data lives in messages and contexts."""

    def __init__(
        self, data: FederatedData, model: ModelSpec, seed: int, device: Literal["cpu", "auto"], threads: int
    ) -> None:
        self._data, self.spec, self._seed, self.threads = data, model, seed, threads
        self._wanted_device = device

    def init(self, message: Message, context: Context) -> Message:
        """Return the trial's initial model, drawn from its seed: the server itself does without torch."""
        del context
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, "model"))
            model = self._build()
        return Message(RecordDict({"arrays": read_weights(model)}), reply_to=message)

    def train(self, message: Message, context: Context) -> Message:
        """Train on the client's own examples."""
        config = message_config(message)
        model = self.load(own_or_sent(message, context, config))
        client = partition_id(context)
        x, y = self.pool.examples(*self.train_set(client))
        result = train(model, x, y, LocalTraining.from_config(config), self.train_seed(config, client))
        metrics = train_metrics(result, len(y))
        if not config.get("keep-local"):
            return make_reply(message, metrics, read_weights(model))
        context.state["model"] = read_weights(model)
        return make_reply(message, metrics)

    def evaluate(self, message: Message, context: Context) -> Message:
        """Score the model on the client's own examples."""
        model = self.load(own_or_sent(message, context, message_config(message)))
        client = partition_id(context)
        x, y = self.pool.examples(*self.evaluation_set(client))
        result = evaluate(model, x, y)
        metrics = {"num-examples": len(y), "eval_loss": result["loss"], "eval_acc": result["correct"] / len(y)}
        return make_reply(message, metrics)

    def aggregate(self, message: Message, context: Context) -> Message:
        """Be the server of a cluster: average its members' arrays in the order in which they were sent."""
        del context
        weights, members = message.content.metric_records["weights"], message.content.array_records
        if weights.keys() != members.keys():
            raise ValueError(f"query.aggregate has arrays of {sorted(members)}, but weights of {sorted(weights)}")
        in_order = [cast(float, weights[key]) for key in members]
        mean = weighted_mean(list(members.values()), in_order)
        return make_reply(message, {"num-examples": sum(in_order)}, mean)

    def test(self, message: Message, context: Context) -> Message:
        """Score the model on a slice of the central test set."""
        del context
        config = message_config(message)
        model = self.load(message.content.array_records["arrays"])
        group, start, stop = (int(cast(int, config[key])) for key in ("group", "start", "stop"))
        x, y = self.pool.examples(("test", group, start, stop), lambda: self._data.test(group, start, stop))
        logits = predict(model, x)
        result = score(logits, y)
        metrics: dict[str, Any] = {
            "num-examples": len(y),
            "loss_sum": result["loss_sum"],
            "correct": int(result["correct"]),
        }
        if config.get("confusion"):
            metrics["confusion"] = confusion(logits, y).ravel().tolist()
        return make_reply(message, metrics)

    # What a process holds: device, model, normalised examples.

    @cached_property
    def device(self) -> torch.device:
        """Where this process trains."""
        if self._wanted_device == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        # The same bits for the same config: cuBLAS needs the variable as well (the engine sets it before CUDA starts).
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        return torch.device("cuda", torch.cuda.current_device())

    @cached_property
    def model(self) -> nn.Module:
        """The process's network; every task loads its weights anew."""
        with torch.random.fork_rng(devices=[]):  # its weights are overwritten; the process's generator stays as it was
            return self._build().to(self.device)

    def _build(self) -> nn.Module:
        classes = len(self._data.images.class_names)
        return build_model(self.spec.name, self._data.images.train_x.shape[1:], classes, **self.spec.kwargs)

    def load(self, arrays: ArrayRecord) -> nn.Module:
        """Return the network with these weights."""
        torch.set_num_threads(self.threads)  # per task: trials with other settings share the process
        load_weights(self.model, arrays)
        return self.model

    @cached_property
    def pool(self) -> ExamplePool:
        """The examples that this process has normalised."""
        return ExamplePool(self._data.images.mean, self._data.images.std, self.device)

    # What a client is: its seed and its examples.

    def train_seed(self, config: Mapping[str, Any], client: int) -> int:
        """Return what fixes a client's batches in a round."""
        return derive_seed(self._seed, "train", int(config.get("server-round", 1)), client)

    def train_set(self, client: int) -> tuple[Hashable, Read]:
        """Return a client's training examples as the pool takes them."""
        return ("train", client), lambda: self._data.client(client, "train")

    def evaluation_set(self, client: int) -> tuple[Hashable, Read]:
        """Return what a client is evaluated on, as the pool takes it.

        It is the training split where the other is empty: a client of one example, or ``partition.eval_fraction=0``.
        """

        def read() -> tuple[np.ndarray, np.ndarray]:
            x, y = self._data.client(client, "eval")
            return (x, y) if len(y) else self._data.client(client, "train")

        return ("eval", client), read
