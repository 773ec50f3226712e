"""The built-in Flower ClientApp: train, evaluate, aggregate a cluster, score a model on the central test set.

Messages, by type (all content keys are Flower's own where Flower has them):

==================  ==============================================  ====================================================
type                content                                         reply
==================  ==============================================  ====================================================
``train``           ``arrays``, ``config`` (see below)              ``arrays``, ``metrics``: num-examples, train_loss,
                                                                    train_acc, steps
``evaluate``        ``arrays``, ``config``                          ``metrics``: num-examples, eval_loss, eval_acc (of
                                                                    no held-out examples: zeros); with ``test-own``
                                                                    ``test``: as ``query.test``, confusion as bytes
``query.aggregate`` an ArrayRecord per member, ``weights``:         ``arrays``: weighted mean, ``metrics``: num-examples
                    MetricRecord with the same keys, ``config``:
                    heaviest (whose counters count)
``query.losses``    an ArrayRecord per model                        ``metrics``: losses, one per model in their order,
                                                                    mean over the client's training examples
``query.signature`` nothing                                         ``arrays``: signature (classes, pixels), the share
                                                                    of each class times its mean image
``query.subspace``  ``config``: vectors                             ``arrays``: subspace (pixels, rank), orthonormal
``query.sketch``    ``arrays``, ``config`` of ``train``, sketch     ``sketch``: float32, the bytes of so many numbers of
                    (size), sketch-seed, sketch-of (array names)    the update that training would give
``query.examples``  nothing                                         ``metrics``: num-examples
``query.init``      nothing                                         ``arrays``: the trial's initial model, ``layout``:
                                                                    ConfigRecord, see ``fedsweep.strategies.layout``
``query.test``      ``arrays``, ``config``: group, start, stop,     ``metrics``: num-examples, loss_sum, correct,
                    confusion (bool)                                confusion (classes x classes, row by row)
``query.losses``    ``model-0`` to ``model-<K-1>``, ``config``      ``choice``: losses (K), on the training examples
==================  ==============================================  ====================================================

``config`` of ``train`` holds ``server-round``, ``lr``, ``lr-decay`` and the fields of
``LocalTraining``. A key that is not sent has its default, so Flower's strategies work as they are.
With ``method`` a client does what the client part of that name does
(``fedsweep.strategies.clients``), whose messages may carry more. With ``test-own`` (rows per slice)
an evaluated client also scores its model on the central test set, as its group sees it. Every reply
also has ``load``, see ``fedsweep.engine.load.load_mod``.
"""

from collections.abc import Hashable, Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import Any, Literal, Protocol, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod
from torch import nn

from fedsweep.client.messages import TestSums, make_reply, message_config, partition_id
from fedsweep.client.signatures import signature, sketch, subspace
from fedsweep.client.together import ChunkRunner, Engine
from fedsweep.client.work import ChunkWork, evaluate_chunk, losses_of_chunk, train_chunk
from fedsweep.data.federated import FederatedData
from fedsweep.engine.load import load_mod
from fedsweep.models import build_model
from fedsweep.seeding import derive_seed
from fedsweep.strategies.arrays import write_array
from fedsweep.strategies.layout import Layout, joined
from fedsweep.training.arrays import layout_of, load_weights, read_weights, weighted_mean
from fedsweep.training.local import confusion, predict, score
from fedsweep.training.modules import AsBuilt, check_repeats
from fedsweep.training.pool import ExamplePool, Place, Read
from fedsweep.training.trainers import OneByOne


def _with_arrays(message: Message, arrays: ArrayRecord) -> Message:
    """Return a copy of a message that carries other arrays."""
    other = copy(message)
    other.content = RecordDict({**message.content, "arrays": arrays})
    return other


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
    engine : "sequential" | "vectorized"
        How a host trains the clients of a chunk, see ``fedsweep.client.together``.
    """
    client = BuiltinClient(data, model, seed, device, threads)
    app = BuiltinApp(ChunkRunner(client, engine, train_mods), mods=[load_mod])
    app.train(mods=[client.on_trained(mod) for mod in train_mods])(client.train)
    app.evaluate()(client.evaluate)
    app.query("aggregate")(client.aggregate)
    app.query("test")(client.test)
    app.query("losses")(client.losses)
    app.query("examples")(client.examples)
    app.query("init")(client.init)
    app.query("signature")(client.signature)
    app.query("subspace")(client.subspace)
    app.query("sketch")(client.sketch)
    return app


class BuiltinApp(ClientApp):
    """A ClientApp that can also run a whole chunk of messages at once (``fedsweep.engine.host.ChunkApp``)."""

    def __init__(self, chunks: ChunkRunner, mods: list[Mod]) -> None:
        super().__init__(mods=mods)
        self._chunks = chunks

    def run_chunk(
        self, messages: Sequence[Message], contexts: Sequence[Context]
    ) -> list[Message] | None:
        """Return one reply a message, or None where they are to be run one by one."""
        return self._chunks.run(messages, contexts)

    def notes(self) -> list[str]:
        """Return what there is to say since the last call, one line each."""
        return self._chunks.notes()


class BuiltinClient:
    """Any client of the trial, one at a time: all that a client is beyond its data lives in messages and contexts."""

    def __init__(
        self,
        data: FederatedData,
        model: ModelSpec,
        seed: int,
        device: Literal["cpu", "auto"],
        threads: int,
    ) -> None:
        self._data, self.spec, self._seed, self.threads = data, model, seed, threads
        self._wanted_device = device

    def init(self, message: Message, context: Context) -> Message:
        """Return the trial's initial model, drawn from its seed, and what its arrays are.

        The server itself does without torch. A network that can't be made as new for each client is refused.
        """
        del context
        x, y = self.pool.examples(*self.train_set({}, 0))
        check_repeats(lambda: self.load(self.initial()), x[:4], y[:4], seed=self._seed)
        content = RecordDict({"arrays": self.initial(), "layout": self.layout.to_config()})
        return Message(content, reply_to=message)

    @cached_property
    def one_by_one(self) -> OneByOne:
        """What trains this process's network client by client."""
        return OneByOne(self.load)

    def train(self, message: Message, context: Context) -> Message:
        """Train on the client's own examples, as the strategy's method says."""
        [reply] = train_chunk(self, self.one_by_one, [message], [context])
        return reply

    def on_trained(self, mod: Mod) -> Mod:
        """Return a mod that sees the trained arrays alone, of what is sent and of what is replied."""

        def wrapped(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
            layout = self.layout
            if not layout.has_state:
                return mod(message, context, call_next)
            started = message.content.array_records["arrays"]
            state = ArrayRecord()

            def call(sent: Message, context: Context) -> Message:
                nonlocal state
                arrays = sent.content.array_records["arrays"]
                reply = call_next(_with_arrays(sent, joined(started, started, arrays)), context)
                if reply.has_error():
                    return reply
                trained = reply.content.array_records["arrays"]
                state = layout.state_of(trained)
                return _with_arrays(reply, layout.trained_of(trained))

            reply = mod(_with_arrays(message, layout.trained_of(started)), context, call)
            if reply.has_error():
                return reply
            arrays = reply.content.array_records["arrays"]
            return _with_arrays(reply, joined(started, state, arrays))

        return wrapped

    def evaluate(self, message: Message, context: Context) -> Message:
        """Score the client's model on its held-out examples, and where asked on the test set."""
        [reply], _ = evaluate_chunk(self, self.one_by_one, [message], [context])
        return reply

    def losses(self, message: Message, context: Context) -> Message:
        """Return the client's mean training loss under each model that it was sent."""
        [reply] = losses_of_chunk(self, self.one_by_one, [message], [context])
        return reply

    def aggregate(self, message: Message, context: Context) -> Message:
        """Be the server of a cluster: average its members' arrays in the order in which they were sent."""
        del context
        weights, members = message.content.metric_records["weights"], message.content.array_records
        if weights.keys() != members.keys():
            raise ValueError(
                f"query.aggregate has arrays of {sorted(members)}, but weights of {sorted(weights)}"
            )
        in_order = [cast(float, weights[key]) for key in members]
        chosen = str(
            message_config(message).get("heaviest", max(weights, key=lambda name: weights[name]))
        )
        heaviest = list(members).index(chosen)
        mean = weighted_mean(list(members.values()), in_order, self.layout.carried, heaviest)
        return make_reply(message, {"num-examples": sum(in_order)}, mean)

    def examples(self, message: Message, context: Context) -> Message:
        """Tell how many examples the client trains on (SCAFFOLD)."""
        rows = self._data.train_rows[partition_id(context)]
        return make_reply(message, {"num-examples": len(rows)})

    def signature(self, message: Message, context: Context) -> Message:
        """Tell the moments of images and labels: feature shift, label skew and concept shift all move them."""
        x, y = self._data.client(partition_id(context), "train")
        found = signature(x, y, len(self._data.images.class_names))
        return make_reply(
            message, {"num-examples": len(y)}, ArrayRecord({"signature": write_array(found)})
        )

    def subspace(self, message: Message, context: Context) -> Message:
        """Tell the directions that span the client's raw images (PACFL)."""
        x, y = self._data.client(partition_id(context), "train")
        found = subspace(x, y, cast(int, message_config(message)["vectors"]))
        return make_reply(
            message, {"num-examples": len(y)}, ArrayRecord({"subspace": write_array(found)})
        )

    def sketch(self, message: Message, context: Context) -> Message:
        """Train as in a round, and tell a sketch of the update: the model stays here."""
        config, start = message_config(message), message.content.array_records["arrays"]
        work = ChunkWork(self, self.one_by_one, [message], [context], "train")
        [trained] = work.train(work.sent()).models.records
        update = [
            trained[key].numpy() - start[key].numpy()
            for key in cast(list[str], config["sketch-of"])
        ]
        size, seed = (cast(int, config[key]) for key in ("sketch", "sketch-seed"))
        [(_, count)] = work.places
        reply = make_reply(message, {"num-examples": count})
        reply.content["sketch"] = ConfigRecord(
            {"float32": sketch(update, size, seed).astype("<f4").tobytes()}
        )
        return reply

    def test(self, message: Message, context: Context) -> Message:
        """Score the model on a slice of the central test set."""
        del context
        config = message_config(message)
        model = self.load(message.content.array_records["arrays"])
        group, start, stop = (int(cast(int, config[key])) for key in ("group", "start", "stop"))
        x, y = self.pool.examples(*self.test_set(group, start, stop))
        if len(y) == 0:  # this group has none of the slice's labels
            empty: dict[str, Any] = {"num-examples": 0, "loss_sum": 0.0, "correct": 0}
            classes = len(self._data.images.class_names)
            return make_reply(
                message,
                empty | ({"confusion": [0] * classes**2} if config.get("confusion") else {}),
            )
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

    def initial(self) -> ArrayRecord:
        """Return the trial's initial model."""
        return self._initial

    # What a process holds: device, model, examples.

    @cached_property
    def _initial(self) -> ArrayRecord:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, "model"))
            return read_weights(self._build())

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
        with torch.random.fork_rng(
            devices=[]
        ):  # its weights are overwritten; the process's generator stays as it was
            # Channels last: convolutions of 3 and more channels are up to 1.4 times as fast on a CPU, none is slower.
            model = self._build().to(memory_format=torch.channels_last).to(self.device)
        self._as_built = AsBuilt(model)
        return model

    @cached_property
    def layout(self) -> Layout:
        """What the arrays of the network's record are."""
        return layout_of(self.model)

    def _build(self) -> nn.Module:
        classes = len(self._data.images.class_names)
        return build_model(self.spec.name, self.input_shape, classes, **self.spec.kwargs)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self._data.images.train_x.shape[1:]
        return channels, height, width

    def load(self, arrays: ArrayRecord) -> nn.Module:
        """Return the network with these weights."""
        torch.set_num_threads(
            self.threads
        )  # per task: trials with other settings share the process
        model = self.model
        self._as_built.restore()
        load_weights(model, arrays)
        return model

    @cached_property
    def pool(self) -> ExamplePool:
        """The examples that this process has staged."""
        return ExamplePool(self._data.images.mean, self._data.images.std, self.device)

    def places(self, sets: Sequence[tuple[Hashable, Read]]) -> list[Place]:
        """Return where sets of examples lie in the pool; it holds until more are asked for."""
        reads = dict(sets)
        found = dict(zip(reads, self.pool.places(reads), strict=True))
        return [found[key] for key, _ in sets]

    # What a client is: its seed and its examples.

    def seed(self, purpose: str, config: Mapping[str, Any], client: int) -> int:
        """Return what fixes a client's batches in a round: of its training (``train``), or before its evaluation."""
        return derive_seed(self._seed, purpose, int(config.get("server-round", 1)), client)

    def train_set(self, config: Mapping[str, Any], client: int) -> tuple[Hashable, Read]:
        """Return a client's training examples in a round as the pool takes them."""
        phase = self._phase(config)
        return ("train", client, phase), lambda: self._data.client(client, "train", phase)

    def evaluation_set(self, config: Mapping[str, Any], client: int) -> tuple[Hashable, Read]:
        """Return what a client is evaluated on, as the pool takes it.

        It is empty for a client that holds out nothing: one example, or ``partition.eval_fraction=0``.
        """
        phase = self._phase(config)
        return ("eval", client, phase), lambda: self._data.client(client, "eval", phase)

    def test_sets(self, config: Mapping[str, Any], client: int) -> list[tuple[Hashable, Read]]:
        """Return the central test set as a client's group sees it, in slices of ``test-own`` rows."""
        group, size = (
            int(self._data.groups_in(self._phase(config))[client]),
            int(config["test-own"]),
        )
        count = len(self._data.images.test_y)
        return [self.test_set(group, i, min(i + size, count)) for i in range(0, count, size)]

    def test_sums(self) -> TestSums:
        """Return sums that begin at zero."""
        return TestSums(len(self._data.images.class_names))

    def test_set(self, group: int, start: int, stop: int) -> tuple[Hashable, Read]:
        """Return a slice of the central test set, as a group sees it, as the pool takes it."""
        return ("test", group, start, stop), lambda: self._data.test(group, start, stop)

    def _phase(self, config: Mapping[str, Any]) -> int:
        """Return which of the drifting data's phases a round is in."""
        return self._data.phase(int(config.get("server-round", 1)))
