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
``query.losses``    an ArrayRecord per model                        ``metrics``: losses, one per model in their order,
                                                                    mean over the client's training examples
``query.signature`` nothing                                         ``arrays``: signature (classes, pixels), the share
                                                                    of each class times its mean image
``query.subspace``  ``config``: vectors                             ``arrays``: subspace (pixels, rank), orthonormal
``query.init``      nothing                                         ``arrays``: the trial's initial model
``query.test``      ``arrays``, ``config``: group, start, stop,     ``metrics``: num-examples, loss_sum, correct,
                    confusion (bool)                                confusion (classes x classes, row by row)
``query.losses``    ``model-0`` to ``model-<K-1>``, ``config``      ``choice``: losses (K), on the training examples
==================  ==============================================  ====================================================

``config`` of ``train`` holds ``server-round``, ``lr``, ``lr-decay`` and the fields of ``LocalTraining``. A key that is
not sent has its default, so Flower's strategies work as they are. With ``keep-local`` a client trains and evaluates a
model of its own, kept in ``context.state["model"]`` and begun from the first arrays it receives; its replies carry no
arrays. With ``method`` a client does what ``runner.client.methods`` says of it. Every reply
also has ``load``, see ``runner.load.load_mod``.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from torch import Tensor, nn

from models import build_model
from runner.arrays import write_array
from runner.client import choosing, personal
from runner.client.arrays import load_weights, read_weights, weighted_mean
from runner.client.methods import Done, Work, method_of
from runner.client.signatures import signature, subspace
from runner.client.training import LocalTraining, confusion, evaluate, predict, score, train
from runner.data.federated import FederatedData
from runner.load import load_mod
from runner.seeding import derive_seed

_STAGED_BYTES = 256 * 2**20

Examples = tuple[Tensor, Tensor]

TRAIN: dict[str, Callable[[Work], Done]] = {
    "choose": choosing.choose,
    "soft": choosing.soft,
    "scaffold": personal.scaffold,
    "ditto": personal.ditto,
    "apfl": personal.apfl,
    "fedper": personal.fedper,
}
PREPARE: dict[str, Callable[[Work], nn.Module]] = {
    "choose": choosing.chosen,
    "ditto": personal.ditto_model,
    "apfl": personal.apfl_model,
    "fedper": personal.fedper_model,
    "finetune": personal.finetuned,
}


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
    """
    client = _Client(data, model, seed, device, threads)
    app = ClientApp(mods=[load_mod])
    app.train(mods=list(train_mods))(client.train)
    app.evaluate()(client.evaluate)
    app.query("aggregate")(client.aggregate)
    app.query("test")(client.test)
    app.query("losses")(client.losses)
    app.query("init")(client.init)
    app.query("signature")(client.signature)
    app.query("subspace")(client.subspace)
    return app


class _Client:
    """Any client of the trial, one at a time: all that a client is beyond its data lives in messages and contexts."""

    def __init__(
        self, data: FederatedData, model: ModelSpec, seed: int, device: Literal["cpu", "auto"], threads: int
    ) -> None:
        self._data, self._spec, self._seed, self._threads = data, model, seed, threads
        self._wanted_device = device
        self._staged: OrderedDict[tuple[Any, ...], Examples] = OrderedDict()
        self._staged_bytes = 0

    def init(self, message: Message, context: Context) -> Message:
        """Return the trial's initial model, drawn from its seed: the server itself does without torch."""
        del context
        return Message(RecordDict({"arrays": self._initial}), reply_to=message)

    def train(self, message: Message, context: Context) -> Message:
        config = _config(message)
        if "method" in config:
            work = self._work(message, context, "train")
            done = method_of(config, TRAIN)(work)
            reply = _reply(message, _train_metrics(work.y, done.result) | dict(done.metrics), done.arrays)
            reply.content.update(done.records)
            return reply
        model = self._load(_own_or_sent(message, context, config))
        client = _partition_id(context)
        x, y = self._client_examples(client, "train", config)
        seed = derive_seed(self._seed, "train", int(config.get("server-round", 1)), client)
        result = train(model, x, y, LocalTraining.from_config(config), seed)
        metrics = _train_metrics(y, result)
        if not config.get("keep-local"):
            return _reply(message, metrics, read_weights(model))
        context.state["model"] = read_weights(model)
        return _reply(message, metrics)

    def evaluate(self, message: Message, context: Context) -> Message:
        config = _config(message)
        if "method" in config:
            model = method_of(config, PREPARE)(self._work(message, context, "prepare"))
        else:
            model = self._load(_own_or_sent(message, context, config))
        client = _partition_id(context)
        x, y = self._client_examples(client, "eval", config)
        if len(y) == 0:  # a client of one example, or partition.eval_fraction=0
            x, y = self._client_examples(client, "train", config)
        result = evaluate(model, x, y)
        metrics = {"num-examples": len(y), "eval_loss": result["loss"], "eval_acc": result["correct"] / len(y)}
        return _reply(message, metrics)

    def losses(self, message: Message, context: Context) -> Message:
        """Return the client's mean training loss under each of the models that it was sent, in their order."""
        work = self._work(message, context, "losses")
        return _reply(message, {"losses": choosing.mean_losses(work), "num-examples": len(work.y)})

    def aggregate(self, message: Message, context: Context) -> Message:
        """Be the server of a cluster: average its members' arrays in the order in which they were sent."""
        del context
        weights, members = message.content.metric_records["weights"], message.content.array_records
        if weights.keys() != members.keys():
            raise ValueError(f"query.aggregate has arrays of {sorted(members)}, but weights of {sorted(weights)}")
        in_order = [cast(float, weights[key]) for key in members]
        mean = weighted_mean(list(members.values()), in_order)
        return _reply(message, {"num-examples": sum(in_order)}, mean)

    def signature(self, message: Message, context: Context) -> Message:
        """Tell the moments of images and labels: feature shift, label skew and concept shift all move them."""
        x, y = self._data.client(_partition_id(context), "train")
        found = signature(x, y, len(self._data.images.class_names))
        return _reply(message, {"num-examples": len(y)}, ArrayRecord({"signature": write_array(found)}))

    def subspace(self, message: Message, context: Context) -> Message:
        """Tell the directions that span the client's raw images (PACFL)."""
        x, y = self._data.client(_partition_id(context), "train")
        found = subspace(x, y, int(_config(message)["vectors"]))
        return _reply(message, {"num-examples": len(y)}, ArrayRecord({"subspace": write_array(found)}))

    def test(self, message: Message, context: Context) -> Message:
        del context
        config = _config(message)
        model = self._load(message.content.array_records["arrays"])
        group, start, stop = (int(config[key]) for key in ("group", "start", "stop"))
        x, y = self._stage(("test", group, start, stop), lambda: self._data.test(group, start, stop))
        if len(y) == 0:  # this group has none of the slice's labels
            empty: dict[str, Any] = {"num-examples": 0, "loss_sum": 0.0, "correct": 0}
            classes = len(self._data.images.class_names)
            return _reply(message, empty | ({"confusion": [0] * classes**2} if config.get("confusion") else {}))
        logits = predict(model, x)
        result = score(logits, y)
        metrics: dict[str, Any] = {
            "num-examples": len(y),
            "loss_sum": result["loss_sum"],
            "correct": int(result["correct"]),
        }
        if config.get("confusion"):
            metrics["confusion"] = confusion(logits, y).ravel().tolist()
        return _reply(message, metrics)

    def _work(self, message: Message, context: Context, purpose: str) -> Work:
        """Return what a method of ``runner.client.methods`` works with."""
        torch.set_num_threads(self._threads)
        config, client = _config(message), _partition_id(context)
        x, y = self._client_examples(client, "train", config)
        seed = derive_seed(self._seed, purpose, int(config.get("server-round", 1)), client)
        return Work(
            model=self._model,
            x=x,
            y=y,
            hp=LocalTraining.from_config(config),
            seed=seed,
            config=config,
            arrays=message.content.array_records,
            state=context.state,
            initial=lambda: self._initial,
        )

    # What a process holds: device, model, normalised examples.

    @cached_property
    def _initial(self) -> ArrayRecord:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, "model"))
            return read_weights(self._build())

    @cached_property
    def _device(self) -> torch.device:
        if self._wanted_device == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        # The same bits for the same config: cuBLAS needs the variable as well (the engine sets it before CUDA starts).
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        return torch.device("cuda", torch.cuda.current_device())

    @cached_property
    def _model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # its weights are overwritten; the process's generator stays as it was
            return self._build().to(self._device)

    def _build(self) -> nn.Module:
        classes = len(self._data.images.class_names)
        return build_model(self._spec.name, self._data.images.train_x.shape[1:], classes, **self._spec.kwargs)

    def _load(self, arrays: ArrayRecord) -> nn.Module:
        torch.set_num_threads(self._threads)  # per task: trials with other settings share the process
        load_weights(self._model, arrays)
        return self._model

    def _client_examples(self, client: int, split: Literal["train", "eval"], config: Mapping[str, Any]) -> Examples:
        phase = self._data.phase(int(config.get("server-round", 1)))
        return self._stage((split, client, phase), lambda: self._data.client(client, split, phase))

    def _stage(self, key: tuple[Any, ...], read: Callable[[], tuple[np.ndarray, np.ndarray]]) -> Examples:
        """Return normalised examples on the device, from the least recently used cache or from the data set."""
        if key in self._staged:
            self._staged.move_to_end(key)
            return self._staged[key]
        images, labels = read()
        mean = torch.tensor(self._data.images.mean, device=self._device).view(-1, 1, 1)
        std = torch.tensor(self._data.images.std, device=self._device).view(-1, 1, 1)
        # Bytes travel to the device, floats are made there. The copy owns its memory: the data set's is read-only.
        x = torch.from_numpy(np.array(images, order="C")).to(self._device).float().div_(255).sub_(mean).div_(std)
        y = torch.from_numpy(np.array(labels, dtype=np.int64)).to(self._device)
        self._staged[key] = x, y
        self._staged_bytes += x.nbytes
        while self._staged_bytes > _STAGED_BYTES and len(self._staged) > 1:
            _, (oldest, _) = self._staged.popitem(last=False)
            self._staged_bytes -= oldest.nbytes
        return x, y


def _config(message: Message) -> Mapping[str, Any]:
    return message.content.config_records.get("config", ConfigRecord())


def _train_metrics(y: Tensor, result: Mapping[str, float]) -> dict[str, Any]:
    return {
        "num-examples": len(y),
        "train_loss": result["loss"],
        "train_acc": result["accuracy"],
        "steps": int(result["steps"]),
    }


def _reply(message: Message, metrics: dict[str, Any], arrays: ArrayRecord | None = None) -> Message:
    content = RecordDict({"metrics": MetricRecord(metrics)})
    if arrays is not None:
        content["arrays"] = arrays
    return Message(content, reply_to=message)


def _partition_id(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _own_or_sent(message: Message, context: Context, config: Mapping[str, Any]) -> ArrayRecord:
    """Return the client's own model where it keeps one, else the arrays it was sent."""
    if config.get("keep-local") and "model" in context.state:
        return context.state.array_records["model"]
    return message.content.array_records["arrays"]
