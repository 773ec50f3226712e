"""Mods around all of the app and around a function of it: Flower's clipping, and a counter."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod


def count_bytes(msg: Message, context: Context, call_next):
    reply = call_next(msg, context)
    size = sum(len(array.data) for array in reply.content["arrays"].values())
    reply.content["metrics"]["bytes"] = size
    return reply


app = ClientApp(mods=[fixedclipping_mod])


@app.train(mods=[count_bytes])
def train(msg: Message, context: Context):
    partition = int(context.node_config["partition-id"])
    [weights] = msg.content["arrays"].to_numpy_ndarrays()
    weights = weights + 2.0**partition
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord([weights]), "metrics": metrics}), reply_to=msg)
