"""Clients whose numbers are powers of two: sums are exact in any order."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    target = 2.0 ** int(context.node_config["partition-id"])
    target *= context.run_config["column.scale"]
    [weights] = msg.content["arrays"].to_numpy_ndarrays()
    loss = float(np.mean((weights - target) ** 2))
    weights = weights + context.run_config["lr"] * (target - weights)
    metrics = MetricRecord({"train_loss": loss, "num-examples": 8})
    content = RecordDict({"arrays": ArrayRecord([weights]), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    target = 2.0 ** int(context.node_config["partition-id"])
    [weights] = msg.content["arrays"].to_numpy_ndarrays()
    error = float(np.mean(np.abs(weights - target)))
    metrics = MetricRecord({"eval_error": error, "num-examples": 8})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)
