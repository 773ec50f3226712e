"""Small Flower ClientApps for tests of the engine: plain NumPy, results by hand."""

import os
import resource
import signal
import threading
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp


def add_app(
    fail: tuple[int, ...] = (),
    kill_once: str = "",
    kill_always: tuple[int, ...] = (),
    hang: tuple[int, ...] = (),
    slow: tuple[int, ...] = (),
    fail_first: tuple[int, ...] = (),
    replies: str = "",
):
    """Client p (partition id) adds p + 1 to every weight, and has 10 * (p + 1) examples.

    It counts its training rounds in ``context.state``. It can be told to raise, to kill its process
    (once, leaving a mark in the folder ``kill_once``), to hang, to be slow, or to raise in round 1
    alone. Client 1 can be told to reply what nobody can read (``unpicklable``, ``corrupt``), or to
    run out of memory (``memory``).
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        if partition in fail or (
            partition in fail_first and message.content["config"].get("server-round") == 1
        ):
            raise ValueError(f"client {partition} fails on purpose")
        if partition in kill_always:
            os.kill(os.getpid(), signal.SIGKILL)
        if kill_once and partition == 1 and not (mark := Path(kill_once) / "killed").exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if partition in hang:
            time.sleep(600)
        if partition in slow:
            time.sleep(0.8)
        record = context.state.get("count") or MetricRecord({"n": 0})
        context.state["count"] = MetricRecord({"n": int(record["n"]) + 1})
        arrays = message.content["arrays"]
        new = ArrayRecord(
            {k: Array(a.numpy() + np.float32(partition + 1)) for k, a in arrays.items()}
        )
        metrics = MetricRecord(
            {
                "num-examples": 10 * (partition + 1),
                "train_loss": float(partition),
                "n": int(record["n"]) + 1,
            }
        )
        if partition == 1 and replies:
            if replies == "memory":
                resource.setrlimit(
                    resource.RLIMIT_AS, (2**40, resource.getrlimit(resource.RLIMIT_AS)[1])
                )
                np.ones(2**42)  # 32 TiB: refused, as an allocation is that does not fit
            if replies == "corrupt":
                new["w"] = Array("float32", (4,), "numpy.ndarray", b"these are no numbers")
            if replies == "unpicklable":
                metrics.__dict__["lock"] = threading.Lock()
        return Message(RecordDict({"arrays": new, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        total = float(sum(a.numpy().sum() for a in message.content["arrays"].values()))
        metrics = MetricRecord(
            {"num-examples": partition + 1, "eval_loss": total, "eval_acc": partition / 10}
        )
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    @app.query("echo")
    def echo(message: Message, context: Context) -> Message:
        return Message(
            RecordDict({"config": ConfigRecord({"node": context.node_id})}), reply_to=message
        )

    return app


def echo_app():
    """Every training message comes back as it is, with one example."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = RecordDict(
            {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
        )
        return Message(content, reply_to=message)

    return app


def model(value: float = 0.0, size: int = 4) -> ArrayRecord:
    """Return a model of one vector."""
    return ArrayRecord({"w": Array(np.full(size, value, np.float32))})


def server_app(kill_once: str = "", kill_always: tuple[int, ...] = ()):
    """``tests.fakes.halfway_app`` of two pairs of clients, whose servers die while they aggregate.

    Node 1's process is killed once, leaving a mark in the folder ``kill_once``;
    those of ``kill_always`` every time.
    """
    from tests.fakes import halfway_app

    app = halfway_app({1: (8, 0), 2: (4, 0), 3: (0, 8), 4: (0, 4)}, {1: 1, 2: 3, 3: 1, 4: 1})

    def run(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "query.aggregate":
            first = (
                bool(kill_once)
                and context.node_id == 1
                and not (Path(kill_once) / "killed").exists()
            )
            if first:
                (Path(kill_once) / "killed").touch()
            if first or context.node_id in kill_always:
                os.kill(os.getpid(), signal.SIGKILL)
        return app(message, context)

    return run
