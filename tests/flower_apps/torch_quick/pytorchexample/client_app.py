"""The client of Flower's template; it seeds itself, so that it repeats itself on any engine."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from pytorchexample.task import Net, fit, load_data, score

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    partition = context.node_config["partition-id"]
    torch.manual_seed(100 * partition + msg.content["config"]["server-round"])
    net = Net()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    loader, _ = load_data(partition, context.run_config["batch-size"])
    lr = msg.content["config"]["lr"]
    loss = fit(net, loader, context.run_config["local-epochs"], lr)
    content = RecordDict(
        {
            "arrays": ArrayRecord(net.state_dict()),
            "metrics": MetricRecord({"train_loss": loss, "num-examples": len(loader.dataset)}),
        }
    )
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    net = Net()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    _, loader = load_data(context.node_config["partition-id"], context.run_config["batch-size"])
    loss, acc = score(net, loader)
    metrics = {"eval_loss": loss, "eval_acc": acc, "num-examples": len(loader.dataset)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
