"""Clients that remember their own weights and how often they trained."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    partition = int(context.node_config["partition-id"])
    [weights] = msg.content["arrays"].to_numpy_ndarrays()
    if "own" in context.state:
        weights = (weights + context.state["own"].to_numpy_ndarrays()[0]) / 2
    rounds = context.state["log"]["rounds"] if "log" in context.state else []
    rounds = [*rounds, msg.content["config"]["server-round"]]
    weights = weights + np.float64(2.0**partition)
    context.state["own"] = ArrayRecord([weights])
    context.state["log"] = ConfigRecord({"rounds": rounds})
    metrics = MetricRecord({"num-examples": 2, "rounds": len(rounds)})
    return Message(RecordDict({"arrays": ArrayRecord([weights]), "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    own = float(context.state["own"].to_numpy_ndarrays()[0].sum())
    metrics = MetricRecord({"num-examples": 2, "own": own})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)
