"""The built-in Flower ClientApp: trains, evaluates, aggregates clusters, scores models centrally.

Messages, by type (all content keys are Flower's own where Flower has them):

==================  ====================================  ==========================================
type                content                               reply
==================  ====================================  ==========================================
``train``           ``arrays``, ``config`` (see below)    ``arrays``, ``metrics``: num-examples,
                                                          train_loss, train_acc, steps
``evaluate``        ``arrays``, ``config``                ``metrics``: num-examples, eval_loss,
                                                          eval_acc (of no held-out examples: zeros)
``query.aggregate`` an ArrayRecord per member,            ``arrays``: weighted mean,
                    ``weights``: MetricRecord with the    ``metrics``: num-examples
                    same keys, ``config``: heaviest
                    (whose counters count)
``query.losses``    an ArrayRecord per model              ``metrics``: losses, one per model in
                                                          their order, mean over the client's
                                                          training examples
``query.signature`` nothing                               ``arrays``: signature (classes, pixels),
                                                          each class's share times its mean image
``query.subspace``  ``config``: vectors                   ``arrays``: subspace (pixels, rank),
                                                          orthonormal
``query.sketch``    ``arrays``, ``config`` of ``train``,  ``sketch``: float32, the bytes of so many
                    sketch (size), sketch-seed,           numbers of the update that training would
                    sketch-of (array names)               give
``query.root``      ``arrays``, ``config`` of ``train``,  ``arrays``: the model trained on so many
                    root (examples)                       examples of the server's own
``query.examples``  nothing                               ``metrics``: num-examples
``query.init``      nothing                               ``arrays``: the trial's initial model,
                                                          ``layout``: ConfigRecord, see
                                                          ``fedsweep.strategies.layout``
``query.flop``      nothing                               ``metrics``: flop of the network's forward
                                                          pass on one example, least-batch: the
                                                          examples that a batch has at least
``query.test``      ``arrays``, ``config``: group,        ``metrics``: num-examples, loss_sum,
                    start, stop, confusion (bool),        correct (nan of numbers), confusion
                    goal (bool): what attackers want      or, of numbers, sums: the table of
                                                          ``training.targets.full_table_of``
==================  ====================================  ==========================================

Where updates are masked, the message has the nodes that are asked together in ``secagg``, and the
reply ``masked`` in ``arrays``: see ``fedsweep.scenario.masking``. Where they are compressed, the
reply of ``train`` has in ``arrays`` what is sent in their place, in ``state`` what of a model is
not trained, and in ``compressed`` the seed of what was drawn.

``config`` of ``train`` holds ``server-round``, ``lr``, ``lr-decay`` and the fields of
``LocalTraining``. A key that is not sent has its default, so Flower's strategies work as they are.
With ``method`` a client does what the client part of that name does
(``fedsweep.strategies.clients``), whose messages may carry more. With ``test-own`` (rows per slice)
an evaluated client also scores its model on the central test set, as its group sees it: ``test`` is
as the reply of ``query.test``, its table as bytes; with ``goal`` it has ``goal`` beside, the same
of what attackers want. With ``by-class`` it has ``classes``: counts
or sums, the bytes of ``training.targets.table_of``. Every reply also has ``load``, see
``fedsweep.engine.load.load_mod``.
"""

from collections.abc import Sequence
from copy import copy
from typing import Literal, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsweep.client.masking import masking_mod
from fedsweep.client.messages import Metrics, make_reply, message_config, partition_id
from fedsweep.client.process import ClientProcess, ModelSpec
from fedsweep.client.signatures import signature, sketch, subspace
from fedsweep.client.together import ChunkRunner, TrainingEngine
from fedsweep.client.work import ChunkWork, evaluate_chunk, losses_of_chunk, train_chunk
from fedsweep.data.federated import FederatedData
from fedsweep.engine.flower import ClientAppCallable, Mod
from fedsweep.engine.load import load_mod
from fedsweep.scenario.compression import Compressor
from fedsweep.scenario.masking import Masking
from fedsweep.strategies.arrays import write_array
from fedsweep.strategies.clients import LEAST, Values
from fedsweep.strategies.layout import joined
from fedsweep.training.arrays import weighted_mean
from fedsweep.training.local import batch_norms, least_batch, predict, score
from fedsweep.training.modules import check_repeats, forward_flop
from fedsweep.training.targets import empty_table, full_table_of, in_unit


def _with_arrays(message: Message, arrays: ArrayRecord) -> Message:
    """Return a copy of a message that carries other arrays."""
    other = copy(message)
    other.content = RecordDict({**message.content, "arrays": arrays})
    return other


def make_client_app(
    data: FederatedData,
    model: ModelSpec,
    seed: int,
    device: Literal["cpu", "auto"] = "cpu",
    threads: int = 1,
    train_mods: Sequence[Mod] = (),
    engine: TrainingEngine = "sequential",
    compressor: Compressor | None = None,
    masking: Masking | None = None,
) -> ClientApp:
    """Return the ClientApp of a trial.

    It holds one model and some clients' examples per process, made when first used.

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
    compressor : Compressor, optional
        How updates are sent; whole without it.
    masking : Masking, optional
        How they are masked, so that a server can read their sum alone.
    """
    client = BuiltinClient(
        data, model, seed, device, threads, compressor, filtered=engine == "vectorized"
    )
    outermost = [] if masking is None else [masking_mod(masking, client)]
    runner = ChunkRunner(client, engine, [*outermost, *train_mods])
    app = BuiltinApp(runner, mods=[load_mod])
    app.train(mods=[*outermost, *map(client.on_trained, train_mods)])(client.train)
    app.evaluate()(client.evaluate)
    app.query("aggregate")(client.aggregate)
    app.query("test")(client.test)
    app.query("losses")(client.losses)
    app.query("examples")(client.examples)
    app.query("init")(client.init)
    app.query("flop")(client.flop)
    app.query("signature")(client.signature)
    app.query("subspace")(client.subspace)
    app.query("sketch")(client.sketch)
    app.query("root")(client.root)
    return app


class BuiltinApp(ClientApp):
    """A ClientApp that can also run a chunk of messages at once: the engine's ``ChunkApp``."""

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


class BuiltinClient(ClientProcess):
    """Any client of the trial, one at a time: beyond its data it is its messages and contexts."""

    def init(self, message: Message, context: Context) -> Message:
        """Return the trial's initial model, drawn from its seed, and what its arrays are.

        The server itself does without torch. A network that can't be made as new for each client is
        refused.
        """
        del context
        x, y = self.pool.examples(*self.train_set({}, 0))
        check_repeats(lambda: self.load(self.initial()), x[:4], y[:4], seed=self._seed)
        content = RecordDict({"arrays": self.initial(), "layout": self.layout.to_config()})
        return Message(content, reply_to=message)

    def train(self, message: Message, context: Context) -> Message:
        """Train on the client's own examples, as the strategy's method says."""
        [reply] = train_chunk(self, self.one_by_one, [message], [context])
        return reply

    def on_trained(self, mod: Mod) -> Mod:
        """Return a mod that sees the trained arrays alone, in messages and in replies."""

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
        """Be a cluster's server: average its members' arrays in the order in which they came."""
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

    def flop(self, message: Message, context: Context) -> Message:
        """Tell the FLOP of a forward pass on one example, as PyTorch counts them.

        It counts products (linear layers, convolutions, attention), 2 for a multiplication and an
        addition. Beside them it tells how many examples a batch has at least.
        """
        del context
        x, _ = self.pool.examples(*self.train_set({}, 0))
        model = self.load(self.initial())
        told: Metrics = {"flop": forward_flop(model, x[:1]), LEAST: least_batch(batch_norms(model))}
        return make_reply(message, told)

    def signature(self, message: Message, context: Context) -> Message:
        """Tell moments of images and labels, which feature, label and concept shift all move."""
        x, y = self._data.client(partition_id(context), "train")
        seen, classes = self._data.comparable(x), self._data.strata(y)
        found = signature(seen, classes, self.num_classes)
        return make_reply(
            message, {"num-examples": len(y)}, ArrayRecord({"signature": write_array(found)})
        )

    def subspace(self, message: Message, context: Context) -> Message:
        """Tell the directions that span the client's raw images (PACFL)."""
        x, y = self._data.client(partition_id(context), "train")
        vectors = cast(int, message_config(message)["vectors"])
        found = subspace(self._data.comparable(x), self._data.strata(y), vectors)
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

    def root(self, message: Message, context: Context) -> Message:
        """Train as client 0 would, on examples of the server's own (FLTrust)."""
        first = copy(context)
        first.node_config = {**context.node_config, "partition-id": 0}  # whoever is asked
        work = ChunkWork(self, self.one_by_one, [message], [first], "root")
        trained = work.train(work.sent()).models.records
        [(_, count)] = work.places
        return make_reply(message, {"num-examples": count}, trained[0])

    def test(self, message: Message, context: Context) -> Message:
        """Score the model on a slice of the central test set."""
        del context
        config = message_config(message)
        model = self.load(message.content.array_records["arrays"])
        group, start, stop = (int(cast(int, config[key])) for key in ("group", "start", "stop"))
        goal = bool(config.get("goal"))
        x, y = self.pool.examples(*self.test_set(group, start, stop, goal=goal))
        if len(y) == 0:  # this group has none of the slice's labels
            empty: Metrics = {"num-examples": 0, "loss_sum": 0.0, "correct": 0}
            nothing = empty_table(self._data.images.num_outputs, real=self.learns_numbers)
            return make_reply(message, empty | self._table(config, nothing))
        logits = predict(model, x)
        result = score(logits, y)
        metrics: Metrics = {
            "num-examples": len(y),
            "loss_sum": result["loss_sum"],
            "correct": result["correct"],
        }
        return make_reply(message, metrics | self._table(config, full_table_of(logits, y)))

    def _table(self, config: Values, table: np.ndarray) -> Metrics:
        """Return the table of a slice as a reply has it, where it is asked for."""
        if not config.get("confusion"):
            return {}
        name = "sums" if self.learns_numbers else "confusion"
        return {name: in_unit(table, self.target_unit).ravel().tolist()}
