"""Clients that add what the server tells them."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    partition = int(context.node_config["partition-id"])
    [weights] = msg.content["arrays"].to_numpy_ndarrays()
    weights = weights + msg.content["config"]["half"] * (partition + 1)
    metrics = MetricRecord({"loss": float(weights.sum()), "num-examples": 4})
    return Message(RecordDict({"arrays": ArrayRecord([weights]), "metrics": metrics}), reply_to=msg)
