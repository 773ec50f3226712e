"""Clients that fit for two steps of the solver."""

import warnings

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.metrics import log_loss

from sklearnexample.task import make_model, points, set_weights, weights_of

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    x, y = points(context.node_config["partition-id"], "train")
    model = make_model(context.run_config["penalty-strength"])
    set_weights(model, msg.content["arrays"].to_numpy_ndarrays())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(x, y)
    loss = log_loss(y, model.predict_proba(x), labels=[0, 1])
    content = RecordDict(
        {
            "arrays": ArrayRecord(weights_of(model)),
            "metrics": MetricRecord({"num-examples": len(x), "train_logloss": loss}),
        }
    )
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    x, y = points(context.node_config["partition-id"], "test")
    model = set_weights(make_model(1.0), msg.content["arrays"].to_numpy_ndarrays())
    metrics = {"num-examples": len(x), "accuracy": float(model.score(x, y))}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
