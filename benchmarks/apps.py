"""ClientApps as a Flower user writes them; the same objects run on Flower's engine and on ours."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.work import WORKS, load, make_model, train


def echo_app() -> ClientApp:
    """Send every model back as it came."""
    app = ClientApp()

    @app.train()
    def echo(message: Message, context: Context) -> Message:
        content = RecordDict(
            {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
        )
        return Message(content, reply_to=message)

    return app


_held: dict[str, tuple] = {}
"""Tensors and model of a process: loaded once, as a careful user does."""


def learning_app(name: str, folder: str) -> ClientApp:
    """Train the client's tensors for an epoch."""
    app = ClientApp()

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        if name not in _held:
            torch.set_num_threads(1)
            _held[name] = (*load(folder, name), make_model(WORKS[name]))
        x, y, model = _held[name]
        client = int(context.node_config["partition-id"])
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        loss = train(model, x[client], y[client], WORKS[name])
        metrics = MetricRecord({"train_loss": loss, "num-examples": len(y[client])})
        return Message(
            RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}),
            reply_to=message,
        )

    return app
